"""The promise: three instances and a Redis, killed again and again under four clients in twenty rooms, and
every acknowledged message reaches every member once and in order.

The seed is printed; `TABLEFORGE_LEDGER_SEED=… pytest tests/client/test_ledger_local.py` breaks things in the
same order again.
"""

import asyncio
import os
import random
import time
from pathlib import Path

import pytest

from tests.support.ledger import Ledger
from tests.support.processes import DataplaneFleet, DataplaneProcess
from tests.support.redis import RedisServer

MESSAGES = 2000
OVER_SECONDS = 35.0
MORE_PER_SECOND = 20.0
"""Beside those, until the last fault is over: one may wait until enough is on the way."""
FAULTS = 10
"""So many at least, however long they take on a slow machine."""
SOME_PUBLISHES_BYTES = 1_000
"""What an instance sends to Redis for a few, and for nothing else at once."""


class Breaker:
    """Kills instances and Redis, one at a time, and brings each back."""

    def __init__(
        self, ledger: Ledger, redis: RedisServer, instances: list[DataplaneProcess], rng: random.Random
    ) -> None:
        self._ledger = ledger
        self._redis = redis
        self._instances = instances
        self._rng = rng
        self._began = time.monotonic()
        self.done: list[str] = []

    async def run(self) -> None:
        """Break things until cancelled."""
        kinds = [
            "kill instance",
            "kill redis",
            "drain instance",
            "pause redis",
            "kill both",
            "kill instance before its acks",
        ]
        try:
            for turn in range(1000):
                await asyncio.sleep(self._rng.uniform(0.5, 1.5))
                # each of the kinds early, so that no seed leaves one out
                kind = kinds[turn] if turn < len(kinds) else self._rng.choice(kinds)
                instance = self._rng.choice(self._instances)
                away_seconds = self._rng.uniform(0.1, 1.5)
                # a kill between two messages proves nothing
                await self._ledger.busy(at_least=4)
                await asyncio.sleep(self._rng.uniform(0.0, 0.004))
                self._say(kind, instance, away_seconds)
                await self._break(kind, instance, away_seconds)
        finally:
            self._redis_on()

    async def enough(self, breaking: "asyncio.Task[None]") -> None:
        """Wait for so many faults, or until `breaking`, which runs this, has failed."""
        while len(self.done) < FAULTS and not breaking.done():  # noqa: ASYNC110  # they come a second apart
            await asyncio.sleep(0.1)

    async def mend(self) -> None:
        """Everything runs again."""
        await self._redis.start()
        async with asyncio.TaskGroup() as group:
            for instance in self._instances:
                group.create_task(instance.start())

    async def _break(self, kind: str, instance: DataplaneProcess, away_seconds: float) -> None:
        match kind:
            case "kill instance":
                await instance.kill9()
                await asyncio.sleep(away_seconds)
                await instance.start()
            case "kill instance before its acks":
                # what it sends to Redis is stored once Redis goes on, and nobody is told
                self._redis.pause()
                await self._ledger.busy(at_least=8)
                await self._redis.until_unread(SOME_PUBLISHES_BYTES)
                await instance.kill9()
                self._redis.resume()
                await asyncio.sleep(away_seconds)
                await instance.start()
            case "drain instance":
                await instance.sigterm()
                await asyncio.sleep(away_seconds)
                await instance.start()
            case "kill redis":
                await self._redis.kill9()
                await asyncio.sleep(away_seconds)
                await self._redis.start()
            case "pause redis":
                self._redis.pause()
                await asyncio.sleep(away_seconds)
                self._redis.resume()
            case "kill both":
                await self._redis.kill9()
                await instance.kill9()
                await asyncio.sleep(away_seconds)
                await self._redis.start()
                await instance.start()

    def _redis_on(self) -> None:
        if self._redis.running:
            self._redis.resume()

    def _say(self, kind: str, instance: DataplaneProcess, away_seconds: float) -> None:
        which = f": {instance.instance}" if "redis" not in kind else ""
        self.done.append(kind)
        print(f"{time.monotonic() - self._began:6.2f} s  {kind}{which}, away for {away_seconds:.2f} s")


async def test_the_ledger_notices_a_redis_that_forgets(tmp_path: Path, dataplane: DataplaneFleet) -> None:
    async with RedisServer(tmp_path / "forgetful", appendfsync=None) as redis:
        instances = await dataplane(redis, 2)
        urls = [instance.url for instance in instances]
        async with Ledger(urls, members=2, rooms=3, seed=1) as ledger:
            await ledger.publish(60, over_seconds=1)
            await redis.kill9()
            await redis.start()
            await ledger.publish(60, over_seconds=1)
            async with asyncio.timeout(60):
                while len(ledger.book.resets) < 6:  # noqa: ASYNC110  # each member in each room, told or not
                    await asyncio.sleep(0.02)
    verdict = ledger.check()
    assert len(verdict.resets) == 6, verdict.describe()
    assert all("log_lost" in told for told in verdict.resets)


@pytest.mark.timeout(600)
async def test_no_acknowledged_message_is_lost_doubled_or_out_of_order(
    redis_server: RedisServer, dataplane: DataplaneFleet
) -> None:
    seed = int(os.environ.get("TABLEFORGE_LEDGER_SEED") or random.SystemRandom().randrange(2**32))
    print(f"seed {seed}")
    instances = await dataplane(
        redis_server, 3, TABLEFORGE_REDIS_DURABILITY="Disk", TABLEFORGE_SCALING_DRAIN_TIMEOUT="500"
    )
    urls = [instance.url for instance in instances]
    async with Ledger(urls, members=4, rooms=20, seed=seed, burst=8, backoff_longest=1.0) as ledger:
        breaker, over = Breaker(ledger, redis_server, instances, random.Random(seed)), asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(ledger.talk(per_second=MORE_PER_SECOND, until=over))
            breaking = asyncio.create_task(breaker.run())
            try:
                await ledger.publish(MESSAGES, over_seconds=OVER_SECONDS)
                await breaker.enough(breaking)
            finally:
                breaking.cancel()
                await asyncio.wait({breaking})
            if not breaking.cancelled():
                breaking.result()  # what could not be broken or brought back is the finding
            await breaker.mend()
            over.set()
        await ledger.settle(timeout_seconds=60)
    verdict = ledger.check()
    print(f"{len(breaker.done)} faults, {ledger.reconnects} reconnects; {verdict.describe()}")
    assert not verdict.broken, verdict.describe()
    assert not verdict.unknown
    assert not verdict.resets
    assert verdict.acknowledged >= MESSAGES
    assert verdict.deliveries == verdict.acknowledged * 4
    assert ledger.reconnects, "no fault met a client"
    assert any(len(seen) > 1 for seen in ledger.instances.values())
