"""How connections move the least number of instances, and which pods go first: decided without a cluster."""

import dataclasses
import datetime as dt
import math
import random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tableforge_operator.api import load
from tableforge_operator.decide import autoscaling, deletion_costs
from tableforge_operator.decide.autoscaling import Limits, next_floor
from tableforge_operator.decide.changes import WITHDRAWN
from tableforge_operator.decide.plan import Plan, decide
from tableforge_operator.decide.resources.floor import Floor
from tableforge_operator.decide.snapshot import FleetView, Refusal, Snapshot
from tests.operator.engine.pods import AWAY, fleet
from tests.operator.engine.rollouts import World
from tests.operator.engine.snapshots import (
    SECRETS,
    at,
    cluster,
    conditions,
    done,
    settled,
    with_fleet,
    with_workloads,
)

KEY = ("HorizontalPodAutoscaler", "tables")
DEPLOYMENT = ("Deployment", "tables-a")
UP_SECONDS, DOWN_SECONDS = 300, 600
USUAL = Limits(
    lowest=3, highest=10, capacity=1000, threshold=0.8, up_seconds=UP_SECONDS, down_seconds=DOWN_SECONDS
)


def autoscaled(**spec: Any) -> dict[str, Any]:
    """A cluster that follows its load, 3 to 10 instances of 1000 connections."""
    scaling = {"enabled": True, **spec.pop("autoscaling", {})}
    return cluster(autoscaling=scaling, **spec)


def following(
    *looks: tuple[float, int | None], limits: Limits = USUAL, held: Floor | None = None
) -> list[int]:
    """The floor after each look: (seconds, connections)."""
    floors = []
    for seconds, connections in looks:
        held = next_floor(held, connections=connections, limits=limits, now=at(seconds))
        floors.append(held.replicas)
    return floors


@pytest.mark.parametrize(
    ("connections", "needed"), [(0, 3), (2400, 3), (2401, 4), (3200, 4), (3201, 5), (8000, 10), (10**6, 10)]
)
def test_there_is_room_for_the_connections_below_the_threshold(connections: int, needed: int) -> None:
    assert following((0, connections)) == [needed]


def test_a_threshold_that_no_float_hits_is_still_met_exactly() -> None:
    limits = dataclasses.replace(USUAL, lowest=1, highest=1000, threshold=0.7, capacity=10)
    assert [limits.needed(7 * number) for number in range(1, 1000)] == list(range(1, 1000))


def test_the_floor_goes_up_at_once_and_then_not_before_the_cooldown_is_over() -> None:
    assert following((0, 100), (10, 2401), (11, 3300), (309, 3300), (310, 3300)) == [3, 4, 4, 4, 5]


def test_a_fleet_without_room_does_not_wait_for_the_cooldown() -> None:
    # Four instances take 4000 connections; the next one would be refused.
    assert following((0, 2401), (10, 3999), (11, 4000)) == [4, 4, 5]


def test_the_floor_goes_down_once_fewer_were_enough_for_a_whole_cooldown() -> None:
    looks = [(0, 6000), (100, 3000), (599, 3000), (600, 3000), (699, 3000), (700, 3000)]
    # 3000 need 4 instances, and with a tenth to spare 5. The look at 0 counts until 600.
    assert following(*looks) == [8, 8, 8, 5, 5, 5]
    # One look at more in between, and it is counted from there.
    looks = [(0, 6000), (100, 3000), (500, 6000), (1000, 3000), (1099, 3000), (1100, 3000)]
    assert following(*looks) == [8, 8, 8, 8, 8, 5]


def test_connections_that_go_to_and_fro_by_less_than_a_tenth_move_nothing() -> None:
    looks = [(60 * minute, 2401 if minute % 2 else 2250) for minute in range(1, 300)]
    assert following(*looks) == [4] * 299


def test_nobody_tells_and_the_floor_stays() -> None:
    assert following((0, 6000), (10**6, None), (10**6 + 1, None)) == [8, 8, 8]
    # What was seen before the silence is too old to lower anything by, but the silence is not to blame.
    assert following((0, 6000), (10**6, None), (10**6 + 1, 0), (10**6 + 700, 0))[-1] == 3


