"""The Gateway API in a test's cluster, and what a gateway's controller would say of routes."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tableforge_operator.kube import Kube, Object, resource_of
from tests.operator.engine.operators import kubectl
from tests.support.gateway import install_kinds

GROUP = "gateway.networking.k8s.io"
ROUTES = resource_of(f"{GROUP}/v1", "HTTPRoute")
ROUTED: dict[str, Any] = {
    "routing": {
        "mode": "Gateway",
        "gateway": {"parentRefs": [{"name": "public", "namespace": "edge"}], "hostnames": ["tables.example"]},
    }
}
PARENT: dict[str, Any] = {"group": GROUP, "kind": "Gateway", "name": "public", "namespace": "edge"}


def remove_kinds(kubeconfig: Path) -> None:
    """Take the Gateway API out of the cluster again, with all routes."""
    crds = kubectl(kubeconfig, "get", "crd", "-o", "name").split()
    ours = [name for name in crds if name.endswith(f".{GROUP}")]
    if ours:
        # the API server takes its time over each: it sees first that no object is left
        kubectl(kubeconfig, "delete", "--ignore-not-found", *ours, most_seconds=480)


def word(
    *,
    generation: int,
    accepted: tuple[bool, str] = (True, ""),
    resolved: tuple[bool, str] = (True, ""),
    parent: dict[str, Any] = PARENT,
) -> dict[str, Any]:
    """What a controller says of a route: an entry of `status.parents`."""
    conditions = [
        {
            "type": kind,
            "status": "True" if good else "False",
            "reason": kind if good else reason,
            "message": message,
            "observedGeneration": generation,
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
        for kind, (good, message), reason in (
            ("Accepted", accepted, "NotAllowedByListeners"),
            ("ResolvedRefs", resolved, "BackendNotFound"),
        )
    ]
    return {"parentRef": parent, "controllerName": "example.com/gateway", "conditions": conditions}


async def say(kube: Kube, route: Object, words: Iterable[dict[str, Any]] | None = None) -> Object:
    """Write what a gateway says of a route; that it takes it, where nothing is given."""
    metadata = route["metadata"]
    if words is None:
        words = [word(generation=metadata["generation"])]
    body = {
        "apiVersion": ROUTES.api_version,
        "kind": ROUTES.kind,
        "metadata": {"name": metadata["name"], "namespace": metadata["namespace"]},
        "status": {"parents": list(words)},
    }
    return await kube.apply(body, field_manager="gateway", force=True, subresource="status")


__all__ = ["PARENT", "ROUTED", "ROUTES", "install_kinds", "remove_kinds", "say", "word"]
