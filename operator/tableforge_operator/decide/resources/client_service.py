"""The Service that clients connect to. Its selector alone says which track is active."""

from typing import Any

from tableforge_operator.api import WebSocketCluster, names
from tableforge_operator.api.spec.service import Service
from tableforge_operator.decide.resources.kinds import SERVICE
from tableforge_operator.decide.resources.metadata import TRACK, Track, child, track_labels


def client_service(
    cluster: WebSocketCluster, selected: Track = TRACK, *, accepting: bool = True
) -> dict[str, Any]:
    """`accepting`: whether it leaves out who takes no new clients; False while pods don't say."""
    only = {names.ACCEPTING_LABEL: "true"} if accepting else {}
    service = cluster.spec.service
    annotations = service.annotations
    more = {"annotations": dict(sorted(annotations.items()))} if annotations else {}
    return {
        **child(cluster, SERVICE, cluster.name, "dataplane", **more),
        "spec": {
            "type": service.type,
            "selector": {**track_labels(cluster, selected), **only},
            "ports": [
                {
                    **client_port(cluster, cluster.service_port),
                    **({} if service.node_port is None else {"nodePort": service.node_port}),
                }
            ],
            **_outside(service),
        },
    }


def _outside(service: Service) -> dict[str, Any]:
    """How it is reached from outside, as far as the spec says."""
    asked = {
        "externalTrafficPolicy": service.external_traffic_policy,
        "loadBalancerClass": service.load_balancer_class,
        "loadBalancerSourceRanges": list(service.load_balancer_source_ranges) or None,
    }
    return {name: value for name, value in asked.items() if value is not None}


def client_port(cluster: WebSocketCluster, number: int) -> dict[str, Any]:
    """The port for clients, as a Service has it under `number`."""
    scheme = "ws" if cluster.spec.websocket.tls is None else "wss"
    return {
        "name": scheme,
        "port": number,
        "targetPort": "ws",
        "protocol": "TCP",
        # What a gateway in front needs to know, by the names that Kubernetes has for it.
        "appProtocol": f"kubernetes.io/{scheme}",
    }
