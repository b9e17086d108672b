"""Instances that die, stop, are forgotten or come back: their homes go to the others, and nothing is left."""

import asyncio
from typing import Any

import aiohttp
import pytest

from tableforge_dataplane.contract.endpoints import FLEET_COMMANDS_PATH, FLEET_PATH
from tableforge_dataplane.contract.fleet import Forget, InstanceOrder, Orders, RoomMove
from tableforge_dataplane.homes.homes import Notice
from tests.dataplane.homes.directories import KEYS, WHOLE_DIRECTORY, Directories
from tests.dataplane.homes.fleets import KEY, QUICK, agreed, command, enter, fleet, kill
from tests.dataplane.path.instances import Instances, Peers, until
from tests.support.processes import DataplaneFleet
from tests.support.redis import RedisServer
from tests.support.redis_cluster import eventually

ROOMS = [f"room-{number}" for number in range(60)]

SLOW: dict[str, Any] = {
    "heartbeat_interval_seconds": 60.0,
    "cleanup_interval_seconds": 60.0,
    "inactive_threshold_seconds": 600.0,
    "failover_timeout_seconds": 600.0,
}
"""So that nothing happens by itself in a test's time."""


async def ghosts(look: Directories, name: str) -> list[str]:
    """What Redis still has of an instance."""
    redis = look.redis
    found = [key.decode() for key in await redis.keys(f"*:{name}")]
    hashes = ("records", "stands", "orders", "sheds")
    found += [key for key in hashes if await redis.hexists(KEYS.directory(key), name)]
    if await redis.zscore(KEYS.directory("places"), name) is not None:
        found.append("places")
    if await redis.sismember(KEYS.directory("leaving"), name):
        found.append("leaving")
    if name in (await look.homes()).values():
        found.append("homes")
    return found


async def consistent(look: Directories) -> dict[str, str]:
    """The homes, as they are; fails where the index says otherwise."""
    homes, index = await look.both()
    assert index == homes
    return homes


async def test_who_misses_the_failover_timeout_loses_its_homes_to_the_others(
    instances: Instances, redis_server: RedisServer, look: Directories
) -> None:
    one, two, three = await fleet(instances, redis_server, 3)
    enter(ROOMS, one, two, three)
    await until(lambda: agreed(ROOMS, one, two, three) is not None)
    assert set((agreed(ROOMS, one, two) or {}).values()) == {"instance-1", "instance-2", "instance-3"}
    changes = asyncio.Event()
    two.homes.on_change = changes.set
    kill(one)
    await until(
        lambda: (
            set((agreed(ROOMS, two, three) or {"": "instance-1"}).values()) <= {"instance-2", "instance-3"}
        )
    )
    async with asyncio.timeout(60):
        await changes.wait()
    await until(lambda: two.homes.address_of("instance-3") == "/i/instance-3/ws")
    await eventually(lambda: _none(ghosts(look, "instance-1")))
    assert await consistent(look) == agreed(ROOMS, two, three)

    async def two_live() -> bool:
        records = (await two._registry.fleet()).instances
        return [record.instance for record in records if record.alive] == ["instance-2", "instance-3"]

    await eventually(two_live)


async def _none(found: Any) -> bool:
    return not await found


async def test_an_instance_that_stops_frees_its_homes_at_once(
    instances: Instances, redis_server: RedisServer, look: Directories
) -> None:
    one, two = await fleet(instances, redis_server, 2)
    many = [f"room-{number}" for number in range(1500)]
    enter(many, one, two)
    await until(lambda: agreed(many, one, two) is not None)
    assert "instance-1" in (agreed(many, one) or {}).values()
    await one.stop()
    assert await ghosts(look, "instance-1") == []
    await until(lambda: set((agreed(many, two) or {}).values()) == {"instance-2"})
    assert await consistent(look) == dict.fromkeys(many, "instance-2")


