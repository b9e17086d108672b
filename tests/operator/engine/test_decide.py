"""Decisions: what changes, what the status says, when it is written and when it isn't."""

import dataclasses
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tableforge_dataplane.contract import endpoints
from tableforge_operator.decide import ownership
from tableforge_operator.decide.plan import POLL_SECONDS, POLL_UNSETTLED_SECONDS, Plan, decide
from tableforge_operator.decide.snapshot import FleetView, Refusal, Snapshot
from tests.operator.engine.pods import AWAY, health
from tests.operator.engine.snapshots import (
    SECRETS,
    at,
    cluster,
    conditions,
    done,
    of_track,
    ready_cluster,
    settled,
    with_fleet,
    with_workloads,
)

CONFIG = "tables-config-05a2d670"


def plan(snapshot: Snapshot, seconds: float = 0) -> Plan:
    return decide(snapshot, at(seconds), secrets=SECRETS)


def test_a_new_cluster_gets_its_secrets_and_children_and_no_status_before_they_are_there() -> None:
    first = plan(Snapshot(cluster=cluster()))
    assert {secret["kind"] for secret in first.secrets} == {"Secret"}
    assert {wanted.reason for wanted in first.applies} == {"Missing"}
    assert first.status is None


def test_status_and_conditions_follow_kstatus() -> None:
    snapshot = settled(Snapshot(cluster=cluster()), now=at(0))
    found = conditions(snapshot)
    assert set(found) == {"Ready", "RedisReady", "Reconciling"}
    assert (found["Ready"]["status"], found["Reconciling"]["status"]) == ("False", "True")
    assert found["Ready"]["reason"] == "RedisStarting"
    done_with = ready_cluster(now=at(5))
    found = conditions(done_with)
    assert {kind: item["status"] for kind, item in found.items()} == {"Ready": "True", "RedisReady": "True"}
    assert found["Ready"]["observedGeneration"] == done_with.cluster["status"]["observedGeneration"] == 1


def test_nothing_is_done_for_a_paused_cluster_or_one_that_is_going() -> None:
    for more in (
        {"annotations": {"tableforge.io/paused": "true"}},
        {"deletionTimestamp": "2026-01-01T00:00:00Z"},
    ):
        obj = cluster()
        obj["metadata"].update(more)
        assert plan(Snapshot(cluster=obj)) == Plan()


@pytest.mark.parametrize("reason", ["NameConflict", "Rejected"])
def test_what_only_the_user_can_mend_is_stalled_at_once(reason: Any) -> None:
    snapshot = ready_cluster(now=at(0))
    key = ("Service", "tables")
    refusal = Refusal(
        reason=reason,
        message="Service tables exists already.",
        digest=snapshot.applied[key].digest,
        attempts=1,
        retry_at=at(30).monotonic,
    )
    found = plan(dataclasses.replace(snapshot, refusals={key: refusal}), 1)
    assert conditions(found)["Stalled"]["reason"] == reason
    assert "Reconciling" not in conditions(found)
    assert conditions(found)["Ready"]["message"] == refusal.message
    assert [event.reason for event in found.events] == [reason]


def test_all_names_that_are_taken_are_told_together() -> None:
    snapshot = ready_cluster(now=at(0))
    refusals = {
        key: Refusal(
            reason="NameConflict",
            message=f"{key[0]} {key[1]} exists already.",
            digest=snapshot.applied[key].digest,
            attempts=1,
            retry_at=at(30).monotonic,
        )
        for key in (("Service", "tables"), ("Deployment", "tables-a"), ("ConfigMap", CONFIG))
    }
    found = conditions(plan(dataclasses.replace(snapshot, refusals=refusals), 1))
    assert found["Stalled"]["message"] == (
        f"ConfigMap {CONFIG} exists already. The same goes for Deployment tables-a, Service tables."
    )


