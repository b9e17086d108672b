"""The promise, under everything that breaks: instances, Redis, its power, its scripts, and every socket.

Clients reach instances, and instances Redis, over proxies that cut, delay, throttle and fall silent. The seed
is printed; `TABLEFORGE_FAULTS_SEED=…` breaks things in the same order again, `TABLEFORGE_FAULTS=full` makes
it 10,000 messages and at least 200 faults.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import pytest

from tests.dataplane.faults.sabotage import (
    FULL,
    INSTANCES_RARE,
    ROOMY,
    Draw,
    Fault,
    Saboteur,
    break_while_publishing,
    instance_faults,
    link_faults,
    seed_of,
    server_faults,
)
from tests.support.power import PoweredRedis
from tests.support.processes import DataplaneFleet, DataplaneProcess
from tests.support.proxy import FaultProxy

RARE: Final = (*INSTANCES_RARE, "power cut", "kill redis", "restart redis")


class Site:
    """Three instances, a Redis that can lose its power, and a proxy before each of them."""

    def __init__(
        self,
        server: PoweredRedis,
        instances: list[DataplaneProcess],
        to_redis: list[FaultProxy],
        to_instances: list[FaultProxy],
    ) -> None:
        self.server = server
        self.instances = instances
        self.to_redis = to_redis
        self.to_instances = to_instances

    @property
    def urls(self) -> list[str]:
        return [f"ws://127.0.0.1:{proxy.port}/ws" for proxy in self.to_instances]

    @property
    def faults(self) -> dict[str, Fault]:
        return {
            **link_faults("clients", self.to_instances),
            **link_faults("redis", self.to_redis),
            **instance_faults(self.instances),
            **server_faults([self.server]),
            "kill redis": self._kill,
            "restart redis": self._restart,
            "power cut": self._cut_power,
        }

    async def mend(self) -> None:
        """Everything runs, nothing is held back."""
        for proxy in (*self.to_redis, *self.to_instances):
            proxy.heal()
        for process in (self.server, *self.instances):
            if process.running:
                process.resume()
        await self.server.start()
        for instance in self.instances:
            await instance.start()

    async def _kill(self, draw: Draw) -> None:
        await self.server.kill9()
        await asyncio.sleep(draw.seconds)
        await self.server.start()

    async def _restart(self, draw: Draw) -> None:
        await self.server.restart()

    async def _cut_power(self, draw: Draw) -> None:
        await self.server.lose_power()
        await asyncio.sleep(draw.seconds)
        await self.server.start()


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with AsyncExitStack() as stack:
        server = PoweredRedis(tmp_path / "redis", appendfsync="always")
        await server.start()
        stack.push_async_callback(server.stop)
        to_redis = [await stack.enter_async_context(FaultProxy(server.port)) for _ in range(3)]
        fleet = DataplaneFleet(tmp_path)
        stack.push_async_callback(fleet.stop)
        instances = []
        for proxy in to_redis:
            instances += await fleet(
                server, 1, REDIS_PORT=str(proxy.port), TABLEFORGE_REDIS_DURABILITY="Disk", **ROOMY
            )
        to_instances = [await stack.enter_async_context(FaultProxy(one.port)) for one in instances]
        yield Site(server, instances, to_redis, to_instances)


@pytest.mark.timeout(900)
async def test_nothing_acknowledged_is_lost_doubled_or_out_of_order_whatever_breaks(site: Site) -> None:
    seed = seed_of("standalone")
    verdict = await break_while_publishing(
        site.urls,
        [Saboteur(site.faults, seed=f"{seed}", rare=RARE)],
        mend=site.mend,
        messages=10_000 if FULL else 1_500,
        over_seconds=150.0 if FULL else 22.0,
        least_faults=200 if FULL else 30,
        seed=seed,
    )
    assert not verdict.broken, verdict.describe()
    assert not verdict.unknown, verdict.describe()
    assert not verdict.resets, verdict.describe()
