"""What is decided about the claim of a managed Redis."""

import dataclasses
from typing import Any

from tableforge_operator.decide import storage
from tableforge_operator.decide.plan import Plan, decide
from tableforge_operator.decide.snapshot import Refusal, Snapshot
from tests.operator.engine.snapshots import SECRETS, at, cluster, conditions, ready_cluster, settled

SIX = {"redis": {"managed": {"storage": {"size": "6Gi"}}}}


def claim(requested: str, capacity: str | None = None, *, phase: str = "Bound", **status: Any) -> Any:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "data-tables-redis-0", "namespace": "ns", "uid": "claim-1"},
        "spec": {"resources": {"requests": {"storage": requested}}},
        "status": {"phase": phase, "capacity": {"storage": capacity or requested}, **status},
    }


def with_claim(found: Any) -> Snapshot:
    return dataclasses.replace(ready_cluster(now=at(0), **SIX), claims=(found,))


def plan(snapshot: Snapshot) -> Plan:
    return decide(snapshot, at(10), secrets=SECRETS)


def test_a_claim_that_is_too_small_grows() -> None:
    wanted = plan(with_claim(claim("1Gi")))
    assert wanted.growth is not None
    assert (wanted.growth.claim["metadata"]["uid"], wanted.growth.size) == ("claim-1", "6Gi")


def test_one_that_is_large_enough_or_not_bound_or_not_ours_is_left_alone() -> None:
    for found in (
        claim("6Gi"),
        claim("6442450944"),
        claim("1Ti"),
        claim("1Gi", phase="Pending"),
        {**claim("1Gi"), "metadata": {"name": "data-other-redis-0", "namespace": "ns", "uid": "x"}},
    ):
        assert plan(with_claim(found)).growth is None


def test_while_it_grows_the_cluster_says_so_in_its_words() -> None:
    pending = {
        "type": "FileSystemResizePending",
        "status": "True",
        "message": "Waiting for user to (re-)start a pod to finish file system resize.",
    }
    snapshot = with_claim(claim("6Gi", "1Gi", conditions=[pending]))
    found = conditions(plan(snapshot))["Ready"]
    assert (found["status"], found["reason"]) == ("False", "StorageGrowing")
    assert "from 1Gi to 6Gi (spec.redis.managed.storage.size): Waiting for user" in found["message"]
    done = settled(dataclasses.replace(snapshot, claims=(claim("6Gi"),)), now=at(20))
    assert conditions(done)["Ready"]["status"] == "True"
    assert done.cluster["status"]["redis"]["storage"] == "6Gi"


def waiting(**spec: Any) -> Any:
    made = claim("6Gi", phase="Pending")
    return {**made, "spec": {**made["spec"], **spec}, "status": {"phase": "Pending"}}


def test_a_claim_that_waits_for_a_class_that_is_not_there_says_so_first() -> None:
    snapshot = dataclasses.replace(
        settled(Snapshot(cluster=cluster(**SIX), claims=(waiting(storageClassName="fast"),)), now=at(0)),
        storage_class_missing=True,
    )
    found = plan(snapshot)
    (event,) = [event for event in found.events if event.reason == "StorageClassMissing"]
    assert event.type == "Warning"
    for words in (
        "StorageClass fast does not exist, so claim data-tables-redis-0",
        "create it, or delete this WebSocketCluster and claim data-tables-redis-0",
        "spec.redis.managed.storage.storageClassName.",
    ):
        assert words in event.message
        assert words in conditions(found)["Ready"]["message"]
    assert conditions(found)["RedisReady"]["reason"] == "RedisStarting"


def test_a_claim_without_a_class_waits_for_a_default_one() -> None:
    snapshot = settled(Snapshot(cluster=cluster(**SIX), claims=(waiting(),)), now=at(0))
    ready = conditions(snapshot)["Ready"]
    assert ready["reason"] == "StorageClassMissing"
    assert ready["message"].startswith("There is no default StorageClass, so claim data-tables-redis-0")


def test_one_that_has_a_volume_or_wants_none_of_a_class_waits_for_none() -> None:
    bound = claim("6Gi")
    bound["spec"]["storageClassName"] = "gone"
    for found in (bound, waiting(storageClassName=""), waiting(storageClassName="a", volumeName="v")):
        snapshot = Snapshot(cluster=cluster(**SIX), claims=(found,), storage_class_missing=True)
        assert conditions(settled(snapshot, now=at(0)))["Ready"]["reason"] == "RedisStarting"
        assert storage.class_waited_for(cluster(**SIX), [found]) is None
    named = cluster(redis={"managed": {"storage": {"storageClassName": "fast"}}})
    assert storage.class_waited_for(named, [bound]) is None
    assert storage.class_waited_for(named, []) is None
    assert storage.class_waited_for(named, [bound, waiting(storageClassName="fast")]) == "fast"
    by_default = [waiting(storageClassName="fast")]
    assert storage.class_waited_for(cluster(**SIX), by_default) is None, "nobody named it: it is the default"


def test_a_refusal_is_not_repeated_at_once_and_one_of_another_size_says_nothing() -> None:
    snapshot = with_claim(claim("1Gi"))
    key = ("PersistentVolumeClaim", "data-tables-redis-0")

    def refused(digest: str) -> Snapshot:
        refusal = Refusal(
            reason="StorageNotGrown", message="It cannot.", digest=digest, attempts=1, retry_at=1060.0
        )
        return dataclasses.replace(snapshot, refusals={key: refusal})

    waits = plan(refused("grow to 6Gi"))
    assert waits.growth is None
    assert conditions(waits)["Stalled"]["reason"] == "StorageNotGrown"
    assert plan(refused("grow to 2Gi")).growth is not None
