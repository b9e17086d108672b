"""How the planner's words become cordons, commands and status, and which instances it is told of."""

import dataclasses
import datetime as dt
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from tableforge_dataplane.contract.fleet import RoomLoad
from tableforge_operator.api import load
from tableforge_operator.decide import balance, orders
from tableforge_operator.decide.plan import Plan, decide
from tableforge_operator.decide.rebalancing.state import MoveRooms, Report, ShedClients, State, Turn
from tableforge_operator.decide.snapshot import FleetView, Snapshot
from tests.operator.engine.pods import AWAY, fleet
from tests.operator.engine.snapshots import (
    SECRETS,
    at,
    cluster,
    conditions,
    done,
    ready_cluster,
    with_workloads,
)
from tests.operator.engine.test_cordons import pod

REPORT = Report(
    phase="Idle",
    balanced="True",
    reason="WithinThreshold",
    message="Load differs by 0.10 of the mean.",
    moves_planned=3,
    moves_done=2,
    moves_failed=1,
    spread_before=0.8,
    spread=0.1,
    last_plan_at=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
    last_request="now-1",
)
GAVE_UP = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}
TURN = Turn(state=State(born_at=0), report=REPORT, again_in_seconds=5.0)


def uneven(*pods: dict[str, Any], loads: Mapping[str, int], seconds: float = 0, **spec: Any) -> Snapshot:
    """A cluster that is Ready, whose instances have so many connections."""
    told = fleet(names=list(loads))
    records = [
        msgspec.structs.replace(record, connections=loads[record.instance], updated_at=1000 + seconds)
        for record in told.instances
    ]
    whole = msgspec.structs.replace(told, instances=records, as_of=1000 + seconds)
    view = FleetView(fleet=whole, fleet_at=at(seconds).monotonic)
    return dataclasses.replace(ready_cluster(now=at(0), **spec), pods=pods, fleet=view)


def step(snapshot: Snapshot, state: State | None = None, *, seconds: float = 0) -> Turn:
    typed = load(snapshot.cluster)
    before = balance.begin(typed, at(0)) if state is None else state
    return balance.step(typed, snapshot, before, at(seconds), reign="1")


def asked(snapshot: Snapshot, request: str) -> Snapshot:
    annotations = {"tableforge.io/rebalance": request}
    metadata = {**snapshot.cluster["metadata"], "annotations": annotations}
    return dataclasses.replace(snapshot, cluster={**snapshot.cluster, "metadata": metadata})


def of(snapshot: Snapshot, turn: Turn, seconds: float = 1) -> Plan:
    return decide(dataclasses.replace(snapshot, rebalance=turn), at(seconds), secrets=SECRETS)


def test_on_request_a_hot_instance_is_closed_first_and_then_told_to_shed() -> None:
    snapshot = asked(uneven(pod("hot"), pod("cold"), loads={"hot": 900, "cold": 100}), "now")
    turn = step(snapshot)
    assert [news.reason for news in turn.news] == ["RebalanceStarted"]
    assert turn.closed == {"hot"}
    assert turn.commands == (), "not before it takes no new clients"
    plan = of(snapshot, turn)
    (marking,) = plan.markings
    assert marking.pod["metadata"]["name"] == "hot"
    assert marking.labels == {"tableforge.io/accepting": "false"}
    assert marking.annotations == {"tableforge.io/shedding": "true"}
    marked = dataclasses.replace(snapshot, pods=(pod("hot", accepting="false", shedding="true"), pod("cold")))
    (order,) = of(marked, turn).word.orders
    assert (order.instance, order.cordoned) == ("hot", True)

    assert marked.fleet.fleet is not None
    records = [
        msgspec.structs.replace(record, cordoned=record.instance == "hot", updated_at=1001)
        for record in marked.fleet.fleet.instances
    ]
    view = FleetView(
        fleet=msgspec.structs.replace(marked.fleet.fleet, instances=records, as_of=1001),
        fleet_at=at(1).monotonic,
    )
    closed = dataclasses.replace(marked, fleet=view)
    second = step(closed, turn.state, seconds=1)
    (shed,) = second.commands
    assert isinstance(shed, ShedClients)
    assert shed.instance == "hot"
    assert of(closed, second).word.commands == second.commands
    assert balance.answered(second.state, [(shed.id, {})]) != second.state
    assert step(closed, balance.answered(second.state, [(shed.id, {})]), seconds=2).commands == ()


