"""Rollouts: what is decided about the two tracks, and what clients find meanwhile, whatever happens."""

import dataclasses
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tableforge_dataplane.contract.fleet import InstanceRecord
from tableforge_operator import api
from tableforge_operator.decide import rollout
from tableforge_operator.decide.snapshot import FleetView, Snapshot
from tests.operator.engine.pods import fleet
from tests.operator.engine.rollouts import BAD, Pod, World
from tests.operator.engine.snapshots import at, cluster, conditions

NEW = "tableforge/dataplane:new"
OLD = "tableforge/dataplane:old"
BLUE_GREEN = {"strategy": "BlueGreen"}
STRATEGIES = pytest.mark.parametrize("strategy", ["RollingUpdate", "BlueGreen"])


def running(**spec: Any) -> World:
    """A cluster of the old image that needs nothing."""
    world = World(**{"image": OLD, **spec})
    world.settle()
    world.events.clear()
    return world


def image(world: World, track: str) -> str:
    deployment = world.deployment(track)
    assert deployment is not None
    return str(deployment["spec"]["template"]["spec"]["containers"][0]["image"])


def records(world: World, connections: int) -> None:
    """The fleet says that each pod has so many connections."""
    one = fleet().instances[0]
    instances = [
        InstanceRecord(
            **{
                **{name: getattr(one, name) for name in one.__struct_fields__},
                "instance": pod.name,
                "connections": connections,
                "draining": pod.leaving,
            }
        )
        for pod in world.pods
    ]
    known = fleet(instances=max(1, len(instances)), connections=connections * len(instances))
    view = FleetView(
        fleet=type(known)(
            instance=known.instance,
            redis=known.redis,
            as_of=1.0,
            totals=known.totals,
            instances=instances,
        ),
        fleet_at=world.now.monotonic,
    )
    world.snapshot = dataclasses.replace(world.snapshot, fleet=view)


def message(world: World) -> str:
    """The message of Ready."""
    found = {one["type"]: one for one in world.snapshot.cluster["status"]["conditions"]}
    return str(found["Ready"]["message"])


@STRATEGIES
def test_a_new_image_reaches_every_instance_and_no_client_finds_fewer(strategy: str) -> None:
    world = running(rollout={"strategy": strategy})
    world.ask(image=NEW)
    for _ in range(100):
        world.look()
        world.step()
        assert len(world.accepting) >= 3
    assert {pod.template for pod in world.accepting} == {
        rollout.template_of(world.deployment(world.selected or "") or {})
    }
    assert image(world, world.selected or "") == NEW
    assert len(world.pods) == 3
    assert [("Deployment", f"tables-{track}") in world.snapshot.children for track in ("a", "b")].count(
        True
    ) == 1


def test_blue_green_switches_once_all_of_the_other_track_is_ready_and_tells_of_it() -> None:
    world = running(rollout=BLUE_GREEN)
    world.ask(image=NEW)
    world.look()
    assert (image(world, "a"), image(world, "b"), world.selected) == (OLD, NEW, "a")
    while world.selected == "a":
        ready = sum(pod.ready for pod in world.pods if pod.track == "b")
        world.look()
        if world.selected == "a":
            world.look()
            assert f"{min(ready, 3)} of 3 instances run the new spec, on track b" in message(world)
        world.step()
    assert len([pod for pod in world.pods if pod.track == "a" and not pod.leaving]) == 3
    world.settle()
    assert {pod.track for pod in world.pods} == {"b"}
    assert world.events == ["RolloutStarted", "TrackSwitched", "RolloutCompleted"]
    world.look()
    assert world.snapshot.cluster["status"]["activeTrack"] == "b"
    world.ask(image=OLD)
    world.settle()
    assert world.selected == "a"


def test_a_rolling_update_tells_of_its_start_its_progress_and_its_end() -> None:
    world = running()
    world.ask(image=NEW)
    world.look()
    world.step()
    world.step()
    world.look()
    assert message(world) == "1 of 3 instances run the new spec."
    world.settle()
    assert world.events == ["RolloutStarted", "RolloutCompleted"]


