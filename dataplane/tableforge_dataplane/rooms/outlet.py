"""Where frames leave: everything for one socket in one turn of the event loop goes out in one write."""

import asyncio
from collections.abc import Callable
from typing import Protocol

from tableforge_dataplane.broker.entries import Entry
from tableforge_dataplane.observability.logging import EventLog
from tableforge_dataplane.protocol.commands import CommandId
from tableforge_dataplane.protocol.events import Event

_log = EventLog("outlet")


class Encoder(Protocol):
    """Makes the bytes that a kind of client gets; one object a kind, so that it is done once for all."""

    def event(self, event: Event) -> bytes:
        """A frame for anything else."""

    def ack(self, identifier: CommandId, room: str, seq: int, tag: bytes) -> bytes:
        """A frame with the `Ack` of a message that has a place in `room`."""

    def parts(self, room: str, entries: list[Entry]) -> list[bytes]:
        """`entries` as they stand in a `history` event."""

    def messages(self, room: str, entries: list[Entry]) -> bytes:
        """Frames for `entries`, which came in this order."""


class Socket(Protocol):
    """The other end of an outlet."""

    def buffered_bytes(self) -> int:
        """What was written and not yet taken by the network."""

    def when_drained(self, callback: Callable[[], None]) -> None:
        """Call `callback` once little is buffered; never where the socket closes before."""


class Turn:
    """The outlets that have frames to write at the end of this turn of the loop."""

    __slots__ = ("_loop", "dirty")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.dirty: list[Outlet] = []

    def begin(self) -> None:
        """To be called before the first outlet is added."""
        self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """One write for each: nearly all of what a delivery costs (`python -m benchmarks --only room-4`)."""
        dirty, self.dirty = self.dirty, []
        for outlet in dirty:
            data = outlet.first
            if data:
                more = outlet.more
                if more is not None:
                    data = b"".join((data, *more))
                try:
                    outlet.write(data)
                except RuntimeError as error:
                    # the event loop's, for a socket that is on its way out: the others must get theirs
                    outlet.close()
                    _log.warning("write_failed", error=error)
                # only now: a socket that this was too much for still sees what it was
                outlet.first = b""
                if more is not None:
                    outlet.more = None


class Outlet:
    """One socket as the rooms and the session see it."""

    __slots__ = ("encoder", "first", "more", "socket", "turn", "write")

    def __init__(
        self, *, turn: Turn, encoder: Encoder, write: Callable[[bytes], None], socket: Socket
    ) -> None:
        self.turn = turn
        self.encoder = encoder
        self.write = write
        self.socket = socket
        self.first = b""
        """Ready to be written; not empty means: it is in the turn's list. (Nearly always this is all there is
        in a turn: no list is made for it.)"""
        self.more: list[bytes] | None = None
        """What follows it."""

    def send(self, frame: bytes) -> None:
        """Write `frame` at the end of this turn."""
        if self.first:
            if self.more is None:
                self.more = [frame]
            else:
                self.more.append(frame)
            return
        self.first = frame
        dirty = self.turn.dirty
        if not dirty:
            self.turn.begin()
        dirty.append(self)

    def put_first(self, data: bytes) -> None:
        """Have `data` leave with what is sent next. `flush` has to come before this turn ends."""
        self.first = data

    def waiting_bytes(self) -> int:
        """What the network has not taken yet, this turn's frames included."""
        waiting = self.socket.buffered_bytes() + len(self.first)
        return waiting if self.more is None else waiting + sum(map(len, self.more))

    @property
    def frames(self) -> bytes:
        """This turn's, those included that are being written."""
        return b"".join((self.first, *(self.more or ())))

    def flush(self) -> None:
        """Write now what waits: something else is to follow it directly."""
        if self.first:
            try:
                self.write(self.frames)
            finally:
                self.first = b""
                self.more = None

    def close(self) -> None:
        """What comes from now on is dropped."""
        self.write = _drop
        self.first = b""
        self.more = None


def _drop(_data: bytes) -> None:
    return None
