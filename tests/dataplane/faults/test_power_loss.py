"""The power fails: what was acknowledged with `Disk` is there afterwards, and only with `Disk`."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from tests.dataplane.path.instances import Instances, Peer, Peers
from tests.support.power import PoweredRedis
from tests.support.redis_cluster import ask

FAST: dict[str, Any] = {
    "security": {
        "max_messages_per_second": 100_000,
        "max_messages_per_minute": 1_000_000,
        "max_bytes_per_second": 1_000_000_000,
    }
}


@pytest.fixture
async def make_powered(tmp_path: Path) -> AsyncIterator[Callable[..., PoweredRedis]]:
    made: list[PoweredRedis] = []

    def make(**options: Any) -> PoweredRedis:
        made.append(PoweredRedis(tmp_path / f"redis-{len(made)}", **options))
        return made[-1]

    try:
        yield make
    finally:
        for server in made:
            await server.stop()


async def talk_until_acknowledged(peer: Peer, room: str, *, count: int) -> dict[int, str]:
    """Publish without an end; the positions by number, once `count` are acknowledged."""
    acknowledged: dict[int, str] = {}

    async def talk() -> None:
        number = 0
        while True:
            await peer.publish(room, number, echo=False)
            number += 1
            await asyncio.sleep(0.0005)  # a pace

    talking = asyncio.create_task(talk())
    try:
        while len(acknowledged) < count:
            frame = await peer.hear()
            if frame["type"] == "ack":
                acknowledged[frame["id"] - 1] = frame["pos"]
    finally:
        talking.cancel()
        await asyncio.gather(talking, return_exceptions=True)
    return acknowledged


async def log_of(server: PoweredRedis, key: bytes) -> set[str]:
    client = redis.asyncio.Redis(host=server.host, port=server.port)
    try:
        return {entry.decode() for entry, _ in await client.xrange(key)}
    finally:
        await client.aclose()


@pytest.mark.parametrize(
    "options",
    [
        {"binary": "valkey", "appendfsync": "always"},
        {"binary": "redis7", "appendfsync": "always"},
        {"binary": "redis62", "appendfsync": "always"},
        {"binary": "redis8", "appendfsync": "everysec"},
    ],
    ids=lambda options: f"{options['binary']}-{options['appendfsync']}",
)
async def test_what_was_acknowledged_on_disk_is_there_after_a_power_cut(
    make_powered: Callable[..., PoweredRedis], instances: Instances, peers: Peers, options: dict[str, Any]
) -> None:
    server = make_powered(**options)
    await server.start()
    rooms = {"log_max_messages": 100_000, "log_max_bytes": 100_000_000}
    (one,) = await instances(server, redis={"durability": "Disk"}, rooms=rooms, **FAST)
    ada = await peers(one)
    await ada.join("lobby")
    key = one.broker.address("lobby").log
    acknowledged = await talk_until_acknowledged(ada, "lobby", count=300 + random.randrange(300))
    await server.lose_power()
    await instances.stop()
    await server.start()
    assert set(acknowledged.values()) <= await log_of(server, key)


async def test_what_was_acknowledged_in_memory_may_be_gone_after_a_power_cut(
    make_powered: Callable[..., PoweredRedis], instances: Instances, peers: Peers
) -> None:
    """That the test above could fail: the same with `Memory` loses what came after the last sync."""
    server = make_powered(appendfsync="everysec")
    await server.start()
    (one,) = await instances(server, redis={"durability": "Memory"}, **FAST)
    ada = await peers(one)
    await ada.join("lobby")
    key = one.broker.address("lobby").log
    await ask(server, "CONFIG", "SET", "appendfsync", "no")
    acknowledged = await talk_until_acknowledged(ada, "lobby", count=500)
    assert await server.lose_power() > 0
    await instances.stop()
    await server.start()
    assert not set(acknowledged.values()) <= await log_of(server, key)


async def test_members_are_told_when_history_lost_its_end(
    make_powered: Callable[..., PoweredRedis], instances: Instances, peers: Peers
) -> None:
    server = make_powered(appendfsync="everysec")
    await server.start()
    (one,) = await instances(server, redis={"durability": "Memory"}, **FAST)
    ada, bob = await peers(one), await peers(one)
    await ada.join("lobby")
    await bob.join("lobby")
    for number in range(300):
        await ada.publish("lobby", number, echo=False)
        if number == 100:
            await bob.messages(101)
            # from here on nothing is synced any more
            await ask(server, "CONFIG", "SET", "appendfsync", "no")
    await bob.messages(199)
    assert await server.lose_power() > 0
    await server.start()
    reset = await bob.until("reset")
    assert reset["room"] == "lobby"
    assert reset["reason"] in ("forked", "log_lost")
