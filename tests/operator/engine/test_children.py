"""Children are created, kept as they should be, and never taken from anybody."""

from typing import Any

import pytest

from devcluster.cluster import Devcluster
from tableforge_operator.kube import CLUSTERS, Kube, Object, resource_of
from tests.operator.engine.clusters import (
    CHILDREN,
    ENVIRONMENT,
    children,
    created,
    events,
    external,
    find,
    manifest,
    settled,
    until_condition,
)
from tests.operator.engine.operators import REPOSITORY, AuditLog, Operators, kubectl, until

pytestmark = pytest.mark.cluster

MANAGED_BY = "app.kubernetes.io/managed-by"
EVERYTHING: dict[str, Any] = {
    "autoscaling": {"enabled": True, "maxReplicas": 3},
    "ingress": {"host": "tables.example"},
}
OF_EVERYTHING = (
    ("networking.k8s.io/v1", "Ingress", "tables"),
    ("autoscaling/v2", "HorizontalPodAutoscaler", "tables"),
)
EDITS: dict[str, Any] = {
    "StatefulSet": {"spec": {"replicas": 3}},
    "Service": {"spec": {"selector": {"app.kubernetes.io/component": "another"}}},
    "HorizontalPodAutoscaler": {"spec": {"maxReplicas": 9}},
}
"""What somebody changes of each kind besides a label."""


async def apply_as(kube: Kube, manager: str, obj: Object) -> Object:
    return await kube.apply(obj, field_manager=manager, force=True)


async def until_claimed(kube: Kube, namespace: str) -> None:
    """Wait until the status shows the managed Redis's volume, which is made last."""

    async def look() -> bool:
        cluster = await kube.get(CLUSTERS, namespace, "tables")
        return "storage" in cluster.get("status", {}).get("redis", {})

    await until(look, what="the status shows the storage")


async def touch(kube: Kube, namespace: str, value: str) -> None:
    """A change of the cluster that asks for nothing."""
    body = {**manifest(namespace), "spec": {}}
    body["metadata"] = {**body["metadata"], "labels": {"touched": value}}
    await apply_as(kube, "toucher", body)


async def test_all_children_are_created_and_belong_to_the_cluster(
    kube: Kube, namespace: str, operators: Operators, audit: AuditLog
) -> None:
    await operators(everywhere=True)
    start = audit.position()
    cluster = await apply_as(kube, "user", manifest(namespace))
    found = await created(kube, namespace)
    for obj in found:
        (owner,) = obj["metadata"]["ownerReferences"]
        assert (owner["uid"], owner["controller"]) == (cluster["metadata"]["uid"], True)
        managers = {(entry["manager"], entry["operation"]) for entry in obj["metadata"]["managedFields"]}
        assert ("tableforge-operator", "Apply") in managers
        assert ("tableforge-operator", "Update") not in managers
    after = await kube.get(CLUSTERS, namespace, "tables")
    assert "finalizers" not in after["metadata"]
    assert "annotations" not in after["metadata"]
    assert after["status"]["observedGeneration"] == after["metadata"]["generation"]
    codes = {entry["responseStatus"]["code"] for entry in audit.requests(start)}
    assert 403 not in codes, "the shipped rights suffice"
    assert (await events(kube, namespace))[0][0] == "Created"


async def test_an_unchanged_world_costs_no_write(
    kube: Kube, namespace: str, operators: Operators, audit: AuditLog, installed: Devcluster
) -> None:
    operator = await operators()
    file = str(REPOSITORY / "manifests" / "samples" / "tables.yaml")
    kubectl(installed.kubeconfig, "apply", "-n", namespace, "-f", file)
    await created(kube, namespace)
    await until_claimed(kube, namespace)
    await settled(kube, namespace, operator, audit)
    start = audit.position()
    kubectl(installed.kubeconfig, "apply", "-n", namespace, "-f", file)
    async with operator.turning():
        await touch(kube, namespace, "1")
    async with operator.turning(2):
        await touch(kube, namespace, "2")
    assert audit.writes(start) == []


