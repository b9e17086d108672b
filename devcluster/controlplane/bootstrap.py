"""What a fresh cluster is given, and when it is one that can be used."""

from __future__ import annotations

from .api import Api
from .volumes import STORAGE_CLASS, STORAGE_CLASSES, storage_class


async def objects_are_applied(api: Api) -> bool:
    """Apply the objects that a cluster starts with. Raises ApiError, as all of these do."""
    await api.apply(f"{STORAGE_CLASSES}/{STORAGE_CLASS}", storage_class())
    return True


async def pods_are_admitted(api: Api) -> bool:
    """Whether the controllers have come so far that pods can be created: each needs its service account."""
    return await api.get("/api/v1/namespaces/default/serviceaccounts/default") is not None


async def node_is_ready(api: Api, name: str) -> bool:
    """Whether the agent has registered its node and says that it is ready."""
    node = await api.get(f"/api/v1/nodes/{name}")
    conditions = (node or {}).get("status", {}).get("conditions", [])
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
