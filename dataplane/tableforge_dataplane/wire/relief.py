"""What an instance under pressure does about it: warn, take nobody new, close the slowest; never die.

It is no matter of readiness: pods that are not ready lose more than new connections.
"""

import asyncio
import ctypes
import gc
import heapq
from collections.abc import Callable, Collection
from typing import Final

from tableforge_dataplane.contract.settings import MonitoringSettings
from tableforge_dataplane.observability.logging import EventLog
from tableforge_dataplane.observability.metrics import Metrics, resident_memory_bytes
from tableforge_dataplane.observability.pressure import Lag, Pressure, Stage, Verdict
from tableforge_dataplane.wire.connection import Connection
from tableforge_dataplane.wire.leaving import Budget

LOOK_EVERY_SECONDS: Final = 0.25

SHED_SHARE: Final = 0.01
MOST_SHED: Final = 50
"""How many connections are closed in a second at most: that share of all, at least one, and never more."""

SLOW_BYTES: Final = 16_384
"""Who has less than this waiting is no slow consumer."""

_log = EventLog("relief")


class Relief:
    """Looks at the figures and acts, from `start()` to `stop()`."""

    def __init__(
        self,
        settings: MonitoringSettings,
        *,
        connections: Collection[Connection],
        budget: Budget,
        metrics: Metrics,
        memory: Callable[[], int] = resident_memory_bytes,
    ) -> None:
        """`connections` changes as they come and go."""
        self._connections = connections
        self._budget = budget
        self._metrics = metrics
        self._memory = memory
        self._lag = Lag()
        self._loop = asyncio.get_running_loop()
        self._verdict = Verdict(Stage.CALM, "memory")
        self._acted_at = 0.0
        self._task: asyncio.Task[None] | None = None
        self.renew(settings)

    def renew(self, settings: MonitoringSettings) -> None:
        """Judge by these thresholds from now on."""
        self._pressure = Pressure(settings)
        self._metrics.memory_threshold_bytes = self._pressure.threshold_bytes

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._run(), name="relief")

    async def stop(self) -> None:
        """End."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        due = self._loop.time() + LOOK_EVERY_SECONDS
        while True:
            await asyncio.sleep(max(0.0, due - self._loop.time()))
            now = self._loop.time()
            late = max(0.0, now - due)
            due = now + LOOK_EVERY_SECONDS
            self._metrics.loop_lag.observe(late)
            await self._look(late, now)

    async def _look(self, late: float, now: float) -> None:
        lag = self._metrics.loop_lag_seconds = self._lag.add(late, now)
        memory = self._memory()
        verdict = self._pressure.judge(memory_bytes=memory, lag_seconds=lag, now=now)
        before, self._verdict = self._verdict, verdict
        self._metrics.pressure = int(verdict.stage)
        if verdict.stage != before.stage:
            write = _log.warning if verdict.stage > Stage.CALM else _log.info
            write(
                "pressure",
                stage=verdict.stage.name.lower(),
                reason=verdict.reason if verdict.stage else before.reason,
                memory_bytes=memory,
                threshold_bytes=self._pressure.threshold_bytes,
                lag_seconds=round(lag, 3),
            )
        if verdict.stage >= Stage.REFUSE and (
            now - self._acted_at >= 1.0 or verdict.stage > before.stage  # the worse stage waits for nothing
        ):
            self._acted_at = now
            if verdict.reason == "memory":
                # what ended connections left behind goes before anybody is closed for it
                gc.collect()
                await asyncio.to_thread(_give_back)
                if self._memory() < self._pressure.shed_bytes:
                    return
            if verdict.stage is Stage.SHED and verdict.too_much_now:
                await self._shed(verdict.reason)

    async def _shed(self, reason: str) -> None:
        """Close the slowest; where nobody is slow, some, who are served better elsewhere."""
        count = min(MOST_SHED, max(1, round(len(self._connections) * SHED_SHARE)))
        slowest = heapq.nlargest(
            count,
            ((one.buffered_bytes(), number, one) for number, one in enumerate(self._connections)),
        )
        slow = [one for waiting, _, one in slowest if waiting >= SLOW_BYTES and one.is_open]
        if slow:
            for connection in slow:
                connection.too_slow()
            chosen = len(slow)
        else:
            others = [one for _, _, one in slowest if one.is_open]
            chosen = await self._budget.take(len(others))
            for connection in others[:chosen]:
                connection.close_with(1013, "overloaded")
        if chosen:
            self._metrics.connections_shed.add(reason, chosen)
            _log.warning("shed", connections=chosen, slow=bool(slow), reason=reason)


def _give_back() -> None:
    """What was freed goes back to the system only when it is asked for; else the figure would never fall."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc's
        trim(0)
