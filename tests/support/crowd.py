"""A crowd: many clients in many rooms, a few of them far fuller than the rest, who talk while a test breaks
and changes things.

    async with Crowd(url, clients=150, rooms=300, seed=seed, per_second=40) as crowd:
        …                                            # while they talk
    crowd.judge()                                    # no acknowledged message lost, doubled or out of order
    assert not crowd.hurried(per_second=10)          # nobody was made to reconnect faster than that

Where the clients are, and how often they had to reconnect, is counted at the clients.
"""

import asyncio
import bisect
import collections
import dataclasses
import random
import time
from collections.abc import Collection, Sequence
from contextlib import AsyncExitStack
from typing import Any, Final, Self

from tests.support.ledger import Again, Ledger
from tests.support.lost_time import Lost

HELD_SECONDS: Final = 0.5
"""What the cluster's bucket holds at most: what flows in during this time."""
LATE_SECONDS: Final = 1.5
"""How much later than it was told to a client may be back."""
WINDOWS_SECONDS: Final = (1.0, 2.0, 5.0, 10.0)
KILLED_WITHIN_SECONDS: Final = 1.0
"""How long after a server was killed its clients may still look connected to it."""


def most_within(times: Sequence[float], seconds: float) -> int:
    """The most of the times that lie within so many seconds."""
    found, first = 0, 0
    for last, at in enumerate(times):
        while times[first] < at - seconds:
            first += 1
        found = max(found, last - first + 1)
    return found


def too_many(times: Sequence[float], seconds: float, *, per_second: int, lost: Lost) -> str | None:
    """Where more clients were sent elsewhere within so many seconds than a budget gives in them.

    What they were told while their process stood still they all do once it goes on.
    """
    for first, began in enumerate(times):
        within = bisect.bisect_right(times, began + seconds) - first
        may = per_second * (seconds + HELD_SECONDS + LATE_SECONDS + lost.between(began, began + seconds))
        if within > may:
            return f"{within} within {seconds:g} s, {may:g} are allowed"
    return None


def fullest(times: Sequence[float]) -> dict[float, int]:
    """The most of the times in each of the windows."""
    return {seconds: most_within(times, seconds) for seconds in WINDOWS_SECONDS}


def skewed(
    members: Sequence[str], rooms: Sequence[str], *, joins: Sequence[int], seed: int
) -> dict[str, list[str]]:
    """Which rooms each member is in: the second is about half as full as the first, the third a third, and
    so on.

    Beside those each has a share of all rooms to itself, so that none is empty. `joins`: of how many rooms
    the first member is at least, the second, and so on, over and over.
    """
    rng = random.Random(seed)
    weights = [1 / place for place in range(1, len(rooms) + 1)]
    found = {}
    for place, member in enumerate(members):
        joined = dict.fromkeys(rooms[place :: len(members)])
        while len(joined) < min(joins[place % len(joins)], len(rooms)):
            joined[rng.choices(rooms, weights)[0]] = None
        found[member] = list(joined)
    return found


@dataclasses.dataclass(frozen=True, slots=True)
class Killed:
    """A server that the test has killed: its clients come back when they like."""

    instance: str
    at: float
    """Monotonic seconds."""
    for_good: bool
    """Whether another one came in its place; else it is the same name that comes back."""

    def explains(self, again: Again) -> bool:
        """Whether this is why a client had to connect again."""
        if again.left != self.instance or again.at < self.at:
            return False
        return self.for_good or again.left_since <= self.at + KILLED_WITHIN_SECONDS


class Crowd:
    """Clients that talk all the time; see the module."""

    def __init__(
        self,
        url: str | Sequence[str],
        *,
        clients: int,
        rooms: int,
        seed: int,
        per_second: float,
        joins: Sequence[int] = (4,),
        **client_options: Any,
    ) -> None:
        """`per_second`: messages, of all clients together. `joins`: see `skewed`."""
        self.ledger = Ledger(
            url,
            members=clients,
            rooms=rooms,
            seed=seed,
            membership=lambda names, rooms: skewed(names, rooms, joins=joins, seed=seed),
            backoff_longest=2.0,
            **client_options,
        )
        self.killed: list[Killed] = []
        self._per_second = per_second
        self._over = asyncio.Event()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self.ledger)
        talking = asyncio.create_task(self.ledger.talk(per_second=self._per_second, until=self._over))
        self._stack.push_async_callback(_cancel, talking)
        self._talking = talking
        return self

    async def __aexit__(self, kind: object, error: object, traceback: object) -> None:
        async with self._stack:
            if error is None:
                self._over.set()
                await self._talking
                await self.ledger.settle(timeout_seconds=60)
                await self.ledger.read_logs()

    @property
    def size(self) -> int:
        return len(self.ledger.book.members)

    async def hear(self, messages: int) -> None:
        """Wait until so many more messages have been acknowledged."""
        wanted = self.ledger.acknowledged + messages
        while self.ledger.acknowledged < wanted:
            if self._talking.done():
                await self._talking  # raises what ended it
                raise AssertionError("the crowd is silent")
            await asyncio.sleep(1 / self._per_second)

    def connections(self) -> collections.Counter[str]:
        """How many of them are on each instance now."""
        return collections.Counter(where for where in self.ledger.present.values() if where is not None)

    def spread(self, instances: Collection[str]) -> float:
        """(max − min) / mean of their connections on these instances."""
        found = self.connections()
        counts = [found[name] for name in instances]
        return (max(counts) - min(counts)) * len(counts) / max(1, sum(counts)) if counts else 0.0

    def kill(self, instance: str, *, for_good: bool) -> None:
        """Note that this instance is killed now."""
        self.killed.append(Killed(instance, time.monotonic(), for_good))

    def sent_elsewhere(self) -> list[float]:
        """When clients connected again that had to for another reason than that a server was killed."""
        return [
            again.at
            for again in self.ledger.again
            if not any(killed.explains(again) for killed in self.killed)
        ]

    def hurried(self, *, per_second: int) -> list[str]:
        """Where more clients were sent elsewhere at once than may be; empty where that never was."""
        times, lost = self.sent_elsewhere(), self.ledger.lost
        return [
            found
            for seconds in WINDOWS_SECONDS
            if (found := too_many(times, seconds, per_second=per_second, lost=lost)) is not None
        ]

    def judge_moves(self, *, per_second: int) -> None:
        """`judge`, and that many moved, no more than so many a second, and that a fault met some."""
        told, elsewhere = self.judge(), self.sent_elsewhere()
        print(f"{self.ledger.reconnects} connections lost, {len(elsewhere)} clients sent elsewhere; {told}")
        print(f"at most {fullest(elsewhere)}, by the length of the window in seconds")
        assert not self.hurried(per_second=per_second)
        assert len(elsewhere) >= self.size / 3, "hardly anybody had to move"
        assert self.ledger.reconnects, "no fault met a client"

    def judge(self) -> str:
        """Assert that every promise was kept; afterwards. Returns it in a line."""
        verdict = self.ledger.check()
        told = verdict.describe()
        assert not verdict.broken, told
        assert not verdict.unknown, told
        assert not verdict.resets, told
        assert verdict.acknowledged, "nobody said anything"
        return told


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})
