"""Outgoing frames. A server's are not masked, so that one encoding serves all recipients."""

from typing import Final, Protocol

from tableforge_dataplane.broker.entries import Entry
from tableforge_dataplane.protocol.events import Event

_SHORT: Final = tuple(bytes((0x81, length)) for length in range(126))

PING: Final = b"\x89\x00"


def text_frame(payload: bytes) -> bytes:
    """`payload` as one whole text frame."""
    length = len(payload)
    if length < 126:
        return _SHORT[length] + payload
    if length < 65_536:
        return b"\x81\x7e" + length.to_bytes(2) + payload
    return b"\x81\x7f" + length.to_bytes(8) + payload


class Dialect(Protocol):
    """Turns events into payloads."""

    def encode(self, event: Event) -> bytes: ...

    def message(self, room: str, seq: int, tag: bytes, ts: bytes, body: bytes) -> bytes: ...


class FrameEncoder:
    """One dialect's payloads in frames; one object for all connections that speak it."""

    def __init__(self, dialect: Dialect) -> None:
        self._encode = dialect.encode
        self._message = dialect.message

    def event(self, event: Event) -> bytes:
        """A frame for one client."""
        return text_frame(self._encode(event))

    def messages(self, room: str, entries: list[Entry]) -> bytes:
        """Frames for everybody in `room`."""
        message = self._message
        if len(entries) == 1:
            (entry,) = entries
            return text_frame(message(room, entry.seq, entry.tag, entry.ts, entry.body))
        return b"".join(
            [text_frame(message(room, entry.seq, entry.tag, entry.ts, entry.body)) for entry in entries]
        )
