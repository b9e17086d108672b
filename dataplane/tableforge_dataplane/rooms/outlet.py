"""Where frames leave: everything for one socket in one turn of the event loop goes out in one write."""

import asyncio
from collections.abc import Callable
from typing import Protocol

from tableforge_dataplane.broker.entries import Entry
from tableforge_dataplane.observability.logging import EventLog

_log = EventLog("outlet")


class Encoder(Protocol):
    """Makes the bytes that a kind of client gets; one object a kind, so that it is done once for all."""

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
        """One write for each: nearly all of what a delivery costs (`benchmarks/rooms.py`)."""
        dirty, self.dirty = self.dirty, []
        for outlet in dirty:
            frames = outlet.frames
            if frames:
                data = frames[0] if len(frames) == 1 else b"".join(frames)
                frames.clear()
                try:
                    outlet.write(data)
                except RuntimeError as error:
                    # the event loop's, for a socket that is on its way out: the others must get theirs
                    outlet.close()
                    _log.warning("write_failed", error=error)


class Outlet:
    """One socket as the rooms and the session see it."""

    __slots__ = ("encoder", "frames", "socket", "turn", "write")

    def __init__(
        self, *, turn: Turn, encoder: Encoder, write: Callable[[bytes], None], socket: Socket
    ) -> None:
        self.turn = turn
        self.encoder = encoder
        self.write = write
        self.socket = socket
        self.frames: list[bytes] = []
        """Ready to be written; not empty means: it is in the turn's list."""

    def send(self, frame: bytes) -> None:
        """Write `frame` at the end of this turn."""
        frames = self.frames
        if not frames:
            dirty = self.turn.dirty
            if not dirty:
                self.turn.begin()
            dirty.append(self)
        frames.append(frame)

    def waiting_bytes(self) -> int:
        """What the network has not taken yet, this turn's frames included."""
        return self.socket.buffered_bytes() + sum(map(len, self.frames))

    def flush(self) -> None:
        """Write now what waits: something else is to follow it directly."""
        if self.frames:
            data = b"".join(self.frames)
            self.frames.clear()
            self.write(data)

    def close(self) -> None:
        """What comes from now on is dropped."""
        self.write = _drop
        self.frames.clear()


def _drop(_data: bytes) -> None:
    return None
