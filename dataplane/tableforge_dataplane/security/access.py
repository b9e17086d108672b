"""What a user may do: patterns over room names, from a token's `tableforge` claim."""

import dataclasses
from typing import Any, Final

from tableforge_dataplane.contract.auth import RightsError, check_rights, parse_rights
from tableforge_dataplane.contract.patterns import Pattern, matches, parse_pattern


@dataclasses.dataclass(frozen=True, slots=True)
class Patterns:
    """A set of names, given by patterns whose segments are split at `:`.

    `*` stands for exactly one segment, a last `**` for one or more; everything else for itself. There are no
    partial wildcards (`room-*` is refused, so that nobody believes it would match).
    """

    exact: frozenset[str]
    wild: tuple[Pattern, ...]
    everything: bool

    @classmethod
    def of(cls, patterns: list[str]) -> "Patterns":
        """Raises RightsError for the first pattern that means nothing."""
        exact: set[str] = set()
        wild: list[Pattern] = []
        for pattern in patterns:
            try:
                segments = parse_pattern(pattern)
            except ValueError as error:
                raise RightsError(str(error)) from None
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
        return any(matches(pattern, segments) for pattern in self.wild)


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

    def may_see_presence(self, room: str) -> bool:
        """Whether the user may see who is in `room`."""
        return self.presence.match(room)


DEFAULT_RIGHTS: Final = Rights(join=EVERYTHING, publish=EVERYTHING, presence=EVERYTHING, direct=NOTHING)
"""What `TABLEFORGE_AUTH_DEFAULT_RIGHTS` says unless it is set."""


def rights_of(claim: Any) -> Rights:
    """The rights that a token's `tableforge` claim gives; what the claim leaves out, it doesn't give.

    Raises RightsError where the claim is malformed.
    """
    return Rights(**{name: Patterns.of(patterns) for name, patterns in check_rights(claim).items()})


def default_rights(text: str) -> Rights:
    """What `TABLEFORGE_AUTH_DEFAULT_RIGHTS` gives. Raises RightsError."""
    return Rights(**{name: Patterns.of(patterns) for name, patterns in parse_rights(text).items()})
