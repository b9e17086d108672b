"""What a client says to each server: the same conversation in each one's words."""

import dataclasses
import json
from collections.abc import Callable
from typing import Final

PING: Final = b"\x89\x00"
PONG: Final = b"\x8a\x80\0\0\0\0"


def frame(payload: bytes) -> bytes:
    """A whole masked text frame; a mask of zeros leaves the payload as it is."""
    length = len(payload)
    header = bytes((0x81, 0x80 | length)) if length < 126 else b"\x81\xfe" + length.to_bytes(2)
    return header + b"\0\0\0\0" + payload


@dataclasses.dataclass(frozen=True)
class Dialect:
    """Frames ready to be sent, and what tells the answers from one another."""

    path: Callable[[str], str]
    """The handshake's path for a client of a room (most don't care)."""
    hello: bytes
    """Sent after the handshake; empty where nothing is."""
    welcome: bytes
    """In what says that the client is in; empty: the handshake's response does."""
    join: Callable[[str], bytes] | None
    """None where the path is the join."""
    joined: bytes
    publish: Callable[[str, bytes], bytes]
    """Room and text."""
    message: bytes
    """Once in each message that is delivered, and nowhere else."""
    ping: bytes = PING
    """What the server sends to see who lives."""
    pong: bytes = PONG


def _native_publish(room: str, text: bytes) -> bytes:
    return frame(b'{"type":"publish","id":1,"room":"%b","event":"chat","data":"%b"}' % (room.encode(), text))


def _guide_publish(room: str, text: bytes) -> bytes:
    return frame(b'{"type":"publish","room":"%b","event":"chat","data":"%b"}' % (room.encode(), text))


def _join(room: str) -> bytes:
    return frame(b'{"type":"join","room":"%b"}' % room.encode())


def _socketio(event: str, *arguments: str) -> bytes:
    return frame(b"42" + json.dumps([event, *arguments], separators=(",", ":")).encode())


def _centrifuge_publish(room: str, text: bytes) -> bytes:
    data = b'{"event":"chat","data":"%b"}' % text
    return frame(b'{"id":3,"publish":{"channel":"%b","data":%b}}' % (room.encode(), data))


NATIVE: Final = Dialect(
    path=lambda _room: "/ws",
    hello=b"",
    welcome=b'"type":"welcome"',
    join=_join,
    joined=b'"type":"joined"',
    publish=_native_publish,
    message=b'"type":"message"',
)

GUIDE: Final = dataclasses.replace(NATIVE, publish=_guide_publish)

SOCKETIO: Final = Dialect(
    path=lambda _room: "/socket.io/?EIO=4&transport=websocket",
    hello=frame(b"40"),
    welcome=b'40{"sid"',
    join=lambda room: _socketio("join", room),
    joined=b'42["joined"',
    publish=lambda room, text: _socketio("publish", room, "chat", text.decode()),
    message=b'42["message"',
    ping=b"\x81\x012",
    pong=frame(b"3"),
)

CENTRIFUGE: Final = Dialect(
    path=lambda _room: "/connection/websocket",
    hello=frame(b'{"id":1,"connect":{}}'),
    welcome=b'"connect":{',
    join=lambda room: frame(b'{"id":2,"subscribe":{"channel":"%b"}}' % room.encode()),
    joined=b'"subscribe":{',
    publish=_centrifuge_publish,
    message=b'"pub":{',
    ping=b"\x81\x02{}",
    pong=frame(b"{}"),
)

NCHAN: Final = Dialect(
    path=lambda room: f"/ws/{room}",
    hello=b"",
    welcome=b"",
    join=None,
    joined=b"",
    publish=lambda room, text: frame(
        b'{"type":"message","room":"%b","event":"chat","data":"%b"}' % (room.encode(), text)
    ),
    message=b'"type":"message"',
)
