"""WebSocketClusters for tests, and what there is to see of one."""

import itertools
from typing import Any

from tableforge_operator.kube import CLUSTERS, EVENTS, Kube, NotFoundError, Object, resource_of
from tests.operator.engine.operators import AuditLog, Operator, until

ENVIRONMENT = "tables-config-"
"""How the names of the ConfigMaps with the instances' environment begin; what follows is of what is in it."""
CHILDREN = (
    ("v1", "ServiceAccount", "tables"),
    ("v1", "ConfigMap", ENVIRONMENT),
    ("v1", "ConfigMap", "tables-live"),
    ("v1", "ConfigMap", "tables-redis"),
    ("v1", "Service", "tables"),
    ("v1", "Service", "tables-instances"),
    ("v1", "Service", "tables-redis"),
    ("policy/v1", "PodDisruptionBudget", "tables"),
    ("networking.k8s.io/v1", "NetworkPolicy", "tables"),
    ("networking.k8s.io/v1", "NetworkPolicy", "tables-redis"),
    ("apps/v1", "StatefulSet", "tables-redis"),
    ("apps/v1", "Deployment", "tables-a"),
)
OF_REDIS = tuple(child for child in CHILDREN if child[2].endswith("-redis"))
"""Those of them that a cluster with a Redis of somebody else's doesn't have."""


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
    """An object, or None; of environments the newest one."""
    if name == ENVIRONMENT:
        found = await environments(kube, namespace)
        return found[-1] if found else None
    try:
        return await kube.get(resource_of(api_version, kind), namespace, name)
    except NotFoundError:
        return None


async def environments(kube: Kube, namespace: str) -> list[Object]:
    """The ConfigMaps with an environment of the instances, in the order in which they were made."""
    items, _ = await kube.list(resource_of("v1", "ConfigMap"), namespace)
    found = [item for item in items if item["metadata"]["name"].startswith(ENVIRONMENT)]
    return sorted(
        found,
        key=lambda item: (item["metadata"]["creationTimestamp"], int(item["metadata"]["resourceVersion"])),
    )


async def children(kube: Kube, namespace: str) -> list[Object]:
    """All children of the cluster that exist."""
    found = [await find(kube, version, kind, namespace, name) for version, kind, name in CHILDREN]
    return [obj for obj in found if obj is not None]


async def created(kube: Kube, namespace: str) -> list[Object]:
    """Wait until the children exist and the status says what the operator saw."""

    async def look() -> list[Object] | None:
        cluster = await find(kube, CLUSTERS.api_version, CLUSTERS.kind, namespace, "tables")
        found = await children(kube, namespace)
        if cluster is None or not cluster.get("status", {}).get("conditions"):
            return None
        return found if len(found) == expected(cluster) else None

    return await until(look, what="all children exist")


def expected(cluster: Object) -> int:
    """How many of the children it has."""
    return len(CHILDREN) - (len(OF_REDIS) if "external" in cluster["spec"].get("redis", {}) else 0)


async def condition(kube: Kube, namespace: str, kind: str) -> dict[str, Any]:
    """A condition of the cluster; empty where it isn't there."""
    cluster = await find(kube, CLUSTERS.api_version, CLUSTERS.kind, namespace, "tables")
    for found in (cluster or {}).get("status", {}).get("conditions", ()):
        if found["type"] == kind:
            return dict(found)
    return {}


async def until_condition(
    kube: Kube, namespace: str, kind: str, status: str, reason: str | None = None, *, seconds: float = 120
) -> dict[str, Any]:
    """Wait for a condition with this status (and reason)."""

    async def look() -> dict[str, Any] | None:
        found = await condition(kube, namespace, kind)
        matches = found.get("status") == status and reason in (None, found.get("reason"))
        return found if matches else None

    return await until(look, what=f"{kind}={status} {reason or ''}", seconds=seconds)


_LOOKS = itertools.count(1)


async def look_again(kube: Kube, namespace: str) -> None:
    """Change what asks for nothing, so that the operator has another look."""
    note = {"metadata": {"annotations": {"example.com/look": str(next(_LOOKS))}}}
    await kube.merge(CLUSTERS, namespace, "tables", note, field_manager="user")


async def settled(kube: Kube, namespace: str, operator: Operator, audit: AuditLog) -> None:
    """Wait until looks cost no write any more: the Events come after the status that they are about, and what
    the controllers of Kubernetes have to say of the children after both.
    """

    async def look() -> bool:
        since = audit.position()
        for _ in range(2):
            async with operator.turning():
                await look_again(kube, namespace)
        return audit.writes(since) == []

    await until(look, what="nothing is written any more")


async def events(kube: Kube, namespace: str) -> list[tuple[str, str]]:
    """Reason and message of the Events about clusters, in the order of their names' time stamps."""
    items, _ = await kube.list(EVENTS, namespace)
    ours = [item for item in items if item["involvedObject"]["kind"] == "WebSocketCluster"]
    ours.sort(key=lambda item: int(item["metadata"]["resourceVersion"]))
    return [(item["reason"], item["message"]) for item in ours]
