"""What breaks things at random: from a seed, one after the other, each mended before the next.

A `Saboteur` has a table of faults, by name; where Redis takes seconds to mend, two run side by side, one for
what lies before the instances and one for what lies behind them. `break_while_publishing` lets them loose on
a ledger and gives its verdict.
"""

import asyncio
import collections
import dataclasses
import os
import random
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Final, TypeVar

import redis.asyncio

from tests.support.ledger import Ledger, Verdict
from tests.support.processes import DataplaneProcess
from tests.support.proxy import DIRECTIONS, Direction, FaultProxy
from tests.support.redis import RedisServer

Item = TypeVar("Item")

FULL: Final = os.environ.get("TABLEFORGE_FAULTS") == "full"


@dataclasses.dataclass(frozen=True, slots=True)
class Draw:
    """What chance gave one fault."""

    number: int
    """Which of several it hits: from 0, below 1,000."""
    seconds: float
    """About how long it lasts, from 0.05 to 0.6."""
    first: bool
    """Which of two ways."""

    def of(self, items: Sequence[Item]) -> Item:
        """The one it hits."""
        return items[self.number % len(items)]


Fault = Callable[[Draw], Awaitable[None]]


def no_wait() -> Awaitable[None]:
    """For a saboteur that need not wait for anything between faults."""
    return asyncio.sleep(0)


class Saboteur:
    """Breaks one thing after the other, and mends each."""

    def __init__(
        self,
        faults: Mapping[str, Fault],
        *,
        seed: str,
        rare: Collection[str] = (),
        whole: Callable[[], Awaitable[None]] = no_wait,
        pause_seconds: tuple[float, float] = (0.02, 0.25),
    ) -> None:
        """`rare`: those that take a second or more; they come early once, then now and then. `whole` is
        waited for before each fault."""
        self.faults = faults
        self._rare = sorted(rare)
        self._rng = random.Random(seed)
        self._whole = whole
        self._pause_seconds = pause_seconds
        self._began = time.monotonic()
        self.done: collections.Counter[str] = collections.Counter()

    async def run(self, tell: Callable[[], None]) -> None:
        """Until cancelled; each kind comes early, so that no seed leaves one out. `tell` hears of each fault
        that is mended."""
        rng = self._rng
        order = list(self.faults)
        rng.shuffle(order)
        common = [kind for kind in self.faults if kind not in self._rare]
        while True:
            rare = bool(self._rare) and rng.random() < 0.1
            kind = order.pop() if order else rng.choice(self._rare if rare else common)
            draw = Draw(rng.randrange(1000), rng.uniform(0.05, 0.6), rng.random() < 0.5)
            await asyncio.sleep(rng.uniform(*self._pause_seconds))
            await self._whole()
            print(f"{time.monotonic() - self._began:6.2f} s  {kind} ({draw.number}) for {draw.seconds:.2f} s")
            await self.faults[kind](draw)
            self.done[kind] += 1
            tell()

    @property
    def complete(self) -> bool:
        """Whether every kind was done."""
        return set(self.done) == set(self.faults)


# Faults of links


def link_faults(what: str, proxies: Sequence[FaultProxy]) -> dict[str, Fault]:
    """`cut …`, `silent …`, `half-silent …`, `delayed …` and `throttled …` for these proxies."""

    async def cut(draw: Draw) -> None:
        draw.of(proxies).cut()

    async def silent(draw: Draw) -> None:
        await _misbehave(draw.of(proxies), draw.seconds * 2, silent=DIRECTIONS)

    async def half_silent(draw: Draw) -> None:
        direction = DIRECTIONS[0] if draw.first else DIRECTIONS[1]
        await _misbehave(draw.of(proxies), draw.seconds * 4, silent=(direction,))

    async def delayed(draw: Draw) -> None:
        await _misbehave(draw.of(proxies), draw.seconds * 2, delay_seconds=draw.seconds / 4)

    async def throttled(draw: Draw) -> None:
        await _misbehave(draw.of(proxies), draw.seconds * 2, bytes_per_second=20_000.0)

    return {
        f"cut {what}": cut,
        f"silent {what}": silent,
        f"half-silent {what}": half_silent,
        f"delayed {what}": delayed,
        f"throttled {what}": throttled,
    }


async def _misbehave(
    proxy: FaultProxy,
    seconds: float,
    *,
    silent: tuple[Direction, ...] = (),
    delay_seconds: float = 0.0,
    bytes_per_second: float | None = None,
) -> None:
    proxy.slow(delay_seconds=delay_seconds, bytes_per_second=bytes_per_second)
    if silent:
        proxy.silence(*silent)
    await asyncio.sleep(seconds)
    proxy.heal()


# Faults of instances

ROOMY: Final = {
    "TABLEFORGE_REDIS_CONNECT_TIMEOUT": "1000",
    "TABLEFORGE_SCALING_DRAIN_TIMEOUT": "1000",
    "TABLEFORGE_SECURITY_MAX_MESSAGES_PER_SECOND": "10000",
    "TABLEFORGE_SECURITY_MAX_MESSAGES_PER_MINUTE": "100000",
}
"""Settings of instances that are to be broken: quick to notice, and no limit in the ledger's way."""

