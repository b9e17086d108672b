"""The PodMonitor: how Prometheus finds the instances, where the Prometheus operator is installed."""

from typing import Any, Final

from tableforge_dataplane.contract import endpoints
from tableforge_operator.api import WebSocketCluster, names
from tableforge_operator.decide.resources.kinds import POD_MONITOR
from tableforge_operator.decide.resources.metadata import child, component_labels

TARGET_LABELS: Final = (names.CLUSTER_LABEL, names.TRACK_LABEL)
"""Labels of the pods that their series carry too, each non-letter as an underscore."""


def pod_monitor(cluster: WebSocketCluster) -> dict[str, Any]:
    asked = cluster.spec.monitoring.pod_monitor
    return {
        **child(cluster, POD_MONITOR, cluster.name, "dataplane", labels=dict(sorted(asked.labels.items()))),
        "spec": {
            "selector": {"matchLabels": component_labels(cluster, "dataplane")},
            "podTargetLabels": list(TARGET_LABELS),
            "podMetricsEndpoints": [
                {"port": "internal", "path": endpoints.METRICS_PATH, "interval": str(asked.interval)}
            ],
        },
    }
