"""Reading rooms back from Redis: where a room stands, and what its log holds after a position."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import msgspec

from tableforge_dataplane.broker.addresses import RoomAddress
from tableforge_dataplane.broker.connection import RedisConnection, Reply, ReplyError, pack
from tableforge_dataplane.broker.entries import Entry, MalformedEntryError, Position, from_log
from tableforge_dataplane.broker.publisher import new_tag
from tableforge_dataplane.broker.scripts import JOIN
from tableforge_dataplane.broker.state import ServerFacts
from tableforge_dataplane.contract.settings import RoomSettings
from tableforge_dataplane.observability.logging import EventLog

COMMANDS_WAITING: Final = 100_000
"""More than that waiting for a connection would be a mistake, not a load: rooms with members times three."""

_log = EventLog("recovery")

Callback = Callable[[Any], None]
"""Gets what was asked for, or None where it did not come: the connection was lost or Redis refused."""


class LogPage(msgspec.Struct, frozen=True):
    """What one read found."""

    head: Position | None
    """The newest message's position; None where the room has no meta."""
    entries: list[Entry]
    """In order."""


class Commands:
    """Commands with callbacks, pipelined on one connection. A `LinkUser`. Not for the hot path."""

    def __init__(self) -> None:
        self._connection: RedisConnection | None = None
        self._expected: deque[Callback] = deque()
        self._out: list[bytes] = []

    @property
    def connected(self) -> bool:
        """Whether commands are taken at the moment."""
        return self._connection is not None

    def send(self, packed: bytes, callback: Callback) -> None:
        """`callback` gets the reply (a ReplyError too), or None once the connection is gone."""
        if self._connection is None or len(self._expected) >= COMMANDS_WAITING:
            callback(None)
            return
        self._expected.append(callback)
        if not self._out:
            asyncio.get_running_loop().call_soon(self._write)
        self._out.append(packed)

    async def on_up(self, connection: RedisConnection, facts: ServerFacts) -> None:  # noqa: ARG002
        """From the link."""
        await connection.ask(b"SCRIPT", b"LOAD", JOIN.text)
        connection.receive = self._on_reply
        self._connection = connection

    def on_down(self) -> None:
        """From the link."""
        self._connection = None
        self._out.clear()
        expected, self._expected = self._expected, deque()
        for callback in expected:
            callback(None)

    def _write(self) -> None:
        if self._connection is not None and self._out:
            self._connection.write(b"".join(self._out))
        self._out.clear()

    def _on_reply(self, reply: Reply) -> None:
        self._expected.popleft()(reply)


class LogReader:
    """What the hub asks of rooms' keys."""

    def __init__(self, commands: Commands, rooms: RoomSettings) -> None:
        self._commands = commands
        self._max_age_ms = int(rooms.log_max_age_seconds * 1000)

    @property
    def connected(self) -> bool:
        """Whether reads are answered at the moment."""
        return self._commands.connected

    def join(self, address: RoomAddress, callback: Callable[[Position | None], None]) -> None:
        """Where the room stands; a room without a position gets one."""
        arguments = (2, address.meta, address.log, new_tag(), self._max_age_ms)

        def again(reply: Reply) -> None:
            callback(_position(reply))

        def first(reply: Reply) -> None:
            if isinstance(reply, ReplyError) and str(reply).startswith("NOSCRIPT"):
                self._commands.send(pack(b"EVAL", JOIN.text, *arguments), again)
                return
            callback(_position(reply))

        self._commands.send(pack(b"EVALSHA", JOIN.sha, *arguments), first)

    def read(
        self,
        address: RoomAddress,
        *,
        first_seq: int,
        count: int,
        callback: Callable[[LogPage | None], None],
        last_seq: int | None = None,
    ) -> None:
        """The room's newest position and up to `count` entries from `first_seq` on, up to `last_seq`."""
        head: list[Position | None] = []

        def on_head(reply: Reply) -> None:
            if isinstance(reply, list):
                head.append(_position(reply))

        def on_entries(reply: Reply) -> None:
            if not head or not isinstance(reply, list):
                _report(reply)
                callback(None)
                return
            try:
                entries = [from_log(item) for item in reply]
            except MalformedEntryError as error:
                _log.error("log_malformed", error, room=address.room)
                callback(None)
                return
            callback(LogPage(head=head[0], entries=entries))

        # the head first: what is stored in between is in the entries and not in the head, never the reverse
        self._commands.send(pack(b"HMGET", address.meta, b"s", b"t"), on_head)
        end = b"+" if last_seq is None else b"%d" % last_seq
        self._commands.send(pack(b"XRANGE", address.log, b"%d" % first_seq, end, b"COUNT", count), on_entries)

    def head(self, address: RoomAddress, callback: Callable[[Position | bool | None], None]) -> None:
        """The newest position; False where the room has no meta, None where there was no answer."""

        def on_head(reply: Reply) -> None:
            if isinstance(reply, list):
                callback(_position(reply) or False)
            else:
                _report(reply)
                callback(None)

        self._commands.send(pack(b"HMGET", address.meta, b"s", b"t"), on_head)

    def keep(self, address: RoomAddress) -> None:
        """Begin both keys' lifetimes anew: a quiet room with members must not expire under them."""
        lifetime = self._max_age_ms * 9 // 8
        self._commands.send(pack(b"PEXPIRE", address.meta, lifetime), _report)
        self._commands.send(pack(b"PEXPIRE", address.log, lifetime), _report)


def _position(reply: Reply) -> Position | None:
    if not isinstance(reply, list) or len(reply) != 2 or reply[0] is None:
        _report(reply)
        return None
    seq, tag = reply
    return Position(int(seq), tag)


def _report(reply: Reply) -> None:
    if isinstance(reply, ReplyError):
        _log.warning("redis_refused_read", reply=str(reply))
