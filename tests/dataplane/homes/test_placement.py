"""Which instance becomes a room's home: three strategies, who gets none, what moves and leaving do."""

import asyncio
from collections import Counter
from typing import Any

import pytest

from tableforge_dataplane.contract.fleet import InstanceOrder, Orders, RoomMove
from tableforge_dataplane.contract.settings import PlacementStrategy
from tableforge_dataplane.homes import homes
from tableforge_dataplane.homes.directory import Directory, Told
from tableforge_dataplane.homes.here import LOST_MOST
from tests.dataplane.homes.directories import KEYS, Directories, One
from tests.dataplane.homes.fleets import agreed, command, enter, fleet
from tests.dataplane.path.instances import Instances, until
from tests.support.redis import RedisServer

ROOMS = [f"room-{number}" for number in range(1000)]

SLOW: dict[str, Any] = {"heartbeat_interval_seconds": 600.0, "failover_timeout_seconds": 1200.0}
"""So that nobody looks by itself in a test's time."""

STRATEGIES: tuple[PlacementStrategy, ...] = ("RoundRobin", "LeastConnections", "Weighted")


async def placed_at_once(everybody: list[One]) -> Counter[str | None]:
    """All of them place all rooms at once; how many each got. Fails where two were told different homes."""
    answers = await asyncio.gather(*(one.place(*ROOMS) for one in everybody))
    assert all(answer == answers[0] for answer in answers)
    return Counter(answers[0])


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_eight_instances_give_a_thousand_rooms_one_home_each(
    instances: Instances, redis_server: RedisServer, look: Directories, strategy: PlacementStrategy
) -> None:
    """As it is with whole instances, all of whose clients come at the same moment."""
    everybody = await fleet(
        instances, redis_server, 8, load_balancing={"strategy": strategy}, scaling={"drain_seconds": 0.5}
    )
    enter(ROOMS, *everybody)
    await until(lambda: agreed(ROOMS, *everybody) is not None)
    homes = agreed(ROOMS, *everybody)
    assert homes is not None
    assert await look.both() == (homes, homes)
    shares = Counter(homes.values())
    # scores are written anew meanwhile, but for turns, which go on; in the mean each has 125
    if strategy == "RoundRobin":
        assert set(shares.values()) == {125}
    assert len(shares) == 8


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_equal_instances_that_place_the_same_rooms_at_once_share_them(
    directories: Directories, strategy: PlacementStrategy
) -> None:
    everybody = await directories(*"abcdefgh", strategy=strategy)
    assert await placed_at_once(everybody) == dict.fromkeys("abcdefgh", 125)
    assert await directories.index() == await directories.homes()


async def test_least_connections_fills_up_who_has_fewest_for_its_capacity(directories: Directories) -> None:
    small, large, busy = await directories("small", "large", "busy")
    small.capacity, large.capacity, busy.capacity = 1000, 3000, 1000
    busy.connections = 1000
    for one in (small, large, busy):
        await one.stand()
    # a thousand rooms at one connection each: a quarter of either's capacity
    assert await placed_at_once([small, large]) == {"small": 250, "large": 750}


async def test_least_connections_prefers_who_asks_where_all_have_the_same(directories: Directories) -> None:
    for one in await directories("a", "b", "c"):
        assert await one.place(f"room-of-{one.name}") == [one.name]


async def test_weighted_goes_by_weight_and_what_the_operator_says_of_it(directories: Directories) -> None:
    one, two, three = await directories("one", "two", "three", strategy="Weighted")
    one.weight, two.weight, three.weight = 500, 1000, 1
    await one.directory.order(1, [InstanceOrder(instance="three", weight=2500.0)])
    for each in (one, two, three):
        await each.stand()
    assert await placed_at_once([one, two, three]) == {"one": 125, "two": 250, "three": 625}


async def test_turns_go_on_where_they_were_and_a_newcomer_waits_for_its_own(directories: Directories) -> None:
    one, two = await directories("one", "two", strategy="RoundRobin")
    assert await one.place(*ROOMS[:4]) == ["one", "two", "one", "two"]
    await one.stand()
    await two.stand()
    await directories("three", strategy="RoundRobin")
    assert await one.place(*ROOMS[4:10]) == ["one", "two", "three", "one", "two", "three"]


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_who_is_cordoned_full_dead_leaving_or_nowhere_gets_none(
    directories: Directories, strategy: PlacementStrategy
) -> None:
    everybody = await directories(
        "good", "cordoned", "full", "dead", "leaving", "nowhere", "cordoned-now", strategy=strategy
    )
    good = everybody[0]
    await good.directory.order(1, [InstanceOrder(instance="cordoned", cordoned=True)])
    await directories.all["cordoned"].stand()
    await directories.all["full"].stand("full")
    await directories.die(directories.all["dead"])
    await directories.all["leaving"].stand("leaves")
    directories.all["nowhere"].address = ""
    await directories.all["nowhere"].stand()
    # it has not heard of it yet
    await good.directory.order(1, [InstanceOrder(instance="cordoned-now", cordoned=True)])
    assert set(await good.place(*ROOMS)) == {"good"}
    for name in ("cordoned", "full", "leaving", "nowhere", "cordoned-now"):
        assert await directories.all[name].place(f"room-of-{name}", itself=True) == ["good"]
    await directories.die(good)
    assert await directories.all["cordoned"].place("one-more") == [None]
    # all rooms of before are still where they were: nobody has said that `good` is dead
    assert await directories.all["cordoned"].place(*ROOMS[:3]) == ["good"] * 3