def test_a_change_that_was_asked_for_is_no_warning() -> None:
    ready = ready_cluster(now=at(0))
    (lost,) = plan(with_workloads(ready, ready=2), 1).events
    assert (lost.type, lost.reason) == ("Warning", "NotReady")
    metadata = {**ready.cluster["metadata"], "generation": 2}
    scaled = {**ready.cluster, "metadata": metadata, "spec": {**ready.cluster["spec"], "replicas": 4}}
    under_way = dataclasses.replace(ready, cluster=scaled)
    under_way = done(under_way, plan(under_way, 1), now=at(1))
    (told,) = plan(with_workloads(under_way), 1).events
    assert (told.type, told.reason) == ("Normal", "RollingOut")


def test_a_claim_without_a_volume_names_the_field_of_its_class() -> None:
    spec = {"redis": {"managed": {"storage": {"storageClassName": "fast"}}}}
    snapshot = settled(Snapshot(cluster=cluster(**spec)), now=at(0))
    unscheduled = {
        "type": "PodScheduled",
        "status": "False",
        "message": "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims.",
    }
    pod = {
        "kind": "Pod",
        "metadata": {
            "name": "tables-redis-0",
            "namespace": "ns",
            "labels": {"app.kubernetes.io/component": "redis"},
        },
        "spec": {},
        "status": {"conditions": [unscheduled]},
    }
    message = conditions(plan(dataclasses.replace(snapshot, pods=(pod,)), 1))["Ready"]["message"]
    assert message.endswith(
        "unbound immediate PersistentVolumeClaims; its claim waits for StorageClass fast "
        "(spec.redis.managed.storage.storageClassName) to give it a volume."
    )


def test_a_refused_child_is_tried_again_when_it_is_due_or_when_something_else_is_wanted() -> None:
    first = plan(Snapshot(cluster=cluster()))
    wanted = first.applies[0]
    refusal = Refusal(
        reason="Rejected", message="no", digest=wanted.digest, attempts=1, retry_at=at(30).monotonic
    )
    snapshot = Snapshot(cluster=cluster(), refusals={wanted.key: refusal})
    assert wanted.key not in [item.key for item in plan(snapshot, 29).applies]
    assert wanted.key in [item.key for item in plan(snapshot, 30).applies]
    other = dataclasses.replace(refusal, digest="something else")
    snapshot = dataclasses.replace(snapshot, refusals={wanted.key: other})
    assert wanted.key in [item.key for item in plan(snapshot, 0).applies]


def test_what_may_still_come_is_reconciling_until_the_deadline_and_then_stalled() -> None:
    snapshot = settled(Snapshot(cluster=cluster(rollout={"progressDeadline": "1m"})), now=at(0))
    snapshot = settled(with_workloads(snapshot, ready=0), now=at(1))
    snapshot = dataclasses.replace(
        snapshot, fleet=FleetView(healths=(health("Secret tables-jwt is missing: create it."),))
    )
    snapshot = settled(snapshot, now=at(2))
    found = conditions(snapshot)
    assert found["Ready"]["reason"] == found["Reconciling"]["reason"] == "InstancesWaiting"
    assert "Secret tables-jwt is missing: create it." in found["Ready"]["message"]
    waiting = plan(snapshot, 58)
    assert waiting.status is None
    assert waiting.requeue_seconds is not None
    assert waiting.requeue_seconds <= 4
    late = plan(snapshot, 62)
    found = conditions(late)
    assert "Reconciling" not in found
    assert found["Stalled"]["reason"] == "ProgressDeadlineExceeded"
    assert "spec.rollout.progressDeadline (60 s)" in found["Stalled"]["message"]
    assert "Secret tables-jwt is missing" in found["Stalled"]["message"]
    snapshot = settled(done(snapshot, late, now=at(62)), now=at(62))
    assert plan(snapshot, 500).status is None, "it stays as it is"
    healed = settled(with_fleet(with_workloads(snapshot), now=at(501)), now=at(501))
    assert set(conditions(healed)) == {"Ready", "RedisReady"}


def of_files(*files: str) -> FleetView:
    return FleetView(healths=(health(*(f"{file} does not exist: it is needed." for file in files)),))


JWT = f"JWT_SECRET_FILE={endpoints.JWT_SECRET_FILE}"
API = f"TABLEFORGE_HTTP_API_KEY_FILE={endpoints.API_KEY_FILE}"


