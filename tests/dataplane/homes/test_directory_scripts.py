"""The directory's scripts on every Redis and on a Redis Cluster: homes, their index, what repairs them."""

import asyncio
import random
from collections import Counter
from typing import Any

import msgspec
import pytest

from tableforge_dataplane.contract.fleet import InstanceOrder, RoomMove, Shed
from tableforge_dataplane.homes import directory
from tableforge_dataplane.homes.directory import StaleFenceError
from tests.dataplane.homes.directories import KEYS, Directories
from tests.support.redis import Binary
from tests.support.redis_cluster import RedisCluster
from tests.support.versions import every_redis

NONSENSE: tuple[tuple[str, Any], ...] = (
    ("homes", "hash"),
    ("homes-of:one", "set"),
    ("homes-of:two", "set"),
    ("places", "zset"),
    ("stands", "hash"),
    ("leaving", "set"),
    ("moved", "string"),
    ("changed", "list"),
    ("orders", "hash"),
    ("sheds", "hash"),
    ("fence", "string"),
    ("swept", "string"),
)


def rooms(count: int, name: str = "room") -> list[str]:
    return [f"{name}-{number}" for number in range(count)]


async def consistent(directories: Directories) -> dict[str, str]:
    homes, index = await directories.both()
    assert index == homes
    return homes


async def everything_once(directories: Directories) -> None:
    """Every script does what it is for."""
    one, two, three = await directories("one", "two", "three")
    homes = await one.place(*rooms(30))
    assert Counter(homes) == {"one": 10, "two": 10, "three": 10}
    assert await two.place(*rooms(30)) == await three.directory.look(rooms(30)) == homes
    assert await one.own() == {room for room, home in zip(rooms(30), homes, strict=True) if home == "one"}
    standing = await two.stand()
    assert standing is not None
    assert (standing.takes_rooms, standing.homes, standing.moved) == (True, 10, 0)

    (outcome,) = await one.directory.move(7, [RoomMove(room="room-0", source=homes[0] or "", target="two")])
    assert outcome.outcome == "moved"
    assert await one.directory.look(["room-0"]) == ["two"]
    assert await directories.moved() == 1
    assert await two.directory.free(["room-0", "room-1", "nowhere"]) in (1, 2)
    assert await one.directory.look(["room-0"]) == [None]

    assert (
        await one.directory.order(7, [InstanceOrder(instance="two", cordoned=True, address="/elsewhere")])
        == []
    )
    told = await two.directory.told(())
    assert told.order == InstanceOrder(instance="two", cordoned=True, address="/elsewhere")
    assert await one.directory.shed(Shed(fence=7, id="s", instance="two", connections=3)) == []
    shed = (await two.directory.told(())).shed
    assert shed is not None
    assert (shed.id, shed.connections) == ("s", 3)
    assert (await two.directory.told(["s"])).shed is None
    await two.stand()
    assert (await one.directory.addresses(["one", "two", "nobody"])) == {
        "one": ("/i/one/ws", True, True),
        "two": ("/elsewhere", True, False),
        "nobody": (None, False, False),
    }

    given = await three.directory.give_away(sorted(await three.own()))
    assert set(given) == {"one"}
    assert await three.own() == set()
    assert await directories.link.run_directory("withdraw", "three", "three-boot", 500) == 1
    assert await one.directory.forget(7, ["nobody", "two", "two"]) == ["nobody"]
    assert set((await consistent(directories)).values()) == {"one"}
    await directories.die(one)
    assert await directories.bury("one", 7) > 1
    assert await consistent(directories) == {}
    assert await one.directory.sweep() == 0
    for key in await directories.redis.keys("*"):
        assert await directories.redis.pttl(key) > 0 or key.decode() == KEYS.records, key


@every_redis
async def test_every_script_on_every_redis(directories: Directories) -> None:
    await everything_once(directories)


