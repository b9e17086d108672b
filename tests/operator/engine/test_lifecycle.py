"""Start, stop, take-over, deletion, and rights that are missing.

The garbage collector learns of a new CRD within 30 seconds; until then it collects no child of a cluster.
"""

import datetime as dt
import json
import signal
import time

import pytest

from devcluster.cluster import Devcluster
from tableforge_operator.kube import CLUSTERS, Kube, Object, resource_of
from tableforge_operator.leader import LEASE_SECONDS
from tests.operator.engine.clusters import (
    children,
    condition,
    created,
    expected,
    external,
    find,
    manifest,
    until_condition,
)
from tests.operator.engine.operators import SYSTEM_NAMESPACE, USER, AuditLog, Operators, kubectl, until

pytestmark = pytest.mark.cluster


async def test_deletion_is_instant_with_the_operator_up(
    kube: Kube, namespace: str, operators: Operators
) -> None:
    operator = await operators()
    await kube.apply(external(namespace), field_manager="user", force=True)
    await created(kube, namespace)
    cluster = await kube.get(CLUSTERS, namespace, "tables")
    await kube.delete(CLUSTERS, namespace, "tables", uid=cluster["metadata"]["uid"])
    assert await find(kube, CLUSTERS.api_version, CLUSTERS.kind, namespace, "tables") is None

    async def gone() -> bool:
        return not await children(kube, namespace)

    await until(gone, what="the children are gone")

    async def forgotten() -> bool:
        return await operator.clusters() == {}

    await until(forgotten, what="the operator knows no cluster")


async def test_deletion_is_instant_with_the_operator_down(
    kube: Kube, namespace: str, operators: Operators
) -> None:
    operator = await operators()
    await kube.apply(external(namespace), field_manager="user", force=True)
    await created(kube, namespace)
    await operator.child.kill9()
    cluster = await kube.get(CLUSTERS, namespace, "tables")
    await kube.delete(CLUSTERS, namespace, "tables", uid=cluster["metadata"]["uid"])
    assert await find(kube, CLUSTERS.api_version, CLUSTERS.kind, namespace, "tables") is None

    async def gone() -> bool:
        return not await children(kube, namespace)

    await until(gone, what="the children are gone")


async def test_a_cluster_deleted_and_made_again_gets_children_of_its_own(
    kube: Kube, namespace: str, operators: Operators
) -> None:
    await operators()
    first = await kube.apply(external(namespace), field_manager="user", force=True)
    await created(kube, namespace)
    await kube.delete(CLUSTERS, namespace, "tables", uid=first["metadata"]["uid"])
    second = await kube.apply(external(namespace), field_manager="user", force=True)

    async def its_own() -> bool:
        found = await children(kube, namespace)
        owners = {obj["metadata"]["ownerReferences"][0]["uid"] for obj in found}
        return len(found) == expected(second) and owners == {second["metadata"]["uid"]}

    await until(its_own, what="all children are the second one's")
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
    await created(kube, namespace)
    before = await kube.get(
        resource_of("coordination.k8s.io/v1", "Lease"), SYSTEM_NAMESPACE, "tableforge-operator"
    )
    first.child.send(signal.SIGTERM)
    assert await first.child.ended(20) == 0, "within the grace that the manifests give it"
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


async def test_a_killed_leader_is_replaced_once_its_lease_has_run_out(
    kube: Kube, namespace: str, operators: Operators
) -> None:
    first = await operators()
    second = await operators(leads=False)

    async def stands_by() -> bool:
        # By then it has seen the lease, and knows how long to wait for whose silence.
        return (await second.get("/readyz"))[1] == "standing by\n"

    await until(stands_by, what="the second one stands by")
    leases = resource_of("coordination.k8s.io/v1", "Lease")
    await first.child.kill9()
    killed = time.monotonic()
    before = (await kube.get(leases, SYSTEM_NAMESPACE, "tableforge-operator"))["spec"]
    assert (await second.get("/healthz")) == (200, "ok\n"), "nothing is wrong with who waits"
    await kube.apply(external(namespace), field_manager="user", force=True)
    await second.leading()
    took = time.monotonic() - killed
    after = (await kube.get(leases, SYSTEM_NAMESPACE, "tableforge-operator"))["spec"]
    assert after["leaseTransitions"] == before["leaseTransitions"] + 1
    silence = dt.datetime.fromisoformat(after["acquireTime"]) - dt.datetime.fromisoformat(before["renewTime"])
    print(f"led again {took:.1f} s after the kill, {silence.total_seconds():.1f} s after the last renewal")
    assert silence.total_seconds() > LEASE_SECONDS - 0.5, "nobody leads while the other one still may"
    # That it is within 14 s by its numbers is in test_takeover.py; what is more is the machine's.
    await until_condition(kube, namespace, "Ready", "False", "RollingOut")


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
    await patch_role(installed, less)
    try:
        operator = await operators()
        await kube.apply(external(namespace), field_manager="user", force=True)
        await created(kube, namespace)
        ready = await until_condition(kube, namespace, "Ready", "False", "RollingOut")
        assert "Changes to objects of kind PodDisruptionBudget go unnoticed" in ready["message"]
        assert (await operator.get("/healthz"))[0] == 200

        service = await kube.get(resource_of("v1", "Service"), namespace, "tables")
        await kube.delete(resource_of("v1", "Service"), namespace, "tables", uid=service["metadata"]["uid"])

        async def again() -> bool:
            return await find(kube, "v1", "Service", namespace, "tables") is not None

        await until(again, what="other kinds are looked after")
    finally:
        await patch_role(installed, shipped["rules"])

    async def told_over() -> bool:
        found = await condition(kube, namespace, "Ready")
        return "unnoticed" not in found["message"]

    await until(told_over, what="the right is back")


