"""The Service that clients connect to. Its selector alone says which track is active."""

from typing import Any

from tableforge_operator.api import WebSocketCluster
from tableforge_operator.decide.resources.kinds import SERVICE
from tableforge_operator.decide.resources.metadata import child, track_labels


def client_service(cluster: WebSocketCluster) -> dict[str, Any]:
    annotations = cluster.spec.service.annotations
    more = {"annotations": dict(sorted(annotations.items()))} if annotations else {}
    return {
        **child(cluster, SERVICE, cluster.name, "dataplane", **more),
        "spec": {
            "type": cluster.spec.service.type,
            "selector": track_labels(cluster),
            "ports": [
                {
                    "name": "ws",
                    "port": cluster.spec.websocket.port,
                    "targetPort": "ws",
                    "protocol": "TCP",
                    "appProtocol": "kubernetes.io/ws",
                }
            ],
        },
    }