def test_an_operator_that_starts_lowers_nothing_before_it_has_watched_for_a_cooldown() -> None:
    held = Floor(replicas=8, changed_at=at(-10_000).wall)
    assert following((0, 100), (599, 100), (600, 100), held=held) == [8, 8, 3]
    # And keeps to the cooldown that began before.
    held = Floor(replicas=4, changed_at=at(-200).wall)
    assert following((0, 3300), (99, 3300), (100, 3300), held=held) == [4, 4, 5]


def test_limits_that_the_spec_moves_move_the_floor_at_once() -> None:
    floor = next_floor(None, connections=3300, limits=USUAL, now=at(0))
    assert floor.replicas == 5
    for low, high, wanted in ((6, 10, 6), (3, 4, 4)):
        limits = dataclasses.replace(USUAL, lowest=low, highest=high)
        moved = next_floor(floor, connections=3300, limits=limits, now=at(1))
        assert (moved.replicas, moved.changed_at) == (wanted, floor.changed_at)


limits_of_all_kinds = st.builds(
    lambda low, span, capacity, threshold, up, down: Limits(
        lowest=low,
        highest=low + span,
        capacity=capacity,
        threshold=threshold,
        up_seconds=up,
        down_seconds=down,
    ),
    st.integers(1, 50),
    st.integers(0, 950),
    st.integers(1, 10**6),
    st.floats(0.05, 1),
    st.floats(1, 86400),
    st.floats(1, 86400),
)
looks_of_all_kinds = st.lists(
    st.tuples(st.floats(0, 10**4), st.none() | st.integers(0, 2**53)), min_size=1, max_size=60
)


@settings(deadline=None)
@given(limits_of_all_kinds, looks_of_all_kinds)
def test_whatever_comes_the_floor_keeps_to_its_limits_and_cooldowns(
    limits: Limits, looks: list[tuple[float, int | None]]
) -> None:
    held: Floor | None = None
    now = 0.0
    moved_at: float | None = None
    for pause, connections in looks:
        now += pause
        before, held = held, next_floor(held, connections=connections, limits=limits, now=at(now))
        assert limits.lowest <= held.replicas <= limits.highest
        assert len(held.peaks) <= limits.highest - limits.lowest + 1
        if before is not None and held.replicas != before.replicas:
            assert connections is not None
            full = connections >= before.replicas * limits.capacity
            cooldown = limits.up_seconds if held.replicas > before.replicas else limits.down_seconds
            if not (full and held.replicas > before.replicas):
                assert moved_at is None or now - moved_at >= cooldown - 0.001
            if held.replicas < before.replicas:
                assert limits.needed(connections) <= held.replicas, "there is room in what is left"
        if before is None or held.changed_at != before.changed_at:
            moved_at = now if held.changed_at is not None else None
    # However full they are now: what is wanted comes once the cooldown is over.
    assert held is not None
    later = next_floor(held, connections=2**53, limits=limits, now=at(now + limits.up_seconds))
    assert later.replicas == limits.highest


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9000), st.integers(0, 2**32))
def test_noise_within_a_tenth_never_makes_the_floor_go_back_and_forth(load: int, seed: int) -> None:
    rng = random.Random(seed)
    looks = [(12.0 * n, round(load * rng.uniform(0.96, 1.04))) for n in range(600)]
    floors = following(*looks)
    assert floors == sorted(floors), "two hours of it, and it only ever goes up, to where all of it has room"


# --- from a snapshot to a plan -----------------------------------------------------------------------------


def plan(snapshot: Snapshot, seconds: float) -> Plan:
    return decide(snapshot, at(seconds), secrets=SECRETS)


def carried_out(snapshot: Snapshot, seconds: float) -> Snapshot:
    """The snapshot after the operator has done all it wants, its memory of the floor included."""
    for _ in range(6):
        now = plan(snapshot, seconds)
        snapshot = dataclasses.replace(done(snapshot, now, now=at(seconds)), floor=now.floor)
        for cost in now.costs:
            annotations = {deletion_costs.ANNOTATION: str(cost.value)}
            pods = tuple(
                {**pod, "metadata": {**pod["metadata"], "annotations": annotations}}
                if pod is cost.pod
                else pod
                for pod in snapshot.pods
            )
            snapshot = dataclasses.replace(snapshot, pods=pods)
        if not now.changes_objects and now.status is None:
            return snapshot
    raise AssertionError("never settles")


