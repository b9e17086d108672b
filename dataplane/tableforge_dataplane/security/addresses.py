"""Where a client is, behind whatever lies between.

A peer that is no trusted proxy is the client itself, and what its headers say of addresses is its own
invention. A trusted one is believed about who connected to it, and only about that: what it adds stands on
the right, so the header is read from the right, past trusted hops, to the first address that is nobody's we
know. That one is the client, whatever stands to its left.
"""

import functools
import ipaddress
import re
from collections.abc import Iterator, Sequence
from typing import Final

from tableforge_dataplane.contract.networks import NO_PROXIES, Network, parse_networks
from tableforge_dataplane.contract.settings import SecuritySettings

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

MOST_HOPS: Final = 32
"""Addresses in one header; a longer list is nobody's honest work."""

CLIENT_PREFIX_LENGTH: Final = 64
"""What one IPv6 client has: it can use any address of its /64."""

_SHARED: Final = ipaddress.ip_network("100.64.0.0/10")
"""Carriers and clouds address their own machines with it."""

_BRACKETED: Final = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::[0-9A-Za-z._-]+)?")
_WITH_PORT: Final = re.compile(r"([0-9.]+):[0-9]{1,5}")
_PAIR: Final = re.compile(r"""\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+)=([^\s",;=]+|"(?:[^"\\]|\\.)*")\s*""")


class AddressError(ValueError):
    """A trusted proxy's header that cannot be read: who the client is, nobody knows."""


def parse_address(text: str) -> Address:
    """`text` as an address; an IPv4 one that is written as IPv6 is IPv4. Raises ValueError."""
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address):
        # a zone means something on the machine that wrote it only
        return address.ipv4_mapped or ipaddress.IPv6Address(int(address))
    return address


@functools.lru_cache(maxsize=4096)
def client_key(address: Address) -> str:
    """What limits count by: the address, or for IPv6 its /64."""
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    return str(ipaddress.ip_network((int(address), CLIENT_PREFIX_LENGTH), strict=False))


class ClientAddresses:
    """Finds the client's address, as the settings say who is trusted."""

    def __init__(self, settings: SecuritySettings) -> None:
        self._trusted: tuple[Network, ...] = parse_networks(settings.trusted_proxies)
        self._everybody_is_a_client = settings.trusted_proxies.strip() == NO_PROXIES
        self.header: Final = settings.client_address_header
        self.trusts = functools.lru_cache(maxsize=4096)(self._trusts)
        """Whether an address is a trusted proxy's."""
        self.is_client = functools.lru_cache(maxsize=4096)(self._is_client)
        """Whether an address can be a client's own. A private or local one can't be while no proxies are
        named: then it is most likely a balancer's, with thousands of clients behind it."""

    def _trusts(self, address: Address) -> bool:
        return any(address in network for network in self._trusted)

    def _is_client(self, address: Address) -> bool:
        if self._everybody_is_a_client or self._trusted:
            return True
        return not (address.is_private or address.is_loopback or address.is_link_local or address in _SHARED)

    def behind(self, peer: Address, lines: Sequence[str]) -> Address:
        """Who the client is, where `peer` connected and `lines` are those of the header.

        Raises AddressError where a trusted proxy's header cannot be read as far as it matters.
        """
        if not self.trusts(peer):
            return peer
        client = peer
        hops = _forwarded(lines) if self.header == "Forwarded" else _x_forwarded_for(lines)
        for count, hop in enumerate(hops):
            if count == MOST_HOPS:
                raise AddressError(f"{self.header} has more than {MOST_HOPS} addresses")
            if hop is None:
                # a proxy that hides where it was connected from (RFC 7239, 6): it is all that is known
                return client
            client = hop
            if not self.trusts(client):
                return client
        return client


def _x_forwarded_for(lines: Sequence[str]) -> Iterator[Address | None]:
    for line in reversed(lines):
        for part in reversed(line.split(",")):
            if part.strip():
                yield _node(part.strip())


def _forwarded(lines: Sequence[str]) -> Iterator[Address | None]:
    for line in reversed(lines):
        for element in reversed(_split(line, ",")):
            if not element.strip():
                continue
            node: str | None = None
            for pair in _split(element, ";"):
                if not pair.strip():
                    continue
                found = _PAIR.fullmatch(pair)
                if found is None:
                    raise AddressError("Forwarded cannot be read")
                if found[1].lower() == "for":
                    if node is not None:
                        raise AddressError("Forwarded names `for` twice in one element")
                    node = re.sub(r"\\(.)", r"\1", found[2][1:-1]) if found[2][0] == '"' else found[2]
            yield None if node is None or node.lower() == "unknown" or node[:1] == "_" else _node(node)


def _split(text: str, separator: str) -> list[str]:
    """Split at separators outside of quotes. Raises AddressError for a quote that isn't closed."""
    if '"' not in text:
        return text.split(separator)
    parts: list[str] = []
    begin, quoted, escaped = 0, False, False
    for at, character in enumerate(text):
        if escaped:
            escaped = False
        elif quoted and character == "\\":
            escaped = True
        elif character == '"':
            quoted = not quoted
        elif character == separator and not quoted:
            parts.append(text[begin:at])
            begin = at + 1
    if quoted:
        raise AddressError("Forwarded has a quote that is not closed")
    return [*parts, text[begin:]]


def _node(text: str) -> Address:
    found = _BRACKETED.fullmatch(text) or _WITH_PORT.fullmatch(text)
    try:
        return parse_address(found[1] if found is not None else text)
    except ValueError:
        raise AddressError("the header of a trusted proxy names something that is no address") from None
