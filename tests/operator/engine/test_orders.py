"""What instances are told: as long as they say something else, and nobody who stays is forgotten."""

import dataclasses
from typing import Any

import msgspec
import pytest

from tableforge_dataplane.contract.fleet import InstanceOrder
from tableforge_operator.api import load
from tableforge_operator.decide import orders
from tableforge_operator.decide.plan import decide
from tableforge_operator.decide.snapshot import FleetView, Sent, Snapshot
from tests.operator.engine.gateways import ROUTED
from tests.operator.engine.pods import fleet
from tests.operator.engine.snapshots import SECRETS, at, cluster, conditions, ready_cluster
from tests.operator.engine.test_cordons import pod

HEARTBEAT = 30.0


def seen(*pods: dict[str, Any], seconds: float = 0.0, **changes: dict[str, Any]) -> Snapshot:
    """Instances that say what the pods are called. `changes` to their records by name."""
    told = fleet(names=[one["metadata"]["name"] for one in pods])
    records = [
        msgspec.structs.replace(record, **changes.get(record.instance, {})) for record in told.instances
    ]
    view = FleetView(fleet=msgspec.structs.replace(told, instances=records), fleet_at=at(seconds).monotonic)
    return Snapshot(cluster=cluster(), pods=pods, fleet=view)


def due(snapshot: Snapshot, seconds: float = 1.0, **more: Any) -> tuple[InstanceOrder, ...]:
    return orders.due(load(snapshot.cluster), snapshot, at(seconds), **more)


def sent(snapshot: Snapshot, order: InstanceOrder, *, seconds: float, boot: str = "b") -> Snapshot:
    taken = Sent(order=order, boot=boot, at=at(seconds).monotonic)
    return dataclasses.replace(snapshot, orders_sent={**snapshot.orders_sent, order.instance: taken})


def test_an_instance_that_is_as_it_should_be_is_told_nothing() -> None:
    assert due(seen(pod("one"), pod("two"))) == ()


def test_a_cordon_is_told_until_the_record_says_so() -> None:
    wanted = InstanceOrder(instance="one", cordoned=True)
    snapshot = seen(pod("one", cordon="true"), pod("two"))
    assert due(snapshot) == (wanted,)
    told = sent(snapshot, wanted, seconds=1)
    assert due(told, 2) == (), "its record comes with its next heartbeat"
    assert due(told, 2 + 1.5 * HEARTBEAT) == (wanted,), "then it is said again"
    assert due(seen(pod("one", cordon="true"), one={"cordoned": True})) == ()
    assert due(seen(pod("one"), one={"cordoned": True})) == (InstanceOrder(instance="one"),)


def test_a_container_that_has_started_again_is_told_at_once() -> None:
    wanted = InstanceOrder(instance="one", cordoned=True)
    told = sent(seen(pod("one", cordon="true")), wanted, seconds=1, boot="of before")
    assert due(told, 2) == (wanted,)


def test_the_planner_closes_an_instance_too() -> None:
    snapshot = seen(pod("one"), pod("two"))
    assert due(snapshot, closed=frozenset({"two"})) == (InstanceOrder(instance="two", cordoned=True),)


def test_a_weight_by_hand_and_back() -> None:
    wanted = InstanceOrder(instance="one", weight=2.5)
    assert due(seen(pod("one", weight="2.5"))) == (wanted,)
    assert due(seen(pod("one", weight="2.5"), one={"weight": 2.5})) == ()
    back = InstanceOrder(instance="one")
    taken_away = sent(seen(pod("one"), one={"weight": 2.5}), wanted, seconds=0)
    assert due(taken_away) == (back,)
    # It goes by its own then, which may be that of an older spec: saying so again changes nothing.
    assert due(sent(seen(pod("one"), one={"weight": 50.0}), back, seconds=0), 1000 - 990) == ()


@pytest.mark.parametrize("weight", [1.0, 100.0])
def test_a_weight_by_hand_is_taken_back_though_it_looks_like_its_own(weight: float) -> None:
    taken_away = sent(
        seen(pod("one"), one={"weight": weight}), InstanceOrder(instance="one", weight=weight), seconds=0
    )
    assert due(taken_away) == (InstanceOrder(instance="one"),)
    assert due(sent(taken_away, InstanceOrder(instance="one"), seconds=1), 100 - 60) == ()


def test_a_weight_that_says_nothing_is_none() -> None:
    assert due(seen(pod("one", weight="much"))) == ()


def test_an_address_is_told_and_taken_back_and_kept_where_nothing_is_known() -> None:
    here = "/i/one/ws"
    snapshot = seen(pod("one"))
    assert due(snapshot, addresses={"one": here}) == (InstanceOrder(instance="one", address=here),)
    routed = seen(pod("one"), one={"address": here})
    assert due(routed, addresses={"one": here}) == ()
    assert due(routed, addresses={"one": None}) == (InstanceOrder(instance="one"),)
    assert due(routed, addresses={}) == ()
    assert due(routed, addresses=None) == (InstanceOrder(instance="one"),), "in mode Service there are none"


