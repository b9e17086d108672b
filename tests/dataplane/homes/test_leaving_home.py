"""Clients of an instance that leaves, or has too much to do, are told where to go: whole instances."""

import asyncio
import contextlib
from typing import Any

from websockets.exceptions import ConnectionClosed

from tableforge_dataplane.contract.fleet import InstanceOrder, Orders, Shed
from tableforge_dataplane.homes import shedding
from tableforge_dataplane.server import Server
from tests.dataplane.homes.directories import Directories
from tests.dataplane.homes.fleets import QUICK, agreed, command, enter, fleet
from tests.dataplane.path.instances import Instances, Peer, Peers, until
from tests.support.redis import RedisServer
from tests.support.redis_cluster import eventually


async def told_to_go(peer: Peer) -> dict[str, Any]:
    """The first `migrate`, as it is told; then the close code, as `closed`."""
    hint = await peer.until("migrate")
    return {**hint, "closed": await peer.closed()}


async def leave(server: Server) -> None:
    await server.drain()
    await server.stop()


async def test_hints_of_a_leaving_instance_carry_each_clients_new_home(
    instances: Instances, redis_server: RedisServer, peers: Peers, look: Directories
) -> None:
    # a quarter of that is for giving its homes away; and for so long none is freed because nobody comes
    scaling = {**QUICK, "drain_seconds": 4.0, "heartbeat_interval_seconds": 5.0}
    one, two, three = await fleet(instances, redis_server, 3, scaling=scaling)
    homes = ["instance-2", "instance-3"]
    by_home: dict[str, str] = {}
    for number in range(20):
        enter([room := f"r-{number}"], two, three)
        await until(lambda room=room: agreed([room], two, three) is not None)  # type: ignore[misc]
        by_home.setdefault((agreed([room], two) or {})[room], room)
    assert {*homes} <= {*by_home}
    to_two, to_three, roomless = await peers(one), await peers(one), await peers(one)
    here = await peers(one)
    await to_two.join(by_home["instance-2"])
    await to_three.join(by_home["instance-3"])
    await here.join("own")
    await until(lambda: agreed(["own"], one) is not None)
    listening = [asyncio.create_task(told_to_go(peer)) for peer in (to_two, to_three, here, roomless)]
    await leave(one)
    two_told, three_told, here_told, roomless_told = await asyncio.gather(*listening)
    # who was guided home before that was told the same
    assert two_told["url"] == "/i/instance-2/ws"
    assert three_told["url"] == "/i/instance-3/ws"
    new_home = (await look.homes()).get("own")
    assert here_told["url"] in [f"/i/{home}/ws" for home in homes]
    assert new_home is None or here_told["url"] == f"/i/{new_home}/ws"
    assert (here_told["reason"], here_told["closed"]) == ("leaving", 1012)
    assert "url" not in roomless_told
    assert roomless_told["reason"] == "leaving"


async def test_the_last_instance_leaves_without_anybody_to_send_its_clients_to(
    instances: Instances, redis_server: RedisServer, peers: Peers
) -> None:
    (one,) = await fleet(instances, redis_server, 1)
    ada = await peers(one)
    await ada.join("r")
    listening = asyncio.create_task(told_to_go(ada))
    await leave(one)
    told = await listening
    assert "url" not in told
    assert told["closed"] == 1012


async def test_with_redis_away_it_leaves_in_its_time_all_the_same(
    instances: Instances, redis_server: RedisServer, peers: Peers
) -> None:
    one, _two = await fleet(instances, redis_server, 2)
    ada = await peers(one)
    await ada.join("r")
    await until(lambda: one.homes.home_of("r") is not None)
    redis_server.pause()
    try:
        listening = asyncio.create_task(ada.closed())
        async with asyncio.timeout(20):
            await one.drain()
        assert await listening == 1012
    finally:
        redis_server.resume()


async def count_hints(peer: Peer, hints: list[dict[str, Any]]) -> None:
    with contextlib.suppress(ConnectionClosed):
        while True:
            frame = await peer.hear(within=3600)
            if frame["type"] == "migrate":
                hints.append(frame)


async def test_a_hot_instance_sheds_as_many_as_it_was_told_and_says_so(
    instances: Instances, redis_server: RedisServer, peers: Peers, monkeypatch: Any
) -> None:
    monkeypatch.setattr(shedding, "FOLLOW_SECONDS", 0.2)
    one, two = await fleet(instances, redis_server, 2, mode="Service")
    members = [await peers(one) for _ in range(8)]
    for member in members:
        await member.join("r")
    hints: list[dict[str, Any]] = []
    listening = [asyncio.create_task(count_hints(member, hints)) for member in members]
    order = Shed(fence=1, id="s", instance="instance-1", connections=3)
    await command(two, order)
    await until(lambda: one.metrics.connections == 5)

    await eventually(lambda: _commands(two, ["s"]))
    await until(lambda: sum(task.done() for task in listening) == 3)
    assert [(hint.get("url"), hint["reason"]) for hint in hints] == [(None, "rebalancing")] * 3
    assert sorted(member.socket.close_code for member in members if member.socket.close_code) == [1012] * 3
    await command(two, order)  # the same again
    await command(two, Shed(fence=1, id="t", instance="instance-1", connections=0))
    await eventually(lambda: _commands(two, ["s", "t"]))
    assert one.metrics.connections == 5
    for task in listening:
        task.cancel()
    await asyncio.gather(*listening, return_exceptions=True)


async def _commands(server: Server, wanted: list[str]) -> bool:
    records = (await server._registry.fleet()).instances
    return any(record.instance == "instance-1" and record.commands == wanted for record in records)


async def test_where_rooms_have_homes_only_who_is_in_none_is_shed(
    instances: Instances, redis_server: RedisServer, peers: Peers, monkeypatch: Any
) -> None:
    monkeypatch.setattr(shedding, "FOLLOW_SECONDS", 0.2)
    one, two = await fleet(instances, redis_server, 2)
    # so that the room lives where its member is
    cordoned = InstanceOrder(instance="instance-2", cordoned=True)
    await command(two, Orders(fence=1, id="o", instances=[cordoned]))
    member, idle = await peers(one), [await peers(one) for _ in range(3)]
    await member.join("r")
    await until(lambda: one.homes.home_of("r") == "instance-1")
    listening = [asyncio.create_task(told_to_go(peer)) for peer in idle]
    await command(two, Shed(fence=1, id="s", instance="instance-1", connections=4))
    assert [told["closed"] for told in await asyncio.gather(*listening)] == [1012] * 3
    await eventually(lambda: _commands(two, ["s"]))
    await member.silent()
    assert one.metrics.connections == 1
