"""One client's connection.

The library keeps the handshake, control frames, fragments, closing and every unusual frame. What comes a
thousand times a second are whole text frames: those take a path of their own, straight from `data_received`,
with the same result and the same close codes. So does the usual request (`usual`).
"""

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final, Protocol, cast

import msgspec
from websockets.asyncio.connection import Connection as WebsocketConnection
from websockets.asyncio.messages import Assembler
from websockets.asyncio.server import ServerConnection
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import CONNECTING, OPEN, Event
from websockets.server import ServerProtocol
from websockets.speedups import apply_mask
from websockets.streams import StreamReader

from tableforge_dataplane.protocol.commands import Command, Publish, Refused
from tableforge_dataplane.protocol.events import Event as SessionEvent
from tableforge_dataplane.rooms.outlet import Outlet, Turn
from tableforge_dataplane.security.tokens import Identity
from tableforge_dataplane.session.session import Session
from tableforge_dataplane.session.surroundings import Surroundings
from tableforge_dataplane.wire import usual
from tableforge_dataplane.wire.compression import Encoders
from tableforge_dataplane.wire.door import Visitor
from tableforge_dataplane.wire.frames import PING, FrameEncoder
from tableforge_dataplane.wire.preface import PrefaceError, ProxyPreface, start_tls

CLOSE_TIMEOUT_SECONDS: Final = 5.0

TLS_HANDSHAKE_TIMEOUT_SECONDS: Final = 60.0
"""Longer than any handshake may take: the one time limit for all of it is the server's."""

MOST_HANDSHAKE_BYTES: Final = 32_768
"""Of everything that comes before the handshake is done; the library alone would take a megabyte."""

MOST_UNHEARD_BYTES: Final = 262_144
"""Taken from a client after it was told that its connection is closed: what was on its way, not a flood."""

_TOO_LARGE: Final = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
)

DRAINED_BYTES: Final = 16_384
"""A socket with less than this waiting takes the next page of a recovery."""

_AT_FRAME_BORDER: Final = StreamReader.at_eof.__code__


class _NoMessages:
    """In the place of the library's queue of messages, which nobody reads here."""

    def close(self) -> None:
        """As the library calls it."""