def test_while_instances_leave_one_after_the_other_nothing_is_planned() -> None:
    pods = [pod(name) for name in ("one", "two", "three")]
    snapshot = asked(uneven(*pods, loads={"one": 90, "two": 30, "three": 30}), "now")
    assert step(snapshot, seconds=1).state.work is not None
    fewer = {**snapshot.cluster, "spec": {**snapshot.cluster["spec"], "replicas": 2}}
    assert step(dataclasses.replace(snapshot, cluster=fewer), seconds=1).state.work is None


def deployed(snapshot: Snapshot, *, total: int = 3, **state: Any) -> Snapshot:
    """So says the Deployment's status."""
    return with_workloads(snapshot, ready=3, total=total, **state)


@pytest.mark.parametrize(
    ("state", "waits"),
    [
        # whoever it was that changed the template
        ({"updatedReplicas": 1}, True),
        ({"updatedReplicas": 0, "total": 4}, True),
        # two more are made, which are not ready yet; and the same before its controller has seen it
        ({"total": 5}, False),
        ({"observedGeneration": 0}, False),
        ({"updatedReplicas": 1, "conditions": [GAVE_UP]}, False),
    ],
)
def test_while_instances_are_replaced_nothing_is_planned(state: dict[str, Any], waits: bool) -> None:
    pods = [pod(name) for name in ("one", "two", "three")]
    snapshot = asked(uneven(*pods, loads={"one": 90, "two": 30, "three": 30}), "now")
    turn = step(deployed(snapshot, **state), seconds=1)
    assert (turn.state.work is None) is waits
    if waits:
        assert turn.report.message.endswith(
            "while a rollout replaces instances, though tableforge.io/rebalance asks."
        )


