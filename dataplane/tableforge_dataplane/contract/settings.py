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
    """A secret by value or by file, where the file wins. Its text never shows in `repr`."""

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
            return self.file.read_text(encoding="utf-8").rstrip("\r\n") or None
        except FileNotFoundError:
            return None


@dataclasses.dataclass(frozen=True)
class Spec:
    """What is known of one setting beside its default and type."""

    env: str
    doc: str
    unit: Unit = Unit.PLAIN
    minimum: float | None = None
    maximum: float | None = None
    pattern: str | None = None


def _setting(default: Any, env: str, doc: str, **more: Any) -> Any:
    metadata = {"spec": Spec(env=env, doc=doc, **more)}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


_HOST: Final = r"[A-Za-z0-9._:%-]{1,253}"

Durability = Literal["Memory", "Disk"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["json", "text"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RedisSettings:
    """Where Redis is and what an acknowledgement must mean there."""

    host: str = _setting("localhost", "REDIS_HOST", "Host name or address of Redis.", pattern=_HOST)
    port: int = _setting(6379, "REDIS_PORT", "Port of Redis.", minimum=1, maximum=65535)
    password: Secret = _setting(
        Secret, "REDIS_PASSWORD", "Password of Redis; REDIS_PASSWORD_FILE names a file that holds it."
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
        "What an acknowledgement means: `Memory`, Redis has the message; "
        "`Disk`, Redis has synced it to disk (needs `appendonly yes` and `appendfsync always`).",
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
        "The most connections this instance takes; further ones are refused with 503.",
        minimum=1,
        maximum=1_000_000,
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoomSettings:
    """How far each room's log reaches."""

    log_max_messages: int = _setting(
        1000,
        "TABLEFORGE_ROOMS_LOG_MAX_MESSAGES",
        "Messages a room's log keeps.",
        minimum=32,
        maximum=1_000_000,
    )
    log_max_bytes: int = _setting(
        1_048_576,
        "TABLEFORGE_ROOMS_LOG_MAX_BYTES",
        "Bytes a room's log keeps.",
        unit=Unit.BYTES,
        minimum=16_384,
        maximum=268_435_456,
    )
    log_max_age_seconds: float = _setting(
        3600.0,
        "TABLEFORGE_ROOMS_LOG_MAX_AGE",
        "How long a room's log keeps a message; an idle room's keys expire after it.",
        unit=Unit.MILLISECONDS,
        minimum=1000,
        maximum=604_800_000,
    )
    check_interval_seconds: float = _setting(
        10.0,
        "TABLEFORGE_ROOMS_CHECK_INTERVAL",
        "How often rooms with members are compared with their logs, so that a lost notification only delays.",
        unit=Unit.MILLISECONDS,
        minimum=100,
        maximum=600_000,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SecuritySettings:
    """Limits per client."""

    max_messages_per_second: int = _setting(
        100,
        "TABLEFORGE_SECURITY_MAX_MESSAGES_PER_SECOND",
        "Commands a connection may send in a second.",
        minimum=1,
        maximum=1_000_000,
    )
    max_messages_per_minute: int = _setting(
        1000,
        "TABLEFORGE_SECURITY_MAX_MESSAGES_PER_MINUTE",
        "Commands a connection may send in a minute.",
        minimum=1,
        maximum=60_000_000,
    )
    max_bytes_per_second: int = _setting(
        1_048_576,
        "TABLEFORGE_SECURITY_MAX_BYTES_PER_SECOND",
        "Bytes a user may publish in a second, over all of the user's connections to an instance.",
        unit=Unit.BYTES,
        minimum=1024,
        maximum=1_073_741_824,
    )
    max_rooms_per_connection: int = _setting(
        100,
        "TABLEFORGE_SECURITY_MAX_ROOMS_PER_CONNECTION",
        "Rooms a connection may be in at once.",
        minimum=1,
        maximum=10_000,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuthSettings:
    """Who gets in."""

    required: bool = _setting(False, "AUTH_REQUIRED", "Whether a client must present a valid token.")
    jwt_secret: Secret = _setting(
        Secret,
        "JWT_SECRET",
        "Key of the tokens' HS256 signatures, at least 32 bytes; JWT_SECRET_FILE names a file "
        "that holds it. There is no default: without a key nobody is let in.",
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoggingSettings:
    """What is logged, and how."""

    level: LogLevel = _setting("info", "LOG_LEVEL", "The least serious level that is logged.")
    format: LogFormat = _setting("json", "LOG_FORMAT", "`json`, an object a line, or `text` for people.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of one instance."""

    redis: RedisSettings = RedisSettings()
    websocket: WebsocketSettings = WebsocketSettings()
    scaling: ScalingSettings = ScalingSettings()
    performance: PerformanceSettings = PerformanceSettings()
    rooms: RoomSettings = RoomSettings()
    security: SecuritySettings = SecuritySettings()
    auth: AuthSettings = AuthSettings()
    http: HttpSettings = HttpSettings()
    logging: LoggingSettings = LoggingSettings()

    warnings: tuple[str, ...] = ()
    """Sentences about variables that were accepted and have no effect."""


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
