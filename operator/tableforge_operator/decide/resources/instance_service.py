"""The Service of a single instance, for a gateway that leads to it and no other."""

from collections.abc import Mapping
from typing import Any

from tableforge_operator.api import WebSocketCluster, names
from tableforge_operator.decide.resources.client_service import client_port
from tableforge_operator.decide.resources.kinds import SERVICE
from tableforge_operator.decide.resources.metadata import child_of_pod, component_labels


def instance_service(cluster: WebSocketCluster, pod: Mapping[str, Any]) -> dict[str, Any]:
    name = pod["metadata"]["name"]
    return {
        **child_of_pod(cluster, SERVICE, pod),
        "spec": {
            "type": "ClusterIP",
            "selector": {**component_labels(cluster, "dataplane"), names.INSTANCE_LABEL: name},
            "ports": [client_port(cluster, cluster.service_port)],
        },
    }
