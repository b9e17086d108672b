"""How a setting is declared: the field that it makes, and what is known of it beside its default and type."""

import dataclasses
import enum
from typing import Any, Final

HOST: Final = r"[A-Za-z0-9._:%-]{1,253}"


class Unit(enum.Enum):
    """How a number is written in the environment."""

    PLAIN = "a whole number"
    MILLISECONDS = "a whole number of milliseconds"
    BYTES = "a whole number of bytes"


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


def setting(default: Any, env: str, doc: str, **more: Any) -> Any:
    """A field of a group; `more` is the rest of its `Spec`. A default that can be called makes the value."""
    metadata = {"spec": Spec(env=env, doc=doc, **more)}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)
