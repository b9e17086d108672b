"""Clients are told where their rooms live: whom a change concerns, within the budget, and only so often."""

import asyncio
import itertools
from collections.abc import Iterable
from typing import Any

import pytest

from tableforge_dataplane.homes import astray, guide
from tableforge_dataplane.homes.guide import Guide
from tableforge_dataplane.observability.metrics import Metrics
from tableforge_dataplane.protocol.events import Event, Migrate
from tests.dataplane.path.instances import until


class Homes:
    """Where rooms live, as the test says."""

    this = "here"

    def __init__(self) -> None:
        self.homes: dict[str, str] = {}
        self.addresses = {"there": "/i/there/ws", "far": "/i/far/ws"}
        self.asked = 0

    def home_of(self, room: str) -> str | None:
        self.asked += 1
        return self.homes.get(room)

    def address_of(self, instance: str) -> str | None:
        return self.addresses.get(instance)


class Client:
    """A guest that writes down what it was told."""

    def __init__(self, *rooms: str) -> None:
        self.rooms = list(rooms)
        self.closed = False
        self.told: list[Migrate] = []

    def shared_rooms(self) -> Iterable[str]:
        return self.rooms

    def tell(self, event: Event) -> None:
        assert isinstance(event, Migrate)
        self.told.append(event)

    @property
    def urls(self) -> list[str | None]:
        return [one.url for one in self.told]


class Budget:
    """Grants what the test says."""

    def __init__(self) -> None:
        self.left = 1_000_000
        self.refusals = 0

    async def take(self, wanted: int) -> int:
        granted = min(wanted, self.left)
        self.left -= granted
        self.refusals += granted == 0
        return granted


class World:
    """A guide and everybody it guides."""

    def __init__(self, *, whole_look_every_seconds: float = 3600.0) -> None:
        self.homes = Homes()
        self.budget = Budget()
        self.clients: list[Client] = []
        self.metrics = Metrics()
        self.guide = Guide(
            self.homes,
            budget=self.budget,
            metrics=self.metrics,
            members=lambda room: [one for one in self.clients if room in one.rooms],
            everybody=lambda: list(self.clients),
            whole_look_every_seconds=whole_look_every_seconds,
        )

    def client(self, *rooms: str) -> Client:
        """It has come, and joined these."""
        made = Client(*rooms)
        self.clients.append(made)
        self.guide.look_at(made)
        return made

    def move(self, **homes: str) -> None:
        self.homes.homes.update(homes)
        self.guide.moved(list(homes))

    async def looked(self) -> None:
        """Wait until the guide has looked at whoever there was to look at."""
        await until(lambda: not self.guide._guests and not self.guide._rooms)
        await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(astray, "FIRST_AFTER_SECONDS", 0.02)
    monkeypatch.setattr(guide, "LOOK_AFTER_SECONDS", 0.01)
    monkeypatch.setattr(guide, "STEP_SECONDS", 0.05)


@pytest.fixture
async def world() -> Any:
    made = World()
    made.guide.start()
    yield made
    await made.guide.stop()


async def test_the_members_of_a_room_that_moves_are_told_where_to(world: World) -> None:
    goes, stays = world.client("r", "@not-here"), world.client("s")
    world.move(r="there", s="here")
    await until(lambda: goes.urls == ["/i/there/ws"])
    assert goes.told[0].reason == "home"
    assert 0 <= goes.told[0].after < 0.05
    assert stays.told == []
    assert world.guide.following() == 1
    assert world.metrics.migrate_hints == {"home": 1}
    goes.closed = True
    world.guide.look_at(goes)
    assert world.guide.following() == 0


async def test_only_whom_a_change_concerns_is_looked_at(world: World) -> None:
    for number in range(500):
        world.client(f"s-{number}")
    await world.looked()
    world.homes.asked = 0
    concerned = world.client("r", "r2")
    world.move(r="there")
    await until(lambda: concerned.urls != [])
    assert world.homes.asked <= 10


