"""The registry ends when it is told to, whatever it is in the middle of."""

import asyncio

import pytest

from tableforge_dataplane.contract import environment
from tableforge_dataplane.observability.metrics import Metrics
from tableforge_dataplane.registry.registry import Registry, ThisInstance, new_boot_id
from tests.support.redis import RedisServer


@pytest.mark.parametrize("turns", range(12))
async def test_a_stop_in_the_middle_of_a_write_ends_it(redis_server: RedisServer, turns: int) -> None:
    """redis-py writes under `asyncio.wait_for`, which before Python 3.12 can swallow a cancellation."""
    settings = environment.read(redis_server.environ)
    registry = Registry(
        settings,
        this=ThisInstance(instance="a", boot=new_boot_id(), version="1", started_at=1.0),
        metrics=Metrics(),
        rooms=lambda: [("table:1", 1)],
        draining=lambda: False,
    )
    registry.start()
    async with asyncio.timeout(30):
        while not registry.registered:  # noqa: ASYNC110  # it has no event for it
            await asyncio.sleep(0.01)
        await registry.fleet()
    registry.changed()
    for _ in range(turns):  # how far the write comes until the stop
        await asyncio.sleep(0)
    async with asyncio.timeout(30):
        await registry.stop()
