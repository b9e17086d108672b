"""`Settings.security`."""

import dataclasses
from typing import Literal

from tableforge_dataplane.contract.settings.declaration import Unit, setting

ClientAddressHeader = Literal["X-Forwarded-For", "Forwarded"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SecuritySettings:
    """Limits per client, and who is believed about where a client is."""

    max_messages_per_second: int = setting(
        100,
        "TABLEFORGE_SECURITY_MAX_MESSAGES_PER_SECOND",
        "Commands a connection may send in a second, and all connections of a user to an instance together.",
        minimum=1,
        maximum=1_000_000,
        live=True,
    )
    max_messages_per_minute: int = setting(
        1000,
        "TABLEFORGE_SECURITY_MAX_MESSAGES_PER_MINUTE",
        "Commands a connection may send in a minute, and all connections of a user to an instance together.",
        minimum=1,
        maximum=60_000_000,
        live=True,
    )
    max_bytes_per_second: int = setting(
        1_048_576,
        "TABLEFORGE_SECURITY_MAX_BYTES_PER_SECOND",
        "Bytes a user may publish in a second, over all of the user's connections to an instance.",
        unit=Unit.BYTES,
        minimum=1024,
        maximum=1_073_741_824,
        live=True,
    )
    max_rooms_per_connection: int = setting(
        100,
        "TABLEFORGE_SECURITY_MAX_ROOMS_PER_CONNECTION",
        "Rooms a connection may be in at once.",
        minimum=1,
        maximum=10_000,
        live=True,
    )
    enable_rate_limiting: bool = setting(
        True,
        "TABLEFORGE_SECURITY_ENABLE_RATE_LIMITING",
        "Whether commands and bytes are limited; what a connection may send at all stays bounded either way.",
        live=True,
    )
    enable_connection_limiting: bool = setting(
        True,
        "TABLEFORGE_SECURITY_ENABLE_CONNECTION_LIMITING",
        "Whether connections are limited by address and by user. The limit of an instance always holds.",
        live=True,
    )
    max_connections_per_ip: int = setting(
        10,
        "TABLEFORGE_SECURITY_MAX_CONNECTIONS_PER_IP",
        "Connections from one address (IPv6: one /64) to the whole cluster. Without effect where the address "
        "is private and TABLEFORGE_SECURITY_TRUSTED_PROXIES is empty: it is a balancer's then.",
        minimum=1,
        maximum=1_000_000,
        live=True,
    )
    max_connections_per_user: int = setting(
        100,
        "TABLEFORGE_SECURITY_MAX_CONNECTIONS_PER_USER",
        "Connections of one user to the whole cluster; guests have none in common.",
        minimum=1,
        maximum=1_000_000,
        live=True,
    )
    enable_ddos_protection: bool = setting(
        True,
        "TABLEFORGE_SECURITY_ENABLE_DDOS_PROTECTION",
        "Whether handshakes are limited by address, and who sent nonsense has to wait before coming back.",
        live=True,
    )
    max_handshakes_per_second: int = setting(
        10,
        "TABLEFORGE_SECURITY_MAX_HANDSHAKES_PER_SECOND",
        "Handshakes from one address to an instance in a second, on average; four times as many at once.",
        minimum=1,
        maximum=1_000_000,
        live=True,
    )
    handshake_timeout_seconds: float = setting(
        10.0,
        "TABLEFORGE_SECURITY_HANDSHAKE_TIMEOUT",
        "How long a connection has from its start to the end of its handshake, TLS included.",
        unit=Unit.MILLISECONDS,
        minimum=500,
        maximum=60_000,
        live=True,
    )
    trusted_proxies: str = setting(
        "",
        "TABLEFORGE_SECURITY_TRUSTED_PROXIES",
        "Networks of the proxies in front, with commas between them: only they are believed about a client's "
        "address. `none`: there are none, every peer is a client, on private addresses too.",
        pattern=r"[0-9A-Za-z.:/, ]{0,4000}",
        examples=("none", "10.0.0.0/8", "192.0.2.7, 2001:db8::/32"),
        live=True,
    )
    client_address_header: ClientAddressHeader = setting(
        "X-Forwarded-For",
        "TABLEFORGE_SECURITY_CLIENT_ADDRESS_HEADER",
        "The header into which the trusted proxies write. Only this one is read: the other might be the "
        "client's own, passed on.",
        live=True,
    )
    proxy_protocol: bool = setting(
        False,
        "TABLEFORGE_SECURITY_PROXY_PROTOCOL",
        "Whether trusted proxies begin each connection with a PROXY protocol header (version 1 or 2).",
        live=True,
    )
    allowed_origins: str = setting(
        "",
        "TABLEFORGE_SECURITY_ALLOWED_ORIGINS",
        "Web pages that may connect, with commas between them: `https://app.example.com`, "
        "`https://*.example.com`, or `*` for all. Empty: all where a token is required, else those from "
        "the host that is connected to.",
        pattern=r"[A-Za-z0-9.:/,*\[\]_ +-]{0,20000}",
        examples=("*", "https://app.example.com", "https://*.example.com, http://localhost:5173"),
        live=True,
    )
