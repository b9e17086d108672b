"""`batchMessageDelay`: the longest a publish waits for others while a batch is in flight."""

import asyncio
from typing import Any

from tests.dataplane.path.instances import Instances, Peers
from tests.support.proxy import FaultProxy
from tests.support.redis import RedisServer
from tests.support.redis_cluster import ask, eventually


def behind(proxy: FaultProxy, *, delay_seconds: float) -> dict[str, dict[str, Any]]:
    return {
        "redis": {"port": proxy.port, "connect_timeout_seconds": 60.0},
        "performance": {"batch_message_delay_seconds": delay_seconds},
    }


async def stored(server: RedisServer, room: str) -> int:
    found: int = await ask(server, "XLEN", f"tf:tableforge:{{{room}}}:log")
    return found


async def test_a_batch_goes_after_the_delay_though_the_one_before_is_not_answered(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    async with FaultProxy(redis_server.port) as proxy:
        [one] = await instances(redis_server, **behind(proxy, delay_seconds=1.0))
        ada = await peers(one)
        await ada.join("room")
        loop = asyncio.get_running_loop()
        proxy.silence("to client")
        await ada.publish("room", "in flight", echo=False)
        await eventually(lambda: _has(redis_server, 1))
        began = loop.time()
        for number in range(5):
            await ada.publish("room", number, echo=False)
        await eventually(lambda: _has(redis_server, 6))
        assert loop.time() - began >= 0.9, "the delay is as long as was set, less a turn of a coarse clock"
        proxy.heal()
        assert [(await ada.until("ack"))["seq"] for _ in range(6)] == [1, 2, 3, 4, 5, 6]


async def test_a_full_batch_does_not_wait_for_the_delay(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    async with FaultProxy(redis_server.port) as proxy:
        [one] = await instances(
            redis_server,
            redis={"port": proxy.port, "connect_timeout_seconds": 60.0},
            performance={"batch_message_delay_seconds": 1000.0, "max_batch_size": 3},
        )
        ada = await peers(one)
        await ada.join("room")
        proxy.silence("to client")
        await ada.publish("room", "in flight", echo=False)
        await eventually(lambda: _has(redis_server, 1))
        for number in range(4):
            await ada.publish("room", number, echo=False)
        await eventually(lambda: _has(redis_server, 4))
        assert await stored(redis_server, "room") == 4, "the fifth waits for two more"
        proxy.heal()
        assert [(await ada.until("ack"))["seq"] for _ in range(5)] == [1, 2, 3, 4, 5]


async def test_an_idle_publisher_waits_for_nothing(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    [one] = await instances(redis_server, performance={"batch_message_delay_seconds": 600.0})
    ada = await peers(one)
    await ada.join("room")
    for number in range(10):
        assert (await ada.published("room", number, echo=False))["seq"] == number + 1


async def _has(server: RedisServer, messages: int) -> bool:
    return await stored(server, "room") == messages