def test_who_leaves_is_dead_or_is_no_pod_of_ours_is_told_nothing() -> None:
    assert due(seen(pod("one", cordon="true", going=True))) == ()
    assert due(seen(pod("one", cordon="true"), one={"alive": False})) == ()
    stranger = pod("one", cordon="true")
    stranger["metadata"]["ownerReferences"] = []
    assert due(seen(stranger)) == ()


def test_what_was_heard_long_ago_leads_to_no_order() -> None:
    snapshot = seen(pod("one", cordon="true"), pod("gone"))
    assert due(snapshot, 61) == ()
    assert orders.gone(dataclasses.replace(snapshot, pods=snapshot.pods[:1]), at(61)) == ()


def test_no_more_than_fit_into_a_command() -> None:
    snapshot = seen(*(pod(f"pod-{number}", cordon="true") for number in range(orders.AT_ONCE + 5)))
    assert len(due(snapshot)) == orders.AT_ONCE


def test_an_instance_whose_pod_is_gone_is_to_be_forgotten_once() -> None:
    snapshot = seen(pod("one"), pod("gone"))
    assert orders.gone(snapshot, at(1)) == ()
    without = dataclasses.replace(snapshot, pods=snapshot.pods[:1])
    assert orders.gone(without, at(1)) == ("gone",)
    assert orders.gone(dataclasses.replace(without, forgotten=frozenset({"gone"})), at(1)) == ()


@pytest.mark.parametrize("name", ["", "a=b", "a,b", "a\\", "a b", "One", "-", "a" * 254, "../pods", "é"])
def test_what_no_pod_can_be_called_keeps_nothing_else_from_being_told(name: str) -> None:
    snapshot = seen(pod("one"), pod("gone"), pod(name))
    assert orders.gone(dataclasses.replace(snapshot, pods=snapshot.pods[:1]), at(1)) == ("gone",)


def test_who_names_others_at_every_look_does_not_take_up_the_operators_calls() -> None:
    snapshot = seen(pod("one"), pod("gone"))
    rests = dataclasses.replace(snapshot, pods=snapshot.pods[:1], forget_at=at(5).monotonic)
    assert orders.gone(rests, at(4)) == ()
    assert orders.gone(rests, at(5)) == ("gone",)


def test_an_evicted_pod_runs_nothing() -> None:
    evicted = {**pod("gone"), "status": {"phase": "Failed"}}
    assert orders.gone(seen(pod("one"), evicted), at(1)) == ("gone",)


def test_nobody_is_forgotten_while_pods_are_not_seen() -> None:
    snapshot = dataclasses.replace(seen(pod("one"), pod("gone")), pods=(pod("one"),))
    assert orders.gone(dataclasses.replace(snapshot, blind={"Pod": "forbidden"}), at(1)) == ()
    assert orders.gone(dataclasses.replace(snapshot, pods=()), at(1)) == (), "who answered must be seen too"
    assert orders.gone(dataclasses.replace(snapshot, pods=(pod("other"),)), at(1)) == ()


def test_after_a_failure_it_waits_and_says_why_when_it_lasts() -> None:
    ready = ready_cluster(now=at(0))
    told = seen(pod("one", accepting="false", cordon="true"), pod("two"))
    snapshot = dataclasses.replace(ready, pods=told.pods, fleet=told.fleet)
    assert decide(snapshot, at(1), secrets=SECRETS).word.orders
    held = dataclasses.replace(
        snapshot, command_retry_at=at(5).monotonic, command_refused="no instance is ready"
    )
    plan = decide(held, at(1), secrets=SECRETS)
    assert plan.word == orders.Word(held=True)
    assert (
        "take no orders (cordons, weights, addresses, moves): no instance is ready"
        in (conditions(plan)["Ready"]["message"])
    )
    assert decide(held, at(6), secrets=SECRETS).word.orders


def test_rooms_find_no_home_on_a_track_that_clients_are_not_sent_to() -> None:
    snapshot = seen(pod("old"), pod("new", track="b"))
    behind = dataclasses.replace(snapshot, cluster=cluster(**ROUTED))
    addresses = {"old": None, "new": None}
    for track, apart in (("a", "new"), ("b", "old")):
        found = due(behind, addresses=addresses, track=track)
        assert found == (InstanceOrder(instance=apart, cordoned=True),)
    assert due(snapshot, track="a") == (), "behind a Service nobody goes there by itself"


def test_instances_of_an_older_version_are_told_nothing_without_need() -> None:
    told = fleet(names=["one"])
    plain = msgspec.to_builtins(told)
    for name in ("cordoned", "weight", "address", "homes", "following", "commands"):
        del plain["instances"][0][name]
    older = FleetView(fleet=msgspec.convert(plain, type(told)), fleet_at=at(0).monotonic)
    snapshot = dataclasses.replace(seen(pod("one")), fleet=older)
    assert due(snapshot) == ()
    assert due(dataclasses.replace(snapshot, pods=(pod("one", cordon="true"),))) != ()