@STRATEGIES
@pytest.mark.parametrize("steps", range(8))
def test_a_spec_that_is_set_back_undoes_a_rollout_with_the_pods_that_are_still_there(
    strategy: str, steps: int
) -> None:
    world = running(rollout={"strategy": strategy})
    world.ask(image=NEW)
    world.look()
    for _ in range(steps):
        world.step()
        world.look()
        world.look()
    old = {pod.name for pod in world.pods if pod.works and not pod.leaving and pod.template == template(OLD)}
    under_way = "RolloutCompleted" not in world.events
    world.events.clear()
    world.ask(image=OLD)
    made = world._count
    for _ in range(100):
        world.look()
        world.step()
        assert len(world.accepting) >= 3
    assert image(world, world.selected or "") == OLD
    assert old <= {pod.name for pod in world.pods}
    assert world._count - made == 3 - len(old)
    assert ("RolloutUndone" in world.events) is under_way


def template(used: str) -> str:
    """The hash of an image's template."""
    world = World(image=used)
    world.look()
    return rollout.template_of(world.deployment("a") or {})


@STRATEGIES
def test_an_image_that_never_becomes_ready_costs_nobody_anything(strategy: str) -> None:
    world = running(rollout={"strategy": strategy})
    before = {pod.name for pod in world.pods}
    world.ask(image=BAD)
    for _ in range(50):
        world.look()
        world.step()
        assert {pod.name for pod in world.accepting} == before
    assert "0 of 3 instances run the new spec" in message(world)
    world.ask(image=NEW)
    world.settle()
    assert image(world, world.selected or "") == NEW


@STRATEGIES
def test_instances_are_being_replaced_until_the_last_old_one_leaves(strategy: str) -> None:
    world = running(rollout={"strategy": strategy})

    def replaced() -> bool:
        return rollout.replaces_instances(api.load(world.snapshot.cluster), world.snapshot)

    assert not replaced()
    world.ask(image=NEW)
    said = []
    for _ in range(100):
        world.look()
        world.step()
        said.append(replaced())
        if strategy == "RollingUpdate":
            old = any(pod.template != template(NEW) and not pod.leaving for pod in world.pods)
        else:
            # Who is made ready on the other track takes nobody's place before it takes clients.
            old = world.selected == "b" and world.deployment("a") is not None
        assert said[-1] is old
    assert any(said)
    assert not said[-1]


def test_who_is_added_replaces_nobody() -> None:
    world = running()
    world.ask(replicas=5)
    for _ in range(20):
        world.look()
        assert not rollout.replaces_instances(api.load(world.snapshot.cluster), world.snapshot)
        world.step()
        assert not rollout.replaces_instances(api.load(world.snapshot.cluster), world.snapshot)
    assert len(world.pods) == 5


def test_the_old_track_leaves_within_the_budget() -> None:
    world = running(replicas=6, rollout={**BLUE_GREEN, "maxReconnectsPerSecond": 10, "drainTimeout": "20s"})
    world.ask(image=NEW)
    while world.selected == "a":
        records(world, 70)
        world.look()
        world.step()
    # 0.7 of 10 a second for 20 s are 140 clients: two pods at a time
    most = 0
    while any(pod.track == "a" for pod in world.pods):
        records(world, 70)
        world.look()
        world.look()
        world.step()
        most = max(most, sum(pod.track == "a" and pod.leaving for pod in world.pods))
    assert most == 2


def going(world: World) -> int:
    return sum(pod.leaving for pod in world.pods)


@pytest.mark.parametrize(("connections", "at_once"), [(70, 1), (35, 2), (10, 7), (0, 7)])
def test_many_that_are_no_longer_asked_for_leave_as_the_budget_allows(connections: int, at_once: int) -> None:
    world = running(replicas=9, rollout={"maxReconnectsPerSecond": 5, "drainTimeout": "20s"})
    world.ask(replicas=2)
    sizes, most = [], 0
    for _ in range(30):
        records(world, connections)
        world.look()
        here = world.deployment("a")
        assert here is not None
        sizes.append(here["spec"]["replicas"])
        world.step()
        most = max(most, going(world))
    assert most == at_once
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == 2
    assert len([pod for pod in world.pods if not pod.leaving]) == 2


