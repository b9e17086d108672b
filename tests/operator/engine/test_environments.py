"""An instance keeps the environment that it was started with, and what no instance can need any more goes."""

import dataclasses
from typing import Any

import pytest

from tableforge_operator.act.children import Children
from tableforge_operator.act.memory import Memory
from tableforge_operator.decide.changes import key_of
from tableforge_operator.decide.plan import Plan, decide
from tableforge_operator.decide.snapshot import Snapshot
from tableforge_operator.kube import CLUSTERS, REPLICA_SETS, Kube, Object, resource_of
from tableforge_operator.observe.store import Store
from tests.operator.engine.clusters import environments, external, find, settled, until_condition
from tests.operator.engine.mortal import MortalKube, life
from tests.operator.engine.operators import AuditLog, Operators, until
from tests.operator.engine.pods import Instance, fleet, pods_of, set_pod
from tests.operator.engine.snapshots import SECRETS, at, cluster, done, ready_cluster

CONFIG_MAPS = resource_of("v1", "ConfigMap")
PATIENCE_SECONDS = 120.0


def plan(snapshot: Snapshot) -> Plan:
    return decide(snapshot, at(1), secrets=SECRETS)


def changed() -> tuple[Snapshot, str]:
    """A cluster whose spec has just come to ask for another environment, and the name of the one before."""
    before = ready_cluster(now=at(0))
    (name,) = (name for kind, name in before.children if name.startswith("tables-config-"))
    asked = cluster(generation=2, websocket={"pingInterval": "20s"})
    asked["status"] = before.cluster["status"]
    return dataclasses.replace(before, cluster=asked), name


def user(kind: str, environment: str, *, phase: str = "Running") -> Object:
    """A pod or a ReplicaSet that names it, as the store keeps it."""
    spec: dict[str, Any] = {"containers": [{"envFrom": [{"configMapRef": {"name": environment}}]}]}
    return {
        "kind": kind,
        "metadata": {"name": "one", "namespace": "ns", "labels": {}},
        "spec": {"template": {"spec": spec}} if kind == "ReplicaSet" else spec,
        "status": {"phase": phase},
    }


def test_another_environment_is_another_config_map() -> None:
    snapshot, old = changed()
    first = plan(snapshot)
    made = [wanted.key for wanted in first.applies]
    assert len([key for key in made if key[0] == "ConfigMap"]) == 1
    assert ("ConfigMap", old) not in made
    assert not first.withdrawals, "a Deployment names it"


@pytest.mark.parametrize("kind", ["Pod", "ReplicaSet"])
def test_it_stays_as_long_as_anything_names_it(kind: str) -> None:
    snapshot, old = changed()
    snapshot = done(snapshot, plan(snapshot), now=at(1))
    users = (user(kind, old),)
    named = (
        dataclasses.replace(snapshot, pods=users)
        if kind == "Pod"
        else dataclasses.replace(snapshot, replica_sets=users)
    )
    assert not plan(named).withdrawals
    assert [key_of(obj) for obj in plan(snapshot).withdrawals] == [("ConfigMap", old)]


def test_an_evicted_pod_keeps_nothing() -> None:
    snapshot, old = changed()
    snapshot = done(snapshot, plan(snapshot), now=at(1))
    snapshot = dataclasses.replace(snapshot, pods=(user("Pod", old, phase="Failed"),))
    assert [key_of(obj) for obj in plan(snapshot).withdrawals] == [("ConfigMap", old)]


@pytest.mark.parametrize("kind", ["ConfigMap", "Deployment", "Pod", "ReplicaSet"])
def test_nothing_goes_while_what_may_name_it_is_not_seen(kind: str) -> None:
    snapshot, _ = changed()
    snapshot = done(snapshot, plan(snapshot), now=at(1))
    assert plan(snapshot).withdrawals
    assert not plan(dataclasses.replace(snapshot, blind={kind: "forbidden"})).withdrawals


def test_no_other_config_map_goes() -> None:
    snapshot, old = changed()
    snapshot = done(snapshot, plan(snapshot), now=at(1))
    child = snapshot.children["ConfigMap", old]
    others = {
        ("ConfigMap", name): {**child, "metadata": {**child["metadata"], "name": name}}
        for name in ("tables-config-map", "tables-config-123456789", "tables-live-12345678")
    }
    children = {**snapshot.children, **others}
    found = plan(dataclasses.replace(snapshot, children=children)).withdrawals
    assert [key_of(obj) for obj in found] == [("ConfigMap", old)]


def named(pod: Object) -> str:
    (source,) = pod["spec"]["containers"][0]["envFrom"]
    return str(source["configMapRef"]["name"])


