"""Slow consumers, long recoveries over slow sockets, and an instance that leaves."""

import asyncio
import itertools
import socket
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tableforge_dataplane import server
from tests.dataplane.path.instances import Instances, Peer, Peers, until
from tests.support.lost_time import lost_time
from tests.support.processes import DataplaneFleet
from tests.support.redis import RedisServer

FAST: dict[str, Any] = {
    "security": {
        "max_messages_per_second": 100_000,
        "max_messages_per_minute": 1_000_000,
        "max_bytes_per_second": 1_000_000_000,
    }
}


async def narrow(peers: Peers, server: Any) -> Peer:
    """A peer whose system keeps little for it, so that the server soon has to."""
    plug = socket.socket()
    plug.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    plug.setblocking(False)
    await asyncio.get_running_loop().sock_connect(plug, ("127.0.0.1", server.port))
    return await peers(server, sock=plug)


async def test_who_takes_too_little_is_closed_and_costs_nobody_else_anything(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server, websocket={"write_limit_bytes": 262_144}, **FAST)
    ada, slow = await peers(one), await narrow(peers, one)
    await ada.join("lobby")
    await slow.join("lobby")
    slow.socket.transport.pause_reading()
    count = 0
    while one.metrics.slow_consumers == 0 and count < 2000:
        await ada.publish("lobby", "x" * 20_000)
        await ada.messages(1)
        count += 1
    assert one.metrics.slow_consumers == 1
    slow.socket.transport.resume_reading()
    assert await slow.closed() == 4408
    await until(lambda: one.metrics.connections == 1)
    await ada.published("lobby", "still here")


async def test_who_never_reads_again_is_gone_all_the_same(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server, websocket={"write_limit_bytes": 262_144}, **FAST)
    ada, slow = await peers(one), await narrow(peers, one)
    await ada.join("lobby")
    await slow.join("lobby")
    slow.socket.transport.pause_reading()
    while one.metrics.slow_consumers == 0:
        await ada.publish("lobby", "x" * 20_000)
        await ada.messages(1)
    await until(lambda: one.metrics.connections == 1)


