"""An instance with too much to do sends some of its clients elsewhere, because it was told to."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, Generic, Protocol, TypeVar

from tableforge_dataplane.contract.fleet import Shed
from tableforge_dataplane.homes.guide import Budget
from tableforge_dataplane.observability.lasting import keep_going
from tableforge_dataplane.observability.logging import EventLog
from tableforge_dataplane.observability.metrics import Metrics
from tableforge_dataplane.protocol.events import Event, Migrate

FOLLOW_SECONDS: Final = 2.0
"""How long a client has to connect elsewhere by itself, without a gap, before it is closed."""

STEP_SECONDS: Final = 0.5
"""How often clients are told, and over what time those of one step are spread."""

MOST_IN_A_STEP: Final = 1000

REASON: Final = "this instance has too much to do"

_log = EventLog("shedding")


class Leaver(Protocol):
    """A connection, as far as it matters here."""

    @property
    def is_open(self) -> bool: ...

    def tell(self, event: Event) -> None: ...

    def close_with(self, code: int, reason: str) -> None: ...


L = TypeVar("L", bound=Leaver)


class Ordered(Protocol):
    """Who knows what this instance was told."""

    @property
    def shed(self) -> Shed | None: ...

    def shed_done(self, identifier: str) -> None: ...


class Shedding(Generic[L]):
    """Carries out one order after the other, from `start()` to `stop()`."""

    def __init__(
        self,
        orders: Ordered,
        *,
        candidates: Callable[[], Iterable[L]],
        may_go: Callable[[L], bool],
        budget: Budget,
        metrics: Metrics,
        settle: Callable[[], Awaitable[None]],
    ) -> None:
        """`candidates`: all connections. `may_go`: whether one can as well be elsewhere, asked when its turn
        comes. `settle`: waits for acknowledgements that are due."""
        self._orders = orders
        self._candidates = candidates
        self._may_go = may_go
        self._budget = budget
        self._metrics = metrics
        self._settle = settle
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._order: Shed | None = None
        """What is being carried out."""
        self._left = 0
        """How many of it are still to be told."""
        self._waiting: deque[L] = deque()
        """Who may be told, in this order."""
        self._tell_due = 0.0
        self._told: dict[L, None] = {}
        """Who was told and may still be here."""
        self._to_close: deque[tuple[float, L]] = deque()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(keep_going(self._run, log=_log), name="shedding")

    async def stop(self) -> None:
        """End; who was told is left to whoever ends it all."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def changed(self) -> None:
        """There may be another order."""
        self._wake.set()

    def following(self) -> int:
        """How many were told and are still here."""
        return sum(one.is_open for one in self._told)

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._orders.shed is not None or self._to_close:
                self._take_order()
                await self._tell_some()
                await self._close_due()
                if self._order is not None and not self._left and not self._to_close:
                    _log.info("shed_carried_out", id=self._order.id, asked=self._order.connections)
                    self._orders.shed_done(self._order.id)
                    self._order = None
                else:
                    await self._rest()

    def _take_order(self) -> None:
        """Another order takes the place of the rest of the one before."""
        if self._holds():
            return
        self._order = order = self._orders.shed
        self._left = order.connections if order is not None else 0
        self._waiting = deque(self._candidates() if self._left else ())

    async def _tell_some(self) -> None:
        now = self._loop.time()
        if not self._left or now < self._tell_due:
            return
        self._tell_due = now + STEP_SECONDS
        chosen = self._next(min(self._left, MOST_IN_A_STEP))
        granted = await self._budget.take(len(chosen)) if chosen else 0
        if not self._holds():
            return  # none of them was told
        self._waiting.extendleft(reversed(chosen[granted:]))
        self._tell(chosen[:granted])
        # where nobody is left who could go, that was all of it
        self._left = self._left - granted if self._waiting else 0

    def _holds(self) -> bool:
        """Whether what is being carried out is wanted still. Sent again by a later reign, it is the same."""
        order = self._orders.shed
        return order is not None and self._order is not None and order.id == self._order.id

    def _next(self, most: int) -> list[L]:
        found: list[L] = []
        while self._waiting and len(found) < most:
            one = self._waiting.popleft()
            if one.is_open and one not in self._told and self._may_go(one):
                found.append(one)
        return found

    def _tell(self, chosen: list[L]) -> None:
        now = self._loop.time()
        for number, one in enumerate(chosen):
            after = STEP_SECONDS * number / len(chosen)
            one.tell(Migrate(after=round(after, 3), reason="rebalancing"))
            self._metrics.migrate_hints.add("rebalancing")
            self._told[one] = None
            self._to_close.append((now + after + FOLLOW_SECONDS, one))

    async def _close_due(self) -> None:
        if not self._to_close or self._to_close[0][0] > self._loop.time():
            return
        await self._settle()
        now = self._loop.time()
        while self._to_close and self._to_close[0][0] <= now:
            _, one = self._to_close.popleft()
            self._told.pop(one, None)
            one.close_with(1012, REASON)

    async def _rest(self) -> None:
        until = self._tell_due if self._left else self._loop.time() + STEP_SECONDS
        if self._to_close:
            until = min(until, self._to_close[0][0])
        await asyncio.sleep(max(0.0, until - self._loop.time()))
