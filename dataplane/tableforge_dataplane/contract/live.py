"""Settings that may change while an instance runs: the file they come from, and what it may say.

    {"LOG_LEVEL": "debug", "TABLEFORGE_SECURITY_MAX_MESSAGES_PER_SECOND": "50"}

The variables are those of the environment. What cannot change while clients are connected isn't taken here,
so that nobody waits for an effect that only a restart has.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from tableforge_dataplane.contract.settings import Settings, specs

MAX_BYTES: Final = 1024 * 1024
"""Of the file: what a ConfigMap can hold."""

FILE_VARIABLE: Final = next(spec.env for name, (spec, _) in specs().items() if name == "live.file")

LIVE: Final = frozenset(spec.env for spec, _ in specs().values() if spec.live)
"""The variables that the file may hold."""

_KNOWN: Final = frozenset(spec.env for spec, _ in specs().values())


def fingerprint(text: bytes) -> str:
    """What an instance tells of the file that it goes by: 16 hexadecimal digits that change with its text."""
    return hashlib.sha256(text).hexdigest()[:16]


class LiveSettingsError(ValueError):
    """A file that cannot be used. `problems` has a sentence each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def with_live(environ: Mapping[str, str]) -> Mapping[str, str]:
    """`environ` with what the live settings file says, where it names one. Raises LiveSettingsError."""
    file = environ.get(FILE_VARIABLE, "")
    if not file:
        return environ
    name = f"{FILE_VARIABLE}={file}"
    try:
        with Path(file).open("rb") as opened:
            text = opened.read(MAX_BYTES + 1)
    except OSError as error:
        raise LiveSettingsError([f"{name}: cannot be read ({error.strerror})."]) from None
    if len(text) > MAX_BYTES:
        raise LiveSettingsError([f"{name}: is longer than {MAX_BYTES} bytes."])
    try:
        values = msgspec.json.decode(text, type=dict[str, str])
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise LiveSettingsError([f"{name}: must be a JSON object of texts ({error})."]) from None
    problems = [f"{name}: {problem}" for key in sorted(values) if (problem := _problem(key)) is not None]
    if problems:
        raise LiveSettingsError(problems)
    return {**environ, **values}


def _problem(variable: str) -> str | None:
    if variable in LIVE:
        return None
    shown = variable[:100]
    if variable in _KNOWN or variable.removesuffix("_FILE") in _KNOWN:
        return f"{shown} cannot change while an instance runs: set it in the environment."
    return f"{shown} is no setting."


def differences(before: Settings, after: Settings) -> dict[str, Any]:
    """The live settings that differ, by variable, with their new values."""
    found: dict[str, Any] = {}
    for path, (spec, _) in specs().items():
        group, field = path.split(".")
        value = getattr(getattr(after, group), field)
        if spec.live and value != getattr(getattr(before, group), field):
            found[spec.env] = value
    return found