def test_one_after_another_while_nobody_knows_their_connections() -> None:
    world = running(replicas=5)
    world.snapshot = dataclasses.replace(world.snapshot, fleet=FleetView())
    world.ask(replicas=2)
    world.look()
    world.step()
    assert going(world) == 1
    plan = world.look()
    message = conditions(plan)["Reconciling"]["message"]
    assert message.startswith("4 instances are to run for now, and 2 once all have left that should: ")
    assert "spec.rollout.maxReconnectsPerSecond (200)" in message
    assert message.endswith("1 now.")


def test_all_of_them_leave_together() -> None:
    world = running(replicas=5)
    records(world, 1000)
    world.ask(replicas=0)
    world.look()
    here = world.deployment("a")
    assert here is not None
    assert here["spec"]["replicas"] == 0


def test_none_leaves_while_pods_are_not_seen() -> None:
    world = running(replicas=5)
    world.ask(replicas=2)
    world.snapshot = dataclasses.replace(world.snapshot, blind={"Pod": "pods are forbidden"})
    plan = world.look()
    here = world.deployment("a")
    assert here is not None
    assert here["spec"]["replicas"] == 5
    assert "none leaves while pods are not seen: pods are forbidden" in conditions(plan)["Ready"]["message"]


def test_no_autoscaler_any_more_and_fewer_asked_for() -> None:
    autoscaling = {"enabled": True, "maxReplicas": 9}
    world = running(replicas=2, autoscaling=autoscaling)
    world.scale("a", 6)
    world.settle()
    records(world, 10**6)
    world.ask(autoscaling={"enabled": False})
    world.look()
    world.look()
    here = world.deployment("a")
    assert here is not None
    assert here["spec"]["replicas"] == 5
    for _ in range(20):
        records(world, 10**6)
        world.look()
        world.step()
        assert going(world) <= 1
    assert len([pod for pod in world.pods if not pod.leaving]) == 2


def test_one_pod_leaves_after_the_other_while_nobody_knows_their_connections() -> None:
    world = running(rollout=BLUE_GREEN)
    world.ask(image=NEW)
    while any(pod.track == "a" for pod in world.pods):
        world.look()
        world.look()
        world.step()
        assert sum(pod.track == "a" and pod.leaving for pod in world.pods) <= 1


@pytest.mark.parametrize(
    ("connections", "per_second", "seconds"),
    [(0, 200, 0), (700, 200, 0), (1000, 100, 10), (1000, 10, 180), (1_000_000, 1, 3600)],
)
def test_pods_follow_one_another_as_the_budget_lets_their_clients_go(
    connections: int, per_second: int, seconds: int
) -> None:
    world = running(rollout={"maxReconnectsPerSecond": per_second, "progressDeadline": "1m"})
    records(world, connections)
    quiet = world.look()
    assert not quiet.applies, "a pause is not written before there is a rollout"
    world.ask(image=NEW)
    world.look()
    spec = (world.deployment("a") or {})["spec"]
    assert spec.get("minReadySeconds", 0) == seconds
    assert spec["progressDeadlineSeconds"] == 60 + seconds


def test_a_pause_grows_while_a_rollout_is_under_way_and_stays_afterwards() -> None:
    world = running(rollout={"maxReconnectsPerSecond": 10})
    records(world, 70)
    world.ask(image=NEW)
    world.look()
    world.step()
    seen = []
    for connections in (70, 140, 70, 30):
        records(world, connections)
        world.look()
        seen.append((world.deployment("a") or {})["spec"]["minReadySeconds"])
        world.step()
    assert seen == [5, 15, 15, 15]
    world.settle()
    records(world, 1000)
    assert not world.look().changes_objects


