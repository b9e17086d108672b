"""The status tells what the instances say, over real HTTP to pods' addresses."""

import base64
import json

import pytest

from devcluster.cluster import Devcluster
from tableforge_operator.kube import CLUSTERS, SECRETS, Kube, Object, resource_of
from tests.operator.engine.clusters import (
    created,
    events,
    external,
    look_again,
    manifest,
    settled,
    until_condition,
)
from tests.operator.engine.operators import AuditLog, Operators, kubectl, until
from tests.operator.engine.pods import AWAY, Instance, fleet, health, pods_of, set_pod

pytestmark = pytest.mark.cluster


async def one_pod(kube: Kube, namespace: str) -> Object:
    async def look() -> Object | None:
        pods = await pods_of(kube, namespace, "dataplane")
        return pods[0] if len(pods) == 1 else None

    return await until(look, what="one pod")


async def status(kube: Kube, namespace: str) -> Object:
    found: Object = (await kube.get(CLUSTERS, namespace, "tables"))["status"]
    return found


async def test_from_waiting_for_a_secret_to_ready_to_redis_away_and_back(
    kube: Kube, namespace: str, operators: Operators, address: str
) -> None:
    await operators()
    await kube.apply(external(namespace), field_manager="user", force=True)
    await created(kube, namespace)
    first = await until_condition(kube, namespace, "Reconciling", "True")
    assert first["reason"] == "RollingOut"
    pod = await one_pod(kube, namespace)

    async with Instance(address).serving() as instance:
        instance.health = health("Secret tables-jwt is missing: create it with key secret.")
        await set_pod(kube, pod, address=address, ready=False)
        waiting = await until_condition(kube, namespace, "Ready", "False", "InstancesWaiting")
        assert waiting["message"] == (
            "0 of 1 instances are ready: Secret tables-jwt is missing: create it with key secret."
        )

        name = pod["metadata"]["name"]
        instance.fleet = fleet(names=[name], connections=7, rooms=3)
        await set_pod(kube, pod, address=address, ready=True)
        ready = await until_condition(kube, namespace, "Ready", "True")
        assert ready["observedGeneration"] == 1
        now = await status(kube, namespace)
        assert {kind["type"] for kind in now["conditions"]} == {"Ready", "RedisReady", "Balanced"}
        assert (now["instances"], now["connections"], now["rooms"]) == (1, 7, 3)
        assert (now["replicas"], now["readyReplicas"], now["activeTrack"]) == (1, 1, "a")
        row: Object = {"name": name, "track": "a", "ready": True, "accepting": True, "draining": False}
        row |= {"connections": 7, "rooms": 3, "version": "0.1.0"}

        async def shown() -> bool:
            return (await status(kube, namespace))["instanceTable"] == [row]

        await until(shown, what="the instance has its row")
        assert now["redis"] == {"durability": "Disk", "version": "9.0.0"}
        secrets, _ = await kube.list(SECRETS, namespace)
        (fleet_secret,) = [item for item in secrets if "-fleet-" in item["metadata"]["name"]]
        key = base64.b64decode(fleet_secret["data"]["key"]).decode()
        assert set(instance.fleet_keys) == {key}

        instance.fleet = fleet(redis=AWAY, names=[name], connections=7, rooms=3)
        away = await until_condition(kube, namespace, "RedisReady", "False", "RedisUnreachable")
        assert away["message"].startswith(AWAY.message)
        assert "spec.redis.external.host" in away["message"]
        lost = await until_condition(kube, namespace, "Ready", "False", "RedisUnreachable")
        assert lost["lastTransitionTime"] >= ready["lastTransitionTime"]
        await until_condition(kube, namespace, "Reconciling", "True", "RedisUnreachable")

        instance.fleet = fleet(names=[name], connections=7, rooms=3)
        await until_condition(kube, namespace, "Ready", "True")

    told = [reason for reason, _ in await events(kube, namespace)]
    for reason in ("Created", "Ready", "RedisConnected", "RedisNotReady", "NotReady"):
        assert reason in told
    assert told.count("Ready") <= 2


async def test_redis_deleted_secret_is_there_again_once_its_absence_shows(
    kube: Kube, namespace: str, operators: Operators, address: str
) -> None:
    async def secret() -> Object | None:
        secrets, _ = await kube.list(SECRETS, namespace)
        return next((one for one in secrets if "-redis-" in one["metadata"]["name"]), None)

    await operators()
    await kube.apply(manifest(namespace), field_manager="user", force=True)
    pod = await one_pod(kube, namespace)
    async with Instance(address).serving() as instance:
        instance.fleet = fleet(names=[pod["metadata"]["name"]])
        await set_pod(kube, pod, address=address, ready=True)

        async def asked() -> bool:
            return bool(instance.fleet_keys)

        await until(asked, what="the fleet is asked")
        before = await until(secret, what="Redis's Secret")
        await kube.delete(SECRETS, namespace, before["metadata"]["name"], uid=before["metadata"]["uid"])
        instance.fleet = fleet(names=[pod["metadata"]["name"]], redis=AWAY)
        after = await until(secret, what="it is there again")
    assert after["metadata"]["name"] == before["metadata"]["name"]
    assert after["data"] == before["data"], "the same password"