@pytest.mark.parametrize("binary", ["valkey", "redis62"])
async def test_every_script_on_a_redis_cluster(binary: Binary) -> None:
    async with RedisCluster(binary=binary) as cluster:
        directories = Directories(
            {"TABLEFORGE_REDIS_MODE": "Cluster", "TABLEFORGE_REDIS_ADDRESSES": cluster.addresses}
        )
        try:
            await everything_once(directories)
        finally:
            await directories.close()


@every_redis
@pytest.mark.parametrize("kind", ["string", "list", "set", "hash", "zset"])
async def test_a_key_of_another_type_counts_for_nothing_and_is_removed(
    directories: Directories, kind: str
) -> None:
    redis = directories.redis
    write: dict[str, Any] = {
        "string": lambda key: redis.set(key, "\xff nonsense"),
        "list": lambda key: redis.rpush(key, "x"),
        "set": lambda key: redis.sadd(key, "x", "room-0"),
        "hash": lambda key: redis.hset(key, mapping={"x": "y", "room-0": "\xff"}),
        "zset": lambda key: redis.zadd(key, {"x": 1, "": -5}),
    }
    for name, sound in NONSENSE:
        if sound == kind != "string":
            continue
        for key in await redis.keys("*"):
            await redis.delete(key)
        await directories("one", "two", "three")
        one, two = directories.all["one"], directories.all["two"]
        await one.place(*rooms(10))
        key = KEYS.directory(name)
        await redis.delete(key)
        await write[kind](key)
        # nobody's join fails, and nothing else either
        await one.stand()
        await two.stand()
        assert None not in await two.place(*rooms(12))
        await one.own()
        await two.own()
        await one.directory.look(rooms(3))
        await one.directory.addresses(["one", "two"])
        await one.directory.told(())
        await one.directory.order(1, [InstanceOrder(instance="one")])
        await one.directory.shed(Shed(fence=1, id="s", instance="one", connections=1))
        await one.directory.told(())
        await one.directory.move(1, [RoomMove(room="room-1", source="one", target="two")])
        await one.directory.sweep()
        for each in directories.all.values():
            await each.own()  # as everybody does at each heartbeat
        assert len(await consistent(directories)) == 12, (name, kind)
        await one.directory.give_away(["room-1"])
        await one.directory.forget(1, ["two"])
        await directories.die(directories.all["three"])
        await directories.bury("three")
        await consistent(directories)


