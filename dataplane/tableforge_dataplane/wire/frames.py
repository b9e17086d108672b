"""Outgoing frames. A server's are not masked, so that one encoding serves all recipients."""

from collections.abc import Callable
from typing import Final, Protocol

from tableforge_dataplane.broker.entries import Entry
from tableforge_dataplane.protocol.commands import CommandId
from tableforge_dataplane.protocol.events import Event

_HEADERS: Final = tuple(
    bytes((0x81, length)) if length < 126 else b"\x81\x7e" + length.to_bytes(2) for length in range(2048)
)
"""Of text frames, by their payload's length: those that most messages have."""

PING: Final = b"\x89\x00"


def text_frame(payload: bytes) -> bytes:
    """`payload` as one whole text frame."""
    length = len(payload)
    if length < len(_HEADERS):
        return _HEADERS[length] + payload
    if length < 65_536:
        return b"\x81\x7e" + length.to_bytes(2) + payload
    return b"\x81\x7f" + length.to_bytes(8) + payload


def compressed_text_frame(squeezed: bytes) -> bytes:
    """What a whole text message was compressed to, as one frame."""
    length = len(squeezed)
    if length < 126:
        return bytes((0xC1, length)) + squeezed
    if length < 65_536:
        return b"\xc1\x7e" + length.to_bytes(2) + squeezed
    return b"\xc1\x7f" + length.to_bytes(8) + squeezed


def count(frames: bytes) -> int:
    """How many these are, all of them whole."""
    found = at = 0
    while at + 1 < len(frames):
        length = frames[at + 1]
        at += 2
        if length >= 126:
            start, at = at, at + (2 if length == 126 else 8)
            length = int.from_bytes(frames[start:at])
        at += length
        found += 1
    return found


class Dialect(Protocol):
    """Turns events into payloads."""

    def encode(self, event: Event) -> bytes: ...

    def ack(self, identifier: CommandId, room: str, seq: int, tag: bytes) -> bytes: ...

    def message(self, room: str, seq: int, tag: bytes, ts: bytes, body: bytes) -> bytes: ...

    def part(self, room: str, seq: int, tag: bytes, ts: bytes, body: bytes) -> bytes: ...


class FrameEncoder:
    """One dialect's payloads in frames; one object for all connections that take the same bytes."""

    def __init__(self, dialect: Dialect, frame: Callable[[bytes], bytes] = text_frame) -> None:
        """`frame`: makes a payload the frame that these connections take."""
        self._encode = dialect.encode
        self._ack = dialect.ack
        self._message = dialect.message
        self._part = dialect.part
        self._frame = frame

    def event(self, event: Event) -> bytes:
        """A frame for one client."""
        return self._frame(self._encode(event))

    def ack(self, identifier: CommandId, room: str, seq: int, tag: bytes) -> bytes:
        """The frame of an `Ack`, of which there is one a message."""
        return self._frame(self._ack(identifier, room, seq, tag))

    def parts(self, room: str, entries: list[Entry]) -> list[bytes]:
        """Messages as they stand inside a `history` event."""
        return [self._part(room, entry.seq, entry.tag, entry.ts, entry.body) for entry in entries]

    def messages(self, room: str, entries: list[Entry]) -> bytes:
        """Frames for everybody in `room`."""
        message, frame = self._message, self._frame
        if len(entries) == 1:
            (entry,) = entries
            return frame(message(room, entry.seq, entry.tag, entry.ts, entry.body))
        return b"".join(
            [frame(message(room, entry.seq, entry.tag, entry.ts, entry.body)) for entry in entries]
        )