async def test_a_redis_that_is_away_costs_nothing_where_a_quota_leaves_no_room_for_its_secret(
    kube: Kube, installed: Devcluster, namespace: str, operators: Operators, address: str, audit: AuditLog
) -> None:
    operator = await operators()
    await kube.apply(manifest(namespace), field_manager="user", force=True)
    await created(kube, namespace)
    words = ("-n", namespace, "quota", "full")
    kubectl(installed.kubeconfig, "create", *words, "--hard=count/secrets=2")

    async def used_up() -> bool:
        live = json.loads(kubectl(installed.kubeconfig, "get", *words, "-o=json"))
        return bool(live.get("status", {}).get("used") == {"count/secrets": "2"})

    await until(used_up, what="the quota is used up")
    pod = await one_pod(kube, namespace)
    start = audit.position()
    async with Instance(address).serving() as instance:
        instance.fleet = fleet(names=[pod["metadata"]["name"]], redis=AWAY)
        await set_pod(kube, pod, address=address, ready=True)

        async def refused() -> bool:
            asked = [one for one in audit.requests(start) if one["objectRef"]["resource"] == "secrets"]
            return [one["responseStatus"]["code"] for one in asked] == [403, 403]

        await until(refused, what="both Secrets are tried")
        instance.fleet = fleet(names=[pod["metadata"]["name"]])
        async with operator.turning(3):
            pass
    assert "QuotaExceeded" not in [reason for reason, _ in await events(kube, namespace)]
    assert "full" not in str((await status(kube, namespace))["conditions"])


async def test_an_unchanged_fleet_costs_no_write_and_counters_are_patient(
    kube: Kube, namespace: str, operators: Operators, address: str, audit: AuditLog
) -> None:
    operator = await operators()
    await kube.apply(external(namespace), field_manager="user", force=True)
    pod = await one_pod(kube, namespace)
    async with Instance(address).serving() as instance:
        names = [pod["metadata"]["name"]]
        instance.fleet = fleet(names=names, connections=100, rooms=3)
        await set_pod(kube, pod, address=address, ready=True)
        await until_condition(kube, namespace, "Ready", "True")

        await settled(kube, namespace, operator, audit)
        start = audit.position()
        asked = len(instance.fleet_keys)
        instance.fleet = fleet(names=names, connections=104, rooms=3)  # within 5 %

        async def asked_again() -> bool:
            return len(instance.fleet_keys) > asked

        await until(asked_again, what="the fleet is asked again")
        async with operator.turning():
            # The turn that asked is over once another one is.
            await look_again(kube, namespace)
        assert audit.writes(start) == []


async def test_a_rollout_shows_at_once_that_it_is_not_done(
    kube: Kube, namespace: str, operators: Operators, address: str
) -> None:
    await operators()
    await kube.apply(external(namespace), field_manager="user", force=True)
    pod = await one_pod(kube, namespace)
    async with Instance(address).serving() as instance:
        instance.fleet = fleet(instances=1)
        await set_pod(kube, pod, address=address, ready=True)
        await until_condition(kube, namespace, "Ready", "True")
        await kube.apply(external(namespace, image="example/other:2"), field_manager="user", force=True)

        async def look() -> Object | None:
            cluster = await kube.get(CLUSTERS, namespace, "tables")
            seen = cluster["status"]["observedGeneration"] == cluster["metadata"]["generation"]
            return cluster if seen else None

        cluster = await until(look, what="the new generation was seen")
        ready = [found for found in cluster["status"]["conditions"] if found["type"] == "Ready"]
        assert [found["status"] for found in ready] == ["False"], "never Ready by the old generation's word"


async def test_zero_replicas_are_ready_without_any_instance(
    kube: Kube, namespace: str, operators: Operators
) -> None:
    await operators()
    await kube.apply(external(namespace, replicas=0), field_manager="user", force=True)
    ready = await until_condition(kube, namespace, "Ready", "True")
    assert ready["message"] == "No instance runs, as spec.replicas asks for."
    now = await status(kube, namespace)
    assert (now["instances"], now["connections"], now["rooms"]) == (0, 0, 0)


async def test_a_pod_that_only_pretends_to_belong_is_not_asked(
    kube: Kube, namespace: str, operators: Operators, address: str
) -> None:
    operator = await operators()
    await kube.apply(external(namespace, replicas=0), field_manager="user", force=True)
    await until_condition(kube, namespace, "Ready", "True")
    deployment = await kube.get(resource_of("apps/v1", "Deployment"), namespace, "tables-a")
    impostor: Object = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "impostor",
            "namespace": namespace,
            # Not the Deployment's selector, or its ReplicaSet would take the pod for its own and delete it.
            "labels": {
                "app.kubernetes.io/managed-by": "tableforge-operator",
                "app.kubernetes.io/component": "dataplane",
                "tableforge.io/cluster": "tables",
                "pod-template-hash": "x",
            },
        },
        "spec": {"containers": deployment["spec"]["template"]["spec"]["containers"]},
    }
    impostor["spec"]["containers"][0].pop("volumeMounts", None)
    pod = await kube.create(impostor)
    async with Instance(address).serving() as instance:
        instance.fleet = fleet()
        async with operator.turning(2):
            await set_pod(kube, pod, address=address, ready=True)
        assert instance.fleet_keys == []