@pytest.mark.parametrize("stalled", [False, True])
def test_each_of_two_troubles_that_follow_one_another_is_told(stalled: bool) -> None:
    auth = {"jwtSecretRef": {"name": "first"}, "apiKeySecretRef": {"name": "second"}}
    snapshot = settled(Snapshot(cluster=cluster(auth=auth, rollout={"progressDeadline": "1m"})), now=at(0))
    snapshot = settled(with_workloads(snapshot, ready=0), now=at(1))
    late = 100 if stalled else 2

    def told(missing: str, seconds: float, ready: int = 0) -> list[tuple[str, str]]:
        nonlocal snapshot
        snapshot = dataclasses.replace(with_workloads(snapshot, ready=ready), fleet=of_files(missing))
        found = plan(snapshot, seconds)
        snapshot = settled(done(snapshot, found, now=at(seconds)), now=at(seconds))
        assert conditions(snapshot)["Ready"]["reason"] == (
            "ProgressDeadlineExceeded" if stalled else "SecretMissing"
        )
        return [(event.type, event.message) for event in found.events if event.reason != "RedisConnected"]

    ((kind, message),) = told(JWT, late)
    assert kind == "Warning"
    assert "Secret first, or its key secret, does not exist" in message
    assert "(spec.auth.jwtSecretRef)" in message
    assert told(JWT, late + 1) == []
    assert told(JWT, late + 2, ready=1) == [], "how many wait for it is no news"
    ((kind, message),) = told(API, late + 3)
    assert kind == "Warning"
    assert "Secret second, or its key key, does not exist" in message
    assert "(spec.auth.apiKeySecretRef)" in message


def test_words_that_name_no_field_may_change_without_an_event() -> None:
    snapshot = settled(Snapshot(cluster=cluster()), now=at(0))
    snapshot = settled(with_workloads(snapshot, ready=0), now=at(1))
    for number in range(3):
        view = FleetView(healths=(health(f"Redis has loaded {number} of 3 GB."),))
        found = plan(dataclasses.replace(snapshot, fleet=view), 2 + number)
        told = [event.reason for event in found.events if event.reason != "RedisConnected"]
        assert told == ([] if number else ["InstancesWaiting"])
        snapshot = done(dataclasses.replace(snapshot, fleet=view), found, now=at(2 + number))


def test_progress_of_the_rollout_and_a_new_generation_start_the_deadline_anew() -> None:
    spec: dict[str, Any] = {"rollout": {"progressDeadline": "1m"}}
    snapshot = settled(Snapshot(cluster=cluster(**spec)), now=at(0))
    progressing = {"type": "Progressing", "status": "True", "reason": "ReplicaSetUpdated"}
    moving = with_workloads(
        snapshot, ready=1, conditions=[{**progressing, "lastUpdateTime": "2026-01-01T00:00:50Z"}]
    )
    moving = settled(moving, now=at(51))
    assert "Stalled" not in conditions(settled(moving, now=at(100)))
    assert "Stalled" in conditions(settled(moving, now=at(111)))
    late = settled(with_workloads(snapshot, ready=1), now=at(61))
    assert "Stalled" in conditions(late)
    newer = {**late.cluster, "metadata": {**late.cluster["metadata"], "generation": 2}}
    assert "Stalled" not in conditions(settled(dataclasses.replace(late, cluster=newer), now=at(62)))


def test_last_transition_time_changes_on_a_flip_only() -> None:
    ready = ready_cluster(now=at(0))
    away = settled(with_fleet(ready, now=at(10), redis=AWAY), now=at(10))
    assert conditions(away)["Ready"]["lastTransitionTime"] == "2026-01-01T00:00:10Z"
    other = msgspec.structs.replace(
        AWAY, message="Redis refuses the password.", reason="AuthenticationFailed"
    )
    still = settled(with_fleet(away, now=at(20), redis=other), now=at(20))
    assert conditions(still)["Ready"]["message"] == "Redis refuses the password."
    assert conditions(still)["Ready"]["lastTransitionTime"] == "2026-01-01T00:00:10Z"
    back = settled(with_fleet(still, now=at(30)), now=at(30))
    assert conditions(back)["Ready"]["lastTransitionTime"] == "2026-01-01T00:00:30Z"


