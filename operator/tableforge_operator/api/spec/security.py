"""`spec.security`."""

from typing import Annotated, ClassVar

import msgspec

from tableforge_dataplane.contract import settings
from tableforge_operator.api.fields import (
    Group,
    Rule,
    default_of,
    field,
    optional_setting,
    setting,
    written_setting,
)
from tableforge_operator.api.quantities import Duration
from tableforge_operator.api.spec.network_policy import NetworkPolicy


class Security(Group, frozen=True):
    """Limits per client, and who is believed about where a client is."""

    max_messages_per_second: Annotated[int, setting("security.max_messages_per_second")] = default_of(
        "security.max_messages_per_second"
    )
    max_messages_per_minute: Annotated[int, setting("security.max_messages_per_minute")] = default_of(
        "security.max_messages_per_minute"
    )
    max_bytes_per_second: Annotated[int, setting("security.max_bytes_per_second")] = default_of(
        "security.max_bytes_per_second"
    )
    max_rooms_per_connection: Annotated[int, setting("security.max_rooms_per_connection")] = default_of(
        "security.max_rooms_per_connection"
    )
    enable_rate_limiting: Annotated[bool, optional_setting("security.enable_rate_limiting")] | None = None
    enable_connection_limiting: (
        Annotated[bool, optional_setting("security.enable_connection_limiting")] | None
    ) = None
    max_connections_per_ip: (
        Annotated[
            int,
            optional_setting(
                "security.max_connections_per_ip",
                "Connections from one address (IPv6: one /64) to the whole cluster. Without effect where the "
                "address is private and trustedProxies is empty: it is a balancer's then.",
            ),
        ]
        | None
    ) = msgspec.field(default=None, name="maxConnectionsPerIP")
    max_connections_per_user: Annotated[int, optional_setting("security.max_connections_per_user")] | None = (
        None
    )
    enable_ddos_protection: Annotated[bool, optional_setting("security.enable_ddos_protection")] | None = (
        msgspec.field(default=None, name="enableDDoSProtection")
    )
    max_handshakes_per_second: (
        Annotated[int, optional_setting("security.max_handshakes_per_second")] | None
    ) = None
    handshake_timeout: Annotated[Duration, optional_setting("security.handshake_timeout_seconds")] | None = (
        None
    )
    trusted_proxies: (
        Annotated[
            list[
                Annotated[
                    str,
                    field(
                        "A range of addresses, such as 10.0.0.0/8, or `none`.",
                        Rule(
                            "self == 'none' || (isCIDR(self) && cidr(self) == cidr(self).masked())",
                            "must be a range of addresses such as 10.0.0.0/8, with nothing set behind its "
                            "prefix, or `none`",
                        ),
                        max_length=43,
                    ),
                ]
            ],
            written_setting(
                "security.trusted_proxies",
                "Ranges of the addresses of the proxies in front: only they are believed about a client's "
                "address. `none` alone: there are none, every peer is a client, on private addresses too.",
                Rule(
                    "!('none' in self) || self.size() == 1",
                    "security.trustedProxies must be ranges of addresses or `none` alone: remove one of them",
                ),
                schema={"x-kubernetes-list-type": "set"},
                max_length=64,
            ),
        ]
        | None
    ) = None
    client_address_header: (
        Annotated[settings.ClientAddressHeader, optional_setting("security.client_address_header")] | None
    ) = None
    proxy_protocol: Annotated[bool, optional_setting("security.proxy_protocol")] | None = None
    allowed_origins: (
        Annotated[
            list[
                Annotated[
                    str,
                    field(
                        "An origin, such as https://app.example.com, https://*.example.com or `*`.",
                        Rule(
                            "self in ['*', 'null'] || self.matches('(?i)^[a-z][a-z0-9+.-]*://([*][.])?"
                            "([a-z0-9_-]+([.][a-z0-9_-]+)*|[[][0-9a-f:.]+[]])(:[0-9]{1,5})?$')",
                            "must be scheme and host, like https://app.example.com, https://*.example.com or "
                            "http://localhost:5173, or `*` for all",
                        ),
                        min_length=1,
                        max_length=280,
                    ),
                ]
            ],
            written_setting(
                "security.allowed_origins",
                "Web pages that may connect. Unset: all where a token is required, else those from the "
                "host that is connected to.",
                schema={"x-kubernetes-list-type": "set"},
                max_length=64,
            ),
        ]
        | None
    ) = None

    network_policy: NetworkPolicy = NetworkPolicy()

    rules: ClassVar = (
        Rule(
            "self.maxMessagesPerMinute >= self.maxMessagesPerSecond",
            "security.maxMessagesPerMinute must be at least security.maxMessagesPerSecond: "
            "raise the one or lower the other",
            field_path=".maxMessagesPerMinute",
        ),
        Rule(
            "!has(self.proxyProtocol) || !self.proxyProtocol "
            "|| (has(self.trustedProxies) && self.trustedProxies.exists(range, range != 'none'))",
            "security.proxyProtocol must come with security.trustedProxies, the balancers that send its "
            "header; nobody else's is read",
            field_path=".proxyProtocol",
        ),
    )
