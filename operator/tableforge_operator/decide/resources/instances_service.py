"""The headless Service: names for all instances of both tracks, ready or not, with their internal port."""

from typing import Any

from tableforge_operator.api import WebSocketCluster
from tableforge_operator.api.spec.common import INTERNAL_PORT
from tableforge_operator.decide.resources.client_service import client_port
from tableforge_operator.decide.resources.kinds import SERVICE
from tableforge_operator.decide.resources.metadata import child, component_labels, instances_name


def instances_service(cluster: WebSocketCluster) -> dict[str, Any]:
    return {
        **child(cluster, SERVICE, instances_name(cluster), "dataplane"),
        "spec": {
            "type": "ClusterIP",
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": component_labels(cluster, "dataplane"),
            "ports": [
                client_port(cluster, cluster.spec.websocket.port),
                {"name": "internal", "port": INTERNAL_PORT, "targetPort": "internal", "protocol": "TCP"},
            ],
        },
    }
