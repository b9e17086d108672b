"""An instance that was told to shed clients: so many, within the budget, and until told otherwise."""

import asyncio
from typing import Any

import pytest

from tableforge_dataplane.contract.fleet import Shed
from tableforge_dataplane.homes import shedding
from tableforge_dataplane.homes.shedding import Shedding
from tableforge_dataplane.observability.metrics import Metrics
from tableforge_dataplane.protocol.events import Event, Migrate
from tests.dataplane.path.instances import until


class Stayer:
    """A connection that goes only when it is closed; where `follows`, as soon as it is told."""

    def __init__(self, *, follows: bool = False, may_go: bool = True) -> None:
        self.is_open = True
        self.told: list[Migrate] = []
        self.closed_with: int | None = None
        self.may_go = may_go
        self._follows = follows

    def tell(self, event: Event) -> None:
        assert isinstance(event, Migrate)
        self.told.append(event)
        self.is_open = not self._follows

    def close_with(self, code: int, _reason: str) -> None:
        if self.is_open:
            self.is_open = False
            self.closed_with = code


class World:
    """Orders as they come, and whom they are about."""

    def __init__(self) -> None:
        self.shed: Shed | None = None
        self.done: list[str] = []
        self.connections: list[Stayer] = []
        self.left = 1_000_000
        self.taken = 0
        self.asked = 0
        self.settled = 0
        self.metrics = Metrics()
        self.shedding = Shedding[Stayer](
            self,
            candidates=lambda: list(self.connections),
            may_go=lambda one: one.may_go,
            budget=self,
            metrics=self.metrics,
            settle=self._settle,
        )

    def shed_done(self, identifier: str) -> None:
        self.done.append(identifier)
        if self.shed is not None and self.shed.id == identifier:
            self.shed = None

    def order(self, identifier: str, connections: int) -> None:
        self.shed = Shed(fence=1, id=identifier, instance="here", connections=connections)
        self.shedding.changed()

    async def take(self, wanted: int) -> int:
        self.asked += 1
        granted = min(wanted, self.left)
        self.left -= granted
        self.taken += granted
        return granted

    async def _settle(self) -> None:
        self.settled += 1

    def told(self) -> list[Stayer]:
        return [one for one in self.connections if one.told]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shedding, "FOLLOW_SECONDS", 0.1)
    monkeypatch.setattr(shedding, "STEP_SECONDS", 0.05)


@pytest.fixture
async def world() -> Any:
    made = World()
    made.shedding.start()
    yield made
    await made.shedding.stop()


async def test_as_many_go_as_were_asked_for_and_who_does_not_go_is_closed(world: World) -> None:
    world.connections = [Stayer(follows=number % 2 == 0) for number in range(20)]
    world.order("a", 7)
    await until(lambda: world.done == ["a"])
    told = world.told()
    assert len(told) == world.taken == 7
    assert all(one.told[0].url is None and one.told[0].reason == "rebalancing" for one in told)
    assert [one.is_open for one in told] == [False] * 7
    assert all(one.closed_with in (None, 1012) for one in told)
    assert any(one.closed_with == 1012 for one in told)
    assert len([one for one in world.connections if one.is_open]) == 13
    assert world.settled > 0
    assert world.metrics.migrate_hints == {"rebalancing": 7}
    assert world.shedding.following() == 0
    assert len({one.told[0].after for one in told}) == 7, "all at once"


async def test_it_is_spread_by_the_budget(world: World) -> None:
    world.connections = [Stayer() for _ in range(20)]
    world.left = 3
    world.order("a", 10)
    await until(lambda: world.asked > 3)
    assert len(world.told()) == 3
    assert world.done == []
    world.left = 100
    await until(lambda: world.done == ["a"])
    assert len(world.told()) == 10
    assert world.left == 93


async def test_a_newer_order_takes_the_place_of_the_rest(world: World) -> None:
    world.connections = [Stayer() for _ in range(50)]
    world.left = 5
    world.order("a", 40)
    await until(lambda: world.taken == 5)
    world.left = 100
    world.order("b", 2)
    await until(lambda: world.done == ["b"])
    assert len(world.told()) == 7
    assert all(one.closed_with == 1012 for one in world.told())


async def test_none_stops_it_and_who_was_told_is_closed_all_the_same(world: World) -> None:
    world.connections = [Stayer() for _ in range(50)]
    world.left = 5
    world.order("a", 40)
    await until(lambda: world.taken == 5)
    world.order("b", 0)
    world.left = 100
    await until(lambda: world.done == ["b"])
    assert len(world.told()) == 5
    assert all(one.closed_with == 1012 for one in world.told())


async def test_an_order_that_is_gone_is_not_carried_on(world: World) -> None:
    world.connections = [Stayer() for _ in range(50)]
    world.left = 5
    world.order("a", 40)
    await until(lambda: world.taken == 5)
    world.shed = None
    world.left = 100
    await until(lambda: all(one.closed_with == 1012 for one in world.told()))
    assert (len(world.told()), world.done) == (5, [])


async def test_it_is_done_where_nobody_is_left_who_could_go(world: World) -> None:
    world.connections = [Stayer(may_go=number < 3) for number in range(10)]
    world.order("a", 8)
    await until(lambda: world.done == ["a"])
    assert [bool(one.told) for one in world.connections] == [True] * 3 + [False] * 7
    world.order("b", 8)
    await until(lambda: world.done == ["a", "b"])
    assert len(world.told()) == 3


async def test_orders_follow_one_another(world: World) -> None:
    world.connections = [Stayer() for _ in range(10)]
    for number, name in enumerate("abc", 1):
        world.order(name, 2)
        await until(lambda name=name: name in world.done)  # type: ignore[misc]
        assert len(world.told()) == 2 * number


async def test_who_has_gone_meanwhile_does_not_count(world: World) -> None:
    world.connections = [Stayer() for _ in range(4)]
    world.left = 0
    world.order("a", 2)
    await until(lambda: world.asked > 0)
    for one in world.connections[:2]:
        one.is_open = False
    world.left = 10
    await until(lambda: world.done == ["a"])
    assert [bool(one.told) for one in world.connections] == [False, False, True, True]


async def test_nothing_is_left_running_when_it_ends(world: World) -> None:
    world.connections = [Stayer() for _ in range(4)]
    world.order("a", 4)
    await until(lambda: len(world.told()) == 4)
    await world.shedding.stop()
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "shedding"]


async def test_the_same_order_from_a_later_reign_is_the_same(world: World) -> None:
    world.connections = [Stayer(follows=True) for _ in range(10)]
    world.left = 3
    world.order("a", 8)
    await until(lambda: world.asked > 1)
    world.shed = Shed(fence=2, id="a", instance="here", connections=8)
    world.shedding.changed()
    world.left = 100
    await until(lambda: world.done == ["a"])
    assert len(world.told()) == world.taken == 8
