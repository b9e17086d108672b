"""One client's connection.

The library keeps the handshake, control frames, fragments, closing and every unusual frame. What comes a
thousand times a second are whole text frames: those take a path of their own, straight from `data_received`,
with the same result and the same close codes.
"""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

import msgspec
from websockets.asyncio.server import Server as WebsocketServer
from websockets.asyncio.server import ServerConnection
from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import OPEN, Event
from websockets.server import ServerProtocol
from websockets.speedups import apply_mask
from websockets.streams import StreamReader

from tableforge_dataplane.protocol.commands import Command, Refused
from tableforge_dataplane.protocol.events import Event as SessionEvent
from tableforge_dataplane.rooms.outlet import Outlet, Turn
from tableforge_dataplane.security.tokens import Identity
from tableforge_dataplane.session.session import Session, Surroundings
from tableforge_dataplane.wire.frames import PING, FrameEncoder

CLOSE_TIMEOUT_SECONDS: Final = 5.0

DRAINED_BYTES: Final = 16_384
"""A socket with less than this waiting takes the next page of a recovery."""

_AT_FRAME_BORDER: Final = StreamReader.at_eof.__code__


class Decoder(Protocol):
    """A dialect's way in."""

    def decode(self, frame: bytes) -> Command | Refused | Iterator[Command | Refused]: ...


class Refusal:
    """Why a connection is accepted only to be told and closed: browsers show their page nothing else."""

    __slots__ = ("close_code", "code", "message", "retry_after")

    def __init__(self, close_code: int, code: str, message: str, retry_after: float | None) -> None:
        self.close_code = close_code
        self.code = code
        self.message = message
        self.retry_after = retry_after


class Host(Protocol):
    """What all connections of an instance share."""

    surroundings: Surroundings
    turn: Turn
    decoder: Decoder
    encoder: FrameEncoder
    max_payload_bytes: int
    write_limit_bytes: int

    def arriving(self, connection: "Connection") -> bool:
        """A socket was accepted; False where too many are in their handshakes already."""

    def arrived(self, connection: "Connection") -> None:
        """Its handshake is over, one way or the other; may be called twice."""

    def opened(self, connection: "Connection") -> None:
        """The handshake is done."""

    def slow(self, connection: "Connection") -> None:
        """It is closed as a slow consumer."""

    def closing(self, connection: "Connection", code: int) -> None:
        """It is being closed from this side."""

    def lost(self, connection: "Connection") -> None:
        """The connection is gone; called once, for those that were opened."""

    def told(self, connection: "Connection") -> None:
        """A connection with a refusal is gone; called once, for those too that never opened."""


