"""Every setting of the data plane: its environment variable, default, bounds and meaning.

This is the one place where defaults live. The operator renders these variables and takes the CRD's defaults
from here; `environment` reads them at the start of an instance. Durations are whole milliseconds in the
environment, as operators of the original deployment know them, and seconds in code.
"""

import dataclasses
import enum
from pathlib import Path
from typing import Any, Final, Literal


class Unit(enum.Enum):
    """How a number is written in the environment."""

    PLAIN = "a whole number"
    MILLISECONDS = "a whole number of milliseconds"
    BYTES = "a whole number of bytes"


@dataclasses.dataclass(frozen=True)
class Secret:
    """A secret by value or by file, where the file wins. Its text never shows in `repr`.

    A file that is a folder holds several, by number. The highest counts, so that a new one can be put beside
    the old one before anybody asks for it.
    """

    value: str | None = dataclasses.field(default=None, repr=False)
    file: Path | None = None

    @property
    def configured(self) -> bool:
        """Whether a value or a file was named; the file need not exist yet."""
        return self.file is not None or self.value is not None

    def read(self) -> str | None:
        """The secret as it is now, less trailing newlines; None where it isn't there (yet) or is empty.

        Raises OSError where the file exists and cannot be read.
        """
        if self.file is None:
            return self.value or None
        try:
            file = self.file / str(self.number()) if self.file.is_dir() else self.file
            return file.read_text(encoding="utf-8").rstrip("\r\n") or None
        except FileNotFoundError:
            return None

    def number(self) -> int:
        """Which one of several counts now; 0 where there is none, or only one without a number."""
        if self.file is None or not self.file.is_dir():
            return 0
        return max((int(one.name) for one in self.file.iterdir() if one.name.isdecimal()), default=0)


@dataclasses.dataclass(frozen=True)
class Spec:
    """What is known of one setting beside its default and type."""

    env: str
    doc: str
    unit: Unit = Unit.PLAIN
    minimum: float | None = None
    maximum: float | None = None
    pattern: str | None = None
    examples: tuple[str, ...] = ()
    """For a text that a pattern alone doesn't describe: some that are taken."""
    live: bool = False
    """Whether it may change while an instance runs, by TABLEFORGE_LIVE_SETTINGS_FILE."""


def _setting(default: Any, env: str, doc: str, **more: Any) -> Any:
    metadata = {"spec": Spec(env=env, doc=doc, **more)}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


_HOST: Final = r"[A-Za-z0-9._:%-]{1,253}"
_NODE: Final = r"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.%]{2,60}\])(?::[0-9]{1,5})?"
_PATH: Final = r"[^\x00-\x1f]{1,1000}"

