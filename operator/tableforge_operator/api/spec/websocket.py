"""`spec.websocket`."""

from typing import Annotated, ClassVar, Final

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
from tableforge_operator.api.spec.common import DNS_NAME, INTERNAL_PORT, NAME

_WRITE_LIMIT: Final = settings.specs()["websocket.write_limit_bytes"][0]


class Tls(Group, frozen=True):
    """TLS on the port for clients, without anything in front of the pods."""

    secret_name: Annotated[
        str,
        field(
            "Name of the Secret (type kubernetes.io/tls, as cert-manager makes them) with the certificate "
            "and its key, in the namespace of the WebSocketCluster. A renewed one is used without a restart.",
            DNS_NAME,
            **NAME,
        ),
    ]
    min_version: Annotated[settings.TlsVersion, optional_setting("websocket.tls_min_version")] | None = None


class Websocket(Group, frozen=True):
    """The port that clients connect to, and what a connection may do."""

    port: Annotated[
        int, setting("websocket.port", "Port for clients, on the pods and on the Service.", ge=1024)
    ] = default_of("websocket.port")
    max_connections: Annotated[
        int,
        setting(
            "websocket.max_connections",
            "The most connections one instance takes; further ones are answered with 503 and go elsewhere.",
        ),
    ] = default_of("websocket.max_connections")
    ping_interval: Annotated[Duration, setting("websocket.ping_interval_seconds")] = default_of(
        "websocket.ping_interval_seconds"
    )
    pong_timeout: Annotated[Duration, setting("websocket.pong_timeout_seconds")] = default_of(
        "websocket.pong_timeout_seconds"
    )
    max_payload_bytes: Annotated[
        int, setting("websocket.max_payload_bytes", "The largest frame a client may send, in bytes.")
    ] = default_of("websocket.max_payload_bytes")
    write_limit_bytes: (
        Annotated[
            int,
            written_setting(
                "websocket.write_limit_bytes",
                "A socket with more than this waiting to be sent is a slow consumer and closed with 4408, in "
                f"bytes. Default: {default_of('websocket.write_limit_bytes')}, or twice `maxPayloadBytes` "
                "where that is more.",
                ge=int(_WRITE_LIMIT.minimum or 0),
                le=int(_WRITE_LIMIT.maximum or 0),
            ),
        ]
        | None
    ) = None
    auth_timeout: Annotated[Duration, optional_setting("websocket.auth_timeout_seconds")] | None = None
    tls: Tls | None = None

    rules: ClassVar = (
        Rule(
            f"self.port != {INTERNAL_PORT}",
            f"websocket.port {INTERNAL_PORT} is taken by the instances' internal port: choose another",
            field_path=".port",
        ),
        Rule(
            "!has(self.writeLimitBytes) || self.writeLimitBytes >= 2 * self.maxPayloadBytes",
            "websocket.writeLimitBytes must be at least twice websocket.maxPayloadBytes: raise the one or "
            "lower the other",
            field_path=".writeLimitBytes",
        ),
    )
