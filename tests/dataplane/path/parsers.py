"""Our connection and the library's parser alone, given the same bytes: what each makes of them."""

import asyncio
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, cast

from websockets.datastructures import Headers
from websockets.extensions.base import Extension
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import OPEN
from websockets.server import ServerProtocol
from websockets.speedups import apply_mask

from tableforge_dataplane.protocol.commands import Command, Refused
from tableforge_dataplane.rooms.outlet import Turn
from tableforge_dataplane.wire.compression import Encoders
from tableforge_dataplane.wire.connection import Connection

MAX_BYTES = 1000

_REQUEST = Request("/ws", Headers())


def deflate() -> list[Extension]:
    """Compression as an instance agrees on it; new for each parser, since it remembers fragments."""
    return [PerMessageDeflate(True, True, 15, 15)]


@dataclasses.dataclass
class Outcome:
    """What a connection made of some bytes."""

    payloads: list[bytes]
    close_code: int | None
    pongs: list[bytes]
    or_code: int | None = dataclasses.field(default=None, compare=False)
    """Where two things that end a connection came in one piece and the library saw the later one first: the
    code of the earlier one, with which our connection may close instead."""


class Transport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        pass

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None:
        pass


class Recorder:
    """A dialect that only listens, in the place of everything behind the connection."""

    encoders = cast("Encoders", None)
    max_payload_bytes = MAX_BYTES
    write_limit_bytes = 1_000_000
    handshake_timeout_seconds = 10.0

    def __init__(self) -> None:
        self.payloads: list[bytes] = []
        self.decoder = self
        self.turn = Turn()
        self.surroundings: Any = None

    def decode(self, frame: bytes) -> Iterator[Command | Refused]:
        self.payloads.append(frame)
        return iter(())

    def arriving(self, connection: Connection) -> bool:
        return True

    def arrived(self, connection: Connection) -> None: ...

    def opened(self, connection: Connection) -> None: ...

    def slow(self, connection: Connection) -> None: ...

    def told(self, connection: Connection) -> None: ...

    def closing(self, connection: Connection, code: int) -> None: ...

    def lost(self, connection: Connection) -> None: ...


class _Session:
    """As much of a session as the connection needs."""

    def __init__(self, outlet: Any) -> None:
        self.outlet = outlet
        self.closed = False

    def end(self) -> None:
        self.closed = True

    def handle(self, command: Any) -> None:
        raise AssertionError("the recorder makes no commands")


class _Outlet:
    def flush(self) -> None: ...

    def close(self) -> None: ...


def ours(parts: Sequence[bytes], *, extensions: Sequence[Extension] = ()) -> Outcome:
    """Our connection, its handshake just over, which gets `parts` one after another as from a socket."""
    recorder = Recorder()
    protocol = ServerProtocol(max_size=MAX_BYTES, state=OPEN)
    protocol.extensions = list(extensions)
    connection = Connection(recorder, protocol)
    transport = Transport()
    connection.connection_made(transport)
    connection.request = _REQUEST
    connection.session = cast("Any", _Session(_Outlet()))
    protocol.receive_data(b"")
    connection._look_for_border()
    assert connection._direct
    for part in parts:
        connection.data_received(part)
    return _outcome(recorder.payloads, transport.written)


def library(parts: Sequence[bytes], *, extensions: Sequence[Extension] = ()) -> Outcome:
    """The library alone, and on top of it the two rules that are ours: text only, and valid UTF-8."""
    protocol = ServerProtocol(max_size=MAX_BYTES, state=OPEN)
    protocol.extensions = list(extensions)
    payloads: list[bytes] = []
    written = b""
    fragments: list[bytes] = []
    refused = False
    or_code: int | None = None
    for part in parts:
        ended_before = protocol.close_sent is not None
        protocol.receive_data(part)
        events = protocol.events_received()
        written += b"".join(protocol.data_to_send())
        for event in events:
            assert isinstance(event, Frame)
            if event.opcode not in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                continue
            if refused:
                continue
            if event.opcode is Opcode.BINARY:
                refused = True
                or_code = None if ended_before else 1003
                protocol.fail(1003)
            else:
                fragments.append(bytes(event.data))
                if event.fin:
                    whole = b"".join(fragments)
                    fragments.clear()
                    try:
                        whole.decode()
                        payloads.append(whole)
                    except UnicodeDecodeError:
                        refused = True
                        or_code = None if ended_before else 1007
                        protocol.fail(1007)
            written += b"".join(protocol.data_to_send())
    outcome = _outcome(payloads, written)
    outcome.or_code = or_code
    return outcome


def _outcome(payloads: list[bytes], written: bytes) -> Outcome:
    pongs: list[bytes] = []
    close_code = None
    at = 0
    while at < len(written):
        opcode, length = written[at] & 0x0F, written[at + 1]
        data = written[at + 2 : at + 2 + length]
        if opcode == 0xA:
            pongs.append(data)
        elif opcode == 0x8 and close_code is None:
            close_code = int.from_bytes(data[:2]) if data else 1005
        at += 2 + length
    return Outcome(payloads, close_code, pongs)


def client_frame(
    payload: bytes,
    *,
    opcode: int = 1,
    fin: bool = True,
    rsv: int = 0,
    mask: bytes | None = b"\x01\x02\x03\x04",
    length_bytes: int | None = None,
    claimed: int | None = None,
) -> bytes:
    """A frame as a client sends it, or should not.

    `length_bytes`: 0, 2 or 8, the shortest that does where None. `claimed`: said instead of its length.
    """
    length = len(payload) if claimed is None else claimed
    if length_bytes is None:
        length_bytes = 0 if length < 126 else 2 if length < 65_536 else 8
    flag = 0x80 if mask is not None else 0
    head = bytes(((0x80 if fin else 0) | rsv << 4 | opcode,))
    if length_bytes == 0:
        head += bytes((flag | length,))
    else:
        head += bytes((flag | (126 if length_bytes == 2 else 127),)) + length.to_bytes(length_bytes)
    if mask is None:
        return head + payload
    return head + mask + bytes(apply_mask(payload, mask))