async def test_a_restarted_operator_adopts_without_changing_anything(
    kube: Kube, namespace: str, operators: Operators, audit: AuditLog
) -> None:
    first = await operators()
    await apply_as(kube, "user", manifest(namespace))
    await created(kube, namespace)
    await until_claimed(kube, namespace)
    await settled(kube, namespace, first, audit)
    before = {_id(obj): _of_the_operator(obj) for obj in await _ours(kube, namespace)}
    assert await first.child.stop(timeout_seconds=60) == 0
    start = audit.position()
    second = await operators()
    async with second.turning(3):
        pass
    after = {_id(obj): _of_the_operator(obj) for obj in await _ours(kube, namespace)}
    assert after == before
    writes = audit.writes(start)
    applied = [write for write in writes if write.startswith("patch")]
    assert len(applied) == len(CHILDREN), "each child once"
    assert not [write for write in writes if "status" in write or "events" in write]


async def test_an_edited_field_is_set_back_and_others_additions_stay(
    kube: Kube, namespace: str, operators: Operators
) -> None:
    await operators()
    await apply_as(kube, "user", external(namespace))
    await created(kube, namespace)
    service = resource_of("v1", "Service")
    live = await kube.get(service, namespace, "tables")
    live["spec"]["ports"][0]["port"] = 9999
    live["metadata"]["labels"]["theirs"] = "stays"
    live["metadata"]["annotations"] = {"cloud.example/balancer": "stays"}
    await kube.replace(live)

    async def set_back() -> Object | None:
        now = await kube.get(service, namespace, "tables")
        managers = [entry["manager"] for entry in now["metadata"]["managedFields"]]
        done = "tableforge-operator-set-back" not in managers
        return now if done and now["spec"]["ports"][0]["port"] == 3001 else None

    mended = await until(set_back, what="the port is 3001 again, and nothing tells of how")
    assert mended["metadata"]["labels"]["theirs"] == "stays"
    assert mended["metadata"]["annotations"] == {"cloud.example/balancer": "stays"}

    async def told() -> bool:
        return "DriftRepaired" in [reason for reason, _ in await events(kube, namespace)]

    await until(told, what="an Event tells")


async def test_who_insists_on_a_field_of_ours_is_named(
    kube: Kube, namespace: str, operators: Operators
) -> None:
    await operators()
    await apply_as(kube, "user", external(namespace))
    await created(kube, namespace)
    service, label = resource_of("v1", "Service"), "app.kubernetes.io/managed-by"
    theirs = {"metadata": {"labels": {label: "meddler"}}}

    async def told() -> str:
        now = await kube.get(service, namespace, "tables")
        if now["metadata"]["labels"][label] != "meddler":
            await kube.merge(service, namespace, "tables", theirs, field_manager="meddler")
        found = [message for reason, message in await events(kube, namespace) if reason == "FieldContested"]
        return found[0] if found else ""

    message = await until(told, what="an Event names the other one")
    assert f"Service tables: field manager meddler keeps changing metadata.labels.{label}, " in message


async def test_replicas_scaled_on_the_deployment_go_back_to_the_clusters(
    kube: Kube, namespace: str, operators: Operators, installed: Devcluster
) -> None:
    await operators()
    await apply_as(kube, "user", external(namespace))
    await created(kube, namespace)
    kubectl(installed.kubeconfig, "scale", "-n", namespace, "deployment/tables-a", "--replicas=5")

    async def back() -> bool:
        deployment = await kube.get(resource_of("apps/v1", "Deployment"), namespace, "tables-a")
        return bool(deployment["spec"]["replicas"] == 1)

    await until(back, what="one replica again")
    kubectl(installed.kubeconfig, "scale", "-n", namespace, "wsc/tables", "--replicas=2")

    async def scaled() -> bool:
        deployment = await kube.get(resource_of("apps/v1", "Deployment"), namespace, "tables-a")
        return bool(deployment["spec"]["replicas"] == 2)

    await until(scaled, what="two replicas")