def test_what_is_not_seen_is_not_changed() -> None:
    world = running(rollout=BLUE_GREEN)
    world.ask(image=NEW)
    for kind in ("Deployment", "Service"):
        blind = dataclasses.replace(world.snapshot, blind={kind: "forbidden"})
        plan = decided(blind)
        assert (plan.active, plan.tracks.selected, plan.tracks.applied, plan.scales) == ("a", "a", (), ())


def edit_selector(world: World, track: str) -> None:
    """Somebody else points the client Service to a track."""
    service = world.snapshot.children["Service", "tables"]
    edited = {
        **service,
        "metadata": {
            **service["metadata"],
            "managedFields": [
                {
                    "manager": "tableforge-operator",
                    "operation": "Apply",
                    "fieldsV1": {"f:spec": {"f:type": {}}},
                }
            ],
        },
        "spec": {**service["spec"], "selector": {"tableforge.io/track": track}},
    }
    children = {**world.snapshot.children, ("Service", "tables"): edited}
    world.snapshot = dataclasses.replace(world.snapshot, children=children)


def test_a_track_whose_pods_are_not_seen_stays_and_the_status_says_why() -> None:
    world = ready_to_switch()
    world.look()
    world.snapshot = dataclasses.replace(world.snapshot, blind={"Pod": "pods are forbidden"})
    for _ in range(5):
        world.look()
        world.step()
    assert world.selected == "b"
    assert sum(pod.track == "a" and not pod.leaving for pod in world.pods) == 3
    assert "Track a is no longer needed, and cannot leave" in message(world)
    assert "pods are forbidden" in message(world)


def test_an_evicted_pod_that_stays_in_the_list_keeps_no_track_there() -> None:
    world = running(rollout=BLUE_GREEN)
    evicted = Pod("a", 99, "", works=False).obj()
    world.others = ({**evicted, "status": {"phase": "Failed", "reason": "Evicted"}},)
    world.ask(image=NEW)
    world.settle()
    assert (world.selected, {pod.track for pod in world.pods}) == ("b", {"b"})
    assert world.deployment("a") is None


def test_a_pod_that_only_looks_like_an_instance_keeps_no_track_there() -> None:
    world = running(rollout=BLUE_GREEN)
    pod = Pod("a", 99, "", works=True).obj()
    owner = {**pod["metadata"]["ownerReferences"][0], "name": "somebody-elses-abc"}
    world.others = ({**pod, "metadata": {**pod["metadata"], "ownerReferences": [owner]}},)
    world.ask(image=NEW)
    world.settle()
    assert (world.selected, {pod.track for pod in world.pods}) == ("b", {"b"})
    assert world.deployment("a") is None


def test_a_track_that_makes_no_progress_is_stalled_and_the_cluster_serves_on() -> None:
    world = running(rollout={**BLUE_GREEN, "progressDeadline": "1m"})
    world.ask(image=BAD)
    world.look()
    world.step()
    key = ("Deployment", "tables-b")
    deployment = world.snapshot.children[key]
    gave_up = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}
    stuck = {**deployment, "status": {**deployment["status"], "conditions": [gave_up]}}
    world.snapshot = dataclasses.replace(world.snapshot, children={**world.snapshot.children, key: stuck})
    world.look()
    stalled = next(one for one in world.snapshot.cluster["status"]["conditions"] if one["type"] == "Stalled")
    assert stalled["reason"] == "ProgressDeadlineExceeded"
    assert "spec.rollout.progressDeadline (60 s): 0 of 3 instances run the new spec" in stalled["message"]
    assert (world.selected, len(world.accepting)) == ("a", 3)


def test_somebody_elses_edit_of_the_selector_switches_nothing() -> None:
    world = running(rollout=BLUE_GREEN)
    world.ask(image=BAD)
    world.look()
    edit_selector(world, "b")
    world.look()
    assert world.selected == "a"


def test_replicas_change_on_the_active_track_while_the_other_one_is_prepared() -> None:
    world = running(rollout=BLUE_GREEN)
    world.ask(image=BAD)
    world.look()
    world.ask(replicas=5)
    for _ in range(5):
        world.look()
        world.step()
    assert len(world.accepting) == 5
    assert image(world, "a") == OLD