class Connection(ServerConnection):
    """A `Voice` for its session and a `Socket` for its outlet."""

    def __init__(self, host: Host, protocol: ServerProtocol, server: WebsocketServer, **options: Any) -> None:
        super().__init__(protocol, server, **options)
        self._host = host
        self._decode = host.decoder.decode
        self._max_bytes = host.max_payload_bytes
        self._direct = False
        """Whether the next byte begins a frame and nothing stands against the short path."""
        self._fragments: list[bytes] = []
        self._drained: list[Callable[[], None]] = []
        self.session: Session | None = None
        self.heard = False
        """Whether anything came since this was last set to False."""
        self.identity: Identity | None = None
        """From the handshake; None where a token has still to come."""
        self.guest = False
        self.refusal: Refusal | None = None

    # Beginning and end

    def open(self) -> None:
        """The handshake is done: begin the session."""
        host = self._host
        outlet = Outlet(turn=host.turn, encoder=host.encoder, write=self.transport.write, socket=self)
        session = Session(host.surroundings, outlet=outlet, voice=self)
        self.session = session
        host.arrived(self)
        host.opened(self)
        if self.refusal is not None:
            refusal = self.refusal
            session.refuse_and_close(refusal.code, refusal.message, refusal.close_code, refusal.retry_after)
            return
        session.begin(self.identity, guest=self.guest)
        # the handshake's response was written in this turn of the loop: both leave in one write
        outlet.flush()
        self._look_for_border()

    def encode(self, event: SessionEvent) -> bytes:
        """For the session."""
        return self._host.encoder.event(event)

    def close_with(self, code: int, reason: str) -> None:
        """Close in order: what was sent before goes first, then the client has time to answer."""
        if self.session is not None:
            self.session.close(code, reason)

    def finish(self, code: int, reason: str) -> None:
        """For the session: the closing handshake."""
        self._direct = False
        if self.protocol.state is not OPEN:
            return
        self._host.closing(self, code)
        self.protocol.send_close(code, reason)
        self.send_data()
        self._abort_later()

    def fail(self, code: int, reason: str) -> None:
        """Break off, as the library does when a peer breaks the rules."""
        self._direct = False
        if self.session is not None:
            self.session.outlet.flush()
            self.session.end()
        if self.protocol.state is OPEN:
            self._host.closing(self, code)
        self.protocol.fail(code, reason)
        self.send_data()
        self._abort_later()

    def _abort_later(self) -> None:
        deadline = self.loop.time() + CLOSE_TIMEOUT_SECONDS
        self.close_deadline = deadline
        self.loop.call_at(deadline, self._abort)

    def _abort(self) -> None:
        if not self.connection_lost_waiter.done():
            self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """From the event loop."""
        super().connection_made(transport)
        if not self._host.arriving(self):
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """From the event loop."""
        super().connection_lost(exc)
        self._direct = False
        self._drained.clear()
        self._host.arrived(self)
        if self.session is not None:
            self.session.end()
            self._host.lost(self)
        if self.refusal is not None:
            self._host.told(self)

    def eof_received(self) -> None:
        """From the event loop: the client's side is closed, in whatever way."""
        if self.session is not None:
            self.session.end()
        self._direct = False
        super().eof_received()

    # What comes in

    def data_received(self, data: bytes) -> None:
        """From the event loop."""
        self.heard = True
        if not self._direct:
            self._through_library(data)
            return
        size = len(data)
        at = 0
        while size - at >= 6 and data[at] == 0x81:
            length = data[at + 1] - 0x80
            if 0 <= length < 126:
                start = at + 6
            elif length == 126 and size - at >= 8:
                length = data[at + 2] << 8 | data[at + 3]
                start = at + 8
            else:
                break
            end = start + length
            if end > size or length > self._max_bytes:
                break
            at = end
            if not self._on_text(apply_mask(data[start:end], data[start - 4 : start])):
                break
        if at < size:
            self._through_library(data[at:] if at else data)

    def _through_library(self, data: bytes) -> None:
        super().data_received(data)
        self._look_for_border()

    def _look_for_border(self) -> None:
        """See whether the library has taken whole frames only, so that the short path may go on."""
        protocol = self.protocol
        session = self.session
        if session is None or session.closed:
            return
        if protocol.state is not OPEN:
            # the client closes: the library has answered
            session.end()
            self._direct = False
            return
        waits_in: Any = protocol.parser
        while waits_in.gi_yieldfrom is not None:
            waits_in = waits_in.gi_yieldfrom
        self._direct = (
            waits_in.gi_code is _AT_FRAME_BORDER
            and protocol.current_size is None
            and not protocol.reader.buffer
        )

    def process_event(self, event: Event) -> None:
        """From the library: a request, or a frame that it has parsed."""
        if self.request is None or not isinstance(event, Frame):
            super().process_event(event)
            return
        session = self.session
        if session is None or session.closed:
            return
        if self.protocol.state is not OPEN:
            # the client's close came right behind: its last commands count, answers can't be sent any more
            session.outlet.close()
        if event.opcode is Opcode.BINARY:
            self.fail(CloseCode.UNSUPPORTED_DATA, "binary frames are reserved")
        elif event.opcode is Opcode.TEXT or event.opcode is Opcode.CONT:
            self._fragments.append(bytes(event.data))
            if event.fin:
                whole = b"".join(self._fragments)
                self._fragments.clear()
                self._on_text(whole)

    def _on_text(self, payload: bytes) -> bool:
        """Carry out a whole frame; False where the connection is open no more."""
        session = self.session
        if session is None:
            return False
        if not payload.isascii():
            try:
                payload.decode()
            except UnicodeDecodeError as error:
                self.fail(CloseCode.INVALID_DATA, f"{error.reason} at position {error.start}")
                return False
        command = self._decode(payload)
        if isinstance(command, msgspec.Struct):
            session.handle(command)
        else:
            for each in command:
                session.handle(each)
                if session.closed:
                    break
        return not session.closed

    # What goes out

    def buffered_bytes(self) -> int:
        """For the outlet."""
        return self.transport.get_write_buffer_size()

    def when_drained(self, callback: Callable[[], None]) -> None:
        """For the outlet: while somebody waits for this, a full socket is no fault, up to twice the limit."""
        session = self.session
        if session is None or session.closed or self.transport.is_closing():
            return
        session.outlet.flush()
        if self.transport.get_write_buffer_size() <= DRAINED_BYTES:
            self.loop.call_soon(callback)
            return
        self._drained.append(callback)
        session.outlet.write = self._write_patiently
        self.transport.set_write_buffer_limits(high=DRAINED_BYTES, low=DRAINED_BYTES)

    def _write_patiently(self, data: bytes) -> None:
        self.transport.write(data)
        if self.transport.get_write_buffer_size() > self._host.write_limit_bytes:
            self._too_slow()

    def pause_writing(self) -> None:
        """From the event loop: more waits than the socket's limit."""
        super().pause_writing()
        if not self._drained:
            self._too_slow()

    def resume_writing(self) -> None:
        """From the event loop."""
        super().resume_writing()
        session = self.session
        if not self._drained or session is None or session.closed:
            return
        waiting, self._drained = self._drained, []
        limit = self._host.write_limit_bytes
        self.transport.set_write_buffer_limits(high=limit, low=limit // 4)
        session.outlet.write = self.transport.write
        for callback in waiting:
            self.loop.call_soon(callback)

    def _too_slow(self) -> None:
        session = self.session
        if session is None or session.closed:
            return
        self._host.slow(self)
        # in a turn of its own: this may be called from inside a write
        session.outlet.close()
        self.loop.call_soon(session.close, 4408, "slow consumer")

    def ping_now(self) -> None:
        """A ping without a payload; any byte that comes back is answer enough."""
        if self.protocol.state is OPEN and not self.transport.is_closing():
            self.heard = False
            self.transport.write(PING)
