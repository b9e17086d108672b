"""The Ingress, where one is asked for. It leads to the client Service, whichever track that selects."""

from typing import Any

from tableforge_operator.api import WebSocketCluster
from tableforge_operator.api.spec.ingress import Ingress
from tableforge_operator.decide.resources.kinds import INGRESS
from tableforge_operator.decide.resources.metadata import child


def ingress(cluster: WebSocketCluster, asked: Ingress) -> dict[str, Any]:
    more = {"annotations": dict(sorted(asked.annotations.items()))} if asked.annotations else {}
    backend = {"service": {"name": cluster.name, "port": {"number": cluster.service_port}}}
    spec: dict[str, Any] = {
        "rules": [
            {
                "host": asked.host,
                "http": {"paths": [{"path": asked.path, "pathType": "Prefix", "backend": backend}]},
            }
        ]
    }
    if asked.class_name is not None:
        spec["ingressClassName"] = asked.class_name
    if asked.tls_secret_name is not None:
        spec["tls"] = [{"hosts": [asked.host], "secretName": asked.tls_secret_name}]
    return {**child(cluster, INGRESS, cluster.name, "dataplane", **more), "spec": spec}