def ready_to_switch() -> World:
    """A cluster whose other track is ready, which the operator has not seen yet."""
    world = running(rollout=BLUE_GREEN)
    world.ask(image=NEW)
    world.look()
    while not all(pod.ready for pod in world.pods) or len(world.pods) < 6:
        world.step()
    return world


def test_nobody_is_switched_to_fewer_instances_than_are_asked_for_by_now() -> None:
    world = ready_to_switch()
    world.ask(replicas=5)
    world.look()
    assert world.selected == "a"
    world.settle()
    assert world.selected == "b"
    assert len(world.accepting) == 5


def test_the_old_track_stays_while_an_instance_of_the_new_one_is_missing() -> None:
    world = ready_to_switch()
    world.look()
    assert world.selected == "b"
    lost = next(pod for pod in world.pods if pod.track == "b")
    lost.ready = lost.works = False
    for _ in range(5):
        world.step()
        world.look()
    assert sum(pod.track == "a" and not pod.leaving for pod in world.pods) == 3
    lost.works = True
    world.settle()
    assert {pod.track for pod in world.pods} == {"b"}


def test_no_track_leaves_while_a_service_that_somebody_edited_points_to_it() -> None:
    world = ready_to_switch()
    edit_selector(world, "b")
    world.ask(image=OLD)
    plan = decided(world.snapshot, template(OLD))
    assert (plan.active, plan.tracks.selected, plan.scales) == ("a", "a", ())
    world.settle()
    assert world.selected == "a"
    assert {pod.track for pod in world.pods} == {"a"}


def test_an_autoscaled_fleet_is_as_large_on_the_other_track_and_the_autoscaler_goes_along() -> None:
    world = running(rollout=BLUE_GREEN, autoscaling={"enabled": True, "maxReplicas": 9})
    world.scale("a", 5)
    world.settle()
    world.ask(image=NEW)
    world.look()
    world.step()
    world.look()
    world.scale("a", 6)
    for _ in range(100):
        world.look()
        world.step()
        target = world.snapshot.children["HorizontalPodAutoscaler", "tables"]["spec"]["scaleTargetRef"][
            "name"
        ]
        assert target == f"tables-{world.selected}"
        assert len(world.accepting) >= 5
    assert world.selected == "b"
    assert len(world.accepting) == len(world.pods) == 6


def test_no_instance_is_sent_away_that_the_autoscaler_would_make_again() -> None:
    world = running(rollout=BLUE_GREEN, autoscaling={"enabled": True, "maxReplicas": 9})
    world.ask(image=NEW)
    key = ("HorizontalPodAutoscaler", "tables")
    for _ in range(20):
        stuck = world.snapshot.children[key]
        world.look()
        # The API server takes no change of the autoscaler.
        world.snapshot = dataclasses.replace(world.snapshot, children={**world.snapshot.children, key: stuck})
        world.step()
    assert world.selected == "b"
    assert sum(pod.track == "a" and not pod.leaving for pod in world.pods) == 3
    world.settle()
    assert {pod.track for pod in world.pods} == {"b"}


def test_a_fleet_that_only_grows_keeps_its_pause() -> None:
    world = running(autoscaling={"enabled": True, "maxReplicas": 9})
    for size in (4, 5, 6):
        world.scale("a", size)
        records(world, 5000)
        assert not [one for one in world.look().applies if one.key[0] == "Deployment"]
        world.step()


# Whatever the user does, and whenever the operator dies

ASKED = st.fixed_dictionaries(
    {},
    optional={
        "image": st.sampled_from([OLD, NEW, BAD]),
        "replicas": st.integers(0, 4),
        "rollout": st.fixed_dictionaries({"strategy": st.sampled_from(["RollingUpdate", "BlueGreen"])}),
    },
)
DEEDS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), ASKED),
        st.tuples(st.just("step"), st.none()),
        st.tuples(st.just("look"), st.one_of(st.none(), st.integers(0, 4))),
        st.tuples(st.just("forget"), st.none()),
        st.tuples(st.just("load"), st.integers(0, 3000)),
    ),
    max_size=40,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(deeds=DEEDS)
