"""The promise where sentinels replace the primary, at random: killed, cut off, paused, or asked to step down.

With `Replica` no acknowledged message is lost as long as the other server had caught up before the
primary went, which the saboteur waits for. Unacknowledged ones may be: who saw them is told `reset`. Seeds
and the full run as in `test_ledger_under_faults.py`.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.dataplane.faults.sabotage import (
    FULL,
    INSTANCES_RARE,
    ROOMY,
    Draw,
    Fault,
    Saboteur,
    break_while_publishing,
    hold,
    instance_faults,
    link_faults,
    seed_of,
    server_faults,
)
from tests.support.processes import DataplaneFleet, DataplaneProcess
from tests.support.proxy import FaultProxy
from tests.support.redis_cluster import (
    FAILOVER_WITHIN_SECONDS,
    RedisSentinels,
    ask,
    eventually,
    is_primary,
    is_settled,
)

MESSAGES = 10_000 if FULL else 500
IN_SHORT = ("cut redis", "client kill", "kill primary", "stale primary")


class Site:
    """Three instances behind a proxy each; a primary and a replica behind a proxy each; three sentinels."""

    def __init__(
        self, redis: RedisSentinels, instances: list[DataplaneProcess], to_instances: list[FaultProxy]
    ) -> None:
        self.redis = redis
        self.instances = instances
        self.to_instances = to_instances

    @property
    def urls(self) -> list[str]:
        return [f"ws://127.0.0.1:{proxy.port}/ws" for proxy in self.to_instances]

    @property
    def before_instances(self) -> dict[str, Fault]:
        return {**link_faults("clients", self.to_instances), **instance_faults(self.instances)}

    @property
    def behind_instances(self) -> dict[str, Fault]:
        return {
            **link_faults("redis", list(self.redis.proxies.values())),
            **server_faults(self.redis.servers),
            "kill primary": self._kill_primary,
            "stale primary": self._stale_primary,
            "planned failover": self._fail_over,
            "restart primary": self._restart_primary,
            "kill replica": self._kill_replica,
            "kill sentinel": self._kill_sentinel,
        }

    async def whole(self) -> None:
        """One is the primary, for every sentinel, and the other has all it has."""

        async def so() -> bool:
            for server in self.redis.servers:
                await server.start()
            if await self.redis.settled():
                return all([await is_settled(server) for server in self.redis.servers])
            await self._follow()
            return False

        await eventually(so, within=FAILOVER_WITHIN_SECONDS)

    async def mend(self) -> None:
        """Everything runs, nothing is held back."""
        for proxy in (*self.redis.proxies.values(), *self.to_instances):
            proxy.heal()
        for process in (*self.redis.servers, *self.instances):
            if process.running:
                process.resume()
        for number, sentinel in enumerate(self.redis.sentinels):
            if sentinel.returncode is not None:
                self.redis.start_sentinel(number)
        await self.whole()
        for instance in self.instances:
            await instance.start()

    async def _follow(self) -> None:
        """Who was replaced is a primary still, until the sentinels tell it, after eight seconds."""
        primary = await self.redis.primary()
        other = self.redis.other(primary)
        if await self.redis.undisturbed() and await is_primary(primary) and await is_primary(other):
            await self.redis.follow(other, primary)

    async def _kill_primary(self, draw: Draw) -> None:
        """The replica, which takes its place, lacks what came in the last moment."""
        primary = await self.redis.primary()
        replica = self.redis.other(primary)
        replica.pause()
        await ask(primary, "CLIENT", "KILL", "TYPE", "replica")  # what comes now, it never gets
        await asyncio.sleep(draw.seconds)
        await primary.kill9()
        replica.resume()
        await eventually(lambda: self._replaced(primary), within=FAILOVER_WITHIN_SECONDS)
        await asyncio.sleep(draw.seconds)
        await primary.start()

    async def _stale_primary(self, draw: Draw) -> None:
        """It goes on answering after it was replaced, and takes what somebody writes to it."""
        primary = await self.redis.primary()
        primary.pause()
        await eventually(lambda: self._replaced(primary), within=FAILOVER_WITHIN_SECONDS)
        primary.resume()
        await asyncio.sleep(draw.seconds * 3)

    async def _fail_over(self, draw: Draw) -> None:
        primary = await self.redis.primary()

        async def accepted() -> bool:
            """It may not have looked at the replica since that had all it needs."""
            await self.redis.ask_sentinel(draw.number % 3, "FAILOVER", self.redis.name)
            return True

        await eventually(accepted, within=FAILOVER_WITHIN_SECONDS)
        await eventually(lambda: self._replaced(primary), within=FAILOVER_WITHIN_SECONDS)

    async def _restart_primary(self, draw: Draw) -> None:
        primary = await self.redis.primary()
        await primary.kill9()
        await primary.start()

    async def _kill_replica(self, draw: Draw) -> None:
        replica = self.redis.other(await self.redis.primary())
        await replica.kill9()
        await asyncio.sleep(draw.seconds)
        await replica.start()

    async def _kill_sentinel(self, draw: Draw) -> None:
        number = draw.number % 3
        await self.redis.sentinels[number].kill9()
        await asyncio.sleep(draw.seconds * 3)
        self.redis.start_sentinel(number)

    async def _replaced(self, primary: object) -> bool:
        return await self.redis.primary() is not primary


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(RedisSentinels(proxied=True))
        fleet = DataplaneFleet(tmp_path)
        stack.push_async_callback(fleet.stop)
        instances = await fleet(
            redis.servers[0],
            3,
            TABLEFORGE_REDIS_MODE="Sentinel",
            TABLEFORGE_REDIS_ADDRESSES=redis.addresses,
            TABLEFORGE_REDIS_SENTINEL_MASTER_NAME=redis.name,
            TABLEFORGE_REDIS_DURABILITY="Replica",
            **ROOMY,
        )
        to_instances = [await stack.enter_async_context(FaultProxy(one.port)) for one in instances]
        yield Site(redis, instances, to_instances)


@pytest.mark.timeout(900)
async def test_nothing_acknowledged_is_lost_doubled_or_out_of_order_whoever_is_the_primary(
    site: Site,
) -> None:
    seed = seed_of("sentinels")
    behind = site.behind_instances
    verdict = await break_while_publishing(
        site.urls,
        [
            Saboteur(site.before_instances, seed=f"{seed} before", rare=INSTANCES_RARE),
            Saboteur(
                behind if FULL else {kind: behind[kind] for kind in IN_SHORT},
                seed=f"{seed} behind",
                whole=site.whole,
            ),
        ],
        mend=site.mend,
        messages=MESSAGES,
        over_seconds=150.0 if FULL else 6.0,
        least_faults=200 if FULL else 10,
        seed=seed,
    )
    hold(verdict, messages=MESSAGES)
