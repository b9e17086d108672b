"""Which clusters want a reconcile, and when: one entry per key, delays, and back-off for those that failed.

As controller-runtime has it. A key is worked on by one worker at a time; what is added meanwhile makes one
more turn afterwards. Times are the event loop's.
"""

import asyncio
import heapq
import random
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

from tableforge_operator import metrics

Key = TypeVar("Key", bound=Hashable)

BACKOFF_FIRST_SECONDS: Final = 0.5
BACKOFF_LIMIT_SECONDS: Final = 120.0


class WorkQueue(Generic[Key]):
    """Keys in the order they became due. Not thread-safe: use it from its event loop."""

    def __init__(self, *, rng: random.Random | None = None) -> None:
        self._rng = rng or random.Random()  # noqa: S311 - jitter
        self._due: dict[Key, float] = {}
        """When each waiting key is due: the earliest of what was asked for."""
        self._heap: list[tuple[float, int, Key]] = []
        self._order = 0
        self._working: set[Key] = set()
        self._failures: dict[Key, int] = {}
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        return len(self._due)

    def add(self, key: Key, *, delay_seconds: float = 0.0) -> None:
        """Ask for a turn in `delay_seconds`; an earlier one that was asked for before stands."""
        due = asyncio.get_running_loop().time() + delay_seconds
        known = self._due.get(key)
        if known is not None and known <= due:
            return
        self._due[key] = due
        self._order += 1
        heapq.heappush(self._heap, (due, self._order, key))
        metrics.QUEUE_DEPTH.set(len(self._due))
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
        self._due.pop(key, None)
        metrics.QUEUE_DEPTH.set(len(self._due))

    async def take(self) -> Key:
        """The next key that is due; `done` must follow."""
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            held: list[tuple[float, int, Key]] = []
            try:
                while self._heap:
                    due, _, key = self._heap[0]
                    if self._due.get(key) != due:  # overtaken by an earlier one, or forgotten
                        heapq.heappop(self._heap)
                    elif due > loop.time():
                        break
                    elif key in self._working:
                        held.append(heapq.heappop(self._heap))
                    else:
                        heapq.heappop(self._heap)
                        del self._due[key]
                        self._working.add(key)
                        metrics.QUEUE_DEPTH.set(len(self._due))
                        return key
                delay = self._heap[0][0] - loop.time() if self._heap else None
            finally:
                for entry in held:
                    heapq.heappush(self._heap, entry)
            await self._sleep(delay)

    def done(self, key: Key) -> None:
        """The turn that `take` gave is over."""
        self._working.discard(key)
        if key in self._due:
            self._wake.set()

    async def _sleep(self, delay_seconds: float | None) -> None:
        try:
            async with asyncio.timeout(delay_seconds):
                await self._wake.wait()
        except TimeoutError:
            return
