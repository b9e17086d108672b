"""The short path for incoming frames takes what the library would have taken, with the same result."""

import asyncio
import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any, cast

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from tableforge_dataplane.protocol.commands import Command, Refused
from tableforge_dataplane.rooms.outlet import Turn
from tableforge_dataplane.wire.connection import Connection
from tableforge_dataplane.wire.frames import FrameEncoder, text_frame

MAX_BYTES = 1000

REQUEST = (
    b"GET /ws HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


@dataclasses.dataclass
class Outcome:
    """What a connection made of some bytes."""

    payloads: list[bytes]
    close_code: int | None
    pongs: list[bytes]


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

    encoder = cast("FrameEncoder", None)
    max_payload_bytes = MAX_BYTES
    write_limit_bytes = 1_000_000

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


def ours(parts: list[bytes]) -> Outcome:
    """Our connection, which gets `parts` one after another as from a socket."""
    recorder = Recorder()
    server = cast("Any", type("Handlers", (), {"handler": staticmethod(_nothing), "handler_tasks": set()}))
    protocol = ServerProtocol(max_size=MAX_BYTES)
    connection = Connection(recorder, protocol, server)
    transport = Transport()
    connection.connection_made(transport)
    connection.data_received(REQUEST)
    assert connection.request is not None
    protocol.send_response(protocol.accept(connection.request))
    connection.send_data()
    assert protocol.state is OPEN
    connection.session = cast("Any", _Session(_Outlet()))
    connection._look_for_border()
    assert connection._direct
    transport.written = b""
    for part in parts:
        connection.data_received(part)
    return _outcome(recorder.payloads, transport.written)


def library(parts: list[bytes]) -> Outcome:
    """The library alone, and on top of it the two rules that are ours: text only, and valid UTF-8."""
    protocol = ServerProtocol(max_size=MAX_BYTES)
    protocol.receive_data(REQUEST)
    (request,) = protocol.events_received()
    protocol.send_response(protocol.accept(cast("Any", request)))
    protocol.data_to_send()
    payloads: list[bytes] = []
    written = b""
    fragments: list[bytes] = []
    for part in parts:
        protocol.receive_data(part)
        events = protocol.events_received()
        written += b"".join(protocol.data_to_send())
        for event in events:
            assert isinstance(event, Frame)
            if event.opcode not in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                continue
            if protocol.close_sent is not None and protocol.close_sent.code in (1003, 1007):
                continue
            if event.opcode is Opcode.BINARY:
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
                        protocol.fail(1007)
            written += b"".join(protocol.data_to_send())
    return _outcome(payloads, written)


async def _nothing(_connection: Any) -> None:
    return None


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
    long_length: bool = False,
) -> bytes:
    """A frame as a client sends it, or should not."""
    head = bytes(((0x80 if fin else 0) | rsv << 4 | opcode,))
    flag = 0x80 if mask is not None else 0
    if len(payload) < 126 and not long_length:
        head += bytes((flag | len(payload),))
    elif len(payload) < 65_536:
        head += bytes((flag | 126,)) + len(payload).to_bytes(2)
    else:
        head += bytes((flag | 127,)) + len(payload).to_bytes(8)
    if mask is None:
        return head + payload
    return head + mask + bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))


texts = st.one_of(
    st.sampled_from(
        [b"", b"{}", "höher".encode(), "\U0001f600".encode(), b"x" * 125, b"x" * 126, b"x" * 999]
    ),
    st.text(max_size=200).map(str.encode),
)
good = st.one_of(
    texts.map(client_frame),
    texts.map(lambda text: client_frame(text, long_length=True)),
    st.binary(max_size=4, min_size=4).flatmap(
        lambda mask: texts.map(lambda text: client_frame(text, mask=mask))
    ),
    st.binary(max_size=60).map(lambda data: client_frame(data, opcode=9)),
    st.binary(max_size=60).map(lambda data: client_frame(data, opcode=10)),
    # a message in three fragments, with a ping between them
    texts.map(
        lambda text: (
            client_frame(text[:5], fin=False)
            + client_frame(b"still there?", opcode=9)
            + client_frame(text[5:7], opcode=0, fin=False)
            + client_frame(text[7:], opcode=0)
        )
    ),
)
odd = st.one_of(
    st.just(client_frame(b"{}", opcode=2)),
    st.just(client_frame(b"\xff")),
    st.just(client_frame(b"\xed\xa0\x80")),
    st.just(client_frame(b"x" * (MAX_BYTES + 1))),
    st.just(client_frame(b"x" * 66_000)),
    st.just(client_frame(b"x" * 600, fin=False) + client_frame(b"x" * 600, opcode=0)),
    st.just(client_frame(b"{}", mask=None)),
    st.just(client_frame(b"{}", rsv=4)),
    st.just(client_frame(b"{}", opcode=3)),
    st.just(client_frame(b"{}", opcode=0)),
    st.just(client_frame(b"{", fin=False) + client_frame(b"}")),
    st.just(client_frame(b"", opcode=9, fin=False)),
    st.just(client_frame((1000).to_bytes(2) + b"bye", opcode=8)),
    st.just(client_frame((4000).to_bytes(2), opcode=8)),
    st.just(client_frame((999).to_bytes(2), opcode=8)),
    st.just(client_frame(b"", opcode=8)),
    st.binary(max_size=30),
)


@st.composite
def streams(draw: Callable[[Any], Any]) -> list[bytes]:
    """Frames one after another, cut into pieces anywhere."""
    stream = b"".join(draw(st.lists(good, max_size=6)))
    if draw(st.booleans()):
        stream += draw(odd) + b"".join(draw(st.lists(good, max_size=2)))
    cuts = sorted(draw(st.sets(st.integers(0, max(0, len(stream))), max_size=8)) | {0, len(stream)})
    return [stream[begin:end] for begin, end in itertools.pairwise(cuts) if end > begin]


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(parts=streams())
def test_any_bytes_in_any_pieces_have_the_librarys_result(parts: list[bytes]) -> None:
    async def both() -> tuple[Outcome, Outcome]:
        return ours(parts), library(parts)

    got, expected = asyncio.run(both())
    if expected.close_code in (1003, 1007):
        # the library looks at what is in a frame after it has answered the pings that came behind it
        got.pongs = expected.pongs = []
    assert got == expected


async def test_the_short_path_is_taken_again_after_the_library_had_to_help() -> None:
    recorder_parts = [
        client_frame(b"one"),
        client_frame(b"two")[:3],
        client_frame(b"two")[3:],
        client_frame(b"thr", fin=False),
        client_frame(b"ee", opcode=0),
        client_frame(b"four") + client_frame(b"", opcode=9) + client_frame(b"five"),
        client_frame(b"six"),
    ]
    taken: list[bytes] = []
    original = Connection._through_library

    def spy(connection: Connection, data: bytes) -> None:
        taken.append(data)
        original(connection, data)

    Connection._through_library = spy  # type: ignore[method-assign]
    try:
        outcome = ours(recorder_parts)
    finally:
        Connection._through_library = original  # type: ignore[method-assign]
    assert outcome.payloads == [b"one", b"two", b"three", b"four", b"five", b"six"]
    assert not any(client_frame(b"one") in data or client_frame(b"six") in data for data in taken)


def test_outgoing_frames_have_the_shortest_length_there_is() -> None:
    for size in (0, 125, 126, 65_535, 65_536):
        frame = text_frame(b"x" * size)
        assert frame == Frame(Opcode.TEXT, b"x" * size).serialize(mask=False)
