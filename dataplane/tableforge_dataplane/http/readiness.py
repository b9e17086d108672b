"""When an instance starts, whether it is ready, and what it says of its health.

The clients' port and the internal one have the same pages about it. Probes ask the internal port: it knows
neither TLS nor the header that a balancer in front of the other may have to send.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final, Literal, NamedTuple

import msgspec

from tableforge_dataplane.contract.endpoints import HEALTH_PATH, LIVE_PATH, READY_PATH
from tableforge_dataplane.contract.fleet import Health, RedisState
from tableforge_dataplane.observability.logging import EventLog
from tableforge_dataplane.observability.metrics import Metrics
from tableforge_dataplane.registry.registry import ThisInstance

LOOK_EVERY_SECONDS: Final = 0.25
"""How often an instance that waits looks whether what it waits for is there."""

USUAL_SECONDS: Final = 1.0
"""A start takes no longer where nothing is missing: until then it looks more often and says nothing."""

LOOK_AT_FIRST_EVERY_SECONDS: Final = 0.02

JSON: Final = "application/json"
TEXT: Final = "text/plain; charset=utf-8"

_log = EventLog("readiness")

Condition = Callable[[], str | None]
"""What an instance needs before it starts: None where it is there, else a sentence on what to create."""


class Readiness:
    """Started once and not draining: what `/ready` answers.

    It is no load signal. Redis that goes away after the start, a key that is deleted, a full instance: all
    that is answered at the handshake, because pods that are not ready lose more than new connections.
    """

    def __init__(self, conditions: Sequence[Condition]) -> None:
        self._conditions = tuple(conditions)
        self._started = False
        self._draining = False

    @property
    def started(self) -> bool:
        """Whether everything it needs was there at once, some time since the start."""
        return self._started

    @property
    def draining(self) -> bool:
        """Whether it is leaving."""
        return self._draining

    @property
    def ready(self) -> bool:
        """Whether new clients should be sent here."""
        return self._started and not self._draining

    def waiting_for(self) -> list[str]:
        """What keeps the instance from starting, a sentence each; empty once it has started."""
        return [] if self._started else self.missing()

    def missing(self) -> list[str]:
        """What it needs and hasn't now, a sentence each, whether it has started or not."""
        return [sentence for condition in self._conditions if (sentence := condition()) is not None]

    def drain(self) -> None:
        """From now on it is not ready, for good."""
        self._draining = True

    async def start(self) -> None:
        """Wait until everything is there. Says what is missing whenever that changes."""
        began = time.monotonic()
        told: list[str] = []
        while waiting := self.waiting_for():
            if time.monotonic() - began < USUAL_SECONDS:
                await asyncio.sleep(LOOK_AT_FIRST_EVERY_SECONDS)
                continue
            if waiting != told:
                _log.warning("waiting", waiting_for=waiting)
                told = waiting
            await asyncio.sleep(LOOK_EVERY_SECONDS)
        self._started = True
        _log.info("started")


def redis_condition(state: Callable[[], RedisState]) -> Condition:
    """Redis must answer, let the instance in and be able to give the durability that was asked for."""

    def condition() -> str | None:
        current = state()
        return None if current.connected else current.message

    return condition


class Page(NamedTuple):
    """What is answered to a GET."""

    status: int
    content_type: str
    body: bytes


class InstanceHealth:
    """Puts together what `/health` says."""

    def __init__(
        self,
        *,
        this: ThisInstance,
        readiness: Readiness,
        metrics: Metrics,
        redis_state: Callable[[], RedisState],
        problems: Callable[[], list[str]] = list,
    ) -> None:
        """`problems`: sentences on what is amiss, in whatever state it is."""
        self._this = this
        self._readiness = readiness
        self._metrics = metrics
        self._redis_state = redis_state
        self._problems = problems
        self._born = time.monotonic()

    @property
    def readiness(self) -> Readiness:
        """What `/ready` goes by."""
        return self._readiness

    def report(self) -> Health:
        """How the instance is now (a few µs; nothing is asked of anybody)."""
        readiness, redis = self._readiness, self._redis_state()
        status: Literal["healthy", "degraded", "starting", "draining"]
        if readiness.draining:
            status = "draining"
        elif not readiness.started:
            status = "starting"
        else:
            well = redis.reason == "Connected" and not readiness.missing()
            status = "healthy" if well else "degraded"
        return Health(
            status=status,
            instance=self._this.instance,
            version=self._this.version,
            ready=readiness.ready,
            waiting_for=readiness.waiting_for(),
            redis=redis,
            connections=self._metrics.connections,
            rooms=self._metrics.rooms,
            circuit_breakers=dict(self._metrics.breakers),
            problems=self._problems() if readiness.started else [],
            uptime_seconds=round(time.monotonic() - self._born, 3),
        )

    def page(self, path: str) -> Page | None:
        """`/live`, `/ready` or `/health`; None for anything else."""
        if path == LIVE_PATH:
            return Page(200, TEXT, b"alive\n")
        if path == READY_PATH:
            return self._ready()
        if path == HEALTH_PATH:
            report = self.report()
            return Page(200 if report.status == "healthy" else 503, JSON, msgspec.json.encode(report))
        return None

    def _ready(self) -> Page:
        readiness = self._readiness
        if readiness.ready:
            return Page(200, TEXT, b"ready\n")
        if readiness.draining:
            return Page(503, TEXT, b"draining\n")
        return Page(503, TEXT, "\n".join(["starting", *readiness.waiting_for(), ""]).encode())
