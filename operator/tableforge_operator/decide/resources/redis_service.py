"""The Service of the managed Redis: an address that outlives its pod."""

from typing import Any

from tableforge_operator.api import WebSocketCluster
from tableforge_operator.decide.resources.config_map import REDIS_PORT
from tableforge_operator.decide.resources.kinds import SERVICE
from tableforge_operator.decide.resources.metadata import child, component_labels, redis_name


def redis_service(cluster: WebSocketCluster) -> dict[str, Any]:
    return {
        **child(cluster, SERVICE, redis_name(cluster), "redis"),
        "spec": {
            "type": "ClusterIP",
            "selector": component_labels(cluster, "redis"),
            "ports": [{"name": "redis", "port": REDIS_PORT, "targetPort": "redis", "protocol": "TCP"}],
        },
    }
