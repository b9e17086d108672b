"""What comes on a connection before its HTTP request: a balancer's PROXY header, and the TLS handshake.

Both are over before the library sees a byte. TLS is begun here, not by the listening socket, because the
PROXY header comes before it in plain text, and so that handshakes that never end are counted and timed as
all others are.
"""

import asyncio
import ssl
from collections.abc import Callable
from typing import Final, cast

from tableforge_dataplane.security.addresses import Address
from tableforge_dataplane.security.proxy_protocol import ProxyProtocolError, read_header, starts_header

SHUTDOWN_TIMEOUT_SECONDS: Final = 5.0

HTTP_METHODS: Final = (b"GET ", b"HEAD ")


class PrefaceError(Exception):
    """The connection is to be dropped; `reason` is what it counts as."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ProxyPreface:
    """Takes a PROXY header from the first bytes of a connection. No I/O.

    A request without one is let through as what it is: checks of a balancer or the kubelet come without.
    `told` then stays False, and `/ws` is refused.
    """

    def __init__(self) -> None:
        self._data = b""
        self.told = False
        """Whether there was a header."""
        self.source: Address | None = None
        """Whom it named."""

    def feed(self, data: bytes) -> bytes | None:
        """What follows the header; None where more of it has to come. Raises PrefaceError."""
        self._data += data
        if not starts_header(self._data):
            if self._data[:1] == b"\x16" or self._data.startswith(HTTP_METHODS):
                return self._data
            if any(method.startswith(self._data) for method in HTTP_METHODS):
                return None
            raise PrefaceError("proxy_header")
        try:
            header = read_header(self._data)
        except ProxyProtocolError:
            raise PrefaceError("proxy_header") from None
        if header is None:
            return None
        self.told = True
        self.source = header.source
        return self._data[header.size_bytes :]


async def start_tls(
    transport: asyncio.Transport,
    protocol: asyncio.Protocol,
    context: ssl.SSLContext,
    *,
    first: Callable[[], bytes],
    timeout_seconds: float,
) -> asyncio.Transport:
    """Put TLS between `transport` and `protocol`. `first` gives what was read of the handshake before.

    Raises OSError (`ssl.SSLError` among them) where the handshake fails.
    """
    loop = asyncio.get_running_loop()
    starting = loop.create_task(
        loop.start_tls(
            transport,
            protocol,
            context,
            server_side=True,
            ssl_handshake_timeout=timeout_seconds,
            ssl_shutdown_timeout=SHUTDOWN_TIMEOUT_SECONDS,
        )
    )
    # `start_tls` runs up to where it waits: from then on what is read goes to TLS, whose beginning it has put
    # on the loop. What is put there now comes after that, and before anything more is read.
    await asyncio.sleep(0)
    if data := first():
        loop.call_soon(_hand_over, transport, data)
    try:
        started = await starting
    except BaseException:
        starting.cancel()
        raise
    if transport.is_closing():
        # uvloop's way of saying that it was cut off in the middle
        raise ConnectionResetError("closed during the TLS handshake")
    return cast("asyncio.Transport", started)


def _hand_over(transport: asyncio.Transport, data: bytes) -> None:
    """As if `data` had been read from the socket just now."""
    if transport.is_closing():
        return
    # a `BufferedProtocol` in all but name: uvloop's is none of its subclasses
    protocol = cast("asyncio.BufferedProtocol", transport.get_protocol())
    while data:
        buffer = memoryview(protocol.get_buffer(len(data))).cast("B")
        size = min(len(buffer), len(data))
        buffer[:size] = data[:size]
        protocol.buffer_updated(size)
        data = data[size:]
