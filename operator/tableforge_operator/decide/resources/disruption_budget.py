"""The PodDisruptionBudget: node maintenance takes one instance at a time."""

from typing import Any

from tableforge_operator.api import WebSocketCluster
from tableforge_operator.decide.resources.kinds import DISRUPTION_BUDGET
from tableforge_operator.decide.resources.metadata import child, component_labels


def disruption_budget(cluster: WebSocketCluster) -> dict[str, Any]:
    return {
        **child(cluster, DISRUPTION_BUDGET, cluster.name, "dataplane"),
        "spec": {
            "maxUnavailable": 1,
            "selector": {"matchLabels": component_labels(cluster, "dataplane")},
            # An instance that never became ready must not keep its node from being drained.
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }
