"""Settings from environment variables, and back: what a variable may say, and how a wrong one is answered."""

import dataclasses
import difflib
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

from tableforge_dataplane.contract.auth import auth_problems, auth_warnings
from tableforge_dataplane.contract.guide import WITHOUT_USE
from tableforge_dataplane.contract.live import LiveSettingsError, with_live
from tableforge_dataplane.contract.networks import NO_PROXIES, parse_networks
from tableforge_dataplane.contract.origins import parse_origins
from tableforge_dataplane.contract.room_options import RoomOptionsError, parse_room_options
from tableforge_dataplane.contract.settings import (
    PerformanceSettings,
    RedisSettings,
    RoomSettings,
    Secret,
    SecuritySettings,
    Settings,
    Spec,
    Unit,
    WebsocketSettings,
    specs,
)


class SettingsError(ValueError):
    """Settings that cannot be used. `problems` has one sentence each: variable, value, what is allowed."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


WITHOUT_EFFECT: Final[Mapping[str, str]] = {
    variable: f"{variable} has no effect: {why}" for variable, why in WITHOUT_USE.values() if variable
}
"""Variables that are accepted with a warning."""


def read(environ: Mapping[str, str] | None = None) -> Settings:
    """Every setting from `environ` (the process's own where None) and the live settings file it may name.

    Raises SettingsError with every problem at once.
    """
    environ = os.environ if environ is None else environ
    problems: list[str] = []
    try:
        environ = with_live(environ)
    except LiveSettingsError as error:
        problems.extend(error.problems)
    groups: dict[str, Any] = {}
    for group in dataclasses.fields(Settings):
        if group.name == "warnings":
            continue
        groups[group.name] = _read_group(type(group.default), environ, problems)
    if groups["live"].file:
        groups["rooms"] = _roomy(groups["rooms"], groups["websocket"])
    if not problems:
        # what could not be read has its default here, and would be held against the others
        problems.extend(_contradictions(groups))
    problems.extend(_misspelt(environ))
    if problems:
        raise SettingsError(problems)
    warnings = [text for name, text in WITHOUT_EFFECT.items() if environ.get(name, "") != ""]
    warnings.extend(auth_warnings(groups["auth"]))
    warnings.extend(_doubts(groups["websocket"]))
    warnings.extend(_nearly_named(environ))
    warnings.extend(_capped(groups))
    return Settings(**groups, warnings=tuple(warnings))


def show(settings: Settings) -> dict[str, str]:
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
    """A value as it appears in a message: quoted, cut where it is long, without an address's password."""
    text = re.sub(r"//[^/@\s]*@", "//***@", text)
    return repr(text) if len(text) <= 100 else f"{text[:100]!r}…"


_PARSERS: Final[Mapping[Any, Callable[[Any, Spec, str], Any]]] = {
    str: _read_text,
    bool: _read_flag,
    int: _read_number,
    float: _read_number,
    Literal: _read_choice,
}


def _roomy(rooms: RoomSettings, websocket: WebsocketSettings) -> RoomSettings:
    """`rooms` with logs that hold at least one message. Where both limits are lowered, the logs' one reaches
    an instance that keeps the frames' one until it is replaced, and must not take all others with it.
    """
    least = websocket.max_payload_bytes
    return dataclasses.replace(
        rooms,
        log_max_bytes=max(rooms.log_max_bytes, least),
        personal_max_bytes=max(rooms.personal_max_bytes, least),
    )


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
    performance: PerformanceSettings = groups["performance"]
    if performance.enable_compression and (
        performance.compression_threshold_bytes > websocket.max_payload_bytes
    ):
        problems.append(
            f"TABLEFORGE_WEBSOCKET_MAX_PAYLOAD_BYTES={websocket.max_payload_bytes}: must be at least "
            f"TABLEFORGE_PERFORMANCE_COMPRESSION_THRESHOLD={performance.compression_threshold_bytes}, or "
            "nothing would ever be compressed."
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
    problems.extend(_redis_contradictions(groups["redis"]))
    problems.extend(_room_problems(rooms, websocket, live=bool(groups["live"].file)))
    problems.extend(auth_problems(groups["auth"]))
    problems.extend(_door_problems(websocket, security))
    return problems


def _doubts(websocket: WebsocketSettings) -> list[str]:
    """A sentence for what works and can hardly be meant."""
    interval, timeout = websocket.ping_interval_seconds, websocket.pong_timeout_seconds
    if interval >= timeout:
        return []
    below = f"is below TABLEFORGE_WEBSOCKET_PONG_TIMEOUT={timeout * 1000:.0f}"
    return [
        f"TABLEFORGE_WEBSOCKET_PING_INTERVAL={interval * 1000:.0f} {below}: a ping waits for a late pong."
    ]


def _room_problems(rooms: RoomSettings, websocket: WebsocketSettings, *, live: bool) -> list[str]:
    problems: list[str] = []
    if rooms.personal_max_bytes < websocket.max_payload_bytes:
        problems.append(
            f"TABLEFORGE_ROOMS_PERSONAL_MAX_BYTES={rooms.personal_max_bytes}: must be at least "
            f"TABLEFORGE_WEBSOCKET_MAX_PAYLOAD_BYTES={websocket.max_payload_bytes}, or a personal log could "
            "not hold its newest message."
        )
    if rooms.options and rooms.options_file:
        problems.append("TABLEFORGE_ROOMS_OPTIONS and TABLEFORGE_ROOMS_OPTIONS_FILE: must not both be set.")
        return problems
    name, text = "TABLEFORGE_ROOMS_OPTIONS", rooms.options
    if rooms.options_file:
        name = f"TABLEFORGE_ROOMS_OPTIONS_FILE={rooms.options_file}"
        try:
            text = Path(rooms.options_file).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            what = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            return [*problems, f"{name}: cannot be read ({what})."]
    try:
        parse_room_options(text, rooms, max_payload_bytes=websocket.max_payload_bytes, live=live)
    except RoomOptionsError as error:
        problems += [f"{name}: {problem}." for problem in error.problems]
    return problems


def _door_problems(websocket: WebsocketSettings, security: SecuritySettings) -> list[str]:
    problems: list[str] = []
    if bool(websocket.tls_cert_file) != bool(websocket.tls_key_file):
        problems.append(
            "TABLEFORGE_WEBSOCKET_TLS_CERT_FILE and TABLEFORGE_WEBSOCKET_TLS_KEY_FILE: must both be set, or "
            "neither."
        )
    proxies = security.trusted_proxies
    try:
        networks = parse_networks(proxies)
    except ValueError as error:
        problems.append(
            f"TABLEFORGE_SECURITY_TRUSTED_PROXIES={_shown(proxies)}: must be networks like 10.0.0.0/8 with "
            f"commas between them, or `{NO_PROXIES}` ({error})."
        )
    else:
        if networks and NO_PROXIES in (part.strip() for part in proxies.split(",")):
            problems.append(
                f"TABLEFORGE_SECURITY_TRUSTED_PROXIES={_shown(proxies)}: must be networks or `{NO_PROXIES}`, "
                "not both."
            )
        if security.proxy_protocol and not networks:
            problems.append(
                "TABLEFORGE_SECURITY_PROXY_PROTOCOL=true: must come with "
                "TABLEFORGE_SECURITY_TRUSTED_PROXIES, the networks of the balancers that send its header; "
                "nobody else's is read."
            )
    try:
        parse_origins(security.allowed_origins)
    except ValueError as error:
        problems.append(f"TABLEFORGE_SECURITY_ALLOWED_ORIGINS: must be a list of origins ({error}).")
    return problems


def _redis_contradictions(redis: RedisSettings) -> list[str]:
    problems: list[str] = []
    if redis.mode == "Standalone":
        if redis.addresses:
            problems.append(
                f"TABLEFORGE_REDIS_ADDRESSES={redis.addresses}: must come with TABLEFORGE_REDIS_MODE "
                "Sentinel or Cluster; one server is named by REDIS_HOST and REDIS_PORT."
            )
    elif not redis.addresses:
        problems.append(
            f"TABLEFORGE_REDIS_MODE={redis.mode}: must come with TABLEFORGE_REDIS_ADDRESSES, as "
            "host:port,host:port."
        )
    if redis.mode == "Sentinel" and not redis.sentinel_master_name:
        problems.append(
            "TABLEFORGE_REDIS_MODE=Sentinel: must come with TABLEFORGE_REDIS_SENTINEL_MASTER_NAME, what "
            "the sentinels call the primary."
        )
    if redis.mode == "Cluster" and redis.database != 0:
        problems.append(
            f"REDIS_DB={redis.database}: must be 0 with TABLEFORGE_REDIS_MODE=Cluster, which has no other "
            "database. TABLEFORGE_REDIS_KEY_PREFIX keeps clusters apart."
        )
    for user, password, variables in (
        (redis.username, redis.password, ("REDIS_USERNAME", "REDIS_PASSWORD")),
        (
            redis.sentinel_username,
            redis.sentinel_password,
            ("TABLEFORGE_REDIS_SENTINEL_USERNAME", "TABLEFORGE_REDIS_SENTINEL_PASSWORD"),
        ),
    ):
        if user and not password.configured:
            problems.append(f"{variables[0]}={user}: must come with {variables[1]}_FILE (or {variables[1]}).")
    if bool(redis.tls_cert_file) != bool(redis.tls_key_file):
        problems.append(
            "TABLEFORGE_REDIS_TLS_CERT_FILE and TABLEFORGE_REDIS_TLS_KEY_FILE: must both be given, or none."
        )
    if not redis.tls and (redis.tls_ca_file or redis.tls_cert_file or redis.tls_server_name):
        problems.append("TABLEFORGE_REDIS_TLS: must be true where other TABLEFORGE_REDIS_TLS_… settings are.")
    return problems


def _capped(groups: Mapping[str, Any]) -> list[str]:
    most, given = groups["websocket"].max_connections, groups["load_balancing"].max_connections_per_instance
    if most <= max(given, Settings().websocket.max_connections):
        return []
    sentence = (
        f"WS_MAX_CONNECTIONS={most} has no effect beyond {given}: raise "
        "TABLEFORGE_LOAD_BALANCING_MAX_CONNECTIONS_PER_INSTANCE too, the smaller of both counts."
    )
    return [sentence]


def _known() -> set[str]:
    known = {spec.env for spec, _ in specs().values()}
    return known | {f"{spec.env}_FILE" for spec, default in specs().values() if isinstance(default, Secret)}


def _misspelt(environ: Mapping[str, str]) -> list[str]:
    """Everything called TABLEFORGE_… is ours: what isn't a setting is a mistake."""
    known = _known()
    problems: list[str] = []
    for name in sorted(environ):
        ours = name.startswith("TABLEFORGE_") and name not in WITHOUT_EFFECT
        if not ours or name in known or _is_service_link(name, environ):
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
