"""Numbers about this instance, in Prometheus's form.

The message path counts in plain integers and dictionaries; they become metrics only when somebody scrapes.
Names are the guide's, `tableforge_websocket_connections_total` and `…_rooms_total` included, which are gauges
in spite of their ending; existing dashboards depend on them.
"""

import bisect
import itertools
import os
from collections.abc import Callable, Iterator
from typing import Final

from prometheus_client import (
    CONTENT_TYPE_PLAIN_0_0_4,
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from tableforge_dataplane.observability.breaker import BreakerState

MAX_MESSAGE_TYPES: Final = 50
"""Events counted by name: the names come from clients, and a label value each would grow without bound."""

LATENCY_BOUNDS_SECONDS: Final = (
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
)

SAMPLED_EVERY: Final = 16
"""Of so many publishes or deliveries one is timed: a power of two."""

OTHER: Final = "other"
"""Where what has no label of its own is counted."""

CLOSE_CODES: Final = frozenset(map(str, (*range(1000, 1016), 4400, 4401, 4403, 4408, 4429)))
"""The WebSocket standard's and our own (docs/protocol.md)."""

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4


class EventCounts(dict[str, int]):
    """Messages by event name: the first `MAX_MESSAGE_TYPES` names, the rest under `other`."""

    __slots__ = ()

    def add(self, event: str, count: int = 1) -> None:
        """Count `count` messages with this event name (about 0.1 µs)."""
        if event in self:
            self[event] += count
        elif len(self) < MAX_MESSAGE_TYPES or event == OTHER:
            self[event] = count
        else:
            self[OTHER] = self.get(OTHER, 0) + count

    @property
    def total(self) -> int:
        """Messages of all names."""
        return sum(self.values())


class ReasonCounts(dict[str, int]):
    """Occurrences by reason. Reasons are literals in the code, so their number is bounded by it."""

    __slots__ = ()

    def add(self, reason: str, count: int = 1) -> None:
        """Count `count` occurrences."""
        self[reason] = self.get(reason, 0) + count


class CloseCounts(ReasonCounts):
    """Closes by code: a backend may choose among two thousand more, and those are counted under `other`."""

    __slots__ = ()

    def add(self, reason: str, count: int = 1) -> None:
        """Count `count` closes with this code, as text."""
        super().add(reason if reason in CLOSE_CODES else OTHER, count)


class CallCounts(dict[tuple[str, int], int]):
    """Calls by route and HTTP status. Routes are literals in the code."""

    __slots__ = ()

    def record(self, route: str, status: int) -> None:
        """Count one."""
        self[route, status] = self.get((route, status), 0) + 1


class Histogram:
    """Durations by upper bounds. Everything on the message path observes a sample, not each message."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration; a negative one, where two clocks disagree, as 0 (0.25 µs)."""
        if seconds < 0.0:
            seconds = 0.0
        self.counts[bisect.bisect_left(self.bounds, seconds)] += 1
        self.total += seconds


class Metrics:
    """What the parts of an instance count. Whoever changes a thing changes the number, nobody else."""

    __slots__ = (
        "api_calls",
        "breakers",
        "compression_in_bytes",
        "compression_out_bytes",
        "connections",
        "connections_closed",
        "connections_refused",
        "connections_shed",
        "delivery_seconds",
        "directory_mended",
        "following",
        "heartbeats_failed",
        "home_moves",
        "homes",
        "left_over_budget",
        "loop_lag",
        "loop_lag_seconds",
        "memory_threshold_bytes",
        "messages_dropped",
        "messages_received",
        "messages_sent",
        "migrate_hints",
        "pressure",
        "publish_ack_seconds",
        "publish_queue_depth",
        "publishes_refused",
        "recoveries",
        "redis_connected",
        "resets",
        "rooms",
        "slow_consumers",
    )

    def __init__(self) -> None:
        self.connections = 0
        """Open client connections, now."""
        self.rooms = 0
        """Rooms with at least one member on this instance, now."""
        self.messages_sent = EventCounts()
        """Frames of type `message` handed to sockets."""
        self.messages_received = EventCounts()
        """Publishes accepted from clients."""
        self.publishes_refused = ReasonCounts()
        """By the protocol's error code."""
        self.connections_refused = ReasonCounts()
        """At the handshake: `full`, `draining`, `unauthorized`, …"""
        self.connections_closed = CloseCounts()
        """Closes begun here; a client's own are not among them."""
        self.connections_shed = ReasonCounts()
        """Closed because the instance was under pressure: `memory`, `lag`."""
        self.messages_dropped = ReasonCounts()
        """Messages that came and went no further: `slow_consumer`, `duplicate`, `malformed`."""
        self.publish_ack_seconds = Histogram(LATENCY_BOUNDS_SECONDS)
        """From a publish's arrival to its acknowledgement; one in `SAMPLED_EVERY` of each connection."""
        self.delivery_seconds = Histogram(LATENCY_BOUNDS_SECONDS)
        """From a message's `ts`, by Redis's clock, to its delivery, by this machine's; one in some."""
        self.pressure = 0
        """`pressure.Stage`, now."""
        self.loop_lag = Histogram(LATENCY_BOUNDS_SECONDS)
        """How late the event loop was, four times a second."""
        self.loop_lag_seconds = 0.0
        """The same, averaged over some seconds."""
        self.memory_threshold_bytes = 0
        """Where pressure begins."""
        self.compression_in_bytes = 0
        """Messages above the threshold before compression: each once, however many clients get it."""
        self.compression_out_bytes = 0
        """The same after it."""
        self.slow_consumers = 0
        """Connections closed with 4408."""
        self.recoveries = ReasonCounts()
        """Joins with a `pos`, by outcome: `recovered`, `trimmed`, `log_lost`, `forked`."""
        self.resets = ReasonCounts()
        """`reset` events told to rooms, by reason."""
        self.publish_queue_depth = 0
        """Publishes waiting for Redis, now."""
        self.redis_connected = False
        self.breakers: dict[str, BreakerState] = {"publish": "closed", "registry": "closed"}
        """Circuit breakers around Redis: `publish` the message path's, `registry` the one around all else."""
        self.api_calls = CallCounts()
        """Calls of the server API, `/stats` and `/rooms`."""
        self.homes = 0
        """Rooms whose home this instance is, now."""
        self.home_moves = ReasonCounts()
        """Moves of homes that this instance was asked for, whosever they are, by outcome."""
        self.migrate_hints = ReasonCounts()
        """Clients told to connect elsewhere, by reason: `home`, `rebalancing`."""
        self.following: Callable[[], int] = _nobody
        """Says how many of them are still here and may go any moment."""
        self.directory_mended = 0
        """Entries of the directory of homes that made no sense and were removed."""
        self.left_over_budget = 0
        """Clients sent away by an instance that leaves, beyond what the cluster's budget granted."""
        self.heartbeats_failed = 0
        """Writes of the instance's record or lease that did not succeed."""


def _nobody() -> int:
    return 0


class _InstanceCollector(Collector):
    def __init__(self, metrics: Metrics, instance: str) -> None:
        self._metrics = metrics
        self._instance = instance

    def collect(self) -> Iterator[Metric]:
        metrics = self._metrics
        yield self._gauge(
            "tableforge_websocket_connections_total", "Open WebSocket connections.", metrics.connections
        )
        yield self._gauge(
            "tableforge_websocket_rooms_total",
            "Rooms with at least one member on this instance.",
            metrics.rooms,
        )
        yield self._counter(
            "tableforge_websocket_messages_sent",
            "Messages handed to sockets, by event name.",
            "message_type",
            metrics.messages_sent,
        )
        yield self._counter(
            "tableforge_websocket_messages_received",
            "Messages accepted from clients, by event name.",
            "message_type",
            metrics.messages_received,
        )
        yield self._counter(
            "tableforge_websocket_publishes_refused",
            "Publishes answered with an error, by its code.",
            "reason",
            metrics.publishes_refused,
        )
        yield self._counter(
            "tableforge_websocket_connections_refused",
            "Connections refused at the handshake.",
            "reason",
            metrics.connections_refused,
        )
        yield self._counter(
            "tableforge_websocket_connections_closed",
            "Closes of connections that the instance began, by close code.",
            "code",
            metrics.connections_closed,
        )
        yield self._counter(
            "tableforge_websocket_slow_consumers",
            "Connections closed because they took too little, too slowly.",
            None,
            {"": metrics.slow_consumers},
        )
        yield self._counter(
            "tableforge_websocket_connections_shed",
            "Connections closed because the instance was under pressure.",
            "reason",
            metrics.connections_shed,
        )
        yield self._counter(
            "tableforge_websocket_messages_dropped",
            "Messages that arrived and went no further.",
            "reason",
            metrics.messages_dropped,
        )
        yield self._histogram(
            "tableforge_publish_ack_seconds",
            "From a publish's arrival to its acknowledgement.",
            metrics.publish_ack_seconds,
        )
        yield self._histogram(
            "tableforge_publish_delivery_seconds",
            "From a message's time stamp to its delivery.",
            metrics.delivery_seconds,
        )
        yield self._histogram(
            "tableforge_event_loop_lag_seconds", "How late the event loop was.", metrics.loop_lag
        )
        yield self._gauge(
            "tableforge_event_loop_lag_average_seconds",
            "The same, averaged over five seconds.",
            metrics.loop_lag_seconds,
        )
        yield self._gauge(
            "tableforge_pressure_stage",
            "0 calm, 1 warns, 2 refuses connections, 3 sheds the slowest.",
            metrics.pressure,
        )
        yield self._gauge(
            "tableforge_memory_threshold_bytes",
            "Resident memory at which pressure begins.",
            metrics.memory_threshold_bytes,
        )
        yield self._counter(
            "tableforge_websocket_compression_in_bytes",
            "Bytes of messages given to compression, each once.",
            None,
            {"": metrics.compression_in_bytes},
        )
        yield self._counter(
            "tableforge_websocket_compression_out_bytes",
            "Bytes they were compressed to.",
            None,
            {"": metrics.compression_out_bytes},
        )
        yield self._counter(
            "tableforge_websocket_recoveries",
            "Joins that asked to go on where they left off, by outcome.",
            "outcome",
            metrics.recoveries,
        )
        yield self._counter(
            "tableforge_websocket_resets",
            "Rooms told that what follows does not continue what came before.",
            "reason",
            metrics.resets,
        )
        yield self._gauge(
            "tableforge_publish_queue_depth", "Publishes waiting for Redis.", metrics.publish_queue_depth
        )
        yield self._gauge(
            "tableforge_redis_connected", "1 while Redis answers, else 0.", int(metrics.redis_connected)
        )
        breakers = GaugeMetricFamily(
            "tableforge_circuit_breaker_state",
            "Circuit breakers around Redis: 0 closed, 1 half-open, 2 open.",
            labels=["instance_id", "breaker"],
        )
        for name, state in metrics.breakers.items():
            breakers.add_metric([self._instance, name], ("closed", "half-open", "open").index(state))
        yield breakers
        calls = CounterMetricFamily(
            "tableforge_http_api_calls",
            "Calls of the server API, by route and HTTP status.",
            labels=["instance_id", "route", "status"],
        )
        for (route, status), count in list(metrics.api_calls.items()):
            calls.add_metric([self._instance, route, str(status)], count)
        yield calls
        yield self._gauge("tableforge_homes", "Rooms whose home this instance is.", metrics.homes)
        yield self._counter(
            "tableforge_home_moves",
            "Moves of rooms' homes that this instance carried out, by outcome.",
            "outcome",
            metrics.home_moves,
        )
        yield self._counter(
            "tableforge_migrate_hints",
            "Times that clients were told to connect elsewhere while this instance stays, by reason.",
            "reason",
            metrics.migrate_hints,
        )
        yield self._gauge(
            "tableforge_clients_following",
            "Clients that were told to connect elsewhere and are expected to do so any moment.",
            metrics.following(),
        )
        yield self._counter(
            "tableforge_left_over_budget",
            "Clients sent away by an instance that leaves, beyond the cluster's budget of reconnects.",
            None,
            {"": metrics.left_over_budget},
        )
        yield self._counter(
            "tableforge_directory_mended",
            "Entries of the directory of homes that made no sense and were removed.",
            None,
            {"": metrics.directory_mended},
        )
        yield self._counter(
            "tableforge_registry_heartbeats_failed",
            "Writes of the instance's record or lease that did not succeed.",
            None,
            {"": metrics.heartbeats_failed},
        )

    def _histogram(self, name: str, text: str, histogram: Histogram) -> Metric:
        family = HistogramMetricFamily(name, text, labels=["instance_id"])
        bounds = [*(f"{bound:g}" for bound in histogram.bounds), "+Inf"]
        buckets = list(zip(bounds, itertools.accumulate(histogram.counts), strict=True))
        family.add_metric([self._instance], buckets, histogram.total)
        return family

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, text, labels=["instance_id"])
        family.add_metric([self._instance], value)
        return family

    def _counter(self, name: str, text: str, label: str | None, counts: dict[str, int]) -> Metric:
        labels = ["instance_id"] if label is None else ["instance_id", label]
        family = CounterMetricFamily(name, text, labels=labels)
        for raw, count in list(counts.items()):
            # half a surrogate pair in an event's name must not make the whole page unencodable
            value = raw.encode("utf-8", "backslashreplace").decode("utf-8")
            family.add_metric([self._instance] if label is None else [self._instance, value], count)
        return family


def resident_memory_bytes() -> int:
    """What this process has in memory now; 0 where the system has no `/proc`."""
    try:
        with open("/proc/self/statm", "rb") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE")
    except FileNotFoundError:
        return 0


class Exposition:
    """Turns `Metrics` and the process's own numbers into what Prometheus scrapes."""

    def __init__(self, metrics: Metrics, *, instance: str) -> None:
        # a registry of its own: two instances in one process (tests) would otherwise collide
        self._registry = CollectorRegistry()
        self._registry.register(_InstanceCollector(metrics, instance))
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    def render(self) -> bytes:
        """The text format 0.0.4, which keeps the names of gauges as they are (a few hundred µs)."""
        return generate_latest(self._registry)
