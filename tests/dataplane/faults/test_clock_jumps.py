"""Redis's wall clock jumps: order, positions and acknowledgements don't depend on it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from tests import support
from tests.dataplane.path.instances import Instances, Peers, until
from tests.support.c_compiler import shared_library
from tests.support.redis import RedisServer

ROOMY: dict[str, Any] = {
    "security": {"max_messages_per_second": 100_000, "max_messages_per_minute": 1_000_000}
}


class JumpyRedis(RedisServer):
    """A server whose wall clock can be set."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        library = directory / "clock.so"
        shared_library(Path(support.__file__).with_name("clock.c"), library)
        self._shift = directory / "shift"
        super().__init__(directory, environ={"LD_PRELOAD": str(library), "CLOCK_SHIFT": str(self._shift)})

    def jump(self, seconds: int) -> None:
        """From now on the clock is so far from the real one."""
        fresh = self._shift.with_suffix(".new")
        fresh.write_text(str(seconds))
        fresh.replace(self._shift)


@pytest.fixture
async def jumpy(tmp_path: Path) -> AsyncIterator[JumpyRedis]:
    server = JumpyRedis(tmp_path / "jumpy")
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def test_a_clock_that_jumps_either_way_loses_reorders_and_doubles_nothing(
    jumpy: JumpyRedis, instances: Instances, peers: Peers
) -> None:
    one, two = await instances(jumpy, 2, redis={"durability": "Disk"}, **ROOMY)
    ada, bob = await peers(one), await peers(two)
    position = (await ada.join("lobby"))["pos"]
    await bob.join("lobby")
    admin = redis.asyncio.Redis(host=jumpy.host, port=jumpy.port)
    real = (await admin.time())[0]
    number = 0
    for shift in (0, 1800, -1800, 600, -86_400, 0):
        jumpy.jump(shift)
        async with asyncio.timeout(30):
            while abs((await admin.time())[0] - real - shift) > 60:  # noqa: ASYNC110  # its clock is cached
                await asyncio.sleep(0.02)
        for _ in range(10):
            ack = await ada.published("lobby", number, key=f"k{number}")
            assert ack["seq"] == number + 1
            number += 1
        again = await ada.published("lobby", number - 1, key=f"k{number - 1}")
        assert again["seq"] == number
    assert [message["data"] for message in await bob.messages(number)] == list(range(number))
    await bob.silent()
    carl = await peers(two)
    assert (await carl.join("lobby", position))["recovered"] is True
    assert [message["data"] for message in await carl.messages(number)] == list(range(number))
    await admin.aclose()


async def test_a_clock_that_jumps_past_all_lifetimes_is_a_loss_that_is_told(
    jumpy: JumpyRedis, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(jumpy, rooms={"check_interval_seconds": 0.5}, **ROOMY)
    ada = await peers(one)
    await ada.join("lobby")
    await ada.published("lobby", "before")
    jumpy.jump(7 * 86_400)
    reset = await ada.until("reset", within=15)
    assert (reset["room"], reset["reason"]) == ("lobby", "log_lost")
    await ada.published("lobby", "after")
    await until(lambda: one.broker.redis_state().connected)
