"""Writes a cluster's status."""

from typing import Any

from tableforge_operator.decide.snapshot import Object
from tableforge_operator.kube import STATUS_FIELD_MANAGER, ConflictError, Kube, NotFoundError


async def write_status(kube: Kube, cluster: Object, status: dict[str, Any]) -> Object | None:
    """Apply the whole status; the object as it is then, None where this cluster is gone meanwhile."""
    metadata = cluster["metadata"]
    body = {
        "apiVersion": cluster["apiVersion"],
        "kind": cluster["kind"],
        # The uid: a cluster of the same name that came after this one has a status of its own.
        "metadata": {
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
        },
        "status": status,
    }
    try:
        return await kube.apply(body, field_manager=STATUS_FIELD_MANAGER, force=True, subresource="status")
    except (NotFoundError, ConflictError):
        return None
