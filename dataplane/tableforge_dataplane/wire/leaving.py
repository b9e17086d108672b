"""How an instance that leaves sends its clients elsewhere: told first, closed a moment later, one by one.

Their reconnects are spread over a window and kept within what the whole cluster may do at once, whoever else
leaves at the same time. The window's end holds in any case: a pod has only so long.
"""

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Collection
from typing import Final, Protocol

from tableforge_dataplane.observability.logging import EventLog
from tableforge_dataplane.observability.metrics import Metrics
from tableforge_dataplane.protocol.events import Migrate
from tableforge_dataplane.wire.connection import Connection

MOST_STEPS: Final = 20

LONGEST_STEP_SECONDS: Final = 0.5

FOLLOW_SECONDS: Final = 2.0
"""How long a client has to connect elsewhere by itself, without a gap, before it is closed."""

FOLLOW_SHARE: Final = 0.25
"""How much of a short window that may take."""

HURRY_SHARE: Final = 0.25
"""From this last part of the window on the pace is kept, budget or not: better some too many for a while than
all that are left at once."""

REASON: Final = "this instance is leaving"

_log = EventLog("leaving")


class Budget(Protocol):
    """What the cluster may do."""

    async def take(self, wanted: int) -> int:
        """How many of `wanted` may be made to reconnect now."""


class Departure:
    """One drain of all connections, from `run()` to its end."""

    def __init__(
        self,
        *,
        connections: Collection[Connection],
        budget: Budget,
        metrics: Metrics,
        window_seconds: float,
        settle: Callable[[], Awaitable[None]],
        empty: asyncio.Event,
        destination: Callable[[Connection], str | None] | None = None,
    ) -> None:
        """`connections` and `empty` change as they go. `settle`: waits for acknowledgements that are due.
        `destination`: where a client is at home from now on; None: wherever a balancer sends it."""
        self._connections = connections
        self._budget = budget
        self._metrics = metrics
        self._settle = settle
        self._empty = empty
        self._destination = destination if destination is not None else _anywhere
        self._follow = min(FOLLOW_SECONDS, window_seconds * FOLLOW_SHARE)
        self._step = min(LONGEST_STEP_SECONDS, max(0.02, window_seconds / MOST_STEPS))
        self._loop = asyncio.get_running_loop()
        self._ends = self._loop.time() + window_seconds
        self._telling_ends = self._ends - self._follow
        self._hurry_from = self._telling_ends - window_seconds * HURRY_SHARE
        self._over_budget = 0
        self._told: dict[Connection, None] = {}
        self._to_close: deque[tuple[float, Connection]] = deque()

    async def run(self) -> None:
        """Send everybody away; returns when nobody is left, or the window has passed and all are closed."""
        telling = asyncio.create_task(self._tell_all(), name="leaving")
        try:
            while self._to_close or not telling.done():
                # one is told as soon as the loop goes on; before that there is nobody to wait for
                await self._rest(self._to_close[0][0] if self._to_close else self._loop.time() + self._step)
                if self._empty.is_set():
                    break
                await self._close_due()
        finally:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)
        if not telling.cancelled():
            telling.result()
        if self._over_budget:
            _log.warning("left_over_budget", connections=self._over_budget)

    async def _tell_all(self) -> None:
        owed = 1.0  # the first goes at once: where there is only one, nobody waits
        while True:
            began = self._loop.time()
            staying = [one for one in self._connections if one not in self._told and one.is_open]
            left = self._telling_ends - began
            if not staying:
                return
            if left <= self._step:
                await self._send_away(staying, len(staying), least=len(staying), over=max(0.0, left))
                return
            if owed >= 1.0:
                # in a hurry the pace is kept, but what was not granted so far doesn't go all at once
                least = math.ceil(len(staying) * self._step / left) if began >= self._hurry_from else 0
                owed -= await self._send_away(staying, int(owed), least=least, over=self._step)
            left = max(self._step, self._telling_ends - self._loop.time())
            owed += max(0, len(staying) - int(owed)) * min(1.0, self._step / left)
            await self._rest(began + self._step)

    async def _send_away(self, staying: list[Connection], wanted: int, *, least: int, over: float) -> int:
        """Tell `wanted` of them or as many as the budget grants, `least` in any case; how many were."""
        wanted = min(wanted, len(staying))
        granted = await self._budget.take(wanted)
        count = max(granted, min(least, wanted))
        self._over_budget += count - granted
        self._metrics.left_over_budget += count - granted
        self._tell(staying[:count], over=over)
        return count

    async def _rest(self, until: float) -> None:
        """Wait, but not for anybody once nobody is left."""
        try:
            async with asyncio.timeout_at(until):
                await self._empty.wait()
        except TimeoutError:
            return

    def _tell(self, connections: list[Connection], *, over: float) -> None:
        now = self._loop.time()
        for number, connection in enumerate(connections):
            after = over * number / len(connections)
            self._told[connection] = None
            connection.tell(
                Migrate(url=self._destination(connection), after=round(after, 3), reason="leaving")
            )
            self._to_close.append((now + after + self._follow, connection))

    async def _close_due(self) -> None:
        now = self._loop.time()
        if not self._to_close or self._to_close[0][0] > now:
            return
        await self._settle()
        began, now = now, self._loop.time()
        if now - began > self._step and now < self._ends:
            # what became due meanwhile must not come all together: what is left shares the time that is left
            share = (self._ends - now) / (self._ends - began)
            self._to_close = deque(
                (self._ends - (self._ends - at) * share, one) for at, one in self._to_close
            )
        while self._to_close and self._to_close[0][0] <= now:
            _, connection = self._to_close.popleft()
            connection.close_with(1012, REASON)


def _anywhere(_connection: Connection) -> str | None:
    return None
