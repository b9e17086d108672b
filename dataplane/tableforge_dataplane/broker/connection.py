"""One connection to Redis: an asyncio protocol on hiredis's reader, without a future or task per command.

Commands go out as bytes made by `pack`, replies come back in order to one callable. `Link` keeps a connection
alive: it connects again with growing, jittered delays and says each time when it is up and when it is down.
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol, cast

import hiredis

from tableforge_dataplane.broker.state import RedisRefusedError, ServerFacts, judge
from tableforge_dataplane.contract.settings import RedisSettings
from tableforge_dataplane.observability.logging import EventLog

FIRST_RETRY_SECONDS: Final = 0.05
LONGEST_RETRY_SECONDS: Final = 2.0

_log = EventLog("broker")

Reply = Any
"""What hiredis makes of a reply: bytes, int, list, None or a `hiredis.ReplyError`."""

ReplyError: Final = cast("type[Exception]", hiredis.ReplyError)


def pack(*parts: bytes | int) -> bytes:
    """A command as RESP, ready to be written."""
    out = [b"*%d\r\n" % len(parts)]
    for part in parts:
        data = b"%d" % part if isinstance(part, int) else part
        out.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(out)


class RedisConnection(asyncio.Protocol):
    """A connection that is set up by asking and answering, and then hands every reply to `receive`."""

    def __init__(self) -> None:
        self._reader = hiredis.Reader()
        self._asked: deque[asyncio.Future[Reply]] = deque()
        self.receive: Callable[[Reply], None] = self._answer
        """Called with each reply, in order."""
        self.after_replies: Callable[[], None] = _nothing
        """Called once after all replies of one read."""
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done once the connection is gone."""
        self.last_reply_at = asyncio.get_running_loop().time()
        self._transport: asyncio.Transport | None = None
        self.write: Callable[[bytes], None] = _discard

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """From the event loop."""
        self._transport = cast("asyncio.Transport", transport)
        self.write = self._transport.write

    def data_received(self, data: bytes) -> None:
        """From the event loop."""
        reader = self._reader
        reader.feed(data)
        receive = self.receive
        try:
            while (reply := reader.gets()) is not False:
                receive(reply)
        except hiredis.ProtocolError as error:
            _log.error("redis_protocol_error", error)
            self.abort()
            return
        self.last_reply_at = asyncio.get_running_loop().time()
        self.after_replies()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """From the event loop."""
        self.write = _discard
        for future in self._asked:
            if not future.done():
                future.set_exception(ConnectionResetError("the connection to Redis was lost"))
        self._asked.clear()
        if not self.lost.done():
            self.lost.set_result(None)

    def abort(self) -> None:
        """Drop the connection now; `lost` follows."""
        if self._transport is not None:
            self._transport.abort()

    async def ask(self, *parts: bytes | int) -> Reply:
        """One command and its reply; only while `receive` has not been replaced.

        Raises the ReplyError that Redis answers, and ConnectionResetError.
        """
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._asked.append(future)
        self.write(pack(*parts))
        reply = await future
        if isinstance(reply, ReplyError):
            raise reply
        return reply

    def _answer(self, reply: Reply) -> None:
        if self._asked:
            future = self._asked.popleft()
            if not future.done():
                future.set_result(reply)


def _nothing() -> None:
    return None


def _discard(_data: bytes) -> None:
    return None