async def test_each_child_that_is_edited_is_set_back(
    kube: Kube, namespace: str, operators: Operators
) -> None:
    await operators()
    await apply_as(kube, "user", manifest(namespace, **EVERYTHING))
    await created(kube, namespace)
    before = {_id(obj): obj for obj in await _all_children(kube, namespace)}
    assert len(before) == len(CHILDREN) + len(OF_EVERYTHING)
    for obj in before.values():
        edit = {**EDITS.get(obj["kind"], {}), "metadata": {"labels": {MANAGED_BY: "meddler"}}}
        if obj["kind"] == "ConfigMap" and not obj.get("immutable"):
            edit["data"] = dict.fromkeys(obj["data"], "edited")
        resource = resource_of(obj["apiVersion"], obj["kind"])
        await kube.merge(resource, namespace, obj["metadata"]["name"], edit, field_manager="kubectl-edit")

    async def edited() -> list[tuple[str, str]]:
        now = {_id(obj): obj for obj in await _all_children(kube, namespace)}
        return [key for key, obj in before.items() if key not in now or not _as_before(now[key], obj)]

    async def set_back() -> bool:
        return not await edited()

    try:
        await until(set_back, what="every child is as it was")
    except AssertionError as error:
        raise AssertionError(f"still edited: {await edited()}") from error
    again = {_id(obj): obj["metadata"]["uid"] for obj in await _all_children(kube, namespace)}
    assert again == {key: obj["metadata"]["uid"] for key, obj in before.items()}, "none was made anew"


def _as_before(now: Object, before: Object) -> bool:
    if now["metadata"]["labels"] != before["metadata"]["labels"]:
        return False
    edited = EDITS.get(before["kind"], {}).get("spec", {})
    return now.get("data") == before.get("data") and all(
        now["spec"][part] == before["spec"][part] for part in edited
    )


async def test_deleted_children_are_created_again(kube: Kube, namespace: str, operators: Operators) -> None:
    await operators()
    await apply_as(kube, "user", manifest(namespace, **EVERYTHING))
    await created(kube, namespace)
    made = await _all_children(kube, namespace)
    assert len(made) == len(CHILDREN) + len(OF_EVERYTHING)
    first = {_id(obj): obj["metadata"]["uid"] for obj in made}
    for obj in made:
        resource, metadata = resource_of(obj["apiVersion"], obj["kind"]), obj["metadata"]
        await kube.delete(resource, namespace, metadata["name"], uid=metadata["uid"])

    async def again() -> bool:
        now = {_id(obj): obj["metadata"]["uid"] for obj in await _all_children(kube, namespace)}
        return len(now) == len(first) and not set(now.values()) & set(first.values())

    await until(again, what="all children are there again")


async def test_objects_of_somebody_else_by_all_childrens_names_are_left_alone(
    kube: Kube, namespace: str, operators: Operators
) -> None:
    operator = await operators()
    cluster = await apply_as(kube, "user", manifest(namespace, **EVERYTHING))
    await created(kube, namespace)
    assert await operator.child.stop(timeout_seconds=60) == 0
    made = []
    for obj in await _all_children(kube, namespace):
        # From now on they are nobody's.
        resource, name = resource_of(obj["apiVersion"], obj["kind"]), obj["metadata"]["name"]
        theirs = {"metadata": {"ownerReferences": None}}
        made.append(await kube.merge(resource, namespace, name, theirs, field_manager="user"))
    await kube.delete(CLUSTERS, namespace, "tables", uid=cluster["metadata"]["uid"])
    # The name of an environment tells of whose it is.
    before = {_id(obj): _given(obj) for obj in made if not obj["metadata"]["name"].startswith(ENVIRONMENT)}
    assert len(before) == len(CHILDREN) - 1 + len(OF_EVERYTHING)
    await apply_as(kube, "user", manifest(namespace, **EVERYTHING))
    await operators()
    stalled = await until_condition(kube, namespace, "Stalled", "True", "NameConflict")
    told = stalled["message"]
    assert [f"{kind} {name}" for kind, name in before if f"{kind} {name}" not in told] == []
    now = {_id(obj): _given(obj) for obj in await _all_children(kube, namespace)}
    assert {key: now.get(key) for key in before} == before


def _given(obj: Object) -> Object:
    """What somebody gave it, and no controller."""
    metadata = {part: obj["metadata"].get(part) for part in ("uid", "labels", "ownerReferences")}
    return {"metadata": metadata, "data": obj.get("data"), "spec": obj.get("spec")}


