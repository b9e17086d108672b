"""Settings from environment variables, and back: what a variable may say, and how a wrong one is answered."""

import dataclasses
import difflib
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

from tableforge_dataplane.contract.settings import (
    AuthSettings,
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
    "REDIS_PUBSUB_DB": "REDIS_PUBSUB_DB has no effect: Redis Pub/Sub ignores database numbers. Use "
    "TABLEFORGE_REDIS_KEY_PREFIX to keep clusters on one Redis apart.",
}


def read(environ: Mapping[str, str] | None = None) -> Settings:
    """Every setting from `environ` (the process's own where None).

    Raises SettingsError with every problem at once.
    """
    environ = os.environ if environ is None else environ
    problems: list[str] = []
    groups: dict[str, Any] = {}
    for group in dataclasses.fields(Settings):
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