def test_counters_wait_for_five_per_cent_and_thirty_seconds() -> None:
    ready = ready_cluster(now=at(0))
    assert ready.cluster["status"]["connections"] == 100
    # 33 on each of three instances, then 34, then 35
    assert plan(with_fleet(ready, now=at(40), connections=104, rooms=10), 40).status is None
    assert plan(with_fleet(ready, now=at(20), connections=200, rooms=10), 20).status is None
    moved = plan(with_fleet(ready, now=at(40), connections=106, rooms=10), 40)
    assert moved.status is not None
    assert moved.status["connections"] == 106
    assert moved.counters
    assert moved.events == ()


def test_the_number_of_instances_is_told_at_once_and_asked_for_until_it_fits() -> None:
    ready = ready_cluster(now=at(0))
    lagging = with_fleet(ready, now=at(1), instances=2, connections=100, rooms=10)
    told = plan(lagging, 1)
    assert told.status is not None
    assert told.status["instances"] == 2
    assert told.requeue_seconds == POLL_UNSETTLED_SECONDS
    whole = plan(with_fleet(done(lagging, told, now=at(1)), now=at(5), connections=100, rooms=10), 5)
    assert whole.status is not None
    assert whole.status["instances"] == 3
    assert whole.requeue_seconds == POLL_SECONDS


def test_counters_come_along_when_a_condition_flips() -> None:
    ready = ready_cluster(now=at(0))
    found = plan(with_fleet(ready, now=at(5), redis=AWAY, connections=300, rooms=10), 5)
    assert found.status is not None
    assert found.status["connections"] == 300


def test_nobody_is_warned_of_a_redis_that_no_instance_is_wanted_to_use() -> None:
    snapshot = ready_cluster(now=at(0))
    spec = {**snapshot.cluster["spec"], "replicas": 0}
    metadata = {**snapshot.cluster["metadata"], "generation": 2}
    snapshot = dataclasses.replace(snapshot, cluster={**snapshot.cluster, "metadata": metadata, "spec": spec})
    told = []
    for _ in range(4):
        found = plan(snapshot, 5)
        told += found.events
        snapshot = done(snapshot, found, now=at(5))
    assert conditions(snapshot)["RedisReady"]["reason"] == "NoInstances"
    assert told
    assert [event for event in told if event.type == "Warning"] == []


def test_an_instance_that_knows_only_of_itself_changes_no_counter() -> None:
    ready = ready_cluster(now=at(0))
    away = with_fleet(ready, now=at(5), redis=AWAY, instances=1, connections=0, rooms=0)
    assert away.fleet.fleet is not None
    alone = msgspec.structs.replace(away.fleet.fleet, as_of=0.0)
    found = plan(dataclasses.replace(away, fleet=dataclasses.replace(away.fleet, fleet=alone)), 5)
    assert found.status is not None
    assert (found.status["instances"], found.status["connections"]) == (3, 100)


def test_a_silent_fleet_is_believed_for_a_minute_and_then_reported() -> None:
    ready = ready_cluster(now=at(0))
    silent = dataclasses.replace(
        ready, fleet=dataclasses.replace(ready.fleet, failures=("pod a: no answer in 3 s",))
    )
    assert plan(silent, 59).status is None
    found = conditions(plan(silent, 61))
    assert found["Ready"]["reason"] == "FleetUnreachable"
    assert "pod a: no answer in 3 s" in found["Ready"]["message"]
    assert found["RedisReady"]["status"] == "Unknown"


def test_a_ready_cluster_is_looked_at_again_and_nothing_else() -> None:
    assert plan(ready_cluster(now=at(0)), 1) == Plan(requeue_seconds=POLL_SECONDS)