async def test_many_are_looked_at_in_slices(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guide, "ROOMS_PER_SLICE", 100)
    for _ in range(200):
        world.client(*(f"r-{number}" for number in range(10)))
    most, before = 0, 0
    while world.guide._guests or before < 2000:
        asked, before = world.homes.asked - before, world.homes.asked
        most = max(most, asked)
        await asyncio.sleep(0)
    assert world.homes.asked == 2000
    assert most <= 110


async def test_the_hint_names_the_home_at_that_moment(world: World) -> None:
    world.budget.left = 0
    ada = world.client("r")
    world.move(r="there")
    await until(lambda: world.budget.refusals > 0)
    world.move(r="far")
    world.budget.left = 1
    await until(lambda: ada.told != [])
    assert ada.urls == ["/i/far/ws"]


async def test_who_has_come_home_meanwhile_is_not_told(world: World) -> None:
    world.budget.left = 0
    ada, bob = world.client("r"), world.client("s")
    world.move(r="there", s="there")
    await until(lambda: world.budget.refusals > 0)
    world.homes.homes["r"] = "here"  # and the news is still on its way
    world.budget.left = 2
    await until(lambda: bob.told != [])
    assert ada.told == []


async def test_no_more_are_told_than_the_budget_grants_and_all_in_the_end(world: World) -> None:
    clients = [world.client("r") for _ in range(30)]
    world.budget.left = 10
    world.move(r="there")
    await until(lambda: world.budget.refusals > 2)
    assert sum(len(one.told) for one in clients) == 10
    world.budget.left = 1000
    await until(lambda: all(len(one.told) == 1 for one in clients))
    assert world.budget.left == 1000 - 20
    delays = {one.told[0].after for one in clients}
    assert len(delays) >= 10, "all at once"


async def test_a_home_that_cannot_be_reached_is_waited_for(world: World) -> None:
    address = world.homes.addresses.pop("there")
    ada = world.client("r")
    world.move(r="there")
    await world.looked()
    assert world.guide.following() == 0
    assert ada.told == []
    world.homes.addresses["there"] = address
    world.guide.changed()
    await until(lambda: ada.urls == [address])


async def test_who_joins_a_room_that_lives_elsewhere_is_told_too(world: World) -> None:
    world.homes.homes["r"] = "there"
    ada = world.client()
    await world.looked()
    ada.rooms.append("r")
    world.guide.look_at(ada)
    await until(lambda: ada.urls == ["/i/there/ws"])


async def test_who_does_not_follow_is_told_a_few_times_only(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(astray, "PAUSES_SECONDS", (0.02, 0.04, 0.06, 0.08))
    ada = world.client("r")
    homes = itertools.cycle(("there", "far"))
    async with asyncio.timeout(30):
        while len(ada.told) < 5:
            world.move(r=next(homes))
            await world.looked()
    for home in itertools.islice(homes, 10):
        world.move(r=home)
        await world.looked()
        assert world.guide._astray.next_due() is None
    assert len(ada.told) == 5


async def test_news_that_got_lost_only_come_later() -> None:
    world = World(whole_look_every_seconds=0.1)
    world.guide.start()
    try:
        ada = world.client("r")
        await world.looked()
        world.homes.homes["r"] = "there"
        await until(lambda: ada.urls == ["/i/there/ws"])
    finally:
        await world.guide.stop()


async def test_a_leaving_instance_asks_where_else_a_client_belongs(world: World) -> None:
    world.homes.homes.update(a="here", b="here", c="there", d="nowhere")
    assert world.guide.destination(Client("a", "b", "c")) is None
    assert world.guide.destination(Client("a", "b", "c"), leaves=True) == "/i/there/ws"
    assert world.guide.destination(Client("d"), leaves=True) is None
    assert world.guide.destination(Client(), leaves=True) is None