async def connect(settings: RedisSettings, *, name: str) -> tuple[RedisConnection, ServerFacts]:
    """A connection with password, database and name set, and what the server says of itself.

    The password file is read anew each time. Raises RedisRefusedError with what is wrong; the whole takes at
    most `connect_timeout_seconds`.
    """
    password = settings.password.read() if settings.password.configured else None
    if password is None and settings.password.file is not None:
        raise RedisRefusedError(
            "PasswordMissing",
            f"REDIS_PASSWORD_FILE={settings.password.file} is not there or empty: "
            "create the Secret it comes from.",
        )
    where = f"{settings.host}:{settings.port}"
    connection: RedisConnection | None = None
    try:
        async with asyncio.timeout(settings.connect_timeout_seconds):
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(RedisConnection, settings.host, settings.port)
            if password is not None:
                await connection.ask(b"AUTH", password.encode())
            if settings.database:
                await connection.ask(b"SELECT", settings.database)
            await connection.ask(b"CLIENT", b"SETNAME", name.encode())
            facts = ServerFacts.of(await connection.ask(b"INFO", b"server"))
            refusal = facts.refusal()
            if refusal is not None:
                raise refusal
            return connection, facts
    except BaseException as error:
        if connection is not None:
            connection.abort()
        if isinstance(error, ReplyError):
            raise judge(str(error), where=where) from None
        if isinstance(error, TimeoutError):
            raise RedisRefusedError(
                "Unreachable",
                f"Redis at {where} does not answer within {settings.connect_timeout_seconds:g} s.",
            ) from None
        if isinstance(error, OSError):
            raise RedisRefusedError(
                "Unreachable", f"Redis at {where} cannot be reached: {error.strerror or error}."
            ) from None
        raise


class LinkUser(Protocol):
    """What a link carries replies for."""

    async def on_up(self, connection: RedisConnection, facts: ServerFacts) -> None:
        """The connection stands. Raises what `ask` raises, and RedisRefusedError where it cannot be used."""

    def on_down(self) -> None:
        """The connection is gone."""


class Link:
    """Keeps one connection to Redis for one user, for as long as it is not stopped."""

    def __init__(self, settings: RedisSettings, *, name: str, user: LinkUser) -> None:
        self._settings = settings
        self._name = name
        self._user = user
        self._task: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()
        self.up = False
        self.problem: RedisRefusedError | None = None
        """Why it is not up; None before the first attempt ended and while it is up."""
        self.facts: ServerFacts | None = None
        """What the server last said of itself."""
        self.changed: Callable[[], None] = _nothing
        """Called after `up` or `problem` changed."""
        self.connection: RedisConnection | None = None

    def start(self) -> None:
        """Begin to connect."""
        self._task = asyncio.create_task(self._run(), name=f"redis-{self._name}")

    async def stop(self) -> None:
        """Drop the connection for good."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def abort(self) -> None:
        """Drop the connection; a new one follows."""
        if self.connection is not None:
            self.connection.abort()

    def hurry(self) -> None:
        """Another link has just got through: don't wait out the delay."""
        self._hurry.set()

    async def _run(self) -> None:
        delay = FIRST_RETRY_SECONDS
        while True:
            try:
                await self._connected_once()
                delay = FIRST_RETRY_SECONDS
            except RedisRefusedError as problem:
                self._set(problem)
            self._hurry.clear()
            try:
                async with asyncio.timeout(random.uniform(delay / 2, delay)):  # noqa: S311
                    await self._hurry.wait()
            except TimeoutError:
                delay = min(delay * 2, LONGEST_RETRY_SECONDS)

    async def _connected_once(self) -> None:
        """Raises RedisRefusedError where no connection came about."""
        where = f"{self._settings.host}:{self._settings.port}"
        connection, facts = await connect(self._settings, name=f"tableforge-{self._name}")
        try:
            try:
                async with asyncio.timeout(self._settings.connect_timeout_seconds):
                    await self._user.on_up(connection, facts)
            except ReplyError as error:
                raise judge(str(error), where=where) from None
            except (OSError, TimeoutError) as error:
                raise RedisRefusedError("Unreachable", f"Redis at {where} went away: {error}.") from None
            self.connection, self.facts = connection, facts
            self.up, self.problem = True, None
            self.changed()
            await connection.lost
        finally:
            connection.abort()
            if self.connection is connection:
                self.connection = None
                self.up = False
                self._user.on_down()
        self._set(RedisRefusedError("Unreachable", f"Redis at {where} closed the connection."))

    def _set(self, problem: RedisRefusedError) -> None:
        self.up, self.problem = False, problem
        self.changed()
