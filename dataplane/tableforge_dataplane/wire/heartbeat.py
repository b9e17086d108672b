"""Finds connections whose other end is gone: one task for all of them, not one each."""

import asyncio
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
        # all waits are equally long and each begins now, so both are in the order of time
        self._to_ping: dict[Connection, float] = {}
        self._to_judge: dict[Connection, tuple[float, int]] = {}
        self._loop = asyncio.get_running_loop()
        self._stood_still = 0.0
        """For how long the loop did not go on: pongs that came meanwhile are not read yet when it does."""
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
        self._to_ping[connection] = self._loop.time() + self._interval

    def remove(self, connection: Connection) -> None:
        """It is gone: nothing is kept of it, however many come and go within an interval."""
        self._to_ping.pop(connection, None)
        self._to_judge.pop(connection, None)

    async def _run(self) -> None:
        pause = min(LOOK_EVERY_SECONDS, self._timeout / 2)
        while True:
            due = self._loop.time() + pause
            await asyncio.sleep(pause)
            now = self._loop.time()
            self._stood_still += max(0.0, now - due)
            gone_on = now - self._stood_still
            while (judged := next(iter(self._to_judge.items()), None)) and judged[1][0] <= gone_on:
                connection, (_, buffered) = judged
                del self._to_judge[connection]
                self._judge(connection, buffered, gone_on)
            # judged first: where both waits are equally long, a ping would make it look unheard
            while (pinged := next(iter(self._to_ping.items()), None)) and pinged[1] <= now:
                connection, _ = pinged
                del self._to_ping[connection]
                if not _is_open(connection):
                    continue
                # from now on, not from the pong: an interval is what a client is told
                self._to_ping[connection] = now + self._interval
                if connection.heard:
                    self._to_judge.pop(connection, None)  # its wait, longer than the interval, is over early
                if connection not in self._to_judge:
                    connection.ping_now()
                    self._to_judge[connection] = (gone_on + self._timeout, connection.buffered_bytes())

    def _judge(self, connection: Connection, buffered: int, gone_on: float) -> None:
        if not _is_open(connection) or connection.heard:
            return
        if connection.buffered_bytes() < buffered:
            self._to_judge[connection] = (gone_on + self._timeout, connection.buffered_bytes())
        else:
            connection.fail(CloseCode.INTERNAL_ERROR, "keepalive ping timeout")


def _is_open(connection: Connection) -> bool:
    return connection.session is not None and not connection.session.closed
