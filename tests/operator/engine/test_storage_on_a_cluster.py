"""A managed Redis's claim on a real API server: it grows with the spec where its class lets it."""

import json
from typing import Any

import pytest

from devcluster.cluster import Devcluster
from tableforge_operator.kube import CLAIMS, CLUSTERS, Kube, NotFoundError, resource_of
from tests.operator.engine.clusters import find, manifest, until_condition
from tests.operator.engine.operators import AuditLog, Operators, kubectl, until

pytestmark = pytest.mark.cluster

CLAIM = "data-tables-redis-0"


def sized(size: str, **more: Any) -> dict[str, Any]:
    return {"redis": {"managed": {"storage": {"size": size, **more}}}}


async def apply(installed: Devcluster, namespace: str, **spec: Any) -> None:
    kubectl(installed.kubeconfig, "apply", "-f", "-", stdin=json.dumps(manifest(namespace, **spec)))


async def claim_with(kube: Kube, namespace: str, size: str) -> dict[str, Any]:
    """Wait until the claim has a volume of this size."""

    async def look() -> dict[str, Any] | None:
        try:
            claim = await kube.get(CLAIMS, namespace, CLAIM)
        except NotFoundError:
            return None
        return claim if claim.get("status", {}).get("capacity", {}).get("storage") == size else None

    return await until(look, what=f"the claim has {size}")


async def status_shows(kube: Kube, namespace: str, size: str) -> None:
    async def look() -> bool:
        cluster = await kube.get(CLUSTERS, namespace, "tables")
        return bool(cluster.get("status", {}).get("redis", {}).get("storage") == size)

    await until(look, what=f"the status shows {size}")


async def test_a_claim_grows_and_nothing_else_changes(
    installed: Devcluster, kube: Kube, operators: Operators, namespace: str, audit: AuditLog
) -> None:
    await apply(installed, namespace, **sized("1Gi"))
    operator = await operators()
    before = await claim_with(kube, namespace, "1Gi")
    await status_shows(kube, namespace, "1Gi")
    workload = await find(kube, "apps/v1", "StatefulSet", namespace, "tables-redis")
    await apply(installed, namespace, **sized("3Gi"))
    grown = await claim_with(kube, namespace, "3Gi")
    assert grown["metadata"]["uid"] == before["metadata"]["uid"]
    await status_shows(kube, namespace, "3Gi")
    same = await find(kube, "apps/v1", "StatefulSet", namespace, "tables-redis")
    assert workload is not None
    assert same is not None
    assert same["metadata"]["generation"] == workload["metadata"]["generation"]
    # the template of the claim stays as it was, and that is no drift
    position = audit.position()
    async with operator.turning():
        kubectl(installed.kubeconfig, "annotate", "-n", namespace, "wsc/tables", "look=again")
    assert [write for write in audit.writes(position) if "status" not in write and "event" not in write] == []
    # a restarted operator finds it so, too
    await operator.child.stop()
    position = audit.position()
    await operators()
    await status_shows(kube, namespace, "3Gi")
    assert not [write for write in audit.writes(position) if "persistentvolumeclaims" in write]


async def test_a_class_that_does_not_expand_is_told_with_the_way_out(
    installed: Devcluster, kube: Kube, operators: Operators, namespace: str
) -> None:
    name = f"rigid-{namespace}"
    rigid = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": name},
        "provisioner": "devcluster.local/host-path",
        "allowVolumeExpansion": False,
    }
    kubectl(installed.kubeconfig, "apply", "-f", "-", stdin=json.dumps(rigid))
    try:
        await apply(installed, namespace, **sized("1Gi", storageClassName=name))
        await operators()
        await status_shows(kube, namespace, "1Gi")
        await apply(installed, namespace, **sized("2Gi", storageClassName=name))
        said = await until_condition(kube, namespace, "Stalled", "True", "StorageNotGrown")
        for words in (
            f"Claim {CLAIM} cannot grow to 2Gi (spec.redis.managed.storage.size)",
            "must support resize",
            "allowVolumeExpansion: true",
            "set spec.redis.managed.storage.size back to 1Gi",
        ):
            assert words in said["message"]
        await apply(installed, namespace, **sized("1Gi", storageClassName=name))

        async def look() -> bool:
            cluster = await kube.get(CLUSTERS, namespace, "tables")
            return "Stalled" not in {found["type"] for found in cluster["status"]["conditions"]}

        await until(look, what="it is stalled no longer")
    finally:
        kubectl(installed.kubeconfig, "delete", "storageclass", name)


async def test_a_claim_that_was_kept_grows_to_what_the_new_cluster_asks_for(
    installed: Devcluster, kube: Kube, operators: Operators, namespace: str
) -> None:
    await apply(installed, namespace, **sized("1Gi"))
    await operators()
    kept = await claim_with(kube, namespace, "1Gi")
    await status_shows(kube, namespace, "1Gi")
    kubectl(installed.kubeconfig, "delete", "-n", namespace, "wsc/tables")

    async def look() -> bool:
        return await find(kube, "apps/v1", "StatefulSet", namespace, "tables-redis") is None

    await until(look, what="the StatefulSet is gone")
    # as an earlier version labelled it
    kubectl(installed.kubeconfig, "label", "-n", namespace, f"pvc/{CLAIM}", "app.kubernetes.io/managed-by-")
    await apply(installed, namespace, **sized("2Gi"))
    grown = await claim_with(kube, namespace, "2Gi")
    assert grown["metadata"]["uid"] == kept["metadata"]["uid"]


async def test_eviction_and_a_lack_of_persistence_cannot_be_edited_in(
    installed: Devcluster, kube: Kube, operators: Operators, namespace: str
) -> None:
    await apply(installed, namespace)
    await operators()
    await status_shows(kube, namespace, "1Gi")
    kind = resource_of("v1", "ConfigMap")
    live = await kube.get(kind, namespace, "tables-redis")
    right = live["data"]["redis.conf"]
    assert "maxmemory-policy noeviction\n" in right
    live["data"]["redis.conf"] = right.replace("noeviction", "allkeys-lru").replace(
        "appendonly yes", "appendonly no"
    )
    await kube.replace(live)

    async def look() -> bool:
        now = await kube.get(kind, namespace, "tables-redis")
        return bool(now["data"]["redis.conf"] == right)

    await until(look, what="the configuration is as it was")
