"""What a cluster has no room or no time for is told, and does not come and go with each client."""

import dataclasses
from typing import Any

import msgspec
import pytest

from tableforge_operator.api import load
from tableforge_operator.decide import capacity
from tableforge_operator.decide.plan import Plan, decide
from tableforge_operator.decide.snapshot import Snapshot
from tests.operator.engine.snapshots import (
    SECRETS,
    at,
    cluster,
    conditions,
    done,
    ready_cluster,
    settled,
    with_fleet,
)

FULL = "No new client gets in"


def with_loads(snapshot: Snapshot, *loads: int, seconds: float, **first: Any) -> Snapshot:
    """The instances have so many connections, of 1,000 each. `first`: more of the first one's record."""
    snapshot = with_fleet(snapshot, now=at(seconds), instances=len(loads), connections=sum(loads))
    told = snapshot.fleet.fleet
    assert told is not None
    records = [
        msgspec.structs.replace(record, connections=load, **(first if number == 0 else {}))
        for number, (record, load) in enumerate(zip(told.instances, loads, strict=True))
    ]
    view = dataclasses.replace(snapshot.fleet, fleet=msgspec.structs.replace(told, instances=records))
    return dataclasses.replace(snapshot, fleet=view)


def plan(snapshot: Snapshot, seconds: float) -> Plan:
    return decide(snapshot, at(seconds), secrets=SECRETS)


def test_that_all_are_full_is_told_once_and_until_there_is_room_to_speak_of() -> None:
    snapshot = with_loads(ready_cluster(now=at(0)), 1000, 1000, 999, seconds=1)
    assert FULL not in conditions(settled(snapshot, now=at(1)))["Ready"]["message"]
    snapshot = with_loads(snapshot, 1000, 1000, 1000, seconds=2)
    found = plan(snapshot, 2)
    ready = conditions(found)["Ready"]
    assert ready["status"] == "True"
    assert ready["message"].endswith(
        "all instances are full. Raise spec.replicas, or spec.websocket.maxConnections (1000) where they "
        "have CPU and memory to spare."
    )
    (event,) = [event for event in found.events if event.reason == "AllFull"]
    assert event.type == "Warning"
    snapshot = done(snapshot, found, now=at(2))
    for seconds, each in ((40, 990), (80, 1000), (120, 951)):
        snapshot = with_loads(snapshot, each, each, each, seconds=seconds)
        found = plan(snapshot, seconds)
        assert [event.reason for event in found.events] == []
        snapshot = settled(snapshot, now=at(seconds))
        assert FULL in conditions(snapshot)["Ready"]["message"]
    snapshot = settled(with_loads(snapshot, 1000, 949, 1000, seconds=160), now=at(160))
    assert FULL not in conditions(snapshot)["Ready"]["message"]
    snapshot = settled(with_loads(snapshot, 1000, 999, 1000, seconds=200), now=at(200))
    assert FULL not in conditions(snapshot)["Ready"]["message"]


@pytest.mark.parametrize("closed", [{"cordoned": True}, {"draining": True}, {"alive": False}])
def test_only_instances_that_take_clients_count(closed: dict[str, bool]) -> None:
    snapshot = with_loads(ready_cluster(now=at(0)), 0, 1000, 1000, seconds=1, **closed)
    assert [note.reason for note in capacity.full(load(snapshot.cluster), snapshot, at(1))] == ["AllFull"]
    alone = with_loads(snapshot, 0, seconds=1, **closed)
    assert list(capacity.full(load(alone.cluster), alone, at(1))) == [], "nobody is left to be full"


def test_nothing_is_said_of_a_fleet_that_has_not_answered_lately() -> None:
    snapshot = with_loads(ready_cluster(now=at(0)), 1000, seconds=1)
    assert list(capacity.full(load(snapshot.cluster), snapshot, at(62))) == []


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"autoscaling": {"enabled": True, "maxReplicas": 4}}, "Raise spec.autoscaling.maxReplicas, or"),
        (
            {"loadBalancing": {"maxConnectionsPerInstance": 500}},
            "or spec.loadBalancing.maxConnectionsPerInstance (500)",
        ),
        (
            {"websocket": {"maxConnections": 300}, "loadBalancing": {"maxConnectionsPerInstance": 500}},
            "or spec.websocket.maxConnections (300)",
        ),
        ({"websocket": {"maxConnections": 5000}}, "or spec.loadBalancing.maxConnectionsPerInstance (2000)"),
    ],
)
def test_the_fields_are_those_that_bind(spec: dict[str, Any], words: str) -> None:
    view = with_loads(ready_cluster(now=at(0)), 1000, seconds=1)
    (note,) = capacity.full(load(cluster(**spec)), view, at(1))
    assert words in note.message


def test_a_drain_that_is_too_short_for_the_budget_names_both_fields() -> None:
    snapshot = ready_cluster(now=at(0), rollout={"drainTimeout": "5s"})
    ready = conditions(snapshot)["Ready"]
    assert ready["status"] == "True"
    assert ready["message"].endswith(
        "A full instance leaves faster than the budget allows: 1000 clients take 10 s. Raise "
        "spec.rollout.drainTimeout (5s) to that, or spec.rollout.maxReconnectsPerSecond (200)."
    )


@pytest.mark.parametrize(
    ("spec", "short"),
    [
        ({}, False),
        ({"rollout": {"drainTimeout": "10s"}}, False),
        ({"rollout": {"drainTimeout": "9s"}}, True),
        ({"rollout": {"drainTimeout": "9s", "maxReconnectsPerSecond": 300}}, False),
        ({"rollout": {"drainTimeout": "9s"}, "websocket": {"maxConnections": 900}}, False),
        ({"websocket": {"maxConnections": 3000}}, False),
        ({"websocket": {"maxConnections": 3000}, "loadBalancing": {"maxConnectionsPerInstance": 3000}}, True),
    ],
)
def test_it_is_what_the_spec_makes_of_a_full_instance(spec: dict[str, Any], short: bool) -> None:
    found = [note.reason for note in capacity.drains(load(cluster(**spec)))]
    assert found == (["DrainTooShort"] if short else [])


def test_it_is_told_once() -> None:
    snapshot, told = Snapshot(cluster=cluster(rollout={"drainTimeout": "5s"})), []
    for seconds in range(5):
        found = plan(snapshot, seconds)
        told += [event for event in found.events if event.reason == "DrainTooShort"]
        snapshot = done(snapshot, found, now=at(seconds))
    assert [event.type for event in told] == ["Warning"]
