"""Finds connections whose other end is gone: one task for all of them, not one each."""

import asyncio
from collections import deque
from typing import Final

from websockets.frames import CloseCode

from tableforge_dataplane.wire.connection import Connection

LOOK_EVERY_SECONDS: Final = 0.25


class Heartbeat:
    """Pings every connection once an interval and breaks off those from which nothing comes back.

    A client that takes a long recovery slowly may have its pong behind a lot of data: as long as its socket
    drains, it lives.
    """

    def __init__(self, *, interval_seconds: float, timeout_seconds: float) -> None:
        self._interval = interval_seconds
        self._timeout = timeout_seconds
        # all waits are equally long, so both queues are in the order of time
        self._to_ping: deque[tuple[float, Connection]] = deque()
        self._to_judge: deque[tuple[float, Connection, int]] = deque()
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._run(), name="heartbeat")

    async def stop(self) -> None:
        """End."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def add(self, connection: Connection) -> None:
        """Watch over `connection` until it is closed."""
        self._to_ping.append((self._loop.time() + self._interval, connection))

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(min(LOOK_EVERY_SECONDS, self._timeout / 2))
            now = self._loop.time()
            while self._to_judge and self._to_judge[0][0] <= now:
                _, connection, buffered = self._to_judge.popleft()
                self._judge(connection, buffered, now)
            while self._to_ping and self._to_ping[0][0] <= now:
                _, connection = self._to_ping.popleft()
                if _is_open(connection):
                    connection.ping_now()
                    self._to_judge.append((now + self._timeout, connection, connection.buffered_bytes()))

    def _judge(self, connection: Connection, buffered: int, now: float) -> None:
        if not _is_open(connection):
            return
        if connection.heard:
            self._to_ping.append((now + self._interval, connection))
        elif connection.buffered_bytes() < buffered:
            self._to_judge.append((now + self._timeout, connection, connection.buffered_bytes()))
        else:
            connection.fail(CloseCode.INTERNAL_ERROR, "keepalive ping timeout")


def _is_open(connection: Connection) -> bool:
    return connection.session is not None and not connection.session.closed
