"""Which clusters want a reconcile, and when: one entry per key, delays, and back-off for those that failed.

As controller-runtime has it. A key is worked on by one worker at a time; what is added meanwhile makes one
more turn afterwards. Times are the event loop's.
"""

import asyncio
import dataclasses
import heapq
import random
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

from tableforge_operator import metrics

Key = TypeVar("Key", bound=Hashable)

BACKOFF_FIRST_SECONDS: Final = 0.5
BACKOFF_LIMIT_SECONDS: Final = 120.0
_SLACK: Final = 64
"""Overtaken wishes that may lie about before they are cleared away."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Wish:
    """What was asked for a key, all that was asked taken together."""

    due: float
    urgent: bool


class WorkQueue(Generic[Key]):
    """Keys in the order they became due. Not thread-safe: use it from its event loop.

    A key may be urgent: somebody waits for it. Workers that take urgent ones only find those at once, however
    many others are due; all other workers take everything in order, so that nothing ever starves.
    """

    def __init__(self, *, rng: random.Random | None = None) -> None:
        self._rng = rng or random.Random()  # noqa: S311 - jitter
        self._wishes: dict[Key, _Wish] = {}
        self._later: list[tuple[float, int, Key]] = []
        """A heap of what is not due yet; entries that are no longer as wished are passed over."""
        self._order = 0
        self._due: dict[bool, dict[Key, None]] = {True: {}, False: {}}
        """What is due, by whether it is urgent, in order."""
        self._working: dict[Key, bool] = {}
        """Keys that are being worked on, and whether they were urgent."""
        self._failures: dict[Key, int] = {}
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        return len(self._wishes)

    def add(self, key: Key, *, delay_seconds: float = 0.0, urgent: bool = False) -> None:
        """Ask for a turn in `delay_seconds`; an earlier or more urgent wish that stands is kept."""
        now = asyncio.get_running_loop().time()
        before = self._wishes.get(key)
        wish = _Wish(now + delay_seconds, urgent)
        if before is not None:
            wish = _Wish(min(wish.due, before.due), urgent or before.urgent)
            if wish == before:
                return
        self._wishes[key] = wish
        if before is not None and key in self._due[before.urgent]:
            del self._due[before.urgent][key]
            self._due[wish.urgent][key] = None
        else:
            self._order += 1
            heapq.heappush(self._later, (wish.due, self._order, key))
            if len(self._later) > 2 * len(self._wishes) + _SLACK:
                self._later = [entry for entry in self._later if self._stands(entry)]
                heapq.heapify(self._later)
        self._wake.set()

    def add_after_failure(self, key: Key) -> float:
        """Ask for a turn after the back-off, which doubles with every failure; gives the delay in seconds."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        delay = min(BACKOFF_FIRST_SECONDS * 2.0 ** min(failures, 20), BACKOFF_LIMIT_SECONDS)
        delay *= self._rng.uniform(0.5, 1.0)
        self.add(key, delay_seconds=delay)
        return delay

    def succeeded(self, key: Key) -> None:
        """The next failure of this key is a first one."""
        self._failures.pop(key, None)

    def forget(self, key: Key) -> None:
        """The key is gone: nothing of it is kept, a turn that waits included."""
        self._failures.pop(key, None)
        self._wishes.pop(key, None)
        for due in self._due.values():
            due.pop(key, None)

    async def take(self, *, urgent_only: bool = False) -> Key:
        """The next key that is due; `done` must follow."""
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            now = loop.time()
            self._ripen(now)
            key = self._next(urgent_only)
            if key is not None:
                wish = self._wishes.pop(key)
                del self._due[wish.urgent][key]
                self._working[key] = wish.urgent
                metrics.QUEUE_WAIT_SECONDS.observe(max(0.0, now - wish.due))
                return key
            await self._sleep(self._later[0][0] - now if self._later else None)

    def is_urgent(self, key: Key) -> bool:
        """Whether somebody waits for the turn that `take` gave for this key, or for the one after it."""
        if self._working.get(key, False):
            return True
        wish = self._wishes.get(key)
        return wish is not None and wish.urgent

    def done(self, key: Key) -> None:
        """The turn that `take` gave is over."""
        self._working.pop(key, None)
        if key in self._wishes:
            self._wake.set()

    def depth(self) -> int:
        """How many keys are due and wait for a worker."""
        now = asyncio.get_running_loop().time()
        return sum(wish.due <= now for wish in self._wishes.values())

    def age_seconds(self) -> float:
        """For how long the key that has waited longest has been due; 0 where none is."""
        now = asyncio.get_running_loop().time()
        return max(0.0, now - min((wish.due for wish in self._wishes.values()), default=now))

    def _ripen(self, now: float) -> None:
        while self._later and self._later[0][0] <= now:
            entry = heapq.heappop(self._later)
            if self._stands(entry):
                self._due[self._wishes[entry[2]].urgent][entry[2]] = None

    def _stands(self, entry: tuple[float, int, Key]) -> bool:
        wish = self._wishes.get(entry[2])
        return wish is not None and wish.due == entry[0]

    def _next(self, urgent_only: bool) -> Key | None:
        heads = []
        for urgent in (True,) if urgent_only else (True, False):
            # Few are passed over: no more than there are workers.
            head = next((key for key in self._due[urgent] if key not in self._working), None)
            if head is not None:
                heads.append(head)
        return min(heads, key=lambda key: self._wishes[key].due, default=None)

    async def _sleep(self, delay_seconds: float | None) -> None:
        try:
            async with asyncio.timeout(delay_seconds):
                await self._wake.wait()
        except TimeoutError:
            return