def test_an_edited_child_is_applied_again_and_one_that_is_only_added_to_is_not() -> None:
    ready = ready_cluster(now=at(0))
    key = ("Service", "tables")
    obj = ready.children[key]
    (entry,) = obj["metadata"]["managedFields"]
    theirs = {"manager": "kubectl-edit", "operation": "Update", "fieldsV1": {}}

    def changed(**metadata: Any) -> Snapshot:
        live = {**obj, "metadata": {**obj["metadata"], **metadata}}
        return dataclasses.replace(ready, children={**ready.children, key: live})

    added = changed(labels={**obj["metadata"]["labels"], "x": "y"}, managedFields=[entry, theirs])
    assert not plan(added, 1).changes_objects
    later = changed(managedFields=[{**entry, "time": "later"}])
    assert not plan(later, 1).changes_objects
    edited = changed(managedFields=[{**entry, "fieldsV1": "less"}, theirs])
    assert [(item.key, item.reason) for item in plan(edited, 1).applies] == [(key, "Drifted")]
    replaced = changed(uid="another")
    assert [(item.key, item.reason) for item in plan(replaced, 1).applies] == [(key, "Adopted")]


def test_a_kind_that_cannot_be_seen_is_not_applied_on_every_turn() -> None:
    ready = ready_cluster(now=at(0))
    blind = dataclasses.replace(
        ready,
        blind={"PodDisruptionBudget": "forbidden"},
        children={key: obj for key, obj in ready.children.items() if key[0] != "PodDisruptionBudget"},
    )
    found = plan(blind, 1)
    assert not found.changes_objects
    assert conditions(found)["Ready"]["status"] == "True"
    assert "PodDisruptionBudget go unnoticed: forbidden" in conditions(found)["Ready"]["message"]
    without_deployments = dataclasses.replace(ready, blind={"Deployment": "forbidden"})
    assert conditions(plan(without_deployments, 1))["Ready"]["reason"] == "Blind"


def test_a_spec_that_cannot_be_read_is_stalled_and_changes_nothing() -> None:
    found = plan(Snapshot(cluster=cluster(replicas="three")))
    assert not found.changes_objects
    assert conditions(found)["Stalled"]["reason"] == "Invalid"
    assert "replicas" in conditions(found)["Stalled"]["message"]
    again = dataclasses.replace(Snapshot(cluster=cluster(replicas="three", status=None)))
    again = dataclasses.replace(again, cluster={**again.cluster, "status": found.status})
    assert plan(again, 100).status is None