async def test_a_long_recovery_over_a_slow_socket_is_fed_as_it_drains(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(
        redis_server,
        rooms={"log_max_bytes": 16_777_216},
        websocket={"write_limit_bytes": 262_144},
        **FAST,
    )
    ada = await peers(one)
    beginning = (await ada.join("lobby"))["pos"]
    for _ in range(200):
        await ada.publish("lobby", "x" * 40_000)
        await ada.messages(1)
    slow = await narrow(peers, one)
    (connection,) = [
        connection
        for connection in one._connections
        if connection.session is not None and connection.session.name == slow.welcome["session"]
    ]
    assert (await slow.join("lobby", beginning))["recovered"] is True
    most = 0
    for number in range(1, 201):
        (message,) = await slow.messages(1)
        assert message["seq"] == number
        most = max(most, connection.buffered_bytes())
        if number % 10 == 0:
            slow.socket.transport.pause_reading()
            await asyncio.sleep(0.02)  # for as long it takes nothing
            slow.socket.transport.resume_reading()
    assert 0 < most < 262_144
    assert one.metrics.slow_consumers == 0
    await slow.silent()
    await ada.publish("lobby", "new")
    assert (await slow.messages(1))[0]["seq"] == 201


async def test_an_instance_that_leaves_acknowledges_first_and_spreads_the_closes(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    one, two = await instances(redis_server, 2, scaling={"drain_seconds": 1.0}, **FAST)
    leavers = [await peers(one) for _ in range(20)]
    stayer = await peers(two)
    await stayer.join("lobby")
    for leaver in leavers:
        await leaver.join("lobby")
        await leaver.publish("lobby", "last words", echo=False)
    closed_at: list[float] = []
    loop = asyncio.get_running_loop()

    async def hear_out(leaver: Peer) -> int | None:
        acknowledged = False
        try:
            while True:
                acknowledged |= (await leaver.hear())["type"] == "ack"
        except ConnectionClosed:
            closed_at.append(loop.time())
        assert acknowledged
        return leaver.socket.close_code

    hearing = [asyncio.create_task(hear_out(leaver)) for leaver in leavers]
    begun = loop.time()
    async with lost_time() as lost:
        draining = asyncio.create_task(one.drain())
        await asyncio.sleep(0)
        assert not one.ready
        with pytest.raises(InvalidStatus) as refused:
            await peers(one)
        assert refused.value.response.status_code == 503
        in_browser = await peers(one, welcome=False, origin=f"http://127.0.0.1:{one.port}")
        assert (await in_browser.hear_type("error"))["code"] == "unavailable"
        assert await in_browser.closed() == 1013
        await draining
        assert loop.time() - begun < 8.0 + lost.seconds
        assert await asyncio.gather(*hearing) == [1012] * 20
    assert closed_at[-1] - closed_at[0] > 0.5 - lost.seconds, "all at once"
    assert one.metrics.left_over_budget == 0
    assert len(await stayer.messages(20)) == 20


async def test_a_budget_that_is_too_small_holds_until_it_is_late_and_is_told_of(
    redis_server: RedisServer, instances: Instances, peers: Peers, caplog: pytest.LogCaptureFixture
) -> None:
    budget = {"max_reconnects_per_second": 1}
    (one,) = await instances(redis_server, scaling={"drain_seconds": 2.0}, rollout=budget, **FAST)
    leavers = [await peers(one) for _ in range(20)]
    loop = asyncio.get_running_loop()
    told_at: list[float] = []

    async def hear_out(leaver: Peer) -> int | None:
        await leaver.until("migrate")
        told_at.append(loop.time())
        return await leaver.closed()

    hearing = [asyncio.create_task(hear_out(leaver)) for leaver in leavers]
    begun = loop.time()
    async with lost_time() as lost:
        await one.drain()
        assert await asyncio.gather(*hearing) == [1012] * 20
    # the last half second is for those who were told to connect elsewhere, the one before it for the hurry
    assert sum(at < begun + 1.0 for at in told_at) <= 3
    assert 16 - lost.seconds <= one.metrics.left_over_budget <= 19
    (told,) = [record for record in caplog.records if record.getMessage() == "left_over_budget"]
    assert vars(told)["fields"]["connections"] == one.metrics.left_over_budget


async def test_sigterm_ends_the_process_in_order_and_in_time(
    redis_server: RedisServer, dataplane: DataplaneFleet, peers: Peers
) -> None:
    (process,) = await dataplane(redis_server, 1, TABLEFORGE_SCALING_DRAIN_TIMEOUT="300")
    ada = await peers(process)  # type: ignore[arg-type]
    await ada.join("lobby")
    await ada.publish("lobby", 1)
    leaving = asyncio.create_task(process.sigterm())
    heard = []
    try:
        while True:
            heard.append((await ada.hear())["type"])
    except ConnectionClosed:
        pass
    assert "ack" in heard
    assert ada.socket.close_code == 1012
    assert await leaving == 0
    assert "Traceback" not in process.output()


async def test_sigterm_while_redis_is_away_ends_in_time_too(
    redis_server: RedisServer, dataplane: DataplaneFleet, peers: Peers
) -> None:
    (process,) = await dataplane(redis_server, 1, TABLEFORGE_SCALING_DRAIN_TIMEOUT="100")
    ada = await peers(process)  # type: ignore[arg-type]
    await ada.join("lobby")
    await redis_server.kill9()
    await ada.publish("lobby", 1)
    leaving = asyncio.create_task(process.sigterm())
    assert await ada.closed() == 1012
    assert await leaving == 0


async def test_closes_are_spread_while_redis_is_away_too(
    redis_server: RedisServer, instances: Instances, peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "SETTLE_SECONDS", 0.5)
    (one,) = await instances(redis_server, scaling={"drain_seconds": 2.0}, **FAST)
    leavers = [await peers(one) for _ in range(10)]
    await leavers[0].join("lobby")
    await redis_server.kill9()
    await until(lambda: not one.broker.redis_state().connected)
    await leavers[0].publish("lobby", "waits")
    await until(lambda: one.broker.publisher.depth == 1)
    loop = asyncio.get_running_loop()
    closed_at: list[float] = []

    async def hear_out(leaver: Peer) -> None:
        assert await leaver.closed() == 1012
        closed_at.append(loop.time())

    async with lost_time() as lost:
        await asyncio.gather(one.drain(), *(hear_out(leaver) for leaver in leavers))
    waits = [later - earlier for earlier, later in itertools.pairwise(closed_at)]
    assert sum(wait > 0.05 for wait in waits) >= 7 - lost.seconds / 0.1, "some together"


async def test_two_thousand_rooms_of_one_connection_each_leave_nothing_behind(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server, security={**FAST["security"], "max_rooms_per_connection": 2000})
    before = one.broker.subscriber.channels
    ada = await peers(one)
    for start in range(0, 2000, 100):
        await ada.say(*({"type": "join", "room": f"room-{start + number}"} for number in range(100)))
    for _ in range(2000):
        assert (await ada.hear())["type"] == "joined"
    assert one.metrics.rooms == 2000
    assert one.broker.subscriber.channels == before + 2000
    await ada.socket.close()
    await until(lambda: one.metrics.rooms == 0)
    assert one.broker.subscriber.channels == before
    assert one._hub._by_channel == {}