async def test_a_redis_that_may_not_be_looked_at_stays_as_it_is(
    kube: Kube, namespace: str, operators: Operators, installed: Devcluster, audit: AuditLog
) -> None:
    shipped = json.loads(
        kubectl(installed.kubeconfig, "get", "clusterrole", "tableforge-operator", "-o", "json")
    )
    less = [
        {**rule, "verbs": [verb for verb in rule["verbs"] if verb not in ("list", "watch")]}
        if "statefulsets" in rule["resources"]
        else rule
        for rule in shipped["rules"]
    ]
    workloads = resource_of("apps/v1", "StatefulSet")
    first = await operators()
    await kube.apply(manifest(namespace), field_manager="user", force=True)
    await created(kube, namespace)
    await first.child.stop()
    before = await kube.get(workloads, namespace, "tables-redis")
    await patch_role(installed, less)
    try:
        position = audit.position()
        await operators()
        asked = {"image": "redis:another", "passwordGeneration": 5, "storage": {"size": "9Gi"}}
        await kube.apply(
            manifest(namespace, replicas=2, redis={"managed": asked}), field_manager="user", force=True
        )

        async def scaled() -> bool:
            found = await find(kube, "apps/v1", "Deployment", namespace, "tables-a")
            return found is not None and found["spec"]["replicas"] == 2

        await until(scaled, what="everything else is as asked for")

        async def told() -> bool:
            found = await condition(kube, namespace, "Ready")
            return "The managed Redis stays as it is until then." in found["message"]

        await until(told, what="the status says so")
        writes = audit.writes(position)
        assert not [write for write in writes if "statefulsets" in write]
        made = await kube.get(workloads, namespace, "tables-redis")
        assert made["spec"] == before["spec"]
        secrets = (await kube.list(resource_of("v1", "Secret"), namespace))[0]
        uid = (await kube.get(CLUSTERS, namespace, "tables"))["metadata"]["uid"]
        ours = {one["metadata"]["name"] for one in secrets if "-redis-" in one["metadata"]["name"]}
        assert ours == {f"tables-redis-{uid[:8]}-1"}, "no step of a rotation is taken, and none skipped"
        instances = await find(kube, "apps/v1", "Deployment", namespace, "tables-a")
        assert f"tables-redis-{uid[:8]}-1" in json.dumps(instances), "they are mounted what they use"
    finally:
        await patch_role(installed, shipped["rules"])

    async def changed() -> bool:
        found = await kube.get(workloads, namespace, "tables-redis")
        (container,) = found["spec"]["template"]["spec"]["containers"]
        return bool(container["image"] == "redis:another")

    await until(changed, what="once it may be looked at, it is changed")
    now = await kube.get(workloads, namespace, "tables-redis")
    assert now["spec"]["volumeClaimTemplates"] == before["spec"]["volumeClaimTemplates"]
    assert f"tables-redis-{uid[:8]}-1-5-" in json.dumps(now["spec"]["template"])


async def patch_role(cluster: Devcluster, rules: list[Object]) -> None:
    """Give the operator these rights, and wait until the API server goes by them."""
    patch = json.dumps([{"op": "replace", "path": "/rules", "value": rules}])
    kubectl(cluster.kubeconfig, "patch", "clusterrole", "tableforge-operator", "--type=json", "-p", patch)
    for group, resource in (("policy", "poddisruptionbudgets"), ("apps", "statefulsets")):
        may = any("watch" in rule["verbs"] for rule in rules if resource in rule["resources"])
        attributes = {"group": group, "resource": resource, "verb": "watch"}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {"user": USER, "resourceAttributes": attributes},
        }

        async def seen(review: Object = review, may: bool = may) -> bool:
            said = kubectl(cluster.kubeconfig, "create", "-f", "-", "-o", "json", stdin=json.dumps(review))
            return json.loads(said)["status"]["allowed"] is may

        await until(seen, what=f"the right to watch {resource} is {may}")