@pytest.mark.cluster
async def test_an_old_pod_keeps_its_environment_during_a_rollout_and_what_is_left_is_removed(
    kube: Kube, namespace: str, operators: Operators, address: str, audit: AuditLog
) -> None:
    operator = await operators()
    spec: dict[str, Any] = {"replicas": 1, "rollout": {"strategy": "BlueGreen"}}
    await kube.apply(external(namespace, **spec), field_manager="user", force=True)

    async def pods(number: int) -> list[Object]:
        async def look() -> list[Object] | None:
            found = await pods_of(kube, namespace, "dataplane")
            return found if len(found) == number else None

        return await until(look, what=f"{number} pods", seconds=PATIENCE_SECONDS)

    async with Instance(address).serving() as instance:
        instance.fleet = fleet(instances=1)
        (old,) = await pods(1)
        await set_pod(kube, old, address=address, ready=True)
        await until_condition(kube, namespace, "Ready", "True", seconds=PATIENCE_SECONDS)
        (first,) = await environments(kube, namespace)
        assert named(old) == first["metadata"]["name"]

        asked = external(namespace, websocket={"pingInterval": "20s"}, **spec)
        await kube.apply(asked, field_manager="user", force=True)
        (new,) = [pod for pod in await pods(2) if pod["metadata"]["uid"] != old["metadata"]["uid"]]
        async with operator.turning(2):
            pass
        kept = await kube.get(CONFIG_MAPS, namespace, named(old))
        assert kept["metadata"]["uid"] == first["metadata"]["uid"]
        assert kept["data"]["TABLEFORGE_WEBSOCKET_PING_INTERVAL"] == "30000"
        fresh = await kube.get(CONFIG_MAPS, namespace, named(new))
        assert fresh["data"]["TABLEFORGE_WEBSOCKET_PING_INTERVAL"] == "20000"

        await set_pod(kube, new, address=address, ready=True)

        async def alone() -> bool:
            return [one["metadata"]["name"] for one in await environments(kube, namespace)] == [named(new)]

        await until(alone, what="the old environment is gone", seconds=PATIENCE_SECONDS)
        assert [pod["metadata"]["uid"] for pod in await pods(1)] == [new["metadata"]["uid"]]
        assert await find(kube, "apps/v1", "Deployment", namespace, "tables-a") is None
        await until_condition(kube, namespace, "Ready", "True", seconds=PATIENCE_SECONDS)
        await settled(kube, namespace, operator, audit)


@pytest.mark.cluster
async def test_one_that_a_replica_set_names_is_not_deleted_though_the_watch_has_not_said_so(
    kube: Kube, namespace: str, installed: Any
) -> None:
    await kube.apply(external(namespace), field_manager="user", force=True)
    async with life(installed.kubeconfig, namespace) as operator:
        await operator.idle()
    (environment,) = await environments(kube, namespace)

    async def there() -> bool:
        return bool((await kube.list(REPLICA_SETS, namespace))[0])

    await until(there, what="its ReplicaSet", seconds=PATIENCE_SECONDS)
    owner = await kube.get(CLUSTERS, namespace, "tables")
    children = Children(kube, Store(lambda *_: None))
    memory = Memory(uid=owner["metadata"]["uid"])
    outcome = await children.withdraw(environment, cluster=owner, memory=memory)
    assert outcome.result == "unchanged"
    assert len(await environments(kube, namespace)) == 1


@pytest.mark.cluster
async def test_an_operator_that_dies_before_or_after_the_removal_comes_to_the_same(
    kube: Kube, namespace: str, installed: Any
) -> None:
    await kube.apply(external(namespace, replicas=0), field_manager="user", force=True)
    async with life(installed.kubeconfig, namespace) as operator:
        await operator.idle()
    (first,) = await environments(kube, namespace)

    async def die(mortal: MortalKube, number: int) -> None:
        if mortal.writes[-1].startswith("delete"):
            mortal.kill()

    asked = external(namespace, replicas=0, websocket={"pingInterval": "20s"})
    await kube.apply(asked, field_manager="user", force=True)
    async with life(installed.kubeconfig, namespace) as operator:
        await operator.idle()

        async def both() -> bool:
            return len((await kube.list(REPLICA_SETS, namespace))[0]) == 2

        await until(both, what="a ReplicaSet for each environment", seconds=PATIENCE_SECONDS)
        assert len(await environments(kube, namespace)) == 2, "a Deployment may be set back to the first"
    for one in (await kube.list(REPLICA_SETS, namespace))[0]:
        used = one["spec"]["template"]["spec"]["containers"][0]["envFrom"][0]["configMapRef"]["name"]
        if used == first["metadata"]["name"]:
            await kube.delete(REPLICA_SETS, namespace, one["metadata"]["name"], uid=one["metadata"]["uid"])
    for hook in (die, None):
        async with life(installed.kubeconfig, namespace, after_write=hook) as operator:
            lives = await operator.idle()
            assert lives == (hook is None)
    (left,) = await environments(kube, namespace)
    assert left["metadata"]["uid"] != first["metadata"]["uid"]