def test_while_an_instance_leaves_nothing_is_planned_unless_its_node_never_says_that_it_has() -> None:
    leaves = pod("gone", going=True)
    leaves["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:30Z"
    loads = {"one": 90, "two": 30, "gone": 30}
    snapshot = asked(uneven(pod("one"), pod("two"), leaves, loads=loads), "now")
    assert step(snapshot, seconds=29).report.reason == "InstancesLeave"
    assert step(snapshot, seconds=31).state.work is not None


def test_the_same_request_is_served_once() -> None:
    snapshot = asked(uneven(pod("hot"), pod("cold"), loads={"hot": 900, "cold": 100}), "now")
    written = msgspec.structs.replace(load(snapshot.cluster).status)
    typed = msgspec.structs.replace(load(snapshot.cluster), status=written)
    served = msgspec.structs.replace(
        typed, status=msgspec.structs.replace(written, rebalance=balance._status(REPORT))
    )
    assert balance.begin(served, at(0)).last_request == "now-1"
    assert step(asked(snapshot, "now-1"), balance.begin(served, at(0))).news == ()
    assert step(asked(snapshot, "now-2"), balance.begin(served, at(0))).news != ()


def test_a_request_waits_for_a_look_that_is_newer_than_itself() -> None:
    snapshot = asked(uneven(pod("hot"), pod("cold"), loads={"hot": 900, "cold": 100}), "now")
    typed = load(snapshot.cluster)
    begun = balance.begin(typed, at(0))
    seen_at = snapshot.fleet.fleet_at
    early = balance.step(typed, snapshot, begun, at(1), reign="1", requested_at=seen_at)
    assert early.news == ()
    assert early.again_in_seconds == balance.SOON_SECONDS
    assert balance.requested(typed, early.state) == "now"
    late = balance.step(typed, snapshot, early.state, at(1), reign="1", requested_at=seen_at - 1)
    assert late.news != ()
    assert balance.requested(typed, late.state) is None


def test_a_request_to_a_fleet_that_does_not_answer_is_no_hurry_for_ever() -> None:
    snapshot = asked(uneven(pod("hot"), pod("cold"), loads={"hot": 900, "cold": 100}), "now")
    typed = load(snapshot.cluster)
    late = balance.step(
        typed, snapshot, balance.begin(typed, at(0)), at(20), reign="1", requested_at=at(5).monotonic
    )
    assert late.again_in_seconds > balance.SOON_SECONDS
    assert balance.requested(typed, late.state) == "now", "it is served once it answers"


def test_a_request_without_instances_is_answered() -> None:
    snapshot = asked(uneven(loads={"gone": 10}, replicas=0), "now")
    typed = load(snapshot.cluster)
    turn = balance.step(
        typed, snapshot, balance.begin(typed, at(0)), at(9), reign="1", requested_at=at(5).monotonic
    )
    assert turn.report.last_request == "now"
    assert [one.reason for one in turn.news] == ["RebalanceNotNeeded"]
    assert turn.again_in_seconds > balance.SOON_SECONDS


def test_while_another_request_waits_the_served_one_is_not_forgotten() -> None:
    snapshot = asked(uneven(pod("hot"), pod("cold"), loads={"hot": 900, "cold": 100}), "now-2")
    typed = load(snapshot.cluster)
    begun = dataclasses.replace(balance.begin(typed, at(0)), last_request="now")
    turn = balance.step(typed, snapshot, begun, at(1), reign="1", requested_at=snapshot.fleet.fleet_at)
    assert turn.state.last_request == "now"


def test_what_is_no_request_asks_for_nothing() -> None:
    snapshot = asked(uneven(pod("hot"), pod("cold"), loads={"hot": 900, "cold": 100}), "at once")
    assert step(snapshot).news == ()


@pytest.mark.parametrize(
    "apart",
    [
        pod("cold", cordon="true", accepting="false"),
        pod("cold", track="b"),
        pod("cold", going=True),
        {**pod("cold"), "status": {"conditions": [{"type": "Ready", "status": "False"}]}},
    ],
    ids=["cordoned", "of the other track", "leaving", "not ready"],
)
def test_where_no_new_client_comes_none_is_sent(apart: dict[str, Any]) -> None:
    snapshot = asked(uneven(pod("hot"), apart, loads={"hot": 900, "cold": 100}), "now")
    turn = step(snapshot)
    assert turn.report.reason == "OneInstance"
    assert turn.commands == ()
    assert not turn.closed


def test_the_spec_decides() -> None:
    clustering = {
        "enableLoadRebalancing": False,
        "rebalanceThreshold": 0.5,
        "rebalanceInterval": "2m",
        "maxMovesPerCycle": 7,
        "moveCooldown": "1h",
    }
    given = load(
        cluster(
            clustering=clustering,
            loadBalancing={"strategy": "Weighted"},
            rollout={"maxReconnectsPerSecond": 9},
            scaling={"heartbeatInterval": "10s"},
            routing={"mode": "Gateway", "gateway": {"parentRefs": [{"name": "public"}]}},
        )
    )
    settings = balance._settings(given)
    assert (settings.enabled, settings.threshold, settings.interval_seconds) == (False, 0.5, 120)
    assert (settings.most_moves, settings.cooldown_seconds, settings.mode) == (7, 3600, "Gateway")
    assert (settings.measure, settings.reconnects_per_second, settings.heartbeat_seconds) == ("weight", 9, 10)
    usual = balance._settings(load(cluster()))
    assert usual == type(usual)()


def test_the_last_that_takes_clients_is_never_closed() -> None:
    snapshot = uneven(pod("one"), pod("two"), loads={"one": 1, "two": 1})
    for closed, held in ((("one",), {"one"}), (("one", "two"), set()), ((), set())):
        turn = dataclasses.replace(TURN, closed=frozenset(closed))
        seen = dataclasses.replace(snapshot, rebalance=turn)
        assert balance.closed(load(seen.cluster), seen) == held
    cordoned = dataclasses.replace(snapshot, pods=(pod("one"), pod("two", cordon="true", accepting="false")))
    seen = dataclasses.replace(cordoned, rebalance=dataclasses.replace(TURN, closed=frozenset({"one"})))
    assert balance.closed(load(seen.cluster), seen) == frozenset()


def test_the_status_says_what_the_planner_says() -> None:
    snapshot = uneven(pod("one"), pod("two"), loads={"one": 1, "two": 1})
    plan = of(snapshot, TURN)
    assert plan.status is not None
    assert plan.status["rebalance"] == {
        "phase": "Idle",
        "movesPlanned": 3,
        "movesDone": 2,
        "movesFailed": 1,
        "spreadBefore": 0.8,
        "spread": 0.1,
        "lastPlanAt": "2026-01-01T00:00:00Z",
        "lastRequest": "now-1",
    }
    found = conditions(plan)["Balanced"]
    assert (found["status"], found["reason"], found["message"]) == ("True", "WithinThreshold", REPORT.message)
    assert plan.rebalance
    assert plan.requeue_seconds is not None
    assert plan.requeue_seconds <= 5
    after = done(snapshot, plan, now=at(1))
    assert of(after, TURN, 2).status is None


def test_load_that_moves_a_little_costs_no_write_and_more_of_it_waits() -> None:
    snapshot = uneven(pod("one"), pod("two"), loads={"one": 1, "two": 1})
    written = dataclasses.replace(done(snapshot, of(snapshot, TURN), now=at(1)), rebalance_at=at(1).monotonic)

    def said(spread: float, seconds: float, **changes: Any) -> Plan:
        report = dataclasses.replace(REPORT, spread=spread, message=f"It is {spread}.", **changes)
        return of(written, dataclasses.replace(TURN, report=report), seconds)

    assert said(0.14, 55).status is None
    assert said(0.29, 20).status is None
    later = said(0.29, 40)
    assert later.status is not None
    assert conditions(later)["Balanced"]["message"] == "It is 0.29."
    assert said(0.1, 2, phase="Rebalancing").status is not None, "but what happens is told at once"
    assert said(0.1, 2, moves_done=3).status is not None
    assert said(0.1, 2, balanced="False", reason="AboveThreshold").status is not None


def test_while_nobody_tells_the_load_that_is_said() -> None:
    silent = dataclasses.replace(uneven(pod("one"), loads={"one": 1}), fleet=FleetView())
    turn = step(silent)
    assert (turn.report.reason, turn.report.spread) == ("FleetUnknown", None)
    said = of(silent, turn).status
    assert said is not None
    assert "spread" not in said["rebalance"]
    away = uneven(pod("one"), pod("two"), loads={"one": 1, "two": 9})
    assert away.fleet.fleet is not None
    told = msgspec.structs.replace(away.fleet.fleet, redis=AWAY)
    away = dataclasses.replace(away, fleet=dataclasses.replace(away.fleet, fleet=told))
    assert step(away).report.reason == "RedisAway"
    nobody = dataclasses.replace(ready_cluster(now=at(0)), cluster=cluster(replicas=0))
    assert step(nobody).report.reason == "NoInstances"


def test_commands_of_the_planner_wait_like_others_when_the_fleet_does_not_take_them() -> None:
    snapshot = uneven(pod("one"), pod("two"), loads={"one": 1, "two": 1})
    many = tuple(MoveRooms(f"id-{number}", ()) for number in range(orders.COMMANDS_AT_ONCE + 1))
    turn = dataclasses.replace(TURN, commands=many)
    assert of(snapshot, turn).word.commands == many[: orders.COMMANDS_AT_ONCE]
    held = dataclasses.replace(snapshot, command_retry_at=at(9).monotonic)
    assert of(held, turn).word == orders.Word(held=True)


def test_no_instances_stay_none_however_long_nobody_has_answered() -> None:
    snapshot = uneven(loads={"gone": 10}, replicas=0)
    for seconds in (0, 61, 100_000):
        report = step(snapshot, seconds=seconds).report
        assert (report.phase, report.balanced, report.reason) == ("Idle", "Unknown", "NoInstances")


def test_a_fleet_of_many_rooms_is_large() -> None:
    snapshot = uneven(pod("one"), loads={"one": 1})
    assert not balance.is_large(snapshot)
    assert snapshot.fleet.fleet is not None
    rooms = [RoomLoad(room=str(number), members=1) for number in range(balance.LARGE + 1)]
    records = [msgspec.structs.replace(one, heaviest_rooms=rooms) for one in snapshot.fleet.fleet.instances]
    whole = msgspec.structs.replace(snapshot.fleet.fleet, instances=records)
    assert balance.is_large(
        dataclasses.replace(snapshot, fleet=dataclasses.replace(snapshot.fleet, fleet=whole))
    )
