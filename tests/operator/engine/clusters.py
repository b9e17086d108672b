"""WebSocketClusters for tests, and what there is to see of one."""

from typing import Any

from tableforge_operator.kube import CLUSTERS, EVENTS, Kube, NotFoundError, Object
from tests.operator.engine.operators import until

CHILDREN = (
    ("v1", "ServiceAccount", "tables"),
    ("v1", "ConfigMap", "tables-config"),
    ("v1", "ConfigMap", "tables-redis"),
    ("v1", "Service", "tables"),
    ("v1", "Service", "tables-instances"),
    ("v1", "Service", "tables-redis"),
    ("policy/v1", "PodDisruptionBudget", "tables"),
    ("apps/v1", "StatefulSet", "tables-redis"),
    ("apps/v1", "Deployment", "tables-a"),
)


def manifest(namespace: str, **spec: Any) -> Object:
    """A cluster called `tables`."""
    return {
        "apiVersion": "tableforge.io/v1alpha1",
        "kind": "WebSocketCluster",
        "metadata": {"name": "tables", "namespace": namespace},
        "spec": {"replicas": 1, "auth": {"required": False}, **spec},
    }


def external(namespace: str, **spec: Any) -> Object:
    """One with a Redis of somebody else's, so that only the instances matter."""
    return manifest(namespace, redis={"external": {"host": "redis.example"}}, **spec)


async def find(kube: Kube, api_version: str, kind: str, namespace: str, name: str) -> Object | None:
    """An object, or None."""
    from tableforge_operator.kube import resource_of

    try:
        return await kube.get(resource_of(api_version, kind), namespace, name)
    except NotFoundError:
        return None


async def children(kube: Kube, namespace: str) -> list[Object]:
    """All children of the cluster that exist."""
    found = [await find(kube, version, kind, namespace, name) for version, kind, name in CHILDREN]
    return [obj for obj in found if obj is not None]


async def created(kube: Kube, namespace: str, *, number: int = len(CHILDREN)) -> list[Object]:
    """Wait until the children exist and the status says what the operator saw."""

    async def look() -> list[Object] | None:
        cluster = await find(kube, CLUSTERS.api_version, CLUSTERS.kind, namespace, "tables")
        found = await children(kube, namespace)
        seen = cluster is not None and cluster.get("status", {}).get("conditions")
        return found if len(found) == number and seen else None

    return await until(look, what="all children exist")


async def condition(kube: Kube, namespace: str, kind: str) -> dict[str, Any]:
    """A condition of the cluster; empty where it isn't there."""
    cluster = await find(kube, CLUSTERS.api_version, CLUSTERS.kind, namespace, "tables")
    for found in (cluster or {}).get("status", {}).get("conditions", ()):
        if found["type"] == kind:
            return dict(found)
    return {}


async def until_condition(
    kube: Kube, namespace: str, kind: str, status: str, reason: str | None = None, *, seconds: float = 20
) -> dict[str, Any]:
    """Wait for a condition with this status (and reason)."""

    async def look() -> dict[str, Any] | None:
        found = await condition(kube, namespace, kind)
        matches = found.get("status") == status and reason in (None, found.get("reason"))
        return found if matches else None

    return await until(look, what=f"{kind}={status} {reason or ''}", seconds=seconds)


async def events(kube: Kube, namespace: str) -> list[tuple[str, str]]:
    """Reason and message of the Events about clusters, in the order of their names' time stamps."""
    items, _ = await kube.list(EVENTS, namespace)
    ours = [item for item in items if item["involvedObject"]["kind"] == "WebSocketCluster"]
    ours.sort(key=lambda item: int(item["metadata"]["resourceVersion"]))
    return [(item["reason"], item["message"]) for item in ours]
