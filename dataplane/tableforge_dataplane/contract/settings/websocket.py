"""`Settings.websocket`."""

import dataclasses
from typing import Literal

from tableforge_dataplane.contract.settings.declaration import HOST, Unit, setting

TlsVersion = Literal["1.2", "1.3"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class WebsocketSettings:
    """The port clients connect to."""

    host: str = setting("0.0.0.0", "WS_HOST", "Address to listen on.", pattern=HOST)  # noqa: S104
    port: int = setting(3001, "WS_PORT", "Port for clients.", minimum=0, maximum=65535)
    max_connections: int = setting(
        1000,
        "WS_MAX_CONNECTIONS",
        "The most connections this instance takes; further ones are refused with 503. "
        "TABLEFORGE_LOAD_BALANCING_MAX_CONNECTIONS_PER_INSTANCE counts where it is smaller.",
        minimum=1,
        maximum=1_000_000,
        live=True,
    )
    ping_interval_seconds: float = setting(
        30.0,
        "TABLEFORGE_WEBSOCKET_PING_INTERVAL",
        "How often a connection is pinged.",
        unit=Unit.MILLISECONDS,
        minimum=1000,
        maximum=3_600_000,
    )
    pong_timeout_seconds: float = setting(
        5.0,
        "TABLEFORGE_WEBSOCKET_PONG_TIMEOUT",
        "How long a pong may take before the connection counts as dead.",
        unit=Unit.MILLISECONDS,
        minimum=100,
        maximum=600_000,
    )
    max_payload_bytes: int = setting(
        102_400,
        "TABLEFORGE_WEBSOCKET_MAX_PAYLOAD_BYTES",
        "The largest frame a client may send.",
        unit=Unit.BYTES,
        minimum=1024,
        maximum=1_048_576,
    )
    write_limit_bytes: int = setting(
        1_048_576,
        "TABLEFORGE_WEBSOCKET_WRITE_LIMIT_BYTES",
        "A socket with more than this waiting to be sent is a slow consumer and closed with 4408.",
        unit=Unit.BYTES,
        minimum=65_536,
        maximum=268_435_456,
    )
    auth_timeout_seconds: float = setting(
        5.0,
        "TABLEFORGE_WEBSOCKET_AUTH_TIMEOUT",
        "How long a client has to send its token.",
        unit=Unit.MILLISECONDS,
        minimum=100,
        maximum=60_000,
        live=True,
    )
    tls_cert_file: str = setting(
        "",
        "TABLEFORGE_WEBSOCKET_TLS_CERT_FILE",
        "PEM file with the certificate of the clients' port and what leads to its root; read again when it "
        "changes. Empty: no TLS.",
        pattern=r"[^\x00-\x1f]{0,1000}",
    )
    tls_key_file: str = setting(
        "",
        "TABLEFORGE_WEBSOCKET_TLS_KEY_FILE",
        "PEM file with the certificate's private key; read again when it changes.",
        pattern=r"[^\x00-\x1f]{0,1000}",
    )
    tls_min_version: TlsVersion = setting(
        "1.2", "TABLEFORGE_WEBSOCKET_TLS_MIN_VERSION", "The oldest TLS version that is spoken."
    )