async def test_who_has_members_takes_a_room_itself_where_it_may(directories: Directories) -> None:
    one, two = await directories("one", "two")
    one.connections = 50
    await one.stand()
    assert await one.place("first") == ["two"]
    assert await one.place("second", itself=True) == ["one"]
    assert await two.place("second", itself=True) == ["one"]


async def test_a_dead_home_is_replaced_only_where_it_is_known_to_be_dead_and_is(
    directories: Directories,
) -> None:
    one, two = await directories("one", "two")
    assert await one.place("room") == ["one"]
    before = await directories.moved()
    assert await two.place("room", dead=frozenset({"one"})) == ["one"], "it lives"
    await directories.die(one)
    assert await two.place("room") == ["one"], "nobody has said so"
    assert await directories.moved() == before
    assert await two.place("room", dead=frozenset({"one"})) == ["two"]
    assert await directories.moved() == before + 1
    assert await directories.index() == await directories.homes() == {"room": "two"}


async def test_a_move_needs_the_right_source_and_a_target_that_takes_rooms(directories: Directories) -> None:
    one, *_ = await directories("one", "two", "cordoned", "full", "dead", "leaving")
    assert await one.place("room", "other") == ["one", "cordoned"]
    await one.directory.order(1, [InstanceOrder(instance="cordoned", cordoned=True)])
    await directories.all["full"].stand("full")
    await directories.die(directories.all["dead"])
    await directories.all["leaving"].stand("leaves")

    async def move(room: str, source: str, target: str) -> str:
        (found,) = await one.directory.move(1, [RoomMove(room=room, source=source, target=target)])
        return found.outcome

    before = await directories.moved()
    assert await move("room", "two", "two") == "elsewhere"
    for target in ("cordoned", "full", "dead", "leaving", "nobody"):
        assert await move("room", "one", target) == "no_target"
    assert await move("nowhere", "one", "two") == "no_such_room"
    assert await directories.moved() == before
    assert await move("room", "one", "two") == "moved"
    assert await directories.moved() == before + 1
    # the same command again, as after an answer that got lost
    assert await move("room", "one", "two") == "moved"
    assert await directories.moved() == before + 1
    assert await move("other", "cordoned", "one") == "moved"
    assert await directories.index() == await directories.homes() == {"room": "two", "other": "one"}


async def test_a_thousand_moves_in_one_command(directories: Directories) -> None:
    one, _ = await directories("one", "two")
    homes = await one.place(*ROOMS)
    moves = [
        RoomMove(room=room, source=home or "", target="two" if home == "one" else "one")
        for room, home in zip(ROOMS, homes, strict=True)
    ]
    outcomes = await one.directory.move(1, moves)
    assert [outcome.room for outcome in outcomes] == ROOMS
    assert {outcome.outcome for outcome in outcomes} == {"moved"}
    assert await directories.homes() == {move.room: move.target for move in moves}
    assert await directories.index() == await directories.homes()


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_what_lives_where_somebody_leaves_is_shared_by_the_others(
    directories: Directories, strategy: PlacementStrategy
) -> None:
    leaving, *_ = await directories("leaving", "one", "two", strategy=strategy)
    await leaving.place(*ROOMS[:300])
    own = sorted(await leaving.own())
    given = await leaving.directory.give_away(own)
    assert Counter(given) == {"one": 50, "two": 50}
    assert await leaving.place(*ROOMS[300:302], itself=True) != ["leaving", "leaving"]
    assert not await directories.redis.zscore(KEYS.directory("places"), "leaving")
    assert set((await directories.homes()).values()) == {"one", "two"}
    assert await directories.index() == await directories.homes()


async def test_the_last_one_that_leaves_frees_what_lives_there(directories: Directories) -> None:
    (one,) = await directories("one")
    await one.place(*ROOMS[:10])
    assert await one.directory.give_away(ROOMS[:10]) == [None] * 10
    assert await directories.homes() == await directories.index() == {}
    assert await one.place("room", itself=True) == [None]


