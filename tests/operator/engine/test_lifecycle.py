"""Start, stop, take-over, deletion, and rights that are missing.

The garbage collector learns of a new CRD within 30 seconds; until then it collects no child of a cluster.
"""

import json
import signal
import time

import pytest

from devcluster.cluster import Devcluster
from tableforge_operator.kube import CLUSTERS, Kube, Object, resource_of
from tests.operator.engine.clusters import children, condition, created, external, find, until_condition
from tests.operator.engine.operators import SYSTEM_NAMESPACE, Operators, kubectl, until

pytestmark = pytest.mark.cluster


async def test_deletion_is_instant_with_the_operator_up(
    kube: Kube, namespace: str, operators: Operators
) -> None:
    operator = await operators()
    await kube.apply(external(namespace), field_manager="user", force=True)
    await created(kube, namespace, number=6)
    cluster = await kube.get(CLUSTERS, namespace, "tables")
    await kube.delete(CLUSTERS, namespace, "tables", uid=cluster["metadata"]["uid"])
    assert await find(kube, CLUSTERS.api_version, CLUSTERS.kind, namespace, "tables") is None

    async def gone() -> bool:
        return not await children(kube, namespace)

    await until(gone, what="the children are gone", seconds=90)

    async def forgotten() -> bool:
        return "tableforge_operator_clusters 0.0" in (await operator.get("/metrics"))[1]

    await until(forgotten, what="the operator knows no cluster")


async def test_deletion_is_instant_with_the_operator_down(
    kube: Kube, namespace: str, operators: Operators
) -> None:
    operator = await operators()
    await kube.apply(external(namespace), field_manager="user", force=True)
    await created(kube, namespace, number=6)
    await operator.child.kill9()
    cluster = await kube.get(CLUSTERS, namespace, "tables")
    await kube.delete(CLUSTERS, namespace, "tables", uid=cluster["metadata"]["uid"])
    assert await find(kube, CLUSTERS.api_version, CLUSTERS.kind, namespace, "tables") is None

    async def gone() -> bool:
        return not await children(kube, namespace)

    await until(gone, what="the children are gone", seconds=90)


async def test_a_cluster_deleted_and_made_again_gets_children_of_its_own(
    kube: Kube, namespace: str, operators: Operators
) -> None:
    await operators()
    first = await kube.apply(external(namespace), field_manager="user", force=True)
    await created(kube, namespace, number=6)
    await kube.delete(CLUSTERS, namespace, "tables", uid=first["metadata"]["uid"])
    second = await kube.apply(external(namespace), field_manager="user", force=True)

    async def its_own() -> bool:
        found = await children(kube, namespace)
        owners = {obj["metadata"]["ownerReferences"][0]["uid"] for obj in found}
        return len(found) == 6 and owners == {second["metadata"]["uid"]}

    await until(its_own, what="all children are the second one's", seconds=90)
    assert not await condition(kube, namespace, "Stalled")


async def test_sigterm_ends_it_in_seconds_and_gives_the_lease_away(
    kube: Kube, namespace: str, operators: Operators
) -> None:
    first = await operators()
    second = await operators(leads=False)

    async def stands_by() -> bool:
        return await second.get("/healthz") == (200, "ok\n")

    await until(stands_by, what="the second one stands by")
    assert (await second.get("/readyz"))[1] == "standing by\n"
    await kube.apply(external(namespace), field_manager="user", force=True)
    await created(kube, namespace, number=6)
    before = await kube.get(
        resource_of("coordination.k8s.io/v1", "Lease"), SYSTEM_NAMESPACE, "tableforge-operator"
    )
    started = time.monotonic()
    first.child.send(signal.SIGTERM)
    assert await first.child.ended(10) == 0
    assert time.monotonic() - started < 5
    await second.leading()
    after = await kube.get(
        resource_of("coordination.k8s.io/v1", "Lease"), SYSTEM_NAMESPACE, "tableforge-operator"
    )
    assert after["spec"]["leaseTransitions"] == before["spec"]["leaseTransitions"] + 1

    service = await kube.get(resource_of("v1", "Service"), namespace, "tables")
    await kube.delete(resource_of("v1", "Service"), namespace, "tables", uid=service["metadata"]["uid"])

    async def again() -> bool:
        return await find(kube, "v1", "Service", namespace, "tables") is not None

    await until(again, what="the second one does the work")


async def test_a_missing_right_costs_its_kind_and_nothing_else(
    kube: Kube, namespace: str, operators: Operators, installed: Devcluster
) -> None:
    shipped = json.loads(
        kubectl(installed.kubeconfig, "get", "clusterrole", "tableforge-operator", "-o", "json")
    )
    less = [
        {**rule, "verbs": [verb for verb in rule["verbs"] if verb not in ("list", "watch")]}
        if "poddisruptionbudgets" in rule["resources"]
        else rule
        for rule in shipped["rules"]
    ]
    patch_role(installed, less)
    try:
        operator = await operators()
        await kube.apply(external(namespace), field_manager="user", force=True)
        await created(kube, namespace, number=6)
        ready = await until_condition(kube, namespace, "Ready", "False", "RollingOut")
        assert "Changes to objects of kind PodDisruptionBudget go unnoticed" in ready["message"]
        assert (await operator.get("/healthz"))[0] == 200

        service = await kube.get(resource_of("v1", "Service"), namespace, "tables")
        await kube.delete(resource_of("v1", "Service"), namespace, "tables", uid=service["metadata"]["uid"])

        async def again() -> bool:
            return await find(kube, "v1", "Service", namespace, "tables") is not None

        await until(again, what="other kinds are looked after")
    finally:
        patch_role(installed, shipped["rules"])

    async def told_over() -> bool:
        found = await condition(kube, namespace, "Ready")
        return "unnoticed" not in found["message"]

    await until(told_over, what="the right is back", seconds=90)


def patch_role(cluster: Devcluster, rules: list[Object]) -> None:
    kubectl(
        cluster.kubeconfig,
        "patch",
        "clusterrole",
        "tableforge-operator",
        "--type=json",
        "-p",
        json.dumps([{"op": "replace", "path": "/rules", "value": rules}]),
    )