_NO_MESSAGES: Final = cast("Assembler", _NoMessages())


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
    encoders: Encoders
    handshake_timeout_seconds: float
    max_payload_bytes: int
    write_limit_bytes: int

    def asked(
        self, connection: "Connection", request: Request
    ) -> Response | Awaitable[Response | None] | None:
        """A request came: None lets it in, a response answers it in another way."""

    def arriving(self, connection: "Connection") -> bool:
        """A socket was accepted; False where it is to be dropped. Says what comes before its request."""

    def announced(self, connection: "Connection", header: ProxyPreface) -> bool:
        """What a balancer had to say of it has come; False where it is to be dropped."""

    def dropped(self, reason: str) -> None:
        """A connection is dropped before its request could be answered."""

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

    # beside the library's attributes, which are in a dictionary that would become too large to be shared
    __slots__ = (
        "_decode",
        "_direct",
        "_drained",
        "_encoder",
        "_fragments",
        "_host",
        "_is_usual",
        "_max_bytes",
        "_too_late",
        "_unopened_bytes",
        "_untouched",
        "guest",
        "heard",
        "identity",
        "refusal",
        "session",
        "visitor",
    )

    # few connections have those, so they are no attributes of each
    proxy: ProxyPreface | None = None
    """While a balancer's header has to come first."""
    tls: ssl.SSLContext | None = None
    """Where TLS is spoken."""
    _starting_tls: asyncio.Task[None] | None = None
    _encrypted = b""
    """What came before TLS took the socket over."""
    _early = b""
    """What came through TLS before this connection had its transport."""
    _unheard_bytes = 0
    _was_dropped = False
    _answering: asyncio.Task[None] | None = None
    """Where the answer to its request takes time."""

    def __init__(self, host: Host, protocol: ServerProtocol) -> None:
        super().__init__(
            protocol,
            # the library's server makes a task for each connection; this one is asyncio's own
            cast("Any", None),
            ping_interval=None,
            close_timeout=CLOSE_TIMEOUT_SECONDS,
            write_limit=(host.write_limit_bytes, host.write_limit_bytes // 4),
        )
        # the library's waits for this one
        del self.request_rcvd
        self._host = host
        self._decode = host.decoder.decode
        self._max_bytes = host.max_payload_bytes
        self._direct = False
        """Whether the next byte begins a frame and nothing stands against the short path."""
        self._fragments = bytearray()
        self._encoder: FrameEncoder
        self._drained: list[Callable[[], None]] = []
        self._untouched = True
        """Whether nothing of the request has come."""
        self._is_usual = False
        """Whether the request took the short path."""
        self._unopened_bytes = 0
        self._too_late: asyncio.TimerHandle | None = None
        """While its handshake is not over."""
        self.visitor: Visitor | None = None
        """As the door sees it, set by the host."""
        self.session: Session | None = None
        self.heard = False
        """Whether anything came since this was last set to False."""
        self.identity: Identity | None = None
        """From the handshake; None where a token has still to come."""
        self.guest = False
        self.refusal: Refusal | None = None

    # Beginning and end

    def _answer(self, request: Request) -> None:
        """The request is here: carry out the opening handshake.

        The library has a task for each connection, which waits for the request, then for the end; that cost
        a third of the whole (`python -m benchmarks --only connections`).
        """
        response = self._host.asked(self, request)
        if response is None or isinstance(response, Response):
            self._respond(request, response)
        else:
            self._answering = self.loop.create_task(self._respond_later(request, response))

    async def _respond_later(self, request: Request, answer: Awaitable[Response | None]) -> None:
        self._respond(request, await answer)

    def _respond(self, request: Request, response: Response | None) -> None:
        protocol = self.protocol
        if protocol.state is not CONNECTING or self.gone:
            return
        if protocol.eof_sent:
            # what came right behind the request was no frame, and the library has ended it: nobody hears more
            self._abort_later()
            return
        if response is None and self._is_usual and (accepted := usual.accept(protocol, request)) is not None:
            self.open(accepted)
            return
        self.response = response = response or protocol.accept(request)
        protocol.send_response(response)
        if protocol.state is OPEN:
            self.open(b"".join(protocol.data_to_send()))
        else:
            self.send_data()
            self._abort_later()

    def open(self, response: bytes) -> None:
        """The handshake is done, its response not yet sent: begin the session."""
        host = self._host
        if self._too_late is not None:
            self._too_late.cancel()
            self._too_late = None
        self._encoder = encoder = host.encoders.of(self.protocol.extensions)
        outlet = Outlet(turn=host.turn, encoder=encoder, write=self.transport.write, socket=self)
        # the response and what follows it leave in one write
        outlet.put_first(response)
        session = Session(host.surroundings, outlet=outlet, voice=self)
        self.session = session
        host.arrived(self)
        host.opened(self)
        if self.refusal is not None:
            refusal = self.refusal
            session.refuse_and_close(refusal.code, refusal.message, refusal.close_code, refusal.retry_after)
            return
        session.begin(self.identity, guest=self.guest)
        outlet.flush()
        # nobody asks for them any more, and garbage collection would look at each of their parts
        self.request = self.response = None
        self._look_for_border()

    @property
    def gone(self) -> bool:
        """Whether the socket is closed."""
        return self.connection_lost_waiter.done()

    def encode(self, event: SessionEvent) -> bytes:
        """For the session."""
        return self._encoder.event(event)

    def tell(self, event: SessionEvent) -> None:
        """Send `event`, where there is still somebody to hear it."""
        if self.session is not None and not self.session.closed:
            self.session.send(event)

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
        self.transport = cast("asyncio.Transport", transport)
        if not self._host.arriving(self):
            # before the library makes a task for it
            self._was_dropped = True
            self.transport.abort()
            return
        self.recv_messages = _NO_MESSAGES
        self.transport.set_write_buffer_limits(self.write_limit_high, self.write_limit_low)
        self._too_late = self.loop.call_later(self._host.handshake_timeout_seconds, self._abort)
        if self.tls is not None and self.proxy is None:
            self._begin_tls(b"")

    def connection_lost(self, exc: Exception | None) -> None:
        """From the event loop."""
        if self._was_dropped or self.gone:
            return
        super().connection_lost(exc)
        if self._too_late is not None:
            self._too_late.cancel()
            self._too_late = None
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
        if self.session is None:
            data = self._before_open(data)
            if not data:
                return
        elif self.session.closed:
            self._unheard_bytes += len(data)
            if self._unheard_bytes > MOST_UNHEARD_BYTES:
                self.transport.abort()
                return
        if self._untouched:
            self._untouched = False
            if (request := usual.read(data)) is not None:
                self._is_usual = True
                usual.skip_request(self.protocol)
                self.request = request
                self._answer(request)
                return
        super().data_received(data)
        self._look_for_border()

    def _before_open(self, data: bytes) -> bytes:
        """What of `data` is the library's: not what precedes the request, and not without bound."""
        self._unopened_bytes += len(data)
        if self._unopened_bytes > MOST_HANDSHAKE_BYTES:
            self._host.dropped("handshake_size")
            if self.request is None and self.protocol.state is CONNECTING and self.tls is None:
                self.transport.write(_TOO_LARGE)
                self.transport.close()
            else:
                self.transport.abort()
            return b""
        if self._starting_tls is not None:
            if self.transport.get_protocol() is self:
                self._encrypted += data
            else:
                self._early += data
            return b""
        proxy = self.proxy
        if proxy is None:
            return data
        try:
            rest = proxy.feed(data)
        except PrefaceError as error:
            self._host.dropped(error.reason)
            self.transport.abort()
            return b""
        if rest is None:
            return b""
        self.proxy = None
        if not self._host.announced(self, proxy):
            self.transport.abort()
        elif self.tls is None:
            return rest
        else:
            self._begin_tls(rest)
        return b""

    def _begin_tls(self, first: bytes) -> None:
        self._encrypted = first
        self._starting_tls = self.loop.create_task(self._start_tls())

    async def _start_tls(self) -> None:
        context = self.tls
        if context is None:
            return
        plain = self.transport
        try:
            transport = await start_tls(
                plain,
                self,
                context,
                first=lambda: self._encrypted,
                timeout_seconds=TLS_HANDSHAKE_TIMEOUT_SECONDS,
            )
        except (OSError, RuntimeError) as error:
            self._host.dropped("tls")
            plain.abort()
            self.connection_lost(error if isinstance(error, OSError) else None)
            return
        # from here on everything goes through TLS: what came with the handshake's end first
        WebsocketConnection.connection_made(self, transport)
        self._starting_tls = None
        self._unopened_bytes = 0
        early, self._early = self._early, b""
        if early:
            self.data_received(early)

    def _look_for_border(self) -> None:
        """See whether the library has taken whole frames only, so that the short path may go on."""
        protocol = self.protocol
        session = self.session
        if session is None or session.closed:
            return
        if protocol.state is not OPEN:
            # the client closes and the library has answered, or it broke the rules and the library has failed
            if protocol.close_sent is not None and protocol.close_rcvd is None:
                self._host.closing(self, protocol.close_sent.code)
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
        if isinstance(event, Request):
            self.request = event
            self._answer(event)
            return
        if not isinstance(event, Frame):
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
            # together no more than `max_size`, which the library sees to, and any number of them may be empty
            self._fragments += event.data
            if event.fin:
                whole, self._fragments = bytes(self._fragments), bytearray()
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
        if type(command) is Publish:
            session.handle(command)
        elif isinstance(command, msgspec.Struct):
            if type(command) is Refused:
                session.large_nonsense(len(payload))
            session.handle(command)
        else:
            for each in command:
                session.handle(each)
                if session.closed:
                    break
        return not session.closed

    # What goes out

    @property
    def is_open(self) -> bool:
        """Whether there is a session that goes on."""
        return self.session is not None and not self.session.closed

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
            self.too_slow()

    def pause_writing(self) -> None:
        """From the event loop: more waits than the socket's limit."""
        super().pause_writing()
        if not self._drained:
            self.too_slow()

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

    def too_slow(self) -> None:
        """Close it as a slow consumer."""
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
