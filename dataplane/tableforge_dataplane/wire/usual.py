"""The usual upgrade request, read and answered in one go.

Reading, checking and answering it takes the library a fifth of what a connection costs. A request that came
in one piece, whole and with nothing behind it, and that could not be meant otherwise, is read here, with the
same result; every other one is the library's, from its first byte.
"""

import email.utils
import functools
import re
import time
from typing import Final

from websockets.datastructures import Headers
from websockets.exceptions import InvalidHandshake
from websockets.http11 import Request
from websockets.protocol import OPEN, Protocol
from websockets.server import ServerProtocol
from websockets.typing import Origin, Subprotocol
from websockets.utils import accept_key

from tableforge_dataplane.contract.endpoints import INSTANCE_PATH, WS_PATH

MOST_BYTES: Final = 4096
"""Of a request that is read here: no line of it can be longer than the library takes."""

MOST_FIELDS: Final = 64
"""Half of what the library takes."""

_TOKEN: Final = r"[-!#$%&'*+.^_`|~0-9a-zA-Z]"  # noqa: S105

_whole = re.compile(
    rf"GET ((?:{re.escape(INSTANCE_PATH)}/[\w.-]++)?+{re.escape(WS_PATH)}(?:\?[!-~]*+)?+) HTTP/1\.1\r\n"
    # a value that ends with white space is left to the library
    rf"((?:{_TOKEN}++:[\t -~]*+(?<![\t ])\r\n){{1,{MOST_FIELDS}}}+)\r\n"
).fullmatch
_fields = re.compile(r"([^:\r]++):[\t ]*+([^\r]*+)\r\n").findall
_is_key = re.compile(r"[+/0-9A-Za-z]{22}==").fullmatch
_are_subprotocols = re.compile(rf"{_TOKEN}++(?:, ?{_TOKEN}++)*+").fullmatch

_CONNECTIONS: Final = frozenset(("upgrade", "keep-alive, upgrade"))
"""What browsers and libraries send, in small letters."""

_ONCE: Final = frozenset(
    (
        "connection",
        "origin",
        "sec-websocket-key",
        "sec-websocket-protocol",
        "sec-websocket-version",
        "upgrade",
    )
)
"""Fields that come once in the usual request, in small letters."""


def read(data: bytes) -> Request | None:
    """The usual request, or None where `data` is something else.

    It is one that the library accepts, unless it finds fault with what the request says of extensions.
    """
    if len(data) > MOST_BYTES or not data.isascii():
        return None
    found = _whole(data.decode("ascii"))
    if found is None:
        return None
    headers = Headers()
    values: dict[str, str] = {}
    for name, value in _fields(found[2]):
        headers.set_insecure(name, value)
        small = name.lower()
        if small in values and small in _ONCE:
            return None
        values[small] = value
    value_of = values.get
    subprotocols = value_of("sec-websocket-protocol")
    if (
        _is_key(value_of("sec-websocket-key", "")) is None
        or value_of("sec-websocket-version") != "13"
        or value_of("connection", "").lower() not in _CONNECTIONS
        or value_of("upgrade", "").lower() != "websocket"
        or (subprotocols is not None and _are_subprotocols(subprotocols) is None)
        or "content-length" in values
        or "transfer-encoding" in values
    ):
        return None
    return Request(found[1], headers)


def skip_request(protocol: ServerProtocol) -> None:
    """Have the library go on as if it had read the request itself: what comes next are frames."""
    protocol.parser.close()
    protocol.parser = Protocol.parse(protocol)
    next(protocol.parser)


def accept(protocol: ServerProtocol, request: Request) -> bytes | None:
    """Open the connection of a request that was read here, and say what is to be sent for it.

    None where it isn't to be opened: the library's own `accept` then says why.
    """
    headers = request.headers
    more = ""
    if "Sec-WebSocket-Extensions" in headers:
        try:
            agreed, protocol.extensions = protocol.process_extensions(headers)
        except InvalidHandshake:
            return None
        if agreed is not None:
            more = f"Sec-WebSocket-Extensions: {agreed}\r\n"
    if lines := headers.get_all("Sec-WebSocket-Protocol"):
        chosen = protocol.select_subprotocol([Subprotocol(name.strip()) for name in lines[0].split(",")])
        protocol.subprotocol = chosen
        if chosen is not None:
            more += f"Sec-WebSocket-Protocol: {chosen}\r\n"
    origin = headers.get("Origin")
    if origin is not None:
        protocol.origin = Origin(origin)
    protocol.state = OPEN
    proof = accept_key(headers["Sec-WebSocket-Key"])
    return (
        f"HTTP/1.1 101 Switching Protocols\r\nDate: {_date(int(time.time()))}\r\nUpgrade: websocket\r\n"
        f"Connection: Upgrade\r\nSec-WebSocket-Accept: {proof}\r\n{more}\r\n"
    ).encode("ascii")


@functools.lru_cache(maxsize=1)
def _date(second: int) -> str:
    return email.utils.formatdate(second, usegmt=True)