def test_why_a_pod_does_not_start_is_told() -> None:
    snapshot = settled(Snapshot(cluster=cluster()), now=at(0))

    def message(container: dict[str, Any], **status: Any) -> str:
        pod = {
            "kind": "Pod",
            "metadata": {
                "name": "tables-a-1",
                "namespace": "ns",
                **of_track(),
            },
            "spec": {},
            "status": {"containerStatuses": [container] if container else [], **status},
        }
        with_pod = dataclasses.replace(with_workloads(snapshot, ready=2), pods=(pod,))
        return str(conditions(plan(with_pod, 1))["Ready"]["message"])

    waiting = {
        "ready": False,
        "state": {"waiting": {"reason": "CreateContainerConfigError", "message": "no such key"}},
    }
    assert "pod tables-a-1: CreateContainerConfigError: no such key." in message(waiting)
    pulling = {"reason": "ErrImagePull", "message": "not found."}
    again = {
        "reason": "ImagePullBackOff",
        "message": 'Back-off pulling image "some/image:1": ErrImagePull: not found.',
    }
    said = {
        message({"ready": False, "image": "some/image:1", "state": {"waiting": state}})
        for state in (pulling, again)
    }
    told = (
        "2 of 3 instances are ready: pod tables-a-1 cannot pull image some/image:1 (spec.image): not found. "
        "Correct spec.image, or name the Secret with the registry's login in spec.pod.imagePullSecrets."
    )
    assert said == {told}, "going to and fro between the two is no news"
    ended = {"terminated": {"exitCode": 2, "message": "WS_PORT='x': must be a whole number"}}
    crash = {"ready": False, "restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}
    assert "keeps stopping: WS_PORT='x': must be a whole number" in message({**crash, "lastState": ended})
    unscheduled = {"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"}
    assert "has no node: 0/3 nodes are available" in message({}, conditions=[unscheduled])


def test_what_is_wrong_with_a_secret_names_the_secret_and_not_only_its_file() -> None:
    spec: dict[str, Any] = {
        "auth": {"jwtSecretRef": {"name": "tables-jwt", "key": "hs256"}},
        "redis": {"external": {"host": "redis.example", "passwordSecretRef": {"name": "login"}}},
    }
    snapshot = settled(Snapshot(cluster=cluster(**spec)), now=at(0))
    waiting = health(f"JWT_SECRET_FILE={endpoints.JWT_SECRET_FILE} does not exist: create the Secret.")
    found = conditions(
        plan(dataclasses.replace(with_workloads(snapshot, ready=0), fleet=FleetView(healths=(waiting,))), 1)
    )
    message = (
        "Secret tables-jwt, or its key hs256, does not exist: create the Secret (spec.auth.jwtSecretRef)."
    )
    assert found["Ready"]["message"] == f"0 of 3 instances are ready: {message}"
    short = FleetView(healths=(health("JWT_SECRET holds a key of 5 bytes."),))
    found = conditions(plan(dataclasses.replace(with_workloads(snapshot, ready=0), fleet=short), 1))
    assert "ready: Secret tables-jwt (key hs256) holds a key of 5 bytes (" in found["Ready"]["message"]

    def redis(reason: Any, message: str, **spec: Any) -> str:
        away = msgspec.structs.replace(AWAY, reason=reason, message=message)
        snapshot = settled(Snapshot(cluster=cluster(**spec)), now=at(0))
        view = FleetView(healths=(health(redis=away),))
        found = conditions(plan(dataclasses.replace(snapshot, fleet=view), 1))
        assert found["RedisReady"]["message"] == found["Ready"]["message"]
        return str(found["Ready"]["message"])

    missing = f"REDIS_PASSWORD_FILE={endpoints.REDIS_PASSWORD_FILE} is empty."
    assert redis("PasswordMissing", missing, **spec) == "Secret login (key password) is empty."
    refused = redis("AuthenticationFailed", "Redis refuses the password.", **spec)
    assert refused.startswith(
        "Redis refuses the password. It is given what Secret login (key password) holds, as the default user"
    )
    none = redis("AuthenticationFailed", "Redis wants one.", redis={"external": {"host": "redis.example"}})
    assert none.endswith("It is given none: name its Secret in spec.redis.external.passwordSecretRef.")


def test_what_is_missing_is_named_by_the_users_object_and_the_field() -> None:
    spec: dict[str, Any] = {
        "auth": {
            "publicKeys": {"configMapRef": {"name": "keys", "key": "public.pem"}},
            "jwks": {"url": "https://id.example.com", "caSecretRef": {"name": "ca", "key": "ca.pem"}},
        },
        "websocket": {"tls": {"secretName": "certificate"}},
    }
    snapshot = with_workloads(settled(Snapshot(cluster=cluster(**spec)), now=at(0)), ready=0)

    def told(sentence: str) -> str:
        view = FleetView(healths=(health(sentence),))
        found = conditions(plan(dataclasses.replace(snapshot, fleet=view), 1))
        return str(found["Ready"]["message"]).partition(" ready: ")[2]

    file = f"TABLEFORGE_AUTH_PUBLIC_KEY_FILE={endpoints.PUBLIC_KEYS_FILE}"
    assert told(f"{file} does not exist: put the keys there.") == (
        "ConfigMap keys, or its key public.pem, does not exist: put the keys there (spec.auth.publicKeys)."
    )
    file = f"TABLEFORGE_AUTH_JWKS_CA_FILE={endpoints.JWKS_CA_FILE}"
    assert told(f"{file} cannot be read as certificates (no start line).") == (
        "Secret ca (key ca.pem) cannot be read as certificates (no start line) (spec.auth.jwks)."
    )
    files = " and ".join(
        f"TABLEFORGE_WEBSOCKET_TLS_{kind}_FILE={endpoints.TLS_DIR}/tls.{name}"
        for kind, name in (("CERT", "crt"), ("KEY", "key"))
    )
    assert told(f"{files} cannot be used (No such file or directory): put both there.") == (
        "Secret certificate (key tls.crt) and Secret certificate (key tls.key) cannot be used (No such file "
        "or directory): put both there (spec.websocket.tls.secretName)."
    )


texts = st.text(max_size=2000)


@st.composite
def worlds(draw: st.DrawFn) -> Snapshot:
    """A cluster at any point of its life, with instances that say anything."""
    now = at(0)
    replicas = draw(st.integers(0, 4))
    spec: dict[str, Any] = {"replicas": replicas}
    if draw(st.booleans()):
        spec["redis"] = {"external": {"host": "redis.example"}}
    snapshot = Snapshot(cluster=cluster(generation=draw(st.integers(1, 3)), **spec))
    if draw(st.booleans()):
        snapshot = settled(snapshot, now=now)
    if draw(st.booleans()):
        ready = draw(st.integers(0, 5))
        snapshot = with_workloads(snapshot, ready=ready, total=draw(st.integers(ready, 6)))
    if draw(st.booleans()):
        redis = msgspec.structs.replace(AWAY, message=draw(texts)) if draw(st.booleans()) else None
        of_fleet: dict[str, Any] = {
            "connections": draw(st.integers(0, 2**53)),
            "rooms": draw(st.integers(0, 2**53)),
        }
        if redis is not None:
            of_fleet["redis"] = redis
        snapshot = with_fleet(snapshot, now=at(draw(st.floats(-120, 0))), **of_fleet)
    else:
        healths = tuple(health(sentence) for sentence in draw(st.lists(texts, max_size=3)))
        failures = tuple(draw(st.lists(texts, max_size=2)))
        snapshot = dataclasses.replace(snapshot, fleet=FleetView(healths=healths, failures=failures))
    blind = {kind: draw(texts) for kind in draw(st.sets(st.sampled_from(["Deployment", "Pod", "Service"])))}
    snapshot = dataclasses.replace(snapshot, blind=blind)
    for key in draw(st.sets(st.sampled_from([("Service", "tables"), ("Deployment", "tables-a")]))):
        reason = draw(st.sampled_from(["NameConflict", "Rejected", "Forbidden", "ApiUnavailable"]))
        applied = snapshot.applied.get(key)
        refusal = Refusal(
            reason=reason,  # type: ignore[arg-type]
            message=draw(texts),
            digest=applied.digest if applied is not None else "none",
            attempts=1,
            retry_at=at(draw(st.floats(0, 60))).monotonic,
        )
        snapshot = dataclasses.replace(snapshot, refusals={**snapshot.refusals, key: refusal})
    return snapshot


@settings(deadline=None)
@given(world=worlds(), seconds=st.floats(0, 3600))
def test_once_a_plan_is_done_there_is_nothing_more_to_do(world: Snapshot, seconds: float) -> None:
    now = at(seconds)
    after = settled(world, now=now)
    again = decide(after, now, secrets=SECRETS)
    assert not again.changes_objects
    assert (again.status, again.events) == (None, ())


@settings(deadline=None)
@given(world=worlds(), seconds=st.floats(0, 3600))
def test_the_conditions_never_contradict_each_other(world: Snapshot, seconds: float) -> None:
    after = settled(world, now=at(seconds))
    found = conditions(after)
    assert ("Reconciling" in found or "Stalled" in found) == (found["Ready"]["status"] == "False")
    assert not {"Reconciling", "Stalled"} <= set(found)
    for item in found.values():
        assert item["observedGeneration"] == after.cluster["metadata"]["generation"]
        assert len(item["message"]) <= 32768
        assert item["message"].isprintable()
    if found["Ready"]["status"] == "True" and after.cluster["spec"]["replicas"] > 0:
        assert found["RedisReady"]["status"] == "True"


def test_the_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert ownership.digest({"a": 1, "b": {"c": 2, "d": 3}}) == ownership.digest(
        {"b": {"d": 3, "c": 2}, "a": 1}
    )
    assert ownership.digest({"a": [1, 2]}) != ownership.digest({"a": [2, 1]})
