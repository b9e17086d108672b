"""How fast something may go: so many a second in the long run, and so many at once."""

import asyncio
from typing import Final

HOLD_LIMIT_SECONDS: Final = 60.0
"""The longest hold. Who asks for more has made a mistake, and would stop the operator."""


class Pace:
    """A token bucket whose waiters go in the order in which they came. Use it from one event loop."""

    def __init__(self, *, per_second: float, burst: int) -> None:
        self._interval = 1 / per_second
        self._credit_seconds = (burst - 1) * self._interval
        """How far the next turn may lie in the past."""
        self._next = float("-inf")
        """When the next one may go, by the loop's clock."""

    async def wait(self) -> float:
        """Wait for a turn; for how many seconds."""
        now = asyncio.get_running_loop().time()
        self._next = max(self._next, now - self._credit_seconds)
        delay = self._next - now
        self._next += self._interval
        if delay <= 0:
            return 0.0
        await asyncio.sleep(delay)
        return delay

    def hold(self, seconds: float) -> None:
        """Let nobody go for `seconds`, and then no burst. Those that wait already have their turn."""
        now = asyncio.get_running_loop().time()
        self._next = max(self._next, now + min(seconds, HOLD_LIMIT_SECONDS))