def sized(snapshot: Snapshot, size: int) -> Snapshot:
    """The autoscaler has given the Deployment a size, and all of them are ready."""
    children = dict(snapshot.children)
    deployment = children[DEPLOYMENT]
    children[DEPLOYMENT] = {**deployment, "spec": {**deployment["spec"], "replicas": size}}
    return with_workloads(dataclasses.replace(snapshot, children=children), ready=size, total=size)


def started(**spec: Any) -> Snapshot:
    """An autoscaled cluster that is Ready, with three instances."""
    snapshot = settled(Snapshot(cluster=autoscaled(**spec)), now=at(0))
    return carried_out(with_fleet(sized(snapshot, 3), now=at(0), connections=100), 0)


def measured(snapshot: Snapshot, *, cpu: int | None, memory: int = 10) -> Snapshot:
    """The autoscaler has measured utilizations, in percent."""
    found = {"cpu": cpu, "memory": memory}
    current = [
        {"type": "Resource", "resource": {"name": name, "current": {"averageUtilization": percent}}}
        for name, percent in found.items()
        if percent is not None
    ]
    children = dict(snapshot.children)
    children[KEY] = {**children[KEY], "status": {"currentMetrics": current}}
    return dataclasses.replace(snapshot, children=children)


def pods(*names: str) -> tuple[dict[str, Any], ...]:
    """Pods of the fleet."""
    labels = {
        "app.kubernetes.io/component": "dataplane",
        "tableforge.io/cluster": "tables",
        "tableforge.io/track": "a",
        "tableforge.io/accepting": "true",
        "pod-template-hash": "abc",
    }
    owner = {"kind": "ReplicaSet", "name": "tables-a-abc", "controller": True, "uid": "rs"}
    return tuple(
        {
            "kind": "Pod",
            "metadata": {"name": name, "namespace": "ns", "labels": labels, "ownerReferences": [owner]},
        }
        for name in names
    )


def with_loads(snapshot: Snapshot, loads: dict[str, int], *, seconds: float) -> Snapshot:
    """The instances say how many connections each has."""
    told = fleet(instances=len(loads), connections=sum(loads.values()))
    records = [
        msgspec.structs.replace(record, instance=name, connections=load)
        for record, (name, load) in zip(told.instances, loads.items(), strict=True)
    ]
    view = FleetView(fleet=msgspec.structs.replace(told, instances=records), fleet_at=at(seconds).monotonic)
    return dataclasses.replace(snapshot, fleet=view)


def costs(snapshot: Snapshot, seconds: float) -> dict[str, int]:
    return {cost.pod["metadata"]["name"]: cost.value for cost in plan(snapshot, seconds).costs}


def test_the_deployment_says_nothing_of_its_size_and_the_autoscaler_all() -> None:
    snapshot = started()
    deployment, autoscaler = snapshot.children[DEPLOYMENT], snapshot.children[KEY]
    # What `started` wrote there is the autoscaler's; what we applied is in what was rendered.
    assert autoscaler["spec"]["minReplicas"] == 3
    assert autoscaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    (wanted,) = (
        wanted for wanted in plan(Snapshot(cluster=autoscaled()), 0).applies if wanted.key == DEPLOYMENT
    )
    assert "replicas" not in wanted.obj["spec"]
    assert wanted.instances_at_least == 3


def test_connections_raise_the_floor_and_it_is_told_once() -> None:
    snapshot = with_fleet(started(), now=at(60), connections=3000)
    raised = plan(snapshot, 60)
    (wanted,) = raised.applies
    assert wanted.key == KEY
    assert wanted.obj["spec"]["minReplicas"] == 4
    assert wanted.obj["metadata"]["annotations"] == {"tableforge.io/floor-changed-at": "2026-01-01T00:01:00Z"}
    (news,) = raised.news
    assert news.event.reason == "FloorRaised"
    assert "4 instances run (3 before): there are 3000 connections" in news.event.message
    snapshot = carried_out(snapshot, 60)
    assert conditions(snapshot)["Autoscaled"]["reason"] == "Connections"
    assert "need at least 4" in conditions(snapshot)["Autoscaled"]["message"]
    # However they change from there on: below the next step nothing is written.
    for seconds, connections in ((72, 3100), (84, 2900), (96, 3100)):
        later = plan(with_fleet(snapshot, now=at(seconds), connections=connections), seconds)
        assert (later.applies, later.costs, later.status) == ((), (), None)
        assert later.floor is not None
        assert later.floor.replicas == 4


def test_an_operator_that_starts_goes_on_with_the_floor_it_finds() -> None:
    snapshot = carried_out(with_fleet(started(), now=at(60), connections=5000), 60)
    assert snapshot.children[KEY]["spec"]["minReplicas"] == 7
    again = dataclasses.replace(with_fleet(snapshot, now=at(90), connections=100), floor=None)
    floor = plan(again, 90).floor
    assert floor is not None
    assert (floor.replicas, floor.changed_at) == (7, at(60).wall)
    # Nothing is written, not even the same again: the rendered object is the same.
    assert all(wanted.reason == "Adopted" for wanted in plan(again, 90).applies)


def test_a_floor_that_somebody_has_scribbled_on_is_no_reason_to_stop() -> None:
    snapshot = started()
    children = dict(snapshot.children)
    for text in ("yesterday", "2126-01-01T00:00:00Z", "2025-01-01T00:00:00"):
        metadata = {**children[KEY]["metadata"], "annotations": {"tableforge.io/floor-changed-at": text}}
        found = dataclasses.replace(
            snapshot, floor=None, children={**children, KEY: {**children[KEY], "metadata": metadata}}
        )
        floor = plan(with_fleet(found, now=at(60), connections=2999), 60).floor
        assert floor is not None
        # A time to come counts as now: the cooldown begins.
        assert floor.replicas == (3 if text.startswith("2126") else 4)


def test_what_redis_cannot_tell_moves_nothing() -> None:
    snapshot = carried_out(with_fleet(started(), now=at(60), connections=5000), 60)
    for view in (
        FleetView(fleet=fleet(redis=AWAY), fleet_at=at(5000).monotonic),
        FleetView(fleet=msgspec.structs.replace(fleet(), as_of=0.0), fleet_at=at(5000).monotonic),
        FleetView(fleet=fleet(), fleet_at=at(4000).monotonic),
        FleetView(),
    ):
        floor = plan(dataclasses.replace(snapshot, fleet=view), 5000).floor
        assert floor is not None
        assert floor.replicas == 7


def test_at_the_maximum_it_says_which_field_to_change() -> None:
    snapshot = carried_out(with_fleet(started(), now=at(60), connections=9000), 60)
    found = conditions(snapshot)["Autoscaled"]
    assert found["reason"] == "AtMaximum"
    assert "raise autoscaling.maxReplicas" in found["message"]


