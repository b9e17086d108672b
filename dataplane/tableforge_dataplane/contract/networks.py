"""Networks as they are written in a setting."""

import ipaddress
from typing import Final

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

NO_PROXIES: Final = "none"
"""Says of `TABLEFORGE_SECURITY_TRUSTED_PROXIES`: every peer is a client itself."""


def parse_networks(text: str) -> tuple[Network, ...]:
    """The networks that `text` lists. Raises ValueError with what is wrong with which of them."""
    found: list[Network] = []
    for part in text.split(","):
        name = part.strip()
        if not name or name == NO_PROXIES:
            continue
        try:
            found.append(ipaddress.ip_network(name))
        except ValueError as error:
            raise ValueError(str(error)) from None
    return tuple(found)