async def test_who_is_forgotten_is_gone_at_once_whatever_its_lease_says(
    dataplane: DataplaneFleet, redis_server: RedisServer, peers: Peers, look: Directories
) -> None:
    processes = await dataplane(
        redis_server,
        3,
        TABLEFORGE_ROUTING_MODE="Gateway",
        TABLEFORGE_ROUTING_ADDRESS="/i/somewhere/ws",
        TABLEFORGE_HTTP_FLEET_KEY=KEY,
        TABLEFORGE_REDIS_KEY_PREFIX="test",
        # nothing here happens for want of a lease
        TABLEFORGE_CLUSTERING_FAILOVER_TIMEOUT="600000",
        HEARTBEAT_INTERVAL="1000",
        JWT_SECRET="k" * 32,
    )
    one, two, _ = processes
    ada, bob = await peers(one), await peers(two)
    await ada.join("hall")
    await bob.say({"type": "join", "id": 1, "room": "hall", "presence": True})
    await bob.until("joined")
    assert len((await seen(bob, count=2))["members"]) == 2
    await eventually(lambda: look.redis.hexists(KEYS.records, "instance-1"))
    await one.kill9()
    assert await look.redis.exists(KEYS.lease("instance-1"))
    # guests on this machine are in nobody's headcount
    await look.redis.set(KEYS.headcount("instance-1"), b"of this one there were some")
    url = f"http://127.0.0.1:{two.http_port}"
    headers = {"Authorization": f"Bearer {KEY}"}
    async with aiohttp.ClientSession(url, headers=headers) as client:
        body = {"kind": "forget", "fence": 3, "id": "f", "instances": ["instance-1", "never-was"]}
        async with client.post(FLEET_COMMANDS_PATH, json=body) as answer:
            assert answer.status == 200
            assert (await answer.json())["unknown"] == ["never-was"]
        assert await ghosts(look, "instance-1") == []
        assert len((await seen(bob, count=1))["members"]) == 1

        async def told() -> bool:
            async with client.get(FLEET_PATH) as answer:
                found = await answer.json()
            return {record["instance"] for record in found["instances"]} == {"instance-2", "instance-3"}

        await eventually(told)
    await until_homes(look, {"hall": {"instance-2", "instance-3"}})
    assert await ghosts(look, "instance-1") == []


async def seen(peer: Any, *, count: int) -> dict[str, Any]:
    """The room's presence, once it has so many."""
    async with asyncio.timeout(30):
        while True:
            await peer.say({"type": "presence", "id": "p", "room": "hall"})
            found: dict[str, Any] = await peer.until("presence")
            if found["count"] == count:
                return found
            await peer.until("members")


async def until_homes(look: Directories, wanted: dict[str, set[str]]) -> None:
    async def so() -> bool:
        homes = await consistent(look)
        return all(homes.get(room) in instances for room, instances in wanted.items())

    await eventually(so)


async def test_a_forgotten_instance_that_lives_registers_anew_and_homes_settle(
    instances: Instances, redis_server: RedisServer, look: Directories
) -> None:
    one, two = await fleet(instances, redis_server, 2)
    enter(ROOMS, one, two)
    await until(lambda: agreed(ROOMS, one, two) is not None)
    await command(two, Forget(fence=1, id="f", instances=["instance-1"]))
    await eventually(lambda: look.redis.hexists(KEYS.records, "instance-1"))
    await eventually(lambda: look.redis.zscore(KEYS.directory("places"), "instance-1"))
    await until(lambda: agreed(ROOMS, one, two) is not None)

    async def settled() -> bool:
        return await consistent(look) == agreed(ROOMS, one, two)

    await eventually(settled)


async def test_a_container_that_restarts_keeps_its_homes_and_what_it_was_told(
    instances: Instances, redis_server: RedisServer, look: Directories
) -> None:
    one, two = await fleet(instances, redis_server, 2, scaling=SLOW)
    enter(ROOMS, one)
    await until(lambda: agreed(ROOMS, one) is not None)
    before = await consistent(look)
    assert set(before.values()) == {"instance-1", "instance-2"}
    await command(two, Orders(fence=1, id="o", instances=[InstanceOrder(instance="instance-1", weight=7.0)]))
    await until(lambda: one.homes.weight == 7.0)
    kill(one)
    instances.servers.remove(one)
    del instances.servers[:]
    (again,) = await fleet(instances, redis_server, 1, scaling=SLOW)
    assert again.homes.this == "instance-1"
    await until(lambda: again.homes.weight == 7.0)
    await until(lambda: again.metrics.homes == list(before.values()).count("instance-1"))
    assert await consistent(look) == before
    for task in (*one._registry._tasks, *one.homes._tasks):
        await asyncio.gather(task, return_exceptions=True)
    instances.servers += [two]
    await one.stop()
    assert await consistent(look) == before


