"""Sees the wall clock jump, by which tokens expire, while timers go by another: one look for all sessions."""

import asyncio
import time
from collections.abc import Callable
from typing import Final

LOOK_EVERY_SECONDS: Final = 1.0

TOLERANCE_SECONDS: Final = 0.5
"""How far the clocks may drift apart, all in all, before it counts as a jump."""


class WallClock:
    """Calls `on_jump` within a second of each jump, from `start()` to `stop()`."""

    def __init__(self, on_jump: Callable[[], None]) -> None:
        self._on_jump = on_jump
        self._loop = asyncio.get_running_loop()
        self._ahead = self._ahead_now()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin."""
        self._timer = self._loop.call_later(LOOK_EVERY_SECONDS, self._look)

    def stop(self) -> None:
        """End."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self.start()
        ahead = self._ahead_now()
        if abs(ahead - self._ahead) > TOLERANCE_SECONDS:
            self._ahead = ahead
            self._on_jump()

    def _ahead_now(self) -> float:
        return time.time() - self._loop.time()
