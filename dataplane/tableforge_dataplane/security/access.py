"""What a user may do: patterns over room names, from a token's `tableforge` claim."""

import dataclasses
from typing import Any, Final

CLAIM: Final = "tableforge"

MAX_PATTERNS: Final = 256
"""Patterns one right may name: each join and publish looks at them all."""

MAX_PATTERN_CHARACTERS: Final = 256


class RightsError(ValueError):
    """A malformed claim; the message names the member and what would be right."""


@dataclasses.dataclass(frozen=True, slots=True)
class Patterns:
    """A set of names, given by patterns whose segments are split at `:`.

    `*` stands for exactly one segment, a last `**` for one or more; everything else for itself. There are no
    partial wildcards (`room-*` is refused, so that nobody believes it would match).
    """

    exact: frozenset[str]
    wild: tuple[tuple[str, ...], ...]
    everything: bool

    @classmethod
    def of(cls, patterns: list[str]) -> "Patterns":
        """Raises RightsError for the first pattern that means nothing."""
        exact: set[str] = set()
        wild: list[tuple[str, ...]] = []
        for pattern in patterns:
            segments = tuple(pattern.split(":"))
            for position, segment in enumerate(segments):
                if "*" not in segment or segment == "*":
                    continue
                if segment != "**":
                    raise RightsError(
                        f"{pattern!r}: a `*` stands for a whole segment between colons, not for a part"
                    )
                if position != len(segments) - 1:
                    raise RightsError(f"{pattern!r}: `**` may only be the last segment")
            if "*" in pattern:
                wild.append(segments)
            else:
                exact.add(pattern)
        return cls(exact=frozenset(exact), wild=tuple(wild), everything=("**",) in wild)

    def match(self, name: str) -> bool:
        """Whether `name` is in the set."""
        if self.everything or name in self.exact:
            return True
        if not self.wild:
            return False
        segments = name.split(":")
        return any(_matches(pattern, segments) for pattern in self.wild)


def _matches(pattern: tuple[str, ...], segments: list[str]) -> bool:
    if pattern[-1] == "**":
        if len(segments) < len(pattern):
            return False
        pattern = pattern[:-1]
    elif len(segments) != len(pattern):
        return False
    return all(wanted in ("*", segment) for wanted, segment in zip(pattern, segments, strict=False))


EVERYTHING: Final = Patterns.of(["**"])
NOTHING: Final = Patterns.of([])


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rights:
    """What a user may do, decided once per token."""

    join: Patterns
    publish: Patterns
    presence: Patterns
    direct: Patterns

    def may_join(self, room: str) -> bool:
        """Whether the user may be a member of `room`."""
        return self.join.match(room)

    def may_publish(self, room: str) -> bool:
        """Whether the user may publish to `room`."""
        return self.publish.match(room)


DEFAULT_RIGHTS: Final = Rights(join=EVERYTHING, publish=EVERYTHING, presence=EVERYTHING, direct=NOTHING)
"""Where a token says nothing, and for clients without a token where none is required."""


def rights_of(claim: Any) -> Rights:
    """The rights that a token's `tableforge` claim gives; what the claim leaves out, it doesn't give.

    Raises RightsError where the claim is malformed.
    """
    if not isinstance(claim, dict):
        raise RightsError(f"`{CLAIM}` must be an object of lists of patterns")
    names = [field.name for field in dataclasses.fields(Rights)]
    # a misspelt right would otherwise silently give nothing, or be believed to
    for name in claim:
        if name not in names:
            raise RightsError(f"`{CLAIM}.{str(name)[:50]}` is not a right: there are {', '.join(names)}")
    return Rights(**{name: _patterns(name, claim.get(name, [])) for name in names})


def _patterns(name: str, value: Any) -> Patterns:
    where = f"`{CLAIM}.{name}`"
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise RightsError(f"{where} must be a list of strings")
    if len(value) > MAX_PATTERNS:
        raise RightsError(f"{where} has {len(value)} patterns, {MAX_PATTERNS} are allowed")
    for entry in value:
        if not 1 <= len(entry) <= MAX_PATTERN_CHARACTERS:
            raise RightsError(
                f"{where} has a pattern that isn't 1 to {MAX_PATTERN_CHARACTERS} characters long"
            )
    try:
        return Patterns.of(value)
    except RightsError as error:
        raise RightsError(f"{where}: {error}") from None
