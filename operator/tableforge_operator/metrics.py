"""What the operator counts about itself, scraped from `/metrics` on the health port."""

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

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
QUEUE_DEPTH: Final = Gauge(
    "tableforge_operator_queue_depth", "Clusters that wait for a worker.", registry=REGISTRY
)
API_CALLS: Final = Counter(
    "tableforge_operator_api_calls_total",
    "Calls to the API server by verb, resource and HTTP status (0: no answer).",
    ["verb", "resource", "code"],
    registry=REGISTRY,
)
API_WRITES: Final = Counter(
    "tableforge_operator_api_writes_total",
    "Calls to the API server that may write, by verb and resource.",
    ["verb", "resource"],
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
CLUSTERS: Final = Gauge("tableforge_operator_clusters", "WebSocketClusters known.", registry=REGISTRY)
LEADER: Final = Gauge(
    "tableforge_operator_leader", "1 while this process holds the lease.", registry=REGISTRY
)
