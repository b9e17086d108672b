"""How many clients may be sent elsewhere now: one budget for everything in the cluster that does so.

A rollout, a scale-down and a rebalancing may come together; what they make reconnect, whoever takes it in has
to bear at once. So all draw from one bucket in Redis. Where Redis is away each instance has its share.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

from tableforge_dataplane.observability.logging import EventLog
from tableforge_dataplane.registry.connection import REDIS_FAILURES

HELD_SECONDS: Final = 0.5
"""The bucket holds as much as flows in so long, so that a step of a drain can be taken at once."""

ALONE_SECONDS: Final = 2.0
"""For so long after Redis failed to answer it is not asked again: whoever leaves has no time to wait."""

ANSWER_WITHIN_SECONDS: Final = 1.0

_log = EventLog("budget")


class Bucket:
    """A token bucket over a clock that is passed in; as `reconnects.lua`, for one instance alone."""

    __slots__ = ("_at", "_left")

    def __init__(self) -> None:
        self._left: float | None = None
        self._at = 0.0

    def take(self, wanted: int, *, rate: float, most: float, now: float) -> int:
        """How many of `wanted` there are, which are taken."""
        left = most if self._left is None else self._left + max(0.0, now - self._at) * rate
        left = min(most, left)
        taken = min(wanted, int(left))
        self._left, self._at = left - taken, now
        return taken


class ReconnectBudget:
    """`take(n)` before making n clients reconnect."""

    def __init__(
        self,
        *,
        per_second: int,
        ask: Callable[[float, float, int], Awaitable[int]],
        instances: Callable[[], int],
        away: Callable[[], bool] = lambda: False,
    ) -> None:
        """`ask`: runs `reconnects.lua`, raises one of REDIS_FAILURES. `instances`: alive, as last known.
        `away`: whether Redis is known not to answer, so that it needn't be asked."""
        self.per_second = per_second
        self._ask = ask
        self._instances = instances
        self._away = away
        self._own = Bucket()
        self._alone_until = 0.0

    async def take(self, wanted: int) -> int:
        """How many of `wanted` may reconnect now. Never raises for Redis's sake."""
        rate = float(self.per_second)
        if not self._away() and time.monotonic() >= self._alone_until:
            try:
                async with asyncio.timeout(ANSWER_WITHIN_SECONDS):
                    return await self._ask(rate, max(1.0, rate * HELD_SECONDS), wanted)
            except REDIS_FAILURES as error:
                _log.warning("budget_not_shared", error=error)
                self._alone_until = time.monotonic() + ALONE_SECONDS
        share = rate / max(1, self._instances())
        return self._own.take(wanted, rate=share, most=max(1.0, share * HELD_SECONDS), now=time.monotonic())
