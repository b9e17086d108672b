"""How long a connection to the internal port may take to say what it wants, and how many there may be.

aiohttp waits for ever for a header that comes a byte at a time, and every such connection takes one of the
files that clients' connections are, too.
"""

import asyncio
from collections.abc import Callable
from typing import Final, cast

MOST_CONNECTIONS: Final = 500
"""At once; further ones are dropped as they are accepted."""

REQUEST_SECONDS: Final = 10.0
"""From the first byte of a request, or from the beginning of the connection, to the end of its header."""

KEEPALIVE_SECONDS: Final = 75.0
"""Between two requests."""


class Patience:
    """Keeps watch over the connections of one port."""

    def __init__(self) -> None:
        self._watched: dict[asyncio.BaseTransport, _Watched] = {}

    def watch(self, make: Callable[[], asyncio.Protocol]) -> Callable[[], asyncio.Protocol]:
        """A factory of the same protocols, watched over."""
        return lambda: _Watched(make(), self._watched)

    def asked(self, transport: asyncio.BaseTransport | None) -> None:
        """A whole header has come."""
        if transport is not None and (watched := self._watched.get(transport)) is not None:
            watched.wait(None)

    def answered(self, transport: asyncio.BaseTransport | None) -> None:
        """Its answer is about to be sent: the next request may come later, and not slowly."""
        if transport is not None and (watched := self._watched.get(transport)) is not None:
            watched.wait(KEEPALIVE_SECONDS + REQUEST_SECONDS)


class _Watched(asyncio.Protocol):
    def __init__(self, protocol: asyncio.Protocol, watched: "dict[asyncio.BaseTransport, _Watched]") -> None:
        self._protocol = protocol
        self._watched = watched
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """From the event loop."""
        self._transport = transport = cast("asyncio.Transport", transport)  # uvloop's is none by its bases
        self._protocol.connection_made(transport)
        if len(self._watched) >= MOST_CONNECTIONS:
            transport.abort()
            return
        self._watched[transport] = self
        self.wait(REQUEST_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """From the event loop."""
        self.wait(None)
        if self._transport is not None:
            self._watched.pop(self._transport, None)
        self._protocol.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """From the event loop."""
        self._protocol.data_received(data)

    def eof_received(self) -> bool | None:
        """From the event loop."""
        return self._protocol.eof_received()

    def pause_writing(self) -> None:
        """From the event loop."""
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """From the event loop."""
        self._protocol.resume_writing()

    def wait(self, seconds: float | None) -> None:
        """The next request has to be here within this time; None: none is waited for."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if seconds is not None and self._transport is not None:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._transport.abort)