async def test_many_rooms_at_once_go_where_the_strategy_says_and_keep_nothing_else_waiting(
    instances: Instances, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, three = await fleet(instances, redis_server, 3, scaling=SLOW)
    rooms = [f"room-{number}" for number in range(6000)]
    directory, link = one.homes.directory, one._registry.link
    place, placed, begun = directory.place, 0, asyncio.Event()

    async def counted(*args: Any, **more: Any) -> list[str | None]:
        nonlocal placed
        homes = await place(*args, **more)
        placed += 1
        begun.set()
        return homes

    monkeypatch.setattr(directory, "place", counted)
    enter(rooms, one)
    await begun.wait()
    # what renews the lease asks over the same connection
    await link.call(link.redis.ping())
    assert placed < 10
    one.homes._again.set()  # as a notification does, or the next renewal
    await until(lambda: one.homes.home_of(rooms[-1]) is not None)
    homes = agreed(rooms, one)
    assert homes is not None
    assert Counter(homes.values()) == dict.fromkeys((each.homes.this for each in (one, two, three)), 2000)


async def test_a_home_that_takes_nobody_is_not_asked_for_at_each_join(
    instances: Instances, redis_server: RedisServer, look: Directories, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = await fleet(instances, redis_server, 2, scaling=SLOW)
    enter(ROOMS[:20], one, two)
    await until(lambda: agreed(ROOMS[:20], one, two) is not None)
    there = [room for room in ROOMS[:20] if one.homes.home_of(room) == "instance-2"]
    assert there
    await until(lambda: one.homes.address_of("instance-2") is not None)
    await command(
        one, Orders(fence=1, id="o", instances=[InstanceOrder(instance="instance-2", cordoned=True)])
    )
    await until(lambda: two.homes.cordoned)
    one.homes._again.set()
    await until(lambda: one.homes.address_of("instance-2") is None)
    looks, told = 0, one.homes.directory.told

    async def counted(*args: Any) -> Told:
        nonlocal looks
        looks += 1
        return await told(*args)

    monkeypatch.setattr(one.homes.directory, "told", counted)
    for room in there:
        one.homes.emptied(room)
        one.homes.entered(room)
        await until(lambda room=room: one.homes.home_of(room) == "instance-2")  # type: ignore[misc]
    await one._registry.link.call(one._registry.link.redis.ping())
    assert looks == 0


class Counted:
    """One of a directory's calls, counted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, directory: Directory, name: str) -> None:
        self.calls: list[dict[str, Any]] = []
        self.rooms: Counter[str] = Counter()
        """Where these are what the call is about."""
        call = getattr(directory, name)

        async def counted(*args: Any, **more: Any) -> Any:
            answer = await call(*args, **more)
            self.calls.append(more)
            self.rooms.update(args[0])
            return answer

        monkeypatch.setattr(directory, name, counted)

    async def more(self, count: int) -> None:
        """Wait for so many more."""
        wanted = len(self.calls) + count
        await until(lambda: len(self.calls) >= wanted)


def cordon(*names: str, fence: int, cordoned: bool = True) -> Orders:
    orders = [InstanceOrder(instance=name, cordoned=cordoned) for name in names]
    return Orders(fence=fence, id=f"cordon-{fence}", instances=orders)


async def test_rooms_that_nobody_takes_cost_one_call_a_renewal_until_somebody_does(
    instances: Instances, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = await fleet(instances, redis_server, 2)
    await command(one, cordon("instance-1", "instance-2", fence=1))
    await until(lambda: one.homes.cordoned and two.homes.cordoned)
    places = Counted(monkeypatch, one.homes.directory, "place")
    enter(ROOMS, one)
    await places.more(len(ROOMS) // 100)
    looks = Counted(monkeypatch, one.homes.directory, "told")
    places.calls.clear()
    await looks.more(10)
    assert 5 <= len(places.calls) <= 11
    assert all(call["itself"] for call in places.calls)
    await command(one, cordon("instance-2", fence=2, cordoned=False))
    await until(lambda: agreed(ROOMS, one) == dict.fromkeys(ROOMS, "instance-2"))


async def test_a_room_whose_members_stay_where_no_room_can_live_does_not_come_and_go_for_ever(
    instances: Instances, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(homes, "EMPTY_FOR_HEARTBEATS", 1)
    one, two = await fleet(instances, redis_server, 2)
    await command(one, cordon("instance-1", fence=1))
    await until(lambda: one.homes.cordoned)
    frees = Counted(monkeypatch, two.homes.directory, "free")
    looks = Counted(monkeypatch, one.homes.directory, "told")
    enter(["left", "joined"], one)
    await until(lambda: agreed(["left", "joined"], one) is not None)
    await until(lambda: frees.rooms == {"left": LOST_MOST, "joined": LOST_MOST})
    await until(lambda: {one.homes.home_of("left"), one.homes.home_of("joined")} == {None})
    # an empty room would be freed after one of these
    await looks.more(8)
    assert frees.rooms == {"left": LOST_MOST, "joined": LOST_MOST}
    enter(["joined"], two)
    await until(lambda: agreed(["joined"], one, two) == {"joined": "instance-2"})
    assert one.homes.home_of("left") is None
    await command(one, cordon("instance-1", fence=2, cordoned=False))
    await until(lambda: one.homes.home_of("left") == "instance-1")