async def test_nonsense_within_a_hash_is_repaired_and_told_of_once(
    directories: Directories, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = await directories("one", "two")
    redis = directories.redis
    await redis.hset(
        KEYS.homes,
        mapping={
            "room-0": "not a name",
            "room-1": b"\xff\xfe",
            "room-2": "nobody",
            "room-3": "two",  # and not in its index
            "no room!": "one",
            "": "one",
        },
    )
    await redis.sadd(KEYS.directory("homes-of:one"), "room-3", "room-4", "no room!", b"\xff")
    await redis.hset(KEYS.directory("stands"), mapping={"one": "inf nonsense", "two": "", "x": "1 ws://x/ws"})
    await redis.zadd(KEYS.directory("places"), {"nobody": -1, "not a name": -2, "": -3})
    await redis.hset(KEYS.directory("orders"), "one", '{"instance":"one","cordoned":"very"}')
    await redis.hset(
        KEYS.directory("sheds"), mapping={"one": "nonsense", "two": '9999999999 {"kind":"shed"}'}
    )
    assert (await one.directory.addresses(["one", "two", "x"]))["one"][0] is None
    for _ in range(2):
        told = await one.directory.told(())
        assert (told.order, told.shed) == (None, None)
        told = await two.directory.told(())
        assert (told.order, told.shed) == (None, None)
    assert await redis.hlen(KEYS.directory("orders")) == await redis.hlen(KEYS.directory("sheds")) == 0
    assert set(await one.place("room-0", "room-1")) == {"one", "two"}
    assert await one.place("room-3") == ["two"]
    assert await redis.zrange(KEYS.directory("places"), 0, -1) == [b"one", b"two"]
    # a home that looks like one stays until it is known that nobody is there
    assert await one.place("room-2") == ["nobody"]
    assert await one.place("room-2", dead=frozenset({"nobody"})) != ["nobody"]
    assert await one.own() == {
        room for room, home in (await directories.homes()).items() if home == "one"
    } - {
        "no room!",
        "",
    }
    await one.directory.sweep()
    homes = await consistent(directories)
    assert set(homes) == {"room-0", "room-1", "room-2", "room-3"}
    assert set(homes.values()) <= {"one", "two"}
    told_of = [record for record in caplog.records if record.getMessage() == "directory_mended"]
    assert len(told_of) == len({str(vars(record)) for record in told_of}) >= 2
    counted = sum(each.link._metrics.directory_mended for each in directories.all.values())
    assert counted >= len(told_of)
    await one.directory.sweep()
    await two.directory.sweep()
    again = sum(each.link._metrics.directory_mended for each in directories.all.values())
    assert again == counted, "what is mended is not counted again"


async def test_the_sweep_goes_on_where_another_ended_it(directories: Directories) -> None:
    one, two = await directories("one", "two")
    redis = directories.redis
    await redis.hset(KEYS.homes, mapping=dict.fromkeys(rooms(5000), "one"))
    await redis.hset(KEYS.homes, mapping=dict.fromkeys(rooms(5000, "lost"), "nobody"))
    for times in range(100):
        went = await (one, two)[times % 2].directory.sweep()
        if times and await redis.get(KEYS.directory("swept")) == b"0":
            break
        assert went < 1000
    homes = await consistent(directories)
    assert len(homes) == 5000
    assert times > 10, "it was not all done at once"


@every_redis
async def test_what_has_moved_since_is_named_unless_it_is_too_much(directories: Directories) -> None:
    one, two = await directories("one", "two")

    async def since(count: int | None) -> tuple[int, list[str] | None]:
        standing = await one.stand(moved=count)
        assert standing is not None
        return standing.moved, standing.changed

    assert await since(None) == (0, None)
    assert await since(0) == (0, [])
    homes = dict(zip(rooms(1500), await one.place(*rooms(1500)), strict=True))
    assert await since(0) == (0, []), "a room's first home is no move"
    (first, second, *_), (third, *_) = ([r for r in rooms(9) if homes[r] == name] for name in ("one", "two"))
    await one.directory.free([first, second])
    assert await since(0) == (2, [second, first])
    await one.directory.move(1, [RoomMove(room=third, source="two", target="one")])
    assert await since(2) == (3, [third])
    assert await since(0) == (3, [third, second, first])
    assert await since(4) == (3, None), "somebody has counted otherwise"
    for start in range(0, 1500, 500):
        await two.directory.free(rooms(1500)[start : start + 500])
        await one.directory.free(rooms(1500)[start : start + 500])
    moved, changed = await since(3)
    assert (moved, changed) == (1501, None)
    assert len((await since(moved - 1000))[1] or []) == 1000
    await one.place("another")
    await directories.die(two)
    await one.place(*rooms(2), itself=True)
    await directories.bury("two")
    assert await since(moved) == (moved, [])
    await directories.die(one)
    await directories.bury("one")
    await directories.live(one)
    assert await since(moved) == (moved + 1, None), "an instance's homes are not named"


@every_redis
async def test_an_older_fence_changes_nothing(directories: Directories) -> None:
    one, two = await directories("one", "two")
    await one.place("room")
    (home,) = await one.directory.look(["room"])
    other = "two" if home == "one" else "one"
    await one.directory.move(5, [RoomMove(room="nowhere", source="one", target="two")])
    commands = (
        lambda: two.directory.move(4, [RoomMove(room="room", source=home or "", target=other)]),
        lambda: two.directory.order(4, [InstanceOrder(instance="one", cordoned=True)]),
        lambda: two.directory.shed(Shed(fence=4, id="x", instance="one", connections=1)),
        lambda: two.directory.forget(4, ["one"]),
    )
    before = await consistent(directories)
    for command in commands:
        with pytest.raises(StaleFenceError) as stale:
            await command()
        assert stale.value.fence == 5
    assert await consistent(directories) == before
    told = await one.directory.told(())
    assert (told.order, told.shed) == (None, None)
    assert await directories.redis.exists(KEYS.lease("one"))
    (outcome,) = await two.directory.move(6, [RoomMove(room="room", source=home or "", target=other)])
    assert outcome.outcome == "moved"


async def test_a_shed_is_told_for_a_while_only(directories: Directories) -> None:
    (one,) = await directories("one")
    await one.directory.shed(Shed(fence=1, id="s", instance="one", connections=1))
    assert (await one.directory.told(())).shed is not None
    stored = await directories.redis.hget(KEYS.directory("sheds"), "one")
    _, _, order = stored.partition(b" ")
    seconds, _ = await directories.redis.time()
    await directories.redis.hset(KEYS.directory("sheds"), "one", b"%d " % seconds + order)
    assert (await one.directory.told(())).shed is None
    assert not await directories.redis.hexists(KEYS.directory("sheds"), "one")


async def test_orders_for_who_does_not_exist_are_not_kept(directories: Directories) -> None:
    (one,) = await directories("one")
    unknown = await one.directory.order(
        1, [InstanceOrder(instance="nobody"), InstanceOrder(instance="one", cordoned=True)]
    )
    assert unknown == ["nobody"]
    assert await one.directory.shed(Shed(fence=1, id="s", instance="nobody", connections=1)) == ["nobody"]
    assert await one.directory.forget(1, ["nobody"]) == ["nobody"]
    assert await directories.redis.hkeys(KEYS.directory("orders")) == [b"one"]
    assert not await directories.redis.exists(KEYS.directory("sheds"))


async def test_many_instances_are_forgotten_some_homes_at_a_time(
    directories: Directories, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever fits into one call, each is forgotten once and whole."""
    one, *others = await directories("one", "two", "three", "four")
    for number, each in enumerate(others):
        for place in range(7):
            await each.place(f"room-{number}-{place}")
    monkeypatch.setattr(directory, "HOMES_FREED_AT_ONCE", 5)
    monkeypatch.setattr(directory, "INSTANCES_PER_CALL", 2)
    calls = []
    run_directory = one.link.run_directory

    async def counted(script: str, *args: Any, package: str) -> Any:
        calls.append(len(args) - 2)
        return await run_directory(script, *args, package=package)

    monkeypatch.setattr(one.link, "run_directory", counted)
    names = ["nobody", "two", "three", "nobody-else", "four"]
    assert await one.directory.forget(1, names) == ["nobody", "nobody-else"]
    assert max(calls) <= 2
    assert set((await consistent(directories)).values()) <= {"one"}
    assert await directories.redis.hkeys(KEYS.records) == [b"one"]


async def test_what_instances_left_behind_is_bounded(directories: Directories) -> None:
    (one,) = await directories("one")
    order = msgspec.json.encode(InstanceOrder(instance="x"))
    await directories.redis.hset(
        KEYS.directory("orders"), mapping={f"gone-{number}": order for number in range(300)} | {"one": order}
    )
    await one.directory.sweep()
    assert await directories.redis.hkeys(KEYS.directory("orders")) == [b"one"]


async def test_many_that_place_and_move_at_once_agree(directories: Directories) -> None:
    names = [f"instance-{number}" for number in range(8)]
    everybody = await directories(*names, capacity=1000)
    names_of_rooms = rooms(1000)

    async def place(one: Any, seed: int) -> dict[str, str | None]:
        mine = names_of_rooms.copy()
        random.Random(seed).shuffle(mine)
        return dict(zip(mine, await one.place(*mine), strict=True))

    answers = await asyncio.gather(*(place(one, seed) for seed, one in enumerate(everybody)))
    homes = await consistent(directories)
    assert all(answer == homes for answer in answers)
    assert set(Counter(homes.values()).values()) == {125}
    assert await directories.moved() == 0