async def test_a_foreign_object_by_a_childs_name_is_left_alone(
    kube: Kube, namespace: str, operators: Operators
) -> None:
    foreign: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "tables", "namespace": namespace, "labels": {"whose": "theirs"}},
        "spec": {"selector": {"app": "theirs"}, "ports": [{"port": 80}]},
    }
    before = await kube.create(foreign)
    await operators()
    await apply_as(kube, "user", external(namespace))
    stalled = await until_condition(kube, namespace, "Stalled", "True", "NameConflict")
    assert "Service tables exists already and belongs to nobody" in stalled["message"]
    ready = await until_condition(kube, namespace, "Ready", "False", "NameConflict")
    assert ready["message"] == stalled["message"]
    now = await kube.get(resource_of("v1", "Service"), namespace, "tables")
    assert now == before
    assert await find(kube, "apps/v1", "Deployment", namespace, "tables-a"), "what can be made is made"

    await kube.delete(resource_of("v1", "Service"), namespace, "tables", uid=before["metadata"]["uid"])

    async def ours() -> bool:
        service = await find(kube, "v1", "Service", namespace, "tables")
        return service is not None and bool(service["metadata"].get("ownerReferences"))

    await until(ours, what="the Service is the cluster's once the other is gone")

    async def over() -> bool:
        cluster = await kube.get(CLUSTERS, namespace, "tables")
        return "Stalled" not in [item["type"] for item in cluster["status"]["conditions"]]

    await until(over, what="not stalled any more")


async def test_a_paused_cluster_is_not_written(
    kube: Kube, namespace: str, operators: Operators, audit: AuditLog, installed: Devcluster
) -> None:
    operator = await operators()
    await apply_as(kube, "user", external(namespace))
    await created(kube, namespace)
    await settled(kube, namespace, operator, audit)
    start = audit.position()
    kubectl(installed.kubeconfig, "annotate", "-n", namespace, "wsc/tables", "tableforge.io/paused=true")

    async def seen() -> bool:
        read = [entry["objectRef"] for entry in audit.requests(start) if entry["verb"] == "get"]
        return "websocketclusters" in [ref["resource"] for ref in read]

    await until(seen, what="the operator has read the annotation")
    start = audit.position()
    async with operator.turning():
        kubectl(installed.kubeconfig, "scale", "-n", namespace, "deployment/tables-a", "--replicas=4")
    async with operator.turning():
        kubectl(installed.kubeconfig, "scale", "-n", namespace, "wsc/tables", "--replicas=3")
    assert audit.writes(start) == []
    kubectl(installed.kubeconfig, "annotate", "-n", namespace, "wsc/tables", "tableforge.io/paused-")

    async def goes_on() -> bool:
        now = await kube.get(resource_of("apps/v1", "Deployment"), namespace, "tables-a")
        return bool(now["spec"]["replicas"] == 3)

    await until(goes_on, what="three replicas once it goes on")


async def _all_children(kube: Kube, namespace: str) -> list[Object]:
    """Those of a cluster with EVERYTHING."""
    more = [await find(kube, version, kind, namespace, name) for version, kind, name in OF_EVERYTHING]
    return [*await children(kube, namespace), *(obj for obj in more if obj is not None)]


async def _ours(kube: Kube, namespace: str) -> list[Object]:
    return [*await children(kube, namespace), await kube.get(CLUSTERS, namespace, "tables")]


def _of_the_operator(obj: Object) -> Object:
    """All of it but what the controllers of Kubernetes write, whenever they come to it."""
    ours = [entry for entry in obj["metadata"]["managedFields"] if entry["manager"].startswith("tableforge")]
    annotations = dict(obj["metadata"].get("annotations", {}))
    annotations.pop("deployment.kubernetes.io/revision", None)
    others = {"annotations": annotations, "managedFields": ours, "resourceVersion": None}
    metadata = {**obj["metadata"], **others}
    status = obj.get("status") if obj["kind"] == CLUSTERS.kind else None
    return {**obj, "metadata": metadata, "status": status}


def _id(obj: Object) -> tuple[str, str]:
    return obj["kind"], obj["metadata"]["name"]