Durability = Literal["Memory", "Disk", "Replica", "Disk+Replica"]
TlsVersion = Literal["1.2", "1.3"]
ClientAddressHeader = Literal["X-Forwarded-For", "Forwarded"]
PlacementStrategy = Literal["RoundRobin", "LeastConnections", "Weighted"]
RoutingMode = Literal["Service", "Gateway"]
RedisMode = Literal["Standalone", "Sentinel", "Cluster"]
SecretAlgorithm = Literal["HS256", "HS384", "HS512"]
RsaAlgorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["json", "text"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RedisSettings:
    """Where Redis is and what an acknowledgement must mean there."""

    host: str = _setting("localhost", "REDIS_HOST", "Host name or address of Redis.", pattern=_HOST)
    port: int = _setting(6379, "REDIS_PORT", "Port of Redis.", minimum=1, maximum=65535)
    password: Secret = _setting(
        Secret,
        "REDIS_PASSWORD",
        "Password of Redis; REDIS_PASSWORD_FILE names a file that holds it, or a folder of files `1`, `2` "
        "and so on, of which the highest counts at the next connect.",
    )
    username: str = _setting(
        "",
        "REDIS_USERNAME",
        "ACL user of Redis; empty: the default user. It needs REDIS_PASSWORD.",
        pattern=r"[^\s\x00]{1,200}",
    )
    mode: RedisMode = _setting(
        "Standalone",
        "TABLEFORGE_REDIS_MODE",
        "`Standalone`: the server at REDIS_HOST. `Sentinel`: the primary that the sentinels at "
        "TABLEFORGE_REDIS_ADDRESSES name. `Cluster`: a Redis Cluster, found by the nodes named there.",
    )
    addresses: str = _setting(
        "",
        "TABLEFORGE_REDIS_ADDRESSES",
        "Sentinels, or some nodes of the cluster, as `host:port,host:port`. Without a port: 26379 for "
        "sentinels, 6379 for nodes.",
        pattern=rf"{_NODE}(?:,{_NODE}){{0,99}}",
    )
    sentinel_master_name: str = _setting(
        "",
        "TABLEFORGE_REDIS_SENTINEL_MASTER_NAME",
        "What the sentinels call the primary.",
        pattern=r"[A-Za-z0-9._-]{1,200}",
    )
    sentinel_username: str = _setting(
        "",
        "TABLEFORGE_REDIS_SENTINEL_USERNAME",
        "ACL user of the sentinels; empty: the default user.",
        pattern=r"[^\s\x00]{1,200}",
    )
    sentinel_password: Secret = _setting(
        Secret,
        "TABLEFORGE_REDIS_SENTINEL_PASSWORD",
        "Password of the sentinels, where they want one; TABLEFORGE_REDIS_SENTINEL_PASSWORD_FILE names a "
        "file that holds it.",
    )
    tls: bool = _setting(
        False,
        "TABLEFORGE_REDIS_TLS",
        "Whether connections to Redis (and to its sentinels) are encrypted. The server's certificate is "
        "always checked.",
    )
    tls_ca_file: str = _setting(
        "",
        "TABLEFORGE_REDIS_TLS_CA_FILE",
        "The authorities that Redis's certificate may come from, PEM; empty: the system's. TLS files are "
        "read anew at each connect.",
        pattern=_PATH,
    )
    tls_cert_file: str = _setting(
        "",
        "TABLEFORGE_REDIS_TLS_CERT_FILE",
        "This instance's certificate, PEM, where Redis asks clients for one.",
        pattern=_PATH,
    )
    tls_key_file: str = _setting(
        "", "TABLEFORGE_REDIS_TLS_KEY_FILE", "The private key of that certificate, PEM.", pattern=_PATH
    )
    tls_server_name: str = _setting(
        "",
        "TABLEFORGE_REDIS_TLS_SERVER_NAME",
        "The name that Redis's certificate must bear; empty: the host that is connected to.",
        pattern=r"[A-Za-z0-9._:-]{1,253}",
    )
    max_retries_per_request: int = _setting(
        3,
        "TABLEFORGE_REDIS_MAX_RETRIES_PER_REQUEST",
        "How often a request is sent again at once, after a redirection or a lost connection. Then reads "
        "fail, to be asked for again later, and publishes pause for "
        "`TABLEFORGE_REDIS_RETRY_DELAY_ON_FAILOVER`.",
        minimum=0,
        maximum=20,
    )
    retry_delay_on_failover_seconds: float = _setting(
        0.1,
        "TABLEFORGE_REDIS_RETRY_DELAY_ON_FAILOVER",
        "How long to wait before the new primary, or the slot's new owner, is looked for and tried again; "
        "a server that stays away is tried less and less often, every two seconds in the end.",
        unit=Unit.MILLISECONDS,
        minimum=10,
        maximum=10_000,
    )
    lazy_connect: bool = _setting(
        True,
        "TABLEFORGE_REDIS_LAZY_CONNECT",
        "`true`: the instance starts, not ready yet, whether Redis answers or not. `false`: it ends with a "
        "message where Redis cannot be used within `TABLEFORGE_REDIS_CONNECT_TIMEOUT`.",
    )
    claim: str = _setting(
        "",
        "TABLEFORGE_REDIS_CLAIM",
        "A name for this cluster (its uid). All instances of a cluster have the same; while they live, "
        "instances with another one on the same key prefix do not become ready. Empty: not checked.",
        pattern=r"[A-Za-z0-9._:/-]{1,200}",
    )
    database: int = _setting(
        0,
        "REDIS_DB",
        "Database number. Pub/Sub ignores it, so `TABLEFORGE_REDIS_KEY_PREFIX` is what keeps two "
        "clusters apart.",
        minimum=0,
        maximum=65535,
    )
    key_prefix: str = _setting(
        "tableforge",
        "TABLEFORGE_REDIS_KEY_PREFIX",
        "What every key and channel of this cluster starts with, after `tf:`.",
        pattern=r"[A-Za-z0-9._:/-]{1,200}",
    )
    durability: Durability = _setting(
        "Memory",
        "TABLEFORGE_REDIS_DURABILITY",
        "What an acknowledgement means: `Memory`, Redis has the message; `Disk`, Redis has synced it to disk "
        "(needs `appendonly yes`, and `appendfsync always` or Redis 8); `Replica`, a replica has it too "
        "(`min-replicas-to-write 1` is advised); `Disk+Replica`, both.",
    )
    connect_timeout_seconds: float = _setting(
        5.0,
        "TABLEFORGE_REDIS_CONNECT_TIMEOUT",
        "How long a connection to Redis may take.",
        unit=Unit.MILLISECONDS,
        minimum=100,
        maximum=60_000,
    )
    memory_guard_percent: int = _setting(
        90,
        "TABLEFORGE_REDIS_MEMORY_GUARD_PERCENT",
        "Publishes are refused once Redis uses this share of its "
        "`maxmemory`, before Redis itself has to refuse writes.",
        minimum=1,
        maximum=100,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class WebsocketSettings:
    """The port clients connect to."""

    host: str = _setting("0.0.0.0", "WS_HOST", "Address to listen on.", pattern=_HOST)  # noqa: S104
    port: int = _setting(3001, "WS_PORT", "Port for clients.", minimum=0, maximum=65535)
    max_connections: int = _setting(
        1000,
        "WS_MAX_CONNECTIONS",
        "The most connections this instance takes; further ones are refused with 503. "
        "TABLEFORGE_LOAD_BALANCING_MAX_CONNECTIONS_PER_INSTANCE counts where it is smaller.",
        minimum=1,
        maximum=1_000_000,
        live=True,
    )
    ping_interval_seconds: float = _setting(
        30.0,
        "TABLEFORGE_WEBSOCKET_PING_INTERVAL",
        "How often a connection is pinged.",
        unit=Unit.MILLISECONDS,
        minimum=1000,
        maximum=3_600_000,
    )
    pong_timeout_seconds: float = _setting(
        5.0,
        "TABLEFORGE_WEBSOCKET_PONG_TIMEOUT",
        "How long a pong may take before the connection counts as dead.",
        unit=Unit.MILLISECONDS,
        minimum=100,
        maximum=600_000,
    )
    max_payload_bytes: int = _setting(
        102_400,
        "TABLEFORGE_WEBSOCKET_MAX_PAYLOAD_BYTES",
        "The largest frame a client may send.",
        unit=Unit.BYTES,
        minimum=1024,
        maximum=1_048_576,
    )
    write_limit_bytes: int = _setting(
        1_048_576,
        "TABLEFORGE_WEBSOCKET_WRITE_LIMIT_BYTES",
        "A socket with more than this waiting to be sent is a slow consumer and closed with 4408.",
        unit=Unit.BYTES,
        minimum=65_536,
        maximum=268_435_456,
    )
    auth_timeout_seconds: float = _setting(
        5.0,
        "TABLEFORGE_WEBSOCKET_AUTH_TIMEOUT",
        "How long a client has to send its token.",
        unit=Unit.MILLISECONDS,
        minimum=100,
        maximum=60_000,
        live=True,
    )
    tls_cert_file: str = _setting(
        "",
        "TABLEFORGE_WEBSOCKET_TLS_CERT_FILE",
        "PEM file with the certificate of the clients' port and what leads to its root; read again when it "
        "changes. Empty: no TLS.",
        pattern=r"[^\x00-\x1f]{0,1000}",
    )
    tls_key_file: str = _setting(
        "",
        "TABLEFORGE_WEBSOCKET_TLS_KEY_FILE",
        "PEM file with the certificate's private key; read again when it changes.",
        pattern=r"[^\x00-\x1f]{0,1000}",
    )
    tls_min_version: TlsVersion = _setting(
        "1.2", "TABLEFORGE_WEBSOCKET_TLS_MIN_VERSION", "The oldest TLS version that is spoken."
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScalingSettings:
    """The instance among the others."""

    instance_id: str = _setting(
        "",
        "INSTANCE_ID",
        "This instance's name, unique in the cluster; in Kubernetes the pod's. Empty: made up at the start.",
        pattern=r"[A-Za-z0-9._-]{0,253}",
    )
    heartbeat_interval_seconds: float = _setting(
        30.0,
        "HEARTBEAT_INTERVAL",
        "How often the instance writes its record at least.",
        unit=Unit.MILLISECONDS,
        minimum=100,
        maximum=3_600_000,
    )
    cleanup_interval_seconds: float = _setting(
        60.0,
        "CLEANUP_INTERVAL",
        "How often each instance looks for others that died.",
        unit=Unit.MILLISECONDS,
        minimum=100,
        maximum=3_600_000,
    )
    inactive_threshold_seconds: float = _setting(
        120.0,
        "INACTIVE_THRESHOLD",
        "How long after its lease ran out an instance's record is kept before it is cleaned up.",
        unit=Unit.MILLISECONDS,
        minimum=100,
        maximum=86_400_000,
    )
    failover_timeout_seconds: float = _setting(
        30.0,
        "TABLEFORGE_CLUSTERING_FAILOVER_TIMEOUT",
        "An instance whose lease was not renewed for this long is "
        "dead; leases are renewed six times as often.",
        unit=Unit.MILLISECONDS,
        minimum=600,
        maximum=3_600_000,
    )
    message_queue_size: int = _setting(
        1000,
        "TABLEFORGE_SCALING_MESSAGE_QUEUE_SIZE",
        "How many publishes wait while Redis is away; further ones are refused with `unavailable`.",
        minimum=1,
        maximum=1_000_000,
    )
    retry_attempts: int = _setting(
        3,
        "TABLEFORGE_SCALING_RETRY_ATTEMPTS",
        "How often a publish that Redis refuses for now (full, no disk, no replicas) is tried again before "
        "it is answered with `unavailable`; so many failures in a row open the circuit breaker, too.",
        minimum=0,
        maximum=20,
    )
    retry_delay_seconds: float = _setting(
        1.0,
        "TABLEFORGE_SCALING_RETRY_DELAY",
        "The wait before the first of those attempts; it doubles with each (at most 30 s), with jitter. "
        "Also how long the circuit breaker stays open at first.",
        unit=Unit.MILLISECONDS,
        minimum=10,
        maximum=30_000,
    )
    drain_seconds: float = _setting(
        20.0,
        "TABLEFORGE_SCALING_DRAIN_TIMEOUT",
        "Over how long a leaving instance spreads its clients' reconnects.",
        unit=Unit.MILLISECONDS,
        minimum=0,
        maximum=3_600_000,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerformanceSettings:
    """Batching of publishes."""

    batch_message_delay_seconds: float = _setting(
        0.010,
        "TABLEFORGE_PERFORMANCE_BATCH_MESSAGE_DELAY",
        "The longest a publish waits for others while a batch is "
        "in flight; an idle publisher waits for nothing.",
        unit=Unit.MILLISECONDS,
        minimum=0,
        maximum=1000,
    )
    max_batch_size: int = _setting(
        100,
        "TABLEFORGE_PERFORMANCE_MAX_BATCH_SIZE",
        "The most publishes in one batch.",
        minimum=1,
        maximum=1000,
    )
    enable_message_queuing: bool = _setting(
        True,
        "TABLEFORGE_PERFORMANCE_ENABLE_MESSAGE_QUEUING",
        "Whether publishes wait while Redis is away or refuses for now, and are acknowledged late; `false`: "
        "they are refused with `unavailable` at once.",
    )
    queue_flush_interval_seconds: float = _setting(
        0.1,
        "TABLEFORGE_PERFORMANCE_QUEUE_FLUSH_INTERVAL",
        "How often publishes that wait for a Redis that refuses for now are looked at: whether their next "
        "attempt is due, one publish alone, the rest after it.",
        unit=Unit.MILLISECONDS,
        minimum=10,
        maximum=60_000,
    )
    enable_compression: bool = _setting(
        True,
        "TABLEFORGE_PERFORMANCE_ENABLE_COMPRESSION",
        "Whether clients that offer permessage-deflate get it; always without context takeover, so that a "
        "message is compressed once for all of them.",
    )
    compression_threshold_bytes: int = _setting(
        1024,
        "TABLEFORGE_PERFORMANCE_COMPRESSION_THRESHOLD",
        "Messages shorter than this are sent uncompressed.",
        unit=Unit.BYTES,
        minimum=64,
        maximum=1_048_576,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoomSettings:
    """How far each room's log reaches."""

    log_max_messages: int = _setting(
        1000,
        "TABLEFORGE_ROOMS_LOG_MAX_MESSAGES",
        "Messages a room's log keeps.",
        minimum=32,
        maximum=1_000_000,
        live=True,
    )
    log_max_bytes: int = _setting(
        1_048_576,
        "TABLEFORGE_ROOMS_LOG_MAX_BYTES",
        "Bytes a room's log keeps.",
        unit=Unit.BYTES,
        minimum=16_384,
        maximum=268_435_456,
        live=True,
    )
    log_max_age_seconds: float = _setting(
        3600.0,
        "TABLEFORGE_ROOMS_LOG_MAX_AGE",
        "How long a room's log keeps a message; an idle room's keys expire after it.",
        unit=Unit.MILLISECONDS,
        minimum=1000,
        maximum=604_800_000,
        live=True,
    )
    personal_max_messages: int = _setting(
        1000,
        "TABLEFORGE_ROOMS_PERSONAL_MAX_MESSAGES",
        "Direct messages a user's personal log keeps.",
        minimum=32,
        maximum=1_000_000,
        live=True,
    )
    personal_max_bytes: int = _setting(
        1_048_576,
        "TABLEFORGE_ROOMS_PERSONAL_MAX_BYTES",
        "Bytes a user's personal log keeps.",
        unit=Unit.BYTES,
        minimum=16_384,
        maximum=268_435_456,
        live=True,
    )
    personal_max_age_seconds: float = _setting(
        86_400.0,
        "TABLEFORGE_ROOMS_PERSONAL_MAX_AGE",
        "How long a user's personal log keeps a direct message, and `received` after the last one.",
        unit=Unit.MILLISECONDS,
        minimum=1000,
        maximum=2_592_000_000,
        live=True,
    )
    options: str = _setting(
        "",
        "TABLEFORGE_ROOMS_OPTIONS",
        "What is special about some rooms: a JSON list of objects with `pattern`, `logMaxMessages`, "
        "`logMaxBytes`, `logMaxAge`, `volatile`, `presence`, `join`, `publish` and `seePresence`.",
        pattern=r"(?s).{0,262144}",
        examples=('[{"pattern":"cursor:**","volatile":true}]', '[{"pattern":"news","publish":"server"}]'),
        live=True,
    )
    options_file: str = _setting(
        "",
        "TABLEFORGE_ROOMS_OPTIONS_FILE",
        "A file that holds what TABLEFORGE_ROOMS_OPTIONS would; it is read again when it changes.",
        pattern=r".{1,4096}",
        examples=("/dev/null",),
    )
    presence: bool = _setting(
        True,
        "TABLEFORGE_ROOMS_PRESENCE",
        "Whether rooms keep who is in them, where their options don't say otherwise: a write to Redis for a "
        "room whose users changed, ten times a second at most.",
        live=True,
    )
    presence_grace_seconds: float = _setting(
        3.0,
        "TABLEFORGE_ROOMS_PRESENCE_GRACE",
        "How long a user whose last connection broke still counts as present: who is back by then has "
        "neither left nor joined.",
        unit=Unit.MILLISECONDS,
        minimum=0,
        maximum=600_000,
        live=True,
    )
    check_interval_seconds: float = _setting(
        10.0,
        "TABLEFORGE_ROOMS_CHECK_INTERVAL",
        "How often rooms with members are compared with their logs, so that a lost notification only delays.",
        unit=Unit.MILLISECONDS,
        minimum=100,
        maximum=600_000,
        live=True,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadBalancingSettings:
    """How much each instance is given."""

    strategy: PlacementStrategy = _setting(
        "RoundRobin",
        "TABLEFORGE_LOAD_BALANCING_STRATEGY",
        "Which instance becomes a new room's home where TABLEFORGE_ROUTING_MODE is Gateway: `RoundRobin`, "
        "each in turn; `LeastConnections`, the one with the fewest connections for its capacity; `Weighted`, "
        "the same by TABLEFORGE_ROUTING_WEIGHT.",
    )
    max_connections_per_instance: int = _setting(
        2000,
        "TABLEFORGE_LOAD_BALANCING_MAX_CONNECTIONS_PER_INSTANCE",
        "The most connections an instance is given; the smaller of this and WS_MAX_CONNECTIONS counts.",
        minimum=1,
        maximum=1_000_000,
        live=True,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SecuritySettings:
    """Limits per client, and who is believed about where a client is."""

    max_messages_per_second: int = _setting(
        100,
        "TABLEFORGE_SECURITY_MAX_MESSAGES_PER_SECOND",
        "Commands a connection may send in a second.",
        minimum=1,
        maximum=1_000_000,
        live=True,
    )
    max_messages_per_minute: int = _setting(
        1000,
        "TABLEFORGE_SECURITY_MAX_MESSAGES_PER_MINUTE",
        "Commands a connection may send in a minute.",
        minimum=1,
        maximum=60_000_000,
        live=True,
    )
    max_bytes_per_second: int = _setting(
        1_048_576,
        "TABLEFORGE_SECURITY_MAX_BYTES_PER_SECOND",
        "Bytes a user may publish in a second, over all of the user's connections to an instance.",
        unit=Unit.BYTES,
        minimum=1024,
        maximum=1_073_741_824,
        live=True,
    )
    max_rooms_per_connection: int = _setting(
        100,
        "TABLEFORGE_SECURITY_MAX_ROOMS_PER_CONNECTION",
        "Rooms a connection may be in at once.",
        minimum=1,
        maximum=10_000,
        live=True,
    )
    enable_rate_limiting: bool = _setting(
        True,
        "TABLEFORGE_SECURITY_ENABLE_RATE_LIMITING",
        "Whether commands and bytes are limited; what a connection may send at all stays bounded either way.",
        live=True,
    )
    enable_connection_limiting: bool = _setting(
        True,
        "TABLEFORGE_SECURITY_ENABLE_CONNECTION_LIMITING",
        "Whether connections are limited by address and by user. The limit of an instance always holds.",
        live=True,
    )
    max_connections_per_ip: int = _setting(
        10,
        "TABLEFORGE_SECURITY_MAX_CONNECTIONS_PER_IP",
        "Connections from one address (IPv6: one /64) to the whole cluster. Without effect where the address "
        "is private and TABLEFORGE_SECURITY_TRUSTED_PROXIES is empty: it is a balancer's then.",
        minimum=1,
        maximum=1_000_000,
        live=True,
    )
    max_connections_per_user: int = _setting(
        100,
        "TABLEFORGE_SECURITY_MAX_CONNECTIONS_PER_USER",
        "Connections of one user to the whole cluster; guests have none in common.",
        minimum=1,
        maximum=1_000_000,
        live=True,
    )
    enable_ddos_protection: bool = _setting(
        True,
        "TABLEFORGE_SECURITY_ENABLE_DDOS_PROTECTION",
        "Whether handshakes are limited by address, and who sent nonsense has to wait before coming back.",
        live=True,
    )
    max_handshakes_per_second: int = _setting(
        10,
        "TABLEFORGE_SECURITY_MAX_HANDSHAKES_PER_SECOND",
        "Handshakes from one address to an instance in a second, on average; four times as many at once.",
        minimum=1,
        maximum=1_000_000,
        live=True,
    )
    handshake_timeout_seconds: float = _setting(
        10.0,
        "TABLEFORGE_SECURITY_HANDSHAKE_TIMEOUT",
        "How long a connection has from its start to the end of its handshake, TLS included.",
        unit=Unit.MILLISECONDS,
        minimum=500,
        maximum=60_000,
        live=True,
    )
    trusted_proxies: str = _setting(
        "",
        "TABLEFORGE_SECURITY_TRUSTED_PROXIES",
        "Networks of the proxies in front, with commas between them: only they are believed about a client's "
        "address. `none`: there are none, every peer is a client, on private addresses too.",
        pattern=r"[0-9A-Za-z.:/, ]{0,4000}",
        examples=("none", "10.0.0.0/8", "192.0.2.7, 2001:db8::/32"),
        live=True,
    )
    client_address_header: ClientAddressHeader = _setting(
        "X-Forwarded-For",
        "TABLEFORGE_SECURITY_CLIENT_ADDRESS_HEADER",
        "The header into which the trusted proxies write. Only this one is read: the other might be the "
        "client's own, passed on.",
        live=True,
    )
    proxy_protocol: bool = _setting(
        False,
        "TABLEFORGE_SECURITY_PROXY_PROTOCOL",
        "Whether trusted proxies begin each connection with a PROXY protocol header (version 1 or 2).",
        live=True,
    )
    allowed_origins: str = _setting(
        "",
        "TABLEFORGE_SECURITY_ALLOWED_ORIGINS",
        "Web pages that may connect, with commas between them: `https://app.example.com`, "
        "`https://*.example.com`, or `*` for all. Empty: all where a token is required, else those from "
        "the host that is connected to.",
        pattern=r"[A-Za-z0-9.:/,*\[\]_ +-]{0,20000}",
        examples=("*", "https://app.example.com", "https://*.example.com, http://localhost:5173"),
        live=True,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuthSettings:
    """Who gets in, and what a token without rights of its own may do."""

    required: bool = _setting(False, "AUTH_REQUIRED", "Whether a client must present a valid token.")
    jwt_secret: Secret = _setting(
        Secret,
        "JWT_SECRET",
        "Shared key that tokens are signed with, at least as long as the hash (32 bytes for HS256); "
        "JWT_SECRET_FILE names a file that holds it. There is no default: without a key nobody is let in.",
    )
    previous_jwt_secret: Secret = _setting(
        Secret,
        "TABLEFORGE_AUTH_PREVIOUS_JWT_SECRET",
        "The shared key before that one, accepted too while its tokens run out.",
    )
    secret_algorithm: SecretAlgorithm = _setting(
        "HS256", "TABLEFORGE_AUTH_SECRET_ALGORITHM", "What the shared keys sign with; nothing else counts."
    )
    public_key: Secret = _setting(
        Secret,
        "TABLEFORGE_AUTH_PUBLIC_KEY",
        "Public keys that tokens are checked with: PEM blocks one after another, or a JWK Set. An elliptic "
        "curve's key means ES256, ES384 or ES512 by its curve, an Ed25519 or Ed448 key EdDSA.",
    )
    rsa_algorithm: RsaAlgorithm = _setting(
        "RS256",
        "TABLEFORGE_AUTH_RSA_ALGORITHM",
        "What RSA keys sign with that don't say so themselves (a JWK does in `alg`); nothing else counts.",
    )
    jwks_url: str = _setting(
        "",
        "TABLEFORGE_AUTH_JWKS_URL",
        "Where an identity provider publishes its public keys (a JWK Set). They are fetched again as they "
        "age, and when a token names a key that isn't among them; while the address is out of reach, those "
        "known stay in use. https, or http to this machine.",
        pattern=r"(https?://[A-Za-z0-9._:\[\]-]{1,253}([/?][!-~]{0,1000})?)?",
        examples=("https://id.example.com/.well-known/jwks.json",),
    )
    jwks_plain_http: bool = _setting(
        False,
        "TABLEFORGE_AUTH_JWKS_PLAIN_HTTP",
        "Allow http to another machine in TABLEFORGE_AUTH_JWKS_URL: whoever can change what travels there "
        "can let anybody in.",
    )
    jwks_ca_file: str = _setting(
        "",
        "TABLEFORGE_AUTH_JWKS_CA_FILE",
        "PEM file with the certificates that TABLEFORGE_AUTH_JWKS_URL is trusted by. Empty: the system's.",
        pattern=r"[^\x00-\x1f]{0,1000}",
    )
    issuer: str = _setting(
        "",
        "TABLEFORGE_AUTH_ISSUER",
        "What `iss` must be in a token. Empty: it may be anything or missing.",
        pattern=r"[!-~]{0,512}",
    )
    audience: str = _setting(
        "",
        "TABLEFORGE_AUTH_AUDIENCE",
        "What must be in a token's `aud`. Empty: it may be anything or missing.",
        pattern=r"[!-~]{0,512}",
    )
    leeway_seconds: float = _setting(
        5.0,
        "TABLEFORGE_AUTH_LEEWAY",
        "How far the issuer's clock may be ahead: a token counts this long before its `nbf`. There is none "
        "for `exp`: the session ends at that very moment.",
        unit=Unit.MILLISECONDS,
        minimum=0,
        maximum=300_000,
    )
    default_rights: str = _setting(
        '{"join":["**"],"publish":["**"],"presence":["**"],"direct":[]}',
        "TABLEFORGE_AUTH_DEFAULT_RIGHTS",
        "What a token without a `tableforge` claim may do, and who needs no token: JSON in the claim's form.",
        pattern=r"\{[^\x00-\x1f]{0,70000}\}",
        examples=("{}", '{"join":["lobby","table:*"],"publish":["table:*"]}', '{"direct":["**"]}'),
        live=True,
    )
    query_token: bool = _setting(
        False,
        "AUTH_QUERY_TOKEN",
        "Whether the token may also come in the address, as `?token=…`, where proxies may log it.",
        live=True,
    )
    token_expiry_seconds: float = _setting(
        86_400.0,
        "TABLEFORGE_AUTH_TOKEN_EXPIRY",
        "How long a token lasts that `tableforge-dataplane token` makes.",
        unit=Unit.MILLISECONDS,
        minimum=1000,
        maximum=31_536_000_000,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class HttpSettings:
    """The internal port: metrics and the fleet's view. Never exposed by a public Service."""

    port: int = _setting(
        3002, "TABLEFORGE_HTTP_PORT", "Port of the internal HTTP server.", minimum=0, maximum=65535
    )
    fleet_key: Secret = _setting(
        Secret,
        "TABLEFORGE_HTTP_FLEET_KEY",
        "Bearer key of `/fleet`; TABLEFORGE_HTTP_FLEET_KEY_FILE names a file "
        "that holds it. Without one `/fleet` is off.",
    )
    api_key: Secret = _setting(
        Secret,
        "TABLEFORGE_HTTP_API_KEY",
        "Bearer key of the server API, `/stats` and `/rooms`; TABLEFORGE_HTTP_API_KEY_FILE names a file "
        "that holds it. Without one they are off.",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MonitoringSettings:
    """What an instance says about itself, and from when on it counts as being under pressure."""

    enable_metrics: bool = _setting(
        True,
        "TABLEFORGE_MONITORING_ENABLE_METRICS",
        "Whether `/metrics` answers on the internal port.",
        live=True,
    )
    metrics_interval_seconds: float = _setting(
        60.0,
        "TABLEFORGE_MONITORING_METRICS_INTERVAL",
        "How often the instance writes its most important numbers into its log. 0: never.",
        unit=Unit.MILLISECONDS,
        minimum=0,
        maximum=3_600_000,
        live=True,
    )
    health_check_interval_seconds: float = _setting(
        30.0,
        "TABLEFORGE_MONITORING_HEALTH_CHECK_INTERVAL",
        "How often the instance looks at its own health; what changed is logged.",
        unit=Unit.MILLISECONDS,
        minimum=100,
        maximum=3_600_000,
        live=True,
    )
    enable_detailed_logging: bool = _setting(
        False,
        "TABLEFORGE_MONITORING_ENABLE_DETAILED_LOGGING",
        "Whether each connection's beginning and end is logged, with its user and close code.",
        live=True,
    )
    memory_threshold_bytes: int = _setting(
        0,
        "TABLEFORGE_MONITORING_MEMORY_THRESHOLD_BYTES",
        "Resident memory above which the instance warns; an eighth above it new connections are refused, "
        "three sixteenths above it the slowest consumers are closed. 0: 80 % of the container's limit, "
        "or 512 MB where there is none.",
        unit=Unit.BYTES,
        minimum=0,
        maximum=1_099_511_627_776,
        live=True,
    )
    loop_lag_threshold_seconds: float = _setting(
        0.25,
        "TABLEFORGE_MONITORING_LOOP_LAG_THRESHOLD",
        "Delay of the event loop, averaged over five seconds, above which the instance warns; at four times "
        "as much new connections are refused, at eight times the slowest consumers are closed.",
        unit=Unit.MILLISECONDS,
        minimum=10,
        maximum=60_000,
        live=True,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutSettings:
    """What all instances that make clients reconnect keep to together."""

    max_reconnects_per_second: int = _setting(
        200,
        "TABLEFORGE_ROLLOUT_MAX_RECONNECTS_PER_SECOND",
        "How many clients a second the whole cluster may send elsewhere, for whatever reason.",
        minimum=1,
        maximum=1_000_000,
        live=True,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoutingSettings:
    """Whether clients can reach a particular instance, so that rooms can have homes."""

    mode: RoutingMode = _setting(
        "Service",
        "TABLEFORGE_ROUTING_MODE",
        "`Service`: one address for all instances, clients stay where a balancer put them. `Gateway`: each "
        "instance has an address of its own as well, each room a home, and clients move to where theirs is.",
    )
    address: str = _setting(
        "",
        "TABLEFORGE_ROUTING_ADDRESS",
        "Where clients reach this instance and no other, where TABLEFORGE_ROUTING_MODE is Gateway: a path on "
        "the host they use already, such as /i/tables-1/ws, or a whole URL such as ws://localhost:4001/ws. "
        "Empty: the operator tells it.",
        pattern=r"(?:(?:wss?://[A-Za-z0-9._:\[\]-]{1,253})?/[A-Za-z0-9._~/-]{0,250})?",
        examples=("/i/tables-1/ws", "wss://tables.example/i/1/ws"),
    )
    weight: int = _setting(
        100,
        "TABLEFORGE_ROUTING_WEIGHT",
        "How much this instance carries beside the others where TABLEFORGE_LOAD_BALANCING_STRATEGY is "
        "Weighted; the operator gives the pod's CPU request in thousandths of a core.",
        minimum=1,
        maximum=1_000_000,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoggingSettings:
    """What is logged, and how."""

    level: LogLevel = _setting("info", "LOG_LEVEL", "The least serious level that is logged.", live=True)
    format: LogFormat = _setting("json", "LOG_FORMAT", "`json`, an object a line, or `text` for people.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LaunchSettings:
    """Running without Kubernetes."""

    data_dir: str = _setting(
        "",
        "TABLEFORGE_DATA_DIR",
        "Folder in which `serve` keeps the data of the Valkey that it starts where no Redis is configured "
        "and none answers on localhost. Empty: `tableforge` below XDG_DATA_HOME or ~/.local/share.",
        pattern=r"[^\x00-\x1f]{0,1000}",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LiveSettings:
    """What may change while an instance runs."""

    file: str = _setting(
        "",
        "TABLEFORGE_LIVE_SETTINGS_FILE",
        "A file with settings that may change while an instance runs: a JSON object of variables and their "
        "values, all of them texts, which win over those of the environment. It is read again when it "
        "changes, as a whole; one that cannot be used changes nothing, and shows at `/health`.",
        pattern=r"[^\x00-\x1f]{0,1000}",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of one instance."""

    redis: RedisSettings = RedisSettings()
    websocket: WebsocketSettings = WebsocketSettings()
    scaling: ScalingSettings = ScalingSettings()
    performance: PerformanceSettings = PerformanceSettings()
    rooms: RoomSettings = RoomSettings()
    load_balancing: LoadBalancingSettings = LoadBalancingSettings()
    security: SecuritySettings = SecuritySettings()
    auth: AuthSettings = AuthSettings()
    http: HttpSettings = HttpSettings()
    monitoring: MonitoringSettings = MonitoringSettings()
    rollout: RolloutSettings = RolloutSettings()
    routing: RoutingSettings = RoutingSettings()
    logging: LoggingSettings = LoggingSettings()
    launch: LaunchSettings = LaunchSettings()
    live: LiveSettings = LiveSettings()

    warnings: tuple[str, ...] = ()
    """Sentences about variables that were accepted and have no effect."""

    @property
    def capacity(self) -> int:
        """The most connections this instance takes."""
        return min(self.websocket.max_connections, self.load_balancing.max_connections_per_instance)


def secrets_of(settings: Settings) -> list[Secret]:
    """Everything in `settings` that must not show anywhere."""
    return [
        value
        for group in dataclasses.fields(settings)
        if group.name != "warnings"
        for value in vars(getattr(settings, group.name)).values()
        if isinstance(value, Secret)
    ]


def specs() -> dict[str, tuple[Spec, Any]]:
    """Every setting as `group.field` → (spec, default), for the CRD, the docs and their checks."""
    found: dict[str, tuple[Spec, Any]] = {}
    for group in dataclasses.fields(Settings):
        if group.name == "warnings":
            continue
        group_type: Any = type(group.default)
        for field in dataclasses.fields(group_type):
            default = field.default
            if default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            found[f"{group.name}.{field.name}"] = (field.metadata["spec"], default)
    return found
