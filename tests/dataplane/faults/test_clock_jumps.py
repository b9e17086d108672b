"""Wall clocks jump, Redis's or an instance's: order, positions and acknowledgements don't depend on them.

A token lasts until its instance's clock says so.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jwt
import pytest
import redis.asyncio

from tests.dataplane.path.instances import Instances, Peers, until
from tests.support.clock import Clock
from tests.support.processes import DataplaneFleet
from tests.support.redis import RedisServer

ROOMY: dict[str, Any] = {
    "security": {"max_messages_per_second": 100_000, "max_messages_per_minute": 1_000_000}
}


class JumpyRedis(RedisServer):
    """A server whose wall clock can be set."""

    def __init__(self, directory: Path) -> None:
        clock = Clock(directory)
        self.jump = clock.jump
        super().__init__(directory, environ=clock.environ)


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
    reset = await ada.until("reset")
    assert (reset["room"], reset["reason"]) == ("lobby", "log_lost")
    await ada.published("lobby", "after")
    await until(lambda: one.broker.redis_state().connected)


SECRET = "0123456789abcdef" * 4


def bearer(expires_at: float) -> dict[str, Any]:
    token = jwt.encode({"sub": "ada", "exp": expires_at}, SECRET, algorithm="HS256")
    return {"additional_headers": {"Authorization": f"Bearer {token}"}}


async def test_a_session_ends_soon_after_its_instances_clock_has_jumped_past_its_tokens_end(
    redis_server: RedisServer, dataplane: DataplaneFleet, peers: Peers, tmp_path: Path
) -> None:
    clock = Clock(tmp_path / "clock")
    [one] = await dataplane(redis_server, AUTH_REQUIRED="true", JWT_SECRET=SECRET, **clock.environ)
    short = await peers(one, **bearer(time.time() + 3600))
    long = await peers(one, **bearer(time.time() + 200_000))
    nobody = await peers(one, welcome=False)
    clock.jump(7200)
    assert await short.closed(within=30) == 4401
    await long.silent()
    # who has yet to bring a token has as long for it as without a jump
    assert (await nobody.hear_type("error", within=30))["code"] == "unauthorized"
    assert await nobody.closed() == 4401
    await long.silent()
    clock.jump(300_000)
    assert await long.closed(within=30) == 4401


async def test_a_session_goes_on_while_its_instances_clock_that_went_back_allows_its_token(
    redis_server: RedisServer, dataplane: DataplaneFleet, peers: Peers, tmp_path: Path
) -> None:
    clock = Clock(tmp_path / "clock")
    [one] = await dataplane(redis_server, AUTH_REQUIRED="true", JWT_SECRET=SECRET, **clock.environ)
    ada = await peers(one, **bearer(time.time() + 8))
    clock.jump(-3600)
    # it comes later and its token ends later than the first one's would have
    bob = await peers(one, **bearer(time.time() - 3600 + 9))
    assert await bob.closed(within=30) == 4401
    await ada.silent()
    clock.jump(0)
    assert await ada.closed(within=30) == 4401
