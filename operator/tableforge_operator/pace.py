"""How fast something may go: so many a second in the long run, and so many at once."""

import asyncio
import collections
from typing import Final

HOLD_LIMIT_SECONDS: Final = 60.0
"""The longest hold. Who asks for more has made a mistake, and would stop the operator."""


class Pace:
    """A token bucket whose waiters go in the order in which they came. Use it from one event loop.

    Of those that wait, urgent ones and others take turns, so that neither waits for many of the other sort.
    """

    def __init__(self, *, per_second: float, burst: int) -> None:
        self._interval = 1 / per_second
        self._credit_seconds = (burst - 1) * self._interval
        """How far the next turn may lie in the past."""
        self._next = float("-inf")
        """When the next one may go, by the loop's clock."""
        self._waiting: dict[bool, collections.deque[asyncio.Future[float]]] = {
            True: collections.deque(),
            False: collections.deque(),
        }
        """Those that wait, by whether they are urgent; each is told when it was its turn."""
        self._urgent_before = False
        """Whether the last one that had waited was urgent."""
        self._timer: asyncio.TimerHandle | None = None

    async def wait(self, *, urgent: bool = False) -> float:
        """Wait for a turn; for how many seconds."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        if self._is_urgent_next() is None:
            self._next = max(self._next, now - self._credit_seconds)
            if self._next <= now:
                self._next += self._interval
                return 0.0
        turn: asyncio.Future[float] = loop.create_future()
        self._waiting[urgent].append(turn)
        self._arm(loop)
        return max(0.0, await turn - now)

    def hold(self, seconds: float) -> None:
        """Let nobody go for `seconds`, those that wait included, and then no burst."""
        now = asyncio.get_running_loop().time()
        self._next = max(self._next, now + min(seconds, HOLD_LIMIT_SECONDS))

    def _arm(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is None:
            self._timer = loop.call_at(self._next, self._go, loop)

    def _go(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now = loop.time()
        while (urgent := self._is_urgent_next()) is not None:
            if self._next > now:
                self._arm(loop)
                return
            self._waiting[urgent].popleft().set_result(self._next)
            self._urgent_before = urgent
            self._next += self._interval

    def _is_urgent_next(self) -> bool | None:
        """Whether an urgent one goes next; None where nobody waits."""
        for waiting in self._waiting.values():
            while waiting and waiting[0].done():
                waiting.popleft()  # given up
        if self._waiting[True] and self._waiting[False]:
            return not self._urgent_before
        return next((urgent for urgent, waiting in self._waiting.items() if waiting), None)
