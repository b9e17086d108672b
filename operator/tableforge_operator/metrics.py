"""What the operator counts about itself, scraped from `/metrics` on the health port."""

from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

REGISTRY: Final = CollectorRegistry()

RECONCILES: Final = Counter(
    "tableforge_operator_reconciles_total",
    "Reconciles by outcome: ok, requeued (something the API server refused or did not answer) or failed.",
    ["outcome"],
    registry=REGISTRY,
)
RECONCILE_SECONDS: Final = Histogram(
    "tableforge_operator_reconcile_seconds",
    "How long a reconcile took.",
    buckets=(0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
    registry=REGISTRY,
)
RECONCILE_ERRORS: Final = Counter(
    "tableforge_operator_reconcile_errors_total",
    "What went wrong in reconciles, by reason: a child that was refused, or what ended the reconcile.",
    ["reason"],
    registry=REGISTRY,
)
QUEUE_DEPTH: Final = Gauge(
    "tableforge_operator_queue_depth", "Clusters that are due and wait for a worker.", registry=REGISTRY
)
QUEUE_AGE_SECONDS: Final = Gauge(
    "tableforge_operator_queue_age_seconds",
    "For how long the cluster that has waited longest for a worker has been due.",
    registry=REGISTRY,
)
QUEUE_WAIT_SECONDS: Final = Histogram(
    "tableforge_operator_queue_wait_seconds",
    "For how long clusters were due before a worker took them.",
    buckets=(0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
    registry=REGISTRY,
)
API_CALLS: Final = Counter(
    "tableforge_operator_api_calls_total",
    "Calls to the API server by verb, resource and HTTP status (0: no answer).",
    ["verb", "resource", "code"],
    registry=REGISTRY,
)
API_WRITES: Final = Counter(
    "tableforge_operator_api_writes_total",
    "Those of them that may write, likewise.",
    ["verb", "resource", "code"],
    registry=REGISTRY,
)
API_SECONDS: Final = Histogram(
    "tableforge_operator_api_seconds",
    "Until the head of the API server's answer, or until it was given up, by verb.",
    ["verb"],
    buckets=(0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
    registry=REGISTRY,
)
API_WAIT_SECONDS: Final = Counter(
    "tableforge_operator_api_wait_seconds_total",
    "For how long calls were held back: by the operator's own limit, or because the API server asked for it.",
    registry=REGISTRY,
)
WATCH_RESTARTS: Final = Counter(
    "tableforge_operator_watch_restarts_total",
    "Kinds that were listed anew, by why: resync, gone (the resource version was too old), failed or denied.",
    ["resource", "reason"],
    registry=REGISTRY,
)
WATCH_UP: Final = Gauge(
    "tableforge_operator_watch_up",
    "Whether objects of a kind are watched (1), or may not be, are unknown, or cannot be reached (0).",
    ["resource", "namespace"],
    registry=REGISTRY,
)
FLEET_READS: Final = Counter(
    "tableforge_operator_fleet_reads_total",
    "Reads of a fleet by outcome: ok, health (only single instances answered) or failed.",
    ["outcome"],
    registry=REGISTRY,
)
COMMANDS: Final = Counter(
    "tableforge_operator_commands_total",
    "Commands to fleets by kind (any, where it failed) and outcome: taken or failed.",
    ["kind", "outcome"],
    registry=REGISTRY,
)
REBALANCES: Final = Counter(
    "tableforge_operator_rebalances_total",
    "What happened to plans that keep load even, by event: RebalanceStarted, RebalanceFinished and others.",
    ["event"],
    registry=REGISTRY,
)
REBALANCE_MOVES: Final = Counter(
    "tableforge_operator_rebalance_moves_total",
    "Rooms of finished plans (or instances that were to send clients elsewhere) by outcome: done or failed.",
    ["outcome"],
    registry=REGISTRY,
)
# From the start, so that the first of them counts as an increase.
for _event in ("Started", "Finished", "Blocked", "Stopped", "NotNeeded", "Refused"):
    REBALANCES.labels(f"Rebalance{_event}")
for _outcome in ("done", "failed"):
    REBALANCE_MOVES.labels(_outcome)
LEADER: Final = Gauge(
    "tableforge_operator_leader", "1 while this process holds the lease.", registry=REGISTRY
)
INFO: Final = Gauge("tableforge_operator_info", "Always 1.", ["version"], registry=REGISTRY)
INFO.labels(version("tableforge")).set(1)
ProcessCollector(registry=REGISTRY)

CLUSTER_STATES: Final = ("Ready", "Reconciling", "Stalled", "Paused", "Unknown")


class ClustersByState(Collector):
    """Counts the clusters when it is asked: states change in more places than could be kept count in."""

    count: Callable[[], Mapping[str, int]] = staticmethod(dict)
    """Clusters by state; set by who knows them."""

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily(
            "tableforge_operator_clusters",
            "WebSocketClusters known, by state: " + ", ".join(CLUSTER_STATES) + " (no verdict yet).",
            labels=["state"],
        )
        counted = self.count()
        for state in CLUSTER_STATES:
            family.add_metric([state], counted.get(state, 0))
        yield family


class RebalanceSpreads(Collector):
    """How even load is, asked for likewise: of clusters that are gone nothing stays."""

    known: Callable[[], Mapping[tuple[str, str], float]] = staticmethod(dict)
    """Spreads by namespace and name of the cluster; set by who knows them."""

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily(
            "tableforge_operator_rebalance_spread",
            "How uneven a cluster's load is: (most - least) / mean. None where that is not known.",
            labels=["namespace", "name"],
        )
        for (namespace, name), spread in self.known().items():
            family.add_metric([namespace, name], spread)
        yield family


REBALANCE_SPREADS: Final = RebalanceSpreads()
REGISTRY.register(REBALANCE_SPREADS)
CLUSTERS: Final = ClustersByState()
REGISTRY.register(CLUSTERS)