INSTANCES_RARE: Final = ("kill instance", "drain instance")


def instance_faults(instances: Sequence[DataplaneProcess]) -> dict[str, Fault]:
    """Killed, drained and paused."""

    async def kill(draw: Draw) -> None:
        instance = draw.of(instances)
        await instance.kill9()
        await asyncio.sleep(draw.seconds)
        await instance.start()

    async def drain(draw: Draw) -> None:
        instance = draw.of(instances)
        await instance.sigterm()
        await instance.start()

    async def pause(draw: Draw) -> None:
        instance = draw.of(instances)
        instance.pause()
        await asyncio.sleep(draw.seconds)
        instance.resume()

    return {"kill instance": kill, "drain instance": drain, "pause instance": pause}


# Faults of Redis


def server_faults(servers: Sequence[RedisServer]) -> dict[str, Fault]:
    """What any server can be asked to do to its clients, and a pause."""

    async def script_flush(draw: Draw) -> None:
        await _order(draw.of(servers), "SCRIPT", "FLUSH")

    async def client_kill(draw: Draw) -> None:
        await _order(draw.of(servers), "CLIENT", "KILL", "TYPE", "normal" if draw.first else "pubsub")

    async def pause(draw: Draw) -> None:
        server = draw.of(servers)
        server.pause()
        await asyncio.sleep(draw.seconds)
        server.resume()

    return {"script flush": script_flush, "client kill": client_kill, "pause redis": pause}


async def _order(server: RedisServer, *command: str) -> None:
    client = redis.asyncio.Redis(host=server.host, port=server.port)
    try:
        await client.execute_command(*command)
    except redis.exceptions.ConnectionError:
        pass  # its own connection is among those that were killed
    finally:
        await client.aclose()


# The ledger


def seed_of(name: str) -> int:
    """A seed that is printed; `TABLEFORGE_FAULTS_SEED=…` gives the same again."""
    seed = int(os.environ.get("TABLEFORGE_FAULTS_SEED", random.randrange(1_000_000_000)))
    print(f"{name}: TABLEFORGE_FAULTS_SEED={seed}")
    return seed


async def break_while_publishing(
    urls: list[str],
    saboteurs: Sequence[Saboteur],
    *,
    mend: Callable[[], Awaitable[None]],
    messages: int,
    over_seconds: float,
    least_faults: int,
    seed: int,
) -> Verdict:
    """Publish while the saboteurs break things, until that is done, every kind was and there were so many.

    `mend` makes everything run again. The verdict has been printed; every message was acknowledged, but for
    those that are `unknown` in it.
    """
    async with Ledger(urls, members=4, rooms=20, seed=seed) as ledger:
        mended = asyncio.Event()
        breaking = [asyncio.create_task(saboteur.run(mended.set)) for saboteur in saboteurs]
        enough = asyncio.create_task(_enough(saboteurs, mended, least_faults=least_faults))
        publishing = asyncio.create_task(ledger.publish(messages, over_seconds=over_seconds))
        try:
            await asyncio.wait({*breaking, publishing}, timeout=over_seconds, return_when="FIRST_COMPLETED")
            await asyncio.wait({*breaking, enough}, return_when="FIRST_COMPLETED")
            for task in breaking:
                if task.done():
                    task.result()
        finally:
            await _end([*breaking, enough])
            await mend()
        await publishing
        await ledger.settle(timeout_seconds=60)
        await ledger.read_logs()
    verdict = ledger.check()
    for saboteur in saboteurs:
        print(f"{saboteur.done.total()} faults: {dict(saboteur.done)}")
    print(verdict.describe())
    assert verdict.acknowledged + len(verdict.unknown) == messages, verdict.describe()
    return verdict


async def _enough(saboteurs: Sequence[Saboteur], mended: asyncio.Event, *, least_faults: int) -> None:
    """Wait until there were so many faults, and each kind at least once."""
    while sum(saboteur.done.total() for saboteur in saboteurs) < least_faults or not all(
        saboteur.complete for saboteur in saboteurs
    ):
        mended.clear()
        await mended.wait()


async def _end(tasks: Collection[asyncio.Task[None]]) -> None:
    """Cancel them until they are: on its way through a library that waits with a timeout one can get lost."""
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=1)


def hold(verdict: Verdict, *, messages: int) -> None:
    """What holds where another Redis takes over: nothing acknowledged is lost, and who was not acknowledged
    hears at worst that nobody can tell, where the place from which it was asked was taken back."""
    assert not verdict.broken, verdict.describe()
    assert all(": unknown_key: " in one for one in verdict.unknown), verdict.describe()
    # of each of the four members eight are on the way, and primaries are killed on purpose with these in hand
    assert len(verdict.unknown) <= max(4 * 8, messages / 20), verdict.describe()
    assert verdict.resets or not verdict.unknown, verdict.describe()