async def test_who_leaves_gives_its_homes_away_and_takes_none(
    instances: Instances, redis_server: RedisServer, look: Directories
) -> None:
    one, two, three = await fleet(instances, redis_server, 3, scaling=SLOW)
    enter(ROOMS, one, two, three)
    await until(lambda: agreed(ROOMS, one, two, three) is not None)
    one._readiness.drain()
    moved: list[str] = []
    one.homes.on_moved = moved.extend
    before = agreed(ROOMS, one) or {}
    await one.homes.give_away()
    assert sorted(moved) == sorted(room for room in ROOMS if before[room] == "instance-1")
    after = agreed(ROOMS, one) or {}
    assert set(after.values()) == {"instance-2", "instance-3"}
    assert all(after[room] == before[room] for room in ROOMS if before[room] != "instance-1")
    assert one.homes.address_of("instance-2") == "/i/instance-2/ws"
    # the others hear of it: nothing here waits for a renewal
    await until(lambda: agreed(ROOMS, one, two, three) == after)
    enter(["late"], one)
    await until(lambda: agreed(["late"], one) is not None)
    assert one.homes.home_of("late") != "instance-1"
    assert await consistent(look) == after | (agreed(["late"], one) or {})
    assert not await look.redis.zscore(KEYS.directory("places"), "instance-1")


async def test_who_is_full_takes_no_rooms_until_it_has_space(
    instances: Instances, redis_server: RedisServer, peers: Peers, look: Directories
) -> None:
    (one,) = await fleet(
        instances, redis_server, 1, websocket={"host": "127.0.0.1", "port": 0, "max_connections": 1}
    )
    places = KEYS.directory("places")
    assert await look.redis.zscore(places, "instance-1") is not None
    ada = await peers(one)

    async def takes(wanted: bool) -> bool:
        return (await look.redis.zscore(places, "instance-1") is not None) is wanted

    await eventually(lambda: takes(False))
    await ada.join("hall")
    await ada.socket.close()
    await eventually(lambda: takes(True))


async def test_where_most_are_missing_homes_wait_for_a_word_of_kubernetes(
    instances: Instances, redis_server: RedisServer, look: Directories
) -> None:
    one, two, three = await fleet(instances, redis_server, 3)
    enter(ROOMS, one, two, three)
    await until(lambda: agreed(ROOMS, one, two, three) is not None)
    before = agreed(ROOMS, one)
    kill(two)
    kill(three)

    async def silent() -> bool:
        return not await look.redis.exists(KEYS.lease("instance-2"), KEYS.lease("instance-3"))

    await eventually(silent)
    # nobody is sent to who does not answer, though nobody says that they are dead
    await until(lambda: one.homes.address_of("instance-2") is one.homes.address_of("instance-3") is None)
    assert agreed(ROOMS, one) == before == await look.homes()
    await command(one, Forget(fence=1, id="f", instances=["instance-2", "instance-3"]))
    await until(lambda: agreed(ROOMS, one) == dict.fromkeys(ROOMS, "instance-1"))
    assert await ghosts(look, "instance-2") == await ghosts(look, "instance-3") == []
    assert await consistent(look) == agreed(ROOMS, one)


async def test_a_notification_that_is_lost_only_delays(
    instances: Instances, redis_server: RedisServer
) -> None:
    one, two = await fleet(instances, redis_server, 2)
    enter(["room"], one, two)
    await until(lambda: agreed(["room"], one, two) is not None)
    home = one.homes.home_of("room")
    other = "instance-2" if home == "instance-1" else "instance-1"
    for server in (one, two):
        server.homes.notify = _lost
    # as a command does it, and nobody is told
    (outcome,) = await one.homes.directory.move(1, [RoomMove(room="room", source=home or "", target=other)])
    assert outcome.outcome == "moved"
    await until(lambda: agreed(["room"], one, two) == {"room": other})
    await one.homes.directory.order(1, [InstanceOrder(instance="instance-2", cordoned=True)])
    await until(lambda: two.homes.cordoned)


def _lost(_notice: Notice) -> None:
    return None


async def test_a_home_that_nobody_comes_to_goes_to_who_has_the_members(
    instances: Instances, redis_server: RedisServer, look: Directories
) -> None:
    one, two = await fleet(instances, redis_server, 2)
    enter(ROOMS, one)
    await until(lambda: agreed(ROOMS, one) is not None)
    assert "instance-2" in (agreed(ROOMS, one) or {}).values()
    await until(lambda: set((agreed(ROOMS, one) or {}).values()) == {"instance-1"})
    assert await consistent(look) == dict.fromkeys(ROOMS, "instance-1")
    for room in ROOMS:
        one.homes.emptied(room)
    await eventually(lambda: _none(look.homes()))
    assert await look.index() == {}
    await until(lambda: one.metrics.homes == two.metrics.homes == 0)


