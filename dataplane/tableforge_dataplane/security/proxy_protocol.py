"""The header with which a balancer tells, before anything else, who connected to it (PROXY protocol 1 and 2).

https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt. What is after the addresses (TLVs) is skipped.
"""

import dataclasses
import ipaddress
import re
from typing import Final

from tableforge_dataplane.security.addresses import Address, parse_address

SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"

_V1_START: Final = b"PROXY "
_V1_LONGEST: Final = 107
"""The longest line there is, its end included."""

MOST_BYTES: Final = 4096
"""A version 2 header, TLVs included. Balancers add some hundred bytes; the format would allow 64 KB."""

_V1: Final = re.compile(
    rb"PROXY (?:UNKNOWN(?: [^\r\n]*)?|(TCP[46]) (\S{2,45}) (\S{2,45}) ([0-9]{1,5}) ([0-9]{1,5}))"
)

_SIZES: Final = {1: 12, 2: 36, 3: 216}
"""Of the addresses: IPv4, IPv6, Unix."""


class ProxyProtocolError(ValueError):
    """Bytes that are no such header."""


@dataclasses.dataclass(frozen=True, slots=True)
class ProxyHeader:
    """One that was read."""

    source: Address | None
    """Who connected to the balancer; None where it speaks for itself (LOCAL: a health check) or can't say."""
    size_bytes: int
    """What follows is the connection's own."""


def starts_header(data: bytes) -> bool:
    """Whether `data`, of which there may be more, can be the beginning of a header."""
    return any(
        data.startswith(start[: len(data)]) and (len(data) < len(start) or data.startswith(start))
        for start in (SIGNATURE, _V1_START)
    )


def read_header(data: bytes) -> ProxyHeader | None:
    """The header at the beginning of `data`; None where more has to come. Raises ProxyProtocolError."""
    if data.startswith(SIGNATURE):
        return _read_v2(data)
    if data.startswith(_V1_START):
        return _read_v1(data)
    if starts_header(data):
        return None
    raise ProxyProtocolError("no PROXY protocol header")


def _read_v1(data: bytes) -> ProxyHeader | None:
    end = data.find(b"\r\n", 0, _V1_LONGEST)
    if end < 0:
        if len(data) >= _V1_LONGEST or b"\n" in data:
            raise ProxyProtocolError("the line is too long or does not end in CR LF")
        return None
    found = _V1.fullmatch(data[:end])
    if found is None:
        raise ProxyProtocolError("the line cannot be read")
    if found[1] is None:
        return ProxyHeader(None, end + 2)
    kind = ipaddress.IPv4Address if found[1] == b"TCP4" else ipaddress.IPv6Address
    try:
        source, destination = (kind(text.decode("ascii")) for text in (found[2], found[3]))
    except ValueError:
        raise ProxyProtocolError("the line's addresses cannot be read") from None
    if max(int(found[4]), int(found[5])) > 65_535 or destination.version != source.version:
        raise ProxyProtocolError("the line's ports cannot be read")
    return ProxyHeader(parse_address(str(source)), end + 2)


def _read_v2(data: bytes) -> ProxyHeader | None:
    if len(data) < 16:
        return None
    version, command = data[12] >> 4, data[12] & 0x0F
    if version != 2 or command > 1:
        raise ProxyProtocolError("neither version 2 nor a known command")
    length = int.from_bytes(data[14:16])
    if 16 + length > MOST_BYTES:
        raise ProxyProtocolError(f"the header is longer than {MOST_BYTES} bytes")
    if len(data) < 16 + length:
        return None
    family = data[13] >> 4
    if length < _SIZES.get(family, 0):
        raise ProxyProtocolError("the header is shorter than its addresses")
    if command == 0 or family not in (1, 2):
        return ProxyHeader(None, 16 + length)
    if data[13] & 0x0F != 1:
        raise ProxyProtocolError("not a TCP connection")
    source = data[16:20] if family == 1 else data[16:32]
    return ProxyHeader(parse_address(str(ipaddress.ip_address(source))), 16 + length)
