"""Reading rooms back from Redis: where a room stands, and what its log holds after a position."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

import msgspec

from tableforge_dataplane.broker.addresses import RoomAddress
from tableforge_dataplane.broker.connection import RedisConnection, Reply, ReplyError, pack
from tableforge_dataplane.broker.entries import Entry, MalformedEntryError, Position, from_log
from tableforge_dataplane.broker.publications import new_tag
from tableforge_dataplane.broker.scripts import JOIN, RECEIVED
from tableforge_dataplane.broker.state import ServerFacts, refusal_in
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


class Marker(msgspec.Struct, frozen=True):
    """Where a device without a position of its own goes on in its user's personal log."""

    received: Position | None
    """The newest message that was handled on any device; None where none was."""
    beginning: Position
    """The predecessor of the oldest message that the log holds."""


class Commands:
    """Commands with callbacks, pipelined on one connection. A `LinkUser`. Not for the hot path."""

    def __init__(self) -> None:
        self._connection: RedisConnection | None = None
        self._expected: deque[Callback] = deque()
        self._out: list[bytes] = []
        self.on_error: Callable[[str], None] = _ignore
        """Called with the text of each error reply, before whoever asked has it."""

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

    def send_asking(self, packed: bytes, callback: Callback) -> None:
        """The same at a shard that is about to get the command's slot."""
        self.send(pack(b"ASKING"), _ignore)
        self.send(packed, callback)

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
            try:
                callback(None)
            except Exception as error:  # noqa: BLE001  (or those after it would never hear)
                _log.error("callback_failed", error)

    def _write(self) -> None:
        if self._connection is not None and self._out:
            self._connection.write(b"".join(self._out))
        self._out.clear()

    def _on_reply(self, reply: Reply) -> None:
        if isinstance(reply, ReplyError):
            self.on_error(refusal_in(reply))
        self._expected.popleft()(reply)


class CommandsByCallback(Protocol):
    """`Commands` of one shard, or of whichever serves a command's key."""

    @property
    def connected(self) -> bool:
        """Whether commands are taken at the moment."""

    def send(self, packed: bytes, callback: Callback) -> None:
        """`callback` gets the reply (a ReplyError too), or None where there is none."""


class LogReader:
    """What the hub asks of rooms' keys."""

    def __init__(self, commands: CommandsByCallback) -> None:
        self._commands = commands

    @property
    def connected(self) -> bool:
        """Whether reads are answered at the moment."""
        return self._commands.connected

    def join(self, address: RoomAddress, callback: Callable[[Position | None], None]) -> None:
        """Where the room stands; a room without a position gets one."""
        arguments = (2, address.meta, address.log, new_tag(), address.limits.max_age_ms)

        def again(reply: Reply) -> None:
            callback(_position(reply))

        def first(reply: Reply) -> None:
            if isinstance(reply, ReplyError) and str(reply).startswith("NOSCRIPT"):
                self._commands.send(pack(b"EVAL", JOIN.text, *arguments), again)
                return
            callback(_position(reply))

        self._commands.send(pack(b"EVALSHA", JOIN.sha, *arguments), first)

    def marker(self, address: RoomAddress, callback: Callable[[Marker | None], None]) -> None:
        """How far the user of a personal log has handled it, and where the log begins."""
        noted: list[Reply] = []

        def on_log(reply: Reply) -> None:
            if not noted or not isinstance(reply, list):
                _report(reply)
                callback(None)
                return
            seq, tag, received = noted[0]
            try:
                head = Position(int(seq), tag)
                first = from_log(reply[0]) if reply else None
                handled = Position(*_split(received)) if received is not None else None
            except (MalformedEntryError, TypeError, ValueError) as error:
                _log.error("log_malformed", error, room=address.room)
                callback(None)
                return
            beginning = Position(first.seq - 1, first.prev) if first is not None else head
            callback(Marker(received=handled, beginning=beginning))

        def on_meta(reply: Reply) -> None:
            if isinstance(reply, list) and reply[0] is not None:
                noted.append(reply)

        self._commands.send(pack(b"HMGET", address.meta, b"s", b"t", b"r"), on_meta)
        self._commands.send(pack(b"XRANGE", address.log, b"-", b"+", b"COUNT", 1), on_log)

    def note_received(
        self, address: RoomAddress, position: Position, callback: Callable[[bool], None]
    ) -> None:
        """Everything up to `position` has been handled. `callback` hears whether Redis was asked."""
        arguments = (2, address.meta, address.log, position.seq, position.tag)

        def again(reply: Reply) -> None:
            _report(reply)
            callback(isinstance(reply, int))

        def first(reply: Reply) -> None:
            if isinstance(reply, ReplyError) and str(reply).startswith("NOSCRIPT"):
                self._commands.send(pack(b"EVAL", RECEIVED.text, *arguments), again)
                return
            again(reply)

        self._commands.send(pack(b"EVALSHA", RECEIVED.sha, *arguments), first)

    def last(self, address: RoomAddress, count: int, callback: Callable[[LogPage | None], None]) -> None:
        """The room's newest position and its `count` newest entries, in order."""
        self._read(
            address, pack(b"XREVRANGE", address.log, b"+", b"-", b"COUNT", count), callback, backwards=True
        )

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
        end = b"+" if last_seq is None else b"%d" % last_seq
        self._read(address, pack(b"XRANGE", address.log, b"%d" % first_seq, end, b"COUNT", count), callback)

    def _read(
        self,
        address: RoomAddress,
        command: bytes,
        callback: Callable[[LogPage | None], None],
        *,
        backwards: bool = False,
    ) -> None:
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
                entries = [from_log(item) for item in (reversed(reply) if backwards else reply)]
            except MalformedEntryError as error:
                _log.error("log_malformed", error, room=address.room)
                callback(None)
                return
            callback(LogPage(head=head[0], entries=entries))

        # the head first: what is stored in between is in the entries and not in the head, never the reverse
        self._commands.send(pack(b"HMGET", address.meta, b"s", b"t"), on_head)
        self._commands.send(command, on_entries)

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
        lifetime = address.limits.max_age_ms * 9 // 8
        self._commands.send(pack(b"PEXPIRE", address.meta, lifetime), _report)
        self._commands.send(pack(b"PEXPIRE", address.log, lifetime), _report)


def _position(reply: Reply) -> Position | None:
    if not isinstance(reply, list) or len(reply) != 2 or reply[0] is None:
        _report(reply)
        return None
    seq, tag = reply
    return Position(int(seq), tag)


def _split(identifier: bytes) -> tuple[int, bytes]:
    seq, _, tag = identifier.partition(b"-")
    return int(seq), tag


def _ignore(_reply: Reply) -> None:
    return None


def _report(reply: Reply) -> None:
    if isinstance(reply, ReplyError):
        _log.warning("redis_refused_read", reply=str(reply))
