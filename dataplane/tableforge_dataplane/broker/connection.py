"""One connection to Redis: an asyncio protocol on hiredis's reader, without a future or task per command.

Commands go out as bytes made by `pack`, replies come back in order to one callable. `Link` keeps a connection
alive: it connects again with growing, jittered delays and says each time when it is up and when it is down.
"""

import asyncio
import random
import ssl
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol, cast

import hiredis

from tableforge_dataplane.broker.state import RedisRefusedError, ServerFacts, info_fields, judge
from tableforge_dataplane.contract.settings import RedisSettings
from tableforge_dataplane.observability.lasting import keep_going
from tableforge_dataplane.observability.logging import EventLog
from tableforge_dataplane.topology.client import Locate, PasswordMissingError
from tableforge_dataplane.topology.nodes import (
    CredentialsMissingError,
    Node,
    NodeUnknownError,
    credentials,
    tls_arguments,
)

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


async def connect(
    settings: RedisSettings, *, name: str, node: Node | None = None
) -> tuple[RedisConnection, ServerFacts]:
    """A connection with user, password, database and name set, and what the server says of itself.

    `node`: where; None: at REDIS_HOST. Password and TLS files are read anew each time. Raises
    RedisRefusedError with what is wrong; the whole takes at most `connect_timeout_seconds`.
    """
    node = node or Node(settings.host, settings.port)
    try:
        secrets = credentials(settings.username, settings.password, variable="REDIS_PASSWORD")
    except CredentialsMissingError as error:
        raise RedisRefusedError("PasswordMissing", str(error)) from None
    connection: RedisConnection | None = None
    try:
        async with asyncio.timeout(settings.connect_timeout_seconds):
            loop = asyncio.get_running_loop()
            more = cast("dict[str, Any]", tls_arguments(settings, node.host))
            _, connection = await loop.create_connection(RedisConnection, node.host, node.port, **more)
            if secrets:
                await connection.ask(b"AUTH", *(secret.encode() for secret in secrets))
            if settings.database:
                await connection.ask(b"SELECT", settings.database)
            await connection.ask(b"CLIENT", b"SETNAME", name.encode())
            info = await connection.ask(b"INFO", b"server")
            facts = ServerFacts.of(info)
            refusal = facts.refusal() or _refusal_of_mode(settings, info, node)
            if refusal is not None:
                raise refusal
            if settings.mode == "Sentinel":
                role = await connection.ask(b"ROLE")
                if role[0] != b"master":
                    raise RedisRefusedError(
                        "ReadOnly", f"Redis at {node}, which the sentinels name, is no primary (yet)."
                    )
            return connection, facts
    except BaseException as error:
        if connection is not None:
            connection.abort()
        if isinstance(error, ReplyError):
            raise judge(str(error), where=str(node)) from None
        if isinstance(error, TimeoutError):
            raise RedisRefusedError(
                "Unreachable",
                f"Redis at {node} does not answer within {settings.connect_timeout_seconds:g} s.",
            ) from None
        if isinstance(error, ssl.SSLCertVerificationError):
            raise RedisRefusedError(
                "Unreachable",
                f"Redis at {node} shows a certificate that does not hold ({error.verify_message}): see "
                "TABLEFORGE_REDIS_TLS_CA_FILE and TABLEFORGE_REDIS_TLS_SERVER_NAME.",
            ) from None
        if isinstance(error, ssl.SSLError):
            raise RedisRefusedError(
                "Unreachable",
                f"Redis at {node} and this instance cannot agree on TLS ({error.reason or error}).",
            ) from None
        if isinstance(error, OSError):
            raise RedisRefusedError(
                "Unreachable", f"Redis at {node} cannot be reached: {error.strerror or error}."
            ) from None
        raise


def _refusal_of_mode(settings: RedisSettings, info: bytes, node: Node) -> RedisRefusedError | None:
    fields = info_fields(info)
    clustered = fields.get("redis_mode", fields.get("server_mode")) == "cluster"
    if clustered == (settings.mode == "Cluster"):
        return None
    what = "a node of a Redis Cluster" if clustered else "no node of a Redis Cluster"
    right = "Cluster" if clustered else "Standalone or Sentinel"
    return RedisRefusedError(
        "Unreachable", f"Redis at {node} is {what}: set TABLEFORGE_REDIS_MODE to {right}."
    )


class LinkUser(Protocol):
    """What a link carries replies for."""

    async def on_up(self, connection: RedisConnection, facts: ServerFacts) -> None:
        """The connection stands. Raises what `ask` raises, and RedisRefusedError where it cannot be used."""

    def on_down(self) -> None:
        """The connection is gone."""


class Link:
    """Keeps one connection to Redis for one user, for as long as it is not stopped."""

    def __init__(
        self, settings: RedisSettings, *, name: str, user: LinkUser, locate: Locate | None = None
    ) -> None:
        """`locate` is asked before each connect; None: always REDIS_HOST."""
        self._settings = settings
        self._name = name
        self._user = user
        self._locate = locate
        self._task: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()
        self.up = False
        self.problem: RedisRefusedError | None = None
        """Why it is not up; None before the first attempt ended and while it is up."""
        self.facts: ServerFacts | None = None
        """What the server last said of itself."""
        self.node: Node | None = None
        """Where it is connected to, or was last."""
        self.changed: Callable[[], None] = _nothing
        """Called after `up` or `problem` changed."""
        self.connection: RedisConnection | None = None

    def start(self) -> None:
        """Begin to connect."""
        self._task = asyncio.create_task(keep_going(self._run, log=_log), name=f"redis-{self._name}")

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
        first = self._settings.retry_delay_on_failover_seconds
        delay = first
        while True:
            try:
                await self._connected_once()
                delay = first
            except RedisRefusedError as problem:
                self._set(problem)
            self._hurry.clear()
            try:
                async with asyncio.timeout(random.uniform(delay / 2, delay)):  # noqa: S311
                    await self._hurry.wait()
            except TimeoutError:
                delay = max(first, min(delay * 2, LONGEST_RETRY_SECONDS))

    async def _connected_once(self) -> None:
        """Raises RedisRefusedError where no connection came about."""
        where = await self._located()
        connection, facts = await connect(self._settings, name=f"tableforge-{self._name}", node=where)
        self.node = where
        try:
            try:
                async with asyncio.timeout(self._settings.connect_timeout_seconds):
                    await self._user.on_up(connection, facts)
            except ReplyError as error:
                raise judge(str(error), where=str(where)) from None
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

    async def _located(self) -> Node:
        if self._locate is None:
            return Node(self._settings.host, self._settings.port)
        try:
            return await self._locate()
        except NodeUnknownError as error:
            raise RedisRefusedError("Unreachable", f"Redis is not to be found: {error}.") from None
        except PasswordMissingError as error:
            raise RedisRefusedError("PasswordMissing", str(error)) from None

    def _set(self, problem: RedisRefusedError) -> None:
        self.up, self.problem = False, problem
        self.changed()
