"""The HTTPRoutes: one that leads to all instances, and one for each that leads to it alone."""

from collections.abc import Mapping
from typing import Any

import msgspec

from tableforge_dataplane.contract import endpoints
from tableforge_operator.api import WebSocketCluster
from tableforge_operator.api.spec.routing import Gateway
from tableforge_operator.decide.resources.kinds import HTTP_ROUTE
from tableforge_operator.decide.resources.metadata import child, child_of_pod


def http_route(cluster: WebSocketCluster, gateway: Gateway) -> dict[str, Any]:
    """To the client Service, whichever track that selects."""
    paths = [{"type": "Exact", "value": path} for path in (endpoints.WS_PATH, endpoints.HEALTH_PATH)]
    return {
        **child(cluster, HTTP_ROUTE, cluster.name, "dataplane"),
        "spec": _spec(cluster, gateway, paths, cluster.name),
    }


def instance_route(cluster: WebSocketCluster, gateway: Gateway, pod: Mapping[str, Any]) -> dict[str, Any]:
    """To the instance's own Service, all below the instance's path."""
    name = pod["metadata"]["name"]
    paths = [{"type": "PathPrefix", "value": f"{endpoints.INSTANCE_PATH}/{name}"}]
    return {
        **child_of_pod(cluster, HTTP_ROUTE, pod),
        "spec": _spec(cluster, gateway, paths, name),
    }


def instance_address(name: str) -> str:
    """Where clients reach the instance and no other, on the host that they use already."""
    return f"{endpoints.INSTANCE_PATH}/{name}{endpoints.WS_PATH}"


def _spec(
    cluster: WebSocketCluster, gateway: Gateway, paths: list[dict[str, str]], service: str
) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "parentRefs": [
            {name: value for name, value in msgspec.to_builtins(ref).items() if value is not None}
            for ref in gateway.parent_refs
        ],
        "rules": [
            {
                "matches": [{"path": path} for path in paths],
                "backendRefs": [{"name": service, "port": cluster.service_port}],
            }
        ],
    }
    if gateway.hostnames:
        spec["hostnames"] = list(gateway.hostnames)
    return spec
