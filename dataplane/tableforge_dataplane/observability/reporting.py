"""What an instance writes about itself from time to time: its numbers, and when its health changes."""

import asyncio
from collections.abc import Callable
from typing import Final

from tableforge_dataplane.contract.fleet import Health
from tableforge_dataplane.contract.settings import MonitoringSettings
from tableforge_dataplane.observability.logging import EventLog
from tableforge_dataplane.observability.metrics import Metrics, resident_memory_bytes

_log: Final = EventLog("reporting")


class Reporter:
    """Writes into the log from `start()` to `stop()`."""

    def __init__(
        self, settings: MonitoringSettings, *, metrics: Metrics, health: Callable[[], Health]
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._health = health
        self._before: tuple[str, list[str]] = ("starting", [])
        """Status and problems when it last looked."""
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin."""
        self._tasks = [asyncio.create_task(self._watch_health(), name="report-health")]
        if self._settings.metrics_interval_seconds > 0:
            self._tasks.append(asyncio.create_task(self._write_numbers(), name="report-numbers"))

    def renew(self, settings: MonitoringSettings) -> None:
        """Write as often as these settings say from now on."""
        if settings == self._settings:
            return
        self._settings = settings
        if self._tasks:
            # an interval may be an hour: the new one doesn't wait for the end of the old one
            for task in self._tasks:
                task.cancel()
            self.start()

    async def stop(self) -> None:
        """End."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _write_numbers(self) -> None:
        metrics = self._metrics
        while True:
            await asyncio.sleep(self._settings.metrics_interval_seconds)
            _log.info(
                "numbers",
                connections=metrics.connections,
                rooms=metrics.rooms,
                messages_received=metrics.messages_received.total,
                messages_sent=metrics.messages_sent.total,
                publish_queue_depth=metrics.publish_queue_depth,
                slow_consumers=metrics.slow_consumers,
                memory_bytes=resident_memory_bytes(),
                loop_lag_seconds=round(metrics.loop_lag_seconds, 4),
            )

    async def _watch_health(self) -> None:
        while True:
            await asyncio.sleep(self._settings.health_check_interval_seconds)
            before, problems = self._before
            health = self._health()
            if health.status != before or health.problems != problems:
                good = health.status in ("healthy", "draining") and not health.problems
                write = _log.info if good else _log.warning
                more = {"problems": health.problems} if health.problems else {}
                write("health", status=health.status, was=before, redis=health.redis.reason, **more)
            self._before = (health.status, health.problems)
