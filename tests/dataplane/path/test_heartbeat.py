"""How often connections are pinged, and that who answers stays."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from websockets.frames import Frame, Opcode

from tableforge_dataplane.wire import heartbeat
from tableforge_dataplane.wire.connection import Connection
from tableforge_dataplane.wire.heartbeat import LOOK_EVERY_SECONDS, Heartbeat
from tests.dataplane.path.instances import Instances, Peers, until
from tests.support.redis import RedisServer


async def test_who_answers_stays(redis_server: RedisServer, instances: Instances, peers: Peers) -> None:
    (one,) = await instances(
        redis_server, websocket={"ping_interval_seconds": 0.4, "pong_timeout_seconds": 0.4}
    )
    ada = await peers(one)
    pinged = 0
    take = ada.socket.process_event

    def process_event(event: Any) -> None:
        nonlocal pinged
        pinged += isinstance(event, Frame) and event.opcode is Opcode.PING
        take(event)

    ada.socket.process_event = process_event  # type: ignore[method-assign]
    await until(lambda: pinged == 5)
    await ada.silent()
    assert one.metrics.connections == 1


class Other:
    """A connection whose other end, in the same loop, answers each ping as soon as it reads it."""

    def __init__(self) -> None:
        self._here, self._there = socket.socketpair()
        self.session = SimpleNamespace(closed=False)
        self.heard = self.broken = False
        self.pings = 0
        self.stands_still_seconds = 0.0
        """For so long the loop does not go on between a ping and its pong."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._there, self._on_ping)
        self._loop.add_reader(self._here, self._on_pong)

    def ping_now(self) -> None:
        self.heard = False
        self.pings += 1
        self._here.send(b"ping")

    def buffered_bytes(self) -> int:
        return 0

    def fail(self, _code: int, _reason: str) -> None:
        self.broken = True

    def close(self) -> None:
        for end in (self._here, self._there):
            self._loop.remove_reader(end)
            end.close()

    def _on_ping(self) -> None:
        self._there.recv(100)
        time.sleep(self.stands_still_seconds)
        self._there.send(b"pong")

    def _on_pong(self) -> None:
        self._here.recv(100)
        self.heard = True


@pytest.fixture
async def other() -> AsyncIterator[Other]:
    made = Other()
    yield made
    made.close()


class Clock:
    """In the place of the loop and of `asyncio`: who sleeps does so at once, and only that takes time."""

    create_task, gather = staticmethod(asyncio.create_task), staticmethod(asyncio.gather)

    def __init__(self, late: float) -> None:
        self.now = 100.0
        self._late = late
        """Seconds that every sleep takes longer than it should."""

    def get_running_loop(self) -> "Clock":
        return self

    def time(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds + self._late
        for _ in range(5):  # a pong that is there is read meanwhile
            await asyncio.sleep(0)


@pytest.mark.parametrize(("timeout", "late"), [(0.1, 0.0), (0.4, 0.0), (0.4, 0.02), (0.9, 0.0)])
async def test_pings_come_once_an_interval_however_long_a_pong_may_take(
    other: Other, monkeypatch: pytest.MonkeyPatch, timeout: float, late: float
) -> None:
    clock = Clock(late)
    monkeypatch.setattr(heartbeat, "asyncio", clock)
    pinged_at: list[float] = []
    ping = other.ping_now

    def ping_now() -> None:
        pinged_at.append(clock.now)
        ping()

    monkeypatch.setattr(other, "ping_now", ping_now)
    beats = Heartbeat(interval_seconds=0.4, timeout_seconds=timeout)
    beats.add(cast("Connection", other))
    beats.start()
    await until(lambda: len(pinged_at) >= 5)
    await beats.stop()
    assert not other.broken
    # on average: it looks four times a second only
    assert 0.4 <= (pinged_at[4] - pinged_at[0]) / 4 < 0.66


async def test_who_answers_once_the_loop_goes_on_that_stood_still_is_heard(other: Other) -> None:
    beats = Heartbeat(interval_seconds=0.1, timeout_seconds=2 * LOOK_EVERY_SECONDS)
    beats.add(cast("Connection", other))
    other.stands_still_seconds = 4 * LOOK_EVERY_SECONDS
    beats.start()
    await until(lambda: other.pings == 3 or other.broken)
    await beats.stop()
    assert not other.broken