def test_an_autoscaler_that_knows_nothing_says_what_is_missing() -> None:
    snapshot = started()
    children = dict(snapshot.children)
    inactive = {
        "type": "ScalingActive",
        "status": "False",
        "reason": "FailedGetResourceMetric",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    children[KEY] = {**children[KEY], "status": {"conditions": [inactive]}}
    snapshot = dataclasses.replace(snapshot, children=children)
    found = conditions(plan(snapshot, 119))["Autoscaled"]
    assert (found["status"], found["reason"]) == ("Unknown", "Measuring"), "it has only just begun"
    found = conditions(plan(snapshot, 121))["Autoscaled"]
    assert (found["status"], found["reason"]) == ("False", "MetricsMissing")
    assert "FailedGetResourceMetric" in found["message"]
    assert "metrics server" in found["message"]
    assert "Autoscaled" not in conditions(settled(Snapshot(cluster=cluster()), now=at(0)))


def test_a_cluster_that_only_follows_its_load_stays_ready() -> None:
    snapshot = sized(started(), 6)
    # Four of six are ready, two have just been made.
    snapshot = with_workloads(snapshot, ready=4, total=6)
    ready = conditions(carried_out(snapshot, 5))["Ready"]
    assert (ready["status"], ready["message"][:24]) == ("True", "4 instances are ready. R")
    assert (
        conditions(carried_out(with_workloads(snapshot, ready=2, total=6), 5))["Ready"]["status"] == "False"
    )
    waiting = {"reason": "ImagePullBackOff", "message": "no such image"}
    broken = {
        **pods("one")[0],
        "status": {"containerStatuses": [{"image": "x", "ready": False, "state": {"waiting": waiting}}]},
    }
    trouble = dataclasses.replace(snapshot, pods=(broken,))
    assert "cannot pull image" in conditions(carried_out(trouble, 5))["Ready"]["message"]


def test_while_the_autoscaler_is_still_to_go_the_deployment_gets_no_size() -> None:
    snapshot = sized(started(), 6)
    spec = {**snapshot.cluster["spec"], "autoscaling": {"enabled": False}, "replicas": 6}
    off = dataclasses.replace(snapshot, cluster={**snapshot.cluster, "spec": spec})
    first = plan(off, 5)
    assert [live["kind"] for live in first.withdrawals] == ["HorizontalPodAutoscaler"]
    assert DEPLOYMENT not in [wanted.key for wanted in first.applies]
    gone = {key: live for key, live in off.children.items() if key != KEY}
    second = plan(dataclasses.replace(off, children=gone), 5)
    (wanted,) = (wanted for wanted in second.applies if wanted.key == DEPLOYMENT)
    assert wanted.obj["spec"]["replicas"] == 6
    assert wanted.instances_at_least is None


def test_an_autoscaler_that_cannot_be_deleted_is_told_and_holds_back_the_size_alone() -> None:
    snapshot = sized(started(), 6)
    spec = {**snapshot.cluster["spec"], "autoscaling": {"enabled": False}}
    off = dataclasses.replace(snapshot, cluster={**snapshot.cluster, "spec": spec})
    refusal = Refusal(
        reason="Forbidden",
        message="The operator may not delete HorizontalPodAutoscaler tables: no.",
        digest=WITHDRAWN,
        attempts=1,
        retry_at=at(60).monotonic,
    )
    waiting = plan(dataclasses.replace(off, refusals={KEY: refusal}), 5)
    assert not waiting.changes_objects
    assert conditions(waiting)["Ready"]["reason"] == "Forbidden"


class AutoscaledWorld(World):
    """A world with an autoscaler: who leaves the size out of a Deployment leaves it as it was."""

    def look(self, *, writes: int | None = None) -> Plan:
        before = {key: obj["spec"].get("replicas") for key, obj in self._deployments()}
        found = super().look(writes=writes)
        begun = {wanted.key: wanted.instances_at_least for wanted in found.applies}
        for key, obj in self._deployments():
            if "replicas" not in obj["spec"]:
                self.resize(key, before.get(key) or begun[key] or 1)
        self.snapshot = dataclasses.replace(self.snapshot, floor=found.floor)
        return found

    def resize(self, key: tuple[str, str], size: int) -> None:
        obj = self.snapshot.children[key]
        sized = {**obj, "spec": {**obj["spec"], "replicas": size}}
        self.snapshot = dataclasses.replace(self.snapshot, children={**self.snapshot.children, key: sized})

    def _deployments(self) -> list[tuple[tuple[str, str], Any]]:
        return [(key, obj) for key, obj in self.snapshot.children.items() if key[0] == "Deployment"]


@pytest.mark.parametrize("strategy", ["RollingUpdate", "BlueGreen"])
def test_a_rollout_keeps_the_size_that_the_autoscaler_has_found(strategy: str) -> None:
    world = AutoscaledWorld(autoscaling={"enabled": True}, rollout={"strategy": strategy})
    world.settle()
    assert len(world.accepting) == 3
    world.resize(DEPLOYMENT, 6)
    world.settle()
    assert len(world.accepting) == 6
    world.ask(image="tableforge/dataplane:2")
    targets = set()
    for _ in range(60):
        world.look()
        target = world.snapshot.children[KEY]["spec"]["scaleTargetRef"]["name"]
        targets.add(target)
        assert target == f"tables-{world.selected}", "the autoscaler's is the track that serves clients"
        assert len(world.accepting) >= 6
        world.step()
    world.settle()
    assert len(world.accepting) == len(world.pods) == 6
    assert targets == ({"tables-a"} if strategy == "RollingUpdate" else {"tables-a", "tables-b"})
    assert {pod.track for pod in world.pods} == ({"a"} if strategy == "RollingUpdate" else {"b"})


# --- which pods go first -----------------------------------------------------------------------------------


def shrinking(loads: dict[str, int], **more: Any) -> Snapshot:
    """A fleet that the autoscaler will find too large, by CPU and memory."""
    snapshot = dataclasses.replace(sized(started(), len(loads)), pods=pods(*loads))
    return with_loads(measured(snapshot, **{"cpu": 10, **more}), loads, seconds=20)


def test_before_a_fleet_shrinks_the_emptiest_pods_are_marked_and_only_then() -> None:
    loads = {"one": 800, "two": 12, "three": 0, "four": 300}
    found = costs(shrinking(loads), 20)
    assert sorted(found, key=lambda name: found[name]) == sorted(loads, key=lambda name: loads[name])
    assert found["three"] == 0
    # The load is at its target, or nobody knows one of them: no shrink is near.
    assert costs(shrinking(loads, cpu=68), 20) == {}
    assert costs(shrinking(loads, cpu=None), 20) == {}
    # Three of four are what the arithmetic says must stay; four of four at 60 %.
    assert costs(shrinking(loads, cpu=50), 20) != {}
    assert costs(shrinking(loads, cpu=60), 20) == {}
    # Who follows no load shrinks only when somebody says so.
    manual = dataclasses.replace(settled(Snapshot(cluster=cluster()), now=at(0)), pods=pods(*loads))
    assert costs(with_loads(sized(manual, 3), loads, seconds=20), 20) == {}
    fewer = dataclasses.replace(manual, cluster=cluster(replicas=2))
    assert costs(with_loads(sized(fewer, 4), loads, seconds=20), 20) == found
    none = dataclasses.replace(manual, cluster=cluster(replicas=0))
    assert costs(with_loads(sized(none, 4), loads, seconds=20), 20) == {}


def test_costs_are_written_before_the_floor_is_lowered() -> None:
    loads = {"one": 2500, "two": 2500, "three": 0}
    snapshot = carried_out(with_fleet(started(), now=at(60), connections=5000), 60)
    assert snapshot.children[KEY]["spec"]["minReplicas"] == 7
    quiet = {name: load // 50 for name, load in loads.items()}
    snapshot = dataclasses.replace(sized(snapshot, 7), pods=pods(*loads))
    for seconds in range(72, 720, 12):
        snapshot = with_loads(snapshot, quiet, seconds=seconds)
        now = plan(snapshot, seconds)
        if now.changes_objects:
            break
        snapshot = dataclasses.replace(snapshot, floor=now.floor)
    assert now.applies == ()
    assert {cost.pod["metadata"]["name"] for cost in now.costs} == set(loads)
    snapshot = carried_out(snapshot, seconds)
    assert snapshot.children[KEY]["spec"]["minReplicas"] == 3


def test_a_cost_stays_while_the_connections_are_close_to_it() -> None:
    for before in range(1, 40):
        low, high = 2 ** (before / 2) - 1, 2 ** ((before + 1) / 2) - 1
        for connections in {math.ceil(low), math.floor(high - 0.01)}:
            if low <= connections < high:
                assert deletion_costs.step(connections, before=None) == before
                assert deletion_costs.step(connections, before=before) == before
        if before > 8:
            assert deletion_costs.step(round(low * 0.9), before=before) == before
            assert deletion_costs.step(round(high * 1.1), before=before) == before
            assert deletion_costs.step(round(low * 0.7), before=before) < before
            assert deletion_costs.step(round(high * 1.4), before=before) > before
    assert deletion_costs.step(0, before=1) == 0, "an empty pod is never taken for one with clients"
    assert deletion_costs.step(1, before=0) > 0, "nor one with clients for an empty one"


@settings(deadline=None)
@given(st.integers(0, 10**7), st.integers(0, 10**7), st.none() | st.integers(0, 60))
def test_a_pod_with_far_more_clients_never_costs_less(fewer: int, more: int, before: int | None) -> None:
    if more >= 2 * fewer + 2:
        assert deletion_costs.step(fewer, before=before) < deletion_costs.step(more, before=None)


def test_whose_pod_it_is_and_what_a_person_wrote_there_is_respected() -> None:
    loads = {"one": 5, "two": 50, "three": 500, "four": 50}
    snapshot = shrinking(loads)
    assert costs(snapshot, 20).keys() == loads.keys()
    somebodys, leaving, marked, ours = (dict(pod) for pod in snapshot.pods)
    owner = {**somebodys["metadata"]["ownerReferences"][0], "name": "other-abc"}
    somebodys["metadata"] = {**somebodys["metadata"], "ownerReferences": [owner]}
    leaving["metadata"] = {**leaving["metadata"], "deletionTimestamp": "2026-01-01T00:00:00Z"}
    marked["metadata"] = {**marked["metadata"], "annotations": {deletion_costs.ANNOTATION: "-1000"}}
    found = costs(dataclasses.replace(snapshot, pods=(somebodys, leaving, marked, ours)), 20)
    assert found.keys() == {"four"}


def test_a_pod_that_cannot_be_written_to_holds_nothing_up() -> None:
    snapshot = shrinking({"one": 5, "two": 50, "three": 500, "four": 1})
    failed = dataclasses.replace(snapshot, costs_failed_at=at(15).monotonic)
    assert costs(failed, 20) == {}
    later = with_loads(failed, {"one": 5, "two": 50, "three": 500, "four": 1}, seconds=80)
    assert costs(later, 80) != {}


def test_costs_that_were_just_written_are_not_written_anew_however_connections_jump() -> None:
    snapshot = shrinking({"one": 5, "two": 50, "three": 500, "four": 1})
    marked, fresh = dict(snapshot.pods[0]), snapshot.pods[1]
    marked["metadata"] = {**marked["metadata"], "annotations": {deletion_costs.ANNOTATION: "20"}}
    snapshot = dataclasses.replace(snapshot, pods=(marked, fresh), costs_written_at=at(15).monotonic)
    assert costs(snapshot, 20).keys() == {"two"}, "what has no cost yet gets one at once"
    rested = 15 + deletion_costs.REST_SECONDS
    assert costs(snapshot, rested).keys() == {"one", "two"}


def test_what_is_written_in_one_pass_is_bounded() -> None:
    loads = {f"pod-{number}": number for number in range(300)}
    spec = {"autoscaling": {"maxReplicas": 300}}
    snapshot = dataclasses.replace(sized(started(**spec), 300), pods=pods(*loads))
    snapshot = with_loads(measured(snapshot, cpu=10), loads, seconds=20)
    assert len(plan(snapshot, 20).costs) == deletion_costs.AT_ONCE


def test_what_an_autoscaled_cluster_is_made_from_is_loaded() -> None:
    balancing = {"connectionThreshold": 1, "scaleUpCooldown": "7s", "scaleDownCooldown": "9m"}
    found = load(autoscaled(autoscaling={"targetCPUUtilization": 55}, loadBalancing=balancing))
    assert found.spec.autoscaling.target_cpu_utilization == 55
    limits = autoscaling.limits(found)
    assert (limits.threshold, limits.up_seconds, limits.down_seconds) == (1.0, 7, 540)
    assert found.autoscaled
    assert not load(autoscaled(replicas=0)).autoscaled
    assert found.capacity == 1000
    wide = autoscaled(websocket={"maxConnections": 5000})
    assert load(wide).capacity == 2000, "the guide's default of loadBalancing.maxConnectionsPerInstance"
    wide = autoscaled(websocket={"maxConnections": 5000}, loadBalancing={"maxConnectionsPerInstance": 9000})
    assert load(wide).capacity == 5000
    assert isinstance(at(0).wall, dt.datetime)
