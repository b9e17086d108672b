"""Every setting of the data plane: its environment variable, default, bounds and meaning.

This is the one place where defaults live. The operator renders these variables and takes the CRD's defaults
from here; `Settings.from_environment` reads them at the start of an instance. Durations are whole
milliseconds in the environment, as operators of the original deployment know them, and seconds in code.
"""

import dataclasses
import difflib
import enum
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin


class SettingsError(ValueError):
    """Settings that cannot be used. `problems` has one sentence each: variable, value, what is allowed."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


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

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> "Settings":
        """Read every setting from `environ` (the process's own where None).

        Raises SettingsError with every problem at once.
        """
        environ = os.environ if environ is None else environ
        problems: list[str] = []
        groups: dict[str, Any] = {}
        for group in dataclasses.fields(cls):
            if group.name == "warnings":
                continue
            groups[group.name] = _read_group(type(group.default), environ, problems)
        if not problems:
            # what could not be read has its default here, and would be held against the others
            problems.extend(_contradictions(groups))
        problems.extend(_misspelt(environ))
        if problems:
            raise SettingsError(problems)
        warnings = [text for name, text in WITHOUT_EFFECT.items() if environ.get(name, "") != ""]
        warnings.extend(_nearly_named(environ))
        return cls(**groups, warnings=tuple(warnings))


WITHOUT_EFFECT: Final[Mapping[str, str]] = {
    "REDIS_PUBSUB_DB": "REDIS_PUBSUB_DB has no effect: Redis Pub/Sub ignores database numbers. Use "
    "TABLEFORGE_REDIS_KEY_PREFIX to keep clusters on one Redis apart.",
}


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


def to_environment(settings: Settings) -> dict[str, str]:
    """The variables that give `settings` again, in the order in which they are declared.

    A secret by value shows as `***`: what comes out of here is for people.
    """
    found: dict[str, str] = {}
    for group in dataclasses.fields(Settings):
        if group.name == "warnings":
            continue
        values = getattr(settings, group.name)
        for field in dataclasses.fields(values):
            spec: Spec = field.metadata["spec"]
            value = getattr(values, field.name)
            if isinstance(value, Secret):
                if value.file is not None:
                    found[f"{spec.env}_FILE"] = str(value.file)
                elif value.value is not None:
                    found[spec.env] = "***"
            elif isinstance(value, bool):
                found[spec.env] = "true" if value else "false"
            elif spec.unit is Unit.MILLISECONDS:
                found[spec.env] = str(round(value * 1000))
            else:
                found[spec.env] = str(value)
    return found


def _read_group(group: type, environ: Mapping[str, str], problems: list[str]) -> Any:
    values: dict[str, Any] = {}
    for field in dataclasses.fields(group):
        spec: Spec = field.metadata["spec"]
        try:
            value = _read(field.type, spec, environ)
        except SettingsError as error:
            problems.extend(error.problems)
            continue
        if value is not None:
            values[field.name] = value
    return group(**values)


def _read(kind: Any, spec: Spec, environ: Mapping[str, str]) -> Any:
    if kind is Secret:
        file = environ.get(f"{spec.env}_FILE", "")
        value = environ.get(spec.env, "")
        if file and value:
            raise SettingsError([f"{spec.env} and {spec.env}_FILE are both set: give one of them."])
        return Secret(value=value or None, file=Path(file) if file else None)
    text = environ.get(spec.env, "")
    if text == "":
        return None
    parse = _PARSERS.get(kind) or _PARSERS[get_origin(kind)]
    return parse(kind, spec, text)


def _read_text(_kind: Any, spec: Spec, text: str) -> str:
    if spec.pattern is not None and not re.fullmatch(spec.pattern, text):
        raise SettingsError([f"{spec.env}={_shown(text)}: must match {spec.pattern}."])
    return text


def _read_flag(_kind: Any, spec: Spec, text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise SettingsError([f"{spec.env}={_shown(text)}: must be true or false."])
    return text.lower() == "true"


def _read_choice(kind: Any, spec: Spec, text: str) -> str:
    for choice in get_args(kind):
        if text.lower() == choice.lower():
            return str(choice)
    raise SettingsError([f"{spec.env}={_shown(text)}: must be one of {', '.join(get_args(kind))}."])


def _read_number(kind: Any, spec: Spec, text: str) -> float | int:
    low = -math.inf if spec.minimum is None else spec.minimum
    high = math.inf if spec.maximum is None else spec.maximum
    bounds = f"from {low:g} to {high:g}" if high < 1e6 else f"from {low:.0f} to {high:.0f}"
    # [0-9]: int() takes any script's digits, underscores and blanks
    if not re.fullmatch(r"-?[0-9]{1,15}", text) or not low <= int(text) <= high:
        problem = f"{spec.env}={_shown(text)}: must be {spec.unit.value} {bounds}."
        if text.startswith(("tcp://", "udp://")):
            problem += (
                " Kubernetes sets this variable for a Service of that name: give the pod "
                "`enableServiceLinks: false`."
            )
        raise SettingsError([problem])
    if spec.unit is Unit.MILLISECONDS:
        return int(text) / 1000
    return float(text) if kind is float else int(text)


def _shown(text: str) -> str:
    """A value as it appears in a message: quoted, and cut where it is long."""
    return repr(text) if len(text) <= 100 else f"{text[:100]!r}…"


_PARSERS: Final[Mapping[Any, Callable[[Any, Spec, str], Any]]] = {
    str: _read_text,
    bool: _read_flag,
    int: _read_number,
    float: _read_number,
    Literal: _read_choice,
}


def _contradictions(groups: Mapping[str, Any]) -> list[str]:
    problems: list[str] = []
    security: SecuritySettings = groups["security"]
    if security.max_messages_per_minute < security.max_messages_per_second:
        problems.append(
            f"TABLEFORGE_SECURITY_MAX_MESSAGES_PER_MINUTE={security.max_messages_per_minute}: must be at "
            f"least TABLEFORGE_SECURITY_MAX_MESSAGES_PER_SECOND={security.max_messages_per_second}."
        )
    websocket: WebsocketSettings = groups["websocket"]
    if websocket.write_limit_bytes < websocket.max_payload_bytes * 2:
        problems.append(
            f"TABLEFORGE_WEBSOCKET_WRITE_LIMIT_BYTES={websocket.write_limit_bytes}: must be at least twice "
            f"TABLEFORGE_WEBSOCKET_MAX_PAYLOAD_BYTES={websocket.max_payload_bytes}."
        )
    if websocket.port != 0 and websocket.port == groups["http"].port:
        problems.append(
            f"WS_PORT={websocket.port} and TABLEFORGE_HTTP_PORT={websocket.port}: must be different ports."
        )
    rooms: RoomSettings = groups["rooms"]
    if rooms.log_max_bytes < websocket.max_payload_bytes:
        problems.append(
            f"TABLEFORGE_ROOMS_LOG_MAX_BYTES={rooms.log_max_bytes}: must be at least "
            f"TABLEFORGE_WEBSOCKET_MAX_PAYLOAD_BYTES={websocket.max_payload_bytes}, or the log of a room "
            "could not hold its newest message."
        )
    auth: AuthSettings = groups["auth"]
    if auth.required and not auth.jwt_secret.configured:
        problems.append(
            "AUTH_REQUIRED=true: needs JWT_SECRET_FILE (or JWT_SECRET), the key that tokens are checked with."
        )
    key = auth.jwt_secret.value
    if key is not None and "-----BEGIN" in key:
        problems.append("JWT_SECRET: must be a random key that signer and instances share, not a PEM key.")
    elif key is not None and len(key.encode("utf-8", "surrogateescape")) < 32:
        problems.append("JWT_SECRET: must be at least 32 bytes long, the size of the signature it makes.")
    return problems


def _known() -> set[str]:
    known = {spec.env for spec, _ in specs().values()}
    return known | {f"{spec.env}_FILE" for spec, default in specs().values() if isinstance(default, Secret)}


def _misspelt(environ: Mapping[str, str]) -> list[str]:
    """Everything called TABLEFORGE_… is ours: what isn't a setting is a mistake."""
    known = _known()
    problems: list[str] = []
    for name in sorted(environ):
        if not name.startswith("TABLEFORGE_") or name in known or _is_service_link(name, environ):
            continue
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
        problems.append(f"{name}: no such setting." + (f" Did you mean {near[0]}?" if near else ""))
    return problems


def _is_service_link(name: str, environ: Mapping[str, str]) -> bool:
    """Whether Kubernetes set this for a Service called `tableforge-…`.

    Such variables come as a whole set: one that merely looks like a part of it is a misspelt setting.
    """
    found = re.fullmatch(
        r"(TABLEFORGE_\w+?)_(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT(?:_[0-9]+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)?)",
        name,
    )
    if found is None:
        return False
    service = found[1]
    return all(f"{service}_{part}" in environ for part in ("SERVICE_HOST", "SERVICE_PORT", "PORT")) and (
        environ[f"{service}_PORT"].startswith(("tcp://", "udp://", "sctp://"))
    )


def _nearly_named(environ: Mapping[str, str]) -> list[str]:
    """Variables that look like a misspelt setting without the prefix; they may be somebody else's."""
    known = sorted(name for name in _known() if not name.startswith("TABLEFORGE_"))
    warnings: list[str] = []
    for name in sorted(environ):
        if name.startswith("TABLEFORGE_") or name in known or name in WITHOUT_EFFECT:
            continue
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.9)
        if near:
            warnings.append(f"{name} is not a setting and has no effect: did you mean {near[0]}?")
    return warnings