async def test_joins_work_and_homes_come_later_where_redis_is_away(
    instances: Instances, redis_server: RedisServer, look: Directories
) -> None:
    one, two = await fleet(instances, redis_server, 2)
    enter(ROOMS[:10], one, two)
    await until(lambda: agreed(ROOMS[:10], one, two) is not None)
    await redis_server.kill9()
    enter(ROOMS[10:], one, two)
    for room in ROOMS[:5]:
        one.homes.emptied(room)
        two.homes.emptied(room)
    await until(lambda: not one._registry.redis_state.connected and not two._registry.redis_state.connected)
    await one.homes.give_away()
    assert agreed(ROOMS[5:10], one, two) is not None
    await redis_server.start()
    await until(lambda: agreed(ROOMS[5:], one, two) is not None)

    async def settled() -> bool:
        homes = await consistent(look)
        return homes == agreed(ROOMS[5:], one, two)

    await eventually(settled)


async def test_a_redis_without_memory_costs_no_join_and_homes_come_once_it_has_some(
    instances: Instances, redis_server: RedisServer, look: Directories
) -> None:
    one, two = await fleet(instances, redis_server, 2)
    enter(ROOMS[:10], one, two)
    await until(lambda: agreed(ROOMS[:10], one, two) is not None)
    before = await consistent(look)
    await look.redis.config_set("maxmemory", "1")
    enter(ROOMS[10:20], one, two)
    failed = one.metrics.heartbeats_failed
    await until(lambda: one.metrics.heartbeats_failed > failed + 3)
    assert agreed(ROOMS[10:20], one, two) is None
    assert agreed(ROOMS[:10], one, two) == before == await consistent(look)
    assert one._registry.registered, "a lease that is there is renewed"
    await look.redis.config_set("maxmemory", "0")
    await until(lambda: agreed(ROOMS[:20], one, two) is not None)
    assert await consistent(look) == agreed(ROOMS[:20], one, two)


async def test_nobody_loses_a_home_because_redis_was_away_longer_than_leases_last(
    instances: Instances, redis_server: RedisServer, look: Directories
) -> None:
    # leases that a busy machine doesn't let run out by itself
    lease_seconds = 3.0
    scaling = {**QUICK, "heartbeat_interval_seconds": 60.0, "failover_timeout_seconds": lease_seconds}
    one, two, three = await fleet(instances, redis_server, 3, scaling=scaling)
    enter(ROOMS, one, two, three)
    await until(lambda: agreed(ROOMS, one, two, three) is not None)
    before, moved = await consistent(look), await look.moved()
    redis_server.pause()
    await asyncio.sleep(1.5 * lease_seconds)  # leases run out by Redis's clock, which stands still for nobody
    redis_server.resume()
    newcomers = [f"late-{number}" for number in range(20)]
    enter(newcomers, one, two, three)
    await until(lambda: agreed(newcomers, one, two, three) is not None)
    after = await consistent(look)
    assert {room: after[room] for room in ROOMS} == before
    assert await look.moved() == moved


@pytest.mark.parametrize("value", ["string", "list"])
async def test_nonsense_in_the_directory_fails_no_join_and_is_repaired(
    instances: Instances, redis_server: RedisServer, peers: Peers, look: Directories, value: str
) -> None:
    one, two = await fleet(instances, redis_server, 2)
    enter(ROOMS, one, two)
    await until(lambda: agreed(ROOMS, one, two) is not None)
    redis = look.redis
    for number, name in enumerate(WHOLE_DIRECTORY):
        key = KEYS.directory(name)
        await redis.delete(key)
        await (redis.set(key, "nonsense") if value == "string" else redis.rpush(key, "x"))
        ada = await peers(one)
        await ada.join(f"hall-{number}")
    everywhere = [*ROOMS, "late"]
    enter(["late"], one, two)
    await until(lambda: agreed(everywhere, one, two) is not None)

    async def settled() -> bool:
        homes, index = await look.both()
        return index == homes and {room: homes.get(room) for room in everywhere} == agreed(
            everywhere, one, two
        )

    await eventually(settled)
