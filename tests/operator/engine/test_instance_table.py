"""The table of instances in the status: what it shows, how long it gets, when it is written."""

import dataclasses
from typing import Any

import msgspec
import pytest

from tableforge_dataplane.contract.fleet import InstanceRecord
from tableforge_operator.api.status import INSTANCES_SHOWN
from tableforge_operator.decide.plan import Plan, decide
from tableforge_operator.decide.snapshot import FleetView, Snapshot
from tests.operator.engine.pods import fleet
from tests.operator.engine.snapshots import SECRETS, at, done, ready_cluster, settled
from tests.operator.engine.test_cordons import pod

ONE, TWO, THREE = "tables-a-abc-1", "tables-a-abc-2", "tables-b-abc-3"
PODS = (pod(ONE), pod(TWO), pod(THREE, track="b"))


def record(name: str, *, connections: int = 0, rooms: int = 0, **more: Any) -> InstanceRecord:
    (found,) = fleet(names=[name], rooms=rooms).instances
    return msgspec.structs.replace(found, connections=connections, **more)


USUAL = (record(ONE, connections=40, rooms=4), record(TWO, connections=100, rooms=10), record(THREE))


def saying(snapshot: Snapshot, *records: InstanceRecord, seconds: float) -> Snapshot:
    """The fleet has these records, and totals that never move."""
    told = fleet(names=[one.instance for one in records], connections=140, rooms=14)
    whole = msgspec.structs.replace(told, instances=list(records))
    return dataclasses.replace(snapshot, fleet=FleetView(fleet=whole, fleet_at=at(seconds).monotonic))


def usual(*records: InstanceRecord) -> Snapshot:
    """The status stands since the second 1."""
    ready = dataclasses.replace(ready_cluster(now=at(0)), pods=PODS)
    return settled(saying(ready, *(records or USUAL), seconds=1), now=at(1))


def table(source: Plan | Snapshot) -> Any:
    status = source.status if isinstance(source, Plan) else source.cluster["status"]
    assert status is not None
    return status["instanceTable"]


def later(snapshot: Snapshot, *records: InstanceRecord, seconds: float) -> Plan:
    return decide(saying(snapshot, *records, seconds=seconds), at(seconds), secrets=SECRETS)


def test_each_instance_has_its_row_and_the_fullest_is_first() -> None:
    healthy = {"ready": True, "accepting": True, "draining": False, "version": "0.1.0"}
    assert table(usual()) == [
        {"name": TWO, "track": "a", **healthy, "connections": 100, "rooms": 10},
        {"name": ONE, "track": "a", **healthy, "connections": 40, "rooms": 4},
        {"name": THREE, "track": "b", **healthy, "connections": 0, "rooms": 0},
    ]
    assert "instancesNotShown" not in usual().cluster["status"]


def test_the_dead_have_none_and_a_pod_that_leaves_or_is_gone_is_not_ready() -> None:
    ready = dataclasses.replace(usual(), pods=(pod(ONE, going=True),))
    dead = record(THREE, alive=False)
    found = table(later(ready, USUAL[0], USUAL[1], dead, seconds=2))
    assert [(row["name"], row["track"], row["ready"]) for row in found] == [
        (TWO, "a", False),
        (ONE, "a", False),
    ]


def test_nobody_is_called_unready_whose_pod_cannot_be_seen() -> None:
    blind = dataclasses.replace(usual(), pods=(), blind={"Pod": "forbidden"})
    assert ["ready" in row for row in table(later(blind, *USUAL, seconds=2))] == [False] * 3


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"cordoned": True}, {"accepting": False, "draining": False}),
        ({"draining": True}, {"accepting": False, "draining": True}),
        ({"version": "0.2.0"}, {"version": "0.2.0"}),
    ],
    ids=["cordoned", "draining", "another version"],
)
def test_what_becomes_of_an_instance_is_told_at_once(change: dict[str, Any], shown: dict[str, Any]) -> None:
    told = later(usual(), msgspec.structs.replace(USUAL[0], **change), *USUAL[1:], seconds=2)
    assert table(told)[1].items() >= {"name": ONE, **shown}.items()


def test_so_is_that_a_pod_is_not_ready_any_more() -> None:
    unready = {**pod(ONE), "status": {"conditions": [{"type": "Ready", "status": "False"}]}}
    found = table(later(dataclasses.replace(usual(), pods=(unready, *PODS[1:])), *USUAL, seconds=2))
    assert [row["ready"] for row in found] == [True, False, True]


def test_so_is_one_that_takes_the_place_of_another() -> None:
    other = "tables-a-abc-4"
    found = table(later(usual(), *USUAL[:2], record(other), seconds=2))
    assert [row["name"] for row in found] == [TWO, ONE, other]


def test_numbers_wait_for_five_per_cent_and_thirty_seconds() -> None:
    stands = usual()

    def full(connections: int, seconds: float, rooms: int = 10) -> Plan:
        busy = record(TWO, connections=connections, rooms=rooms)
        return later(stands, USUAL[0], busy, USUAL[2], seconds=seconds)

    assert full(105, 40).status is None
    assert full(106, 30).status is None
    assert table(full(106, 31))[0]["connections"] == 106
    assert table(full(100, 31, rooms=11))[0]["rooms"] == 11


def test_an_unchanged_world_costs_no_write_and_neither_do_ranks_that_change_by_a_little() -> None:
    stands = usual(record(ONE, connections=100), record(TWO, connections=101), record(THREE))
    for seconds in (2, 40, 400, 4000):
        world = record(ONE, connections=100), record(TWO, connections=101), record(THREE)
        assert later(stands, *world, seconds=seconds).status is None
        swapped = record(ONE, connections=102), record(TWO, connections=99), record(THREE)
        assert later(stands, *swapped, seconds=seconds).status is None


def crowd(*connections: int) -> list[InstanceRecord]:
    return [record(f"tables-a-abc-{n}", connections=each) for n, each in enumerate(connections)]


def test_of_many_the_fullest_are_shown_and_the_others_counted() -> None:
    stands = usual(*crowd(*range(1000, 1000 + INSTANCES_SHOWN + 7)))
    assert [row["connections"] for row in table(stands)] == [*range(1056, 1006, -1)]
    assert stands.cluster["status"]["instancesNotShown"] == 7
    fewer = done(stands, later(stands, *crowd(*range(1007, 1057)), seconds=2), now=at(2))
    assert len(table(fewer)) == INSTANCES_SHOWN
    assert "instancesNotShown" not in fewer.cluster["status"]


def test_who_is_not_shown_is_heard_of_when_it_is_among_the_fullest_by_far() -> None:
    usually = [2000] * INSTANCES_SHOWN
    stands = usual(*crowd(*usually, 10, 10))
    assert later(stands, *crowd(*usually, 1900, 90), seconds=60).status is None
    assert later(stands, *crowd(*usually, 2050, 10), seconds=60).status is None, "hardly fuller than others"
    assert later(stands, *crowd(*usually, 2500, 10), seconds=20).status is None, "not before its time"
    assert table(later(stands, *crowd(*usually, 2500, 10), seconds=60))[0]["connections"] == 2500
    more = later(stands, *crowd(*usually, 10, 10, 10), seconds=2)
    assert more.status is not None
    assert more.status["instancesNotShown"] == 3


def test_names_and_versions_are_bounded_and_legible_whatever_an_instance_says() -> None:
    found = table(usual(record("x\n" * 999, version="v" * 999), record("x\n" * 999)))
    assert [(len(row["name"]), len(row["version"])) for row in found] == [(253, 5)]
    assert found[0]["name"].isprintable()
    assert "track" not in found[0]