def test_never_fewer_ready_instances_than_the_spec_asks_for_and_there_were(
    deeds: list[tuple[str, Any]],
) -> None:
    world = running()
    promised = 3
    for deed, argument in deeds:
        match deed:
            case "ask":
                world.ask(**argument)
                promised = min(promised, world.snapshot.cluster["spec"]["replicas"])
            case "step":
                world.step()
            case "look":
                world.look(writes=argument)
            case "forget":
                world.forget()
            case _:
                records(world, argument)
        assert world.selected in ("a", "b")
        assert len(world.accepting) >= promised, (deed, argument)
    world.ask(image=NEW, replicas=3)
    world.settle()
    assert len(world.accepting) == len(world.pods) == 3
    assert image(world, world.selected or "") == NEW
    assert sum(world.deployment(track) is not None for track in ("a", "b")) == 1


COUNTS = st.integers(0, 5)


@st.composite
def deployments(draw: st.DrawFn, track: str) -> dict[str, Any]:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": f"tables-{track}",
            "generation": 2,
            "annotations": {
                "tableforge.io/template-hash": draw(st.sampled_from(["old", "new", "other"])),
                "tableforge.io/replaces": draw(st.sampled_from(["", "old", "new"])),
            },
        },
        "spec": {"replicas": draw(COUNTS), "minReadySeconds": draw(COUNTS)},
        "status": {
            "observedGeneration": draw(st.integers(1, 2)),
            "replicas": draw(COUNTS),
            "updatedReplicas": draw(COUNTS),
            "readyReplicas": draw(COUNTS),
        },
    }


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_snapshot_keeps_a_track_selected_that_can_take_the_clients(data: st.DataObject) -> None:
    children: dict[tuple[str, str], Any] = {}
    for track in ("a", "b"):
        found = data.draw(st.none() | deployments(track))
        if found is not None:
            children["Deployment", f"tables-{track}"] = found
    selected = data.draw(st.sampled_from(["a", "b", "c", None]))
    if selected is not None:
        selector = {"tableforge.io/track": selected}
        children["Service", "tables"] = {
            "kind": "Service",
            "metadata": {"name": "tables"},
            "spec": {"selector": selector},
        }
    obj = cluster(
        replicas=data.draw(COUNTS),
        rollout={"strategy": data.draw(st.sampled_from(["RollingUpdate", "BlueGreen"]))},
        status=data.draw(st.sampled_from([None, {"activeTrack": "a"}, {"activeTrack": "b"}])),
    )
    blind = data.draw(st.sampled_from([{}, {"Pod": "no"}, {"Service": "no"}]))
    plan = decided(Snapshot(cluster=obj, children=children, blind=blind), "new")
    chosen = plan.tracks.selected
    assert chosen in ("a", "b")
    there = children.get(("Deployment", f"tables-{chosen}"))
    if chosen != plan.active:
        assert there is not None
        assert there["status"]["readyReplicas"] >= obj["spec"]["replicas"]
        assert there["metadata"]["annotations"]["tableforge.io/template-hash"] == "new"
    elif there is None:
        assert chosen in [instances.track for instances in plan.tracks.applied]
    lowered = [scale for scale in plan.scales if scale.replicas < scale.deployment["spec"]["replicas"]]
    for scale in lowered:
        if scale.deployment["metadata"]["name"] == f"tables-{plan.active}":
            assert scale.replicas == obj["spec"]["replicas"]
    for gone in plan.withdrawals:
        assert gone["metadata"]["name"] != f"tables-{chosen}"
        assert gone["spec"]["replicas"] == 0


def decided(snapshot: Snapshot, wanted: str = "new") -> rollout.Rollout:
    return rollout.decide(api.load(snapshot.cluster), snapshot, at(0), template=wanted)
