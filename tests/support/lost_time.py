"""Time that a test loses because its own process stands still, on a machine that others use too."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator


class Lost:
    """Time in which this loop did not go on, and with it everything that the test does."""

    def __init__(self) -> None:
        self._pauses: list[tuple[float, float]] = []
        """When each ended, by the monotonic clock, and how long it was."""

    @property
    def seconds(self) -> float:
        return sum(seconds for _, seconds in self._pauses)

    def between(self, began: float, ended: float) -> float:
        """How many seconds of this were lost, roughly."""
        return sum(seconds for at, seconds in self._pauses if at > began and at - seconds < ended)

    async def count(self) -> None:
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.02)
            if (seconds := time.monotonic() - began - 0.03) > 0:
                self._pauses.append((time.monotonic(), seconds))


@contextlib.asynccontextmanager
async def lost_time() -> AsyncIterator[Lost]:
    """Counts it meanwhile: who is late for that has not done anything wrong."""
    lost = Lost()
    counting = asyncio.create_task(lost.count())
    try:
        yield lost
    finally:
        counting.cancel()
        await asyncio.gather(counting, return_exceptions=True)
