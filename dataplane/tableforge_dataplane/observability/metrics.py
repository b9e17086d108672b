"""Numbers about this instance, in Prometheus's form.

The message path counts in plain integers and dictionaries; they become metrics only when somebody scrapes.
Names are the guide's, `tableforge_websocket_connections_total` and `…_rooms_total` included, which are gauges
in spite of their ending; existing dashboards depend on them.
"""

import os
from collections.abc import Iterator
from typing import Final

from prometheus_client import (
    CONTENT_TYPE_PLAIN_0_0_4,
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

MAX_MESSAGE_TYPES: Final = 50
"""Events counted by name: the names come from clients, and a label value each would grow without bound."""

OTHER: Final = "other"
"""Where the events beyond those are counted."""

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


class Metrics:
    """What the parts of an instance count. Whoever changes a thing changes the number, nobody else."""

    __slots__ = (
        "connections",
        "connections_closed",
        "connections_refused",
        "heartbeats_failed",
        "messages_received",
        "messages_sent",
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
        self.connections_closed = ReasonCounts()
        """By close code, as text."""
        self.slow_consumers = 0
        """Connections closed with 4408."""
        self.recoveries = ReasonCounts()
        """Joins with a `pos`, by outcome: `recovered`, `trimmed`, `log_lost`, `forked`."""
        self.resets = ReasonCounts()
        """`reset` events told to rooms, by reason."""
        self.publish_queue_depth = 0
        """Publishes waiting for Redis, now."""
        self.redis_connected = False
        self.heartbeats_failed = 0
        """Writes of the instance's record or lease that did not succeed."""


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
            "Connections closed, by close code.",
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
        yield self._counter(
            "tableforge_registry_heartbeats_failed",
            "Writes of the instance's record or lease that did not succeed.",
            None,
            {"": metrics.heartbeats_failed},
        )

    def _gauge(self, name: str, text: str, value: int) -> Metric:
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
