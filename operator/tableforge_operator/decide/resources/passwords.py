"""The generations of a managed Redis's password: who takes and who is given which, and the Secrets' names."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Final, Self

from tableforge_operator.api import WebSocketCluster, names
from tableforge_operator.decide.resources.metadata import fingerprint

AUTH_VOLUME: Final = "auth"
"""The volume of Redis's pod with what it demands of clients."""
WINDOW: Final = 4
"""So many generations an instance is mounted from its start, those to come included: a new one needs no new
pod until the next four begin."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Passwords:
    """Where a change of the password is."""

    taken: tuple[int, ...]
    """The generations that Redis takes: one, or, while it changes, the old and the new one."""
    given: int
    """The newest that the instances are given."""
    hashes: Mapping[int, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    """SHA-256 of each that Redis takes. One generation has several where the master key was replaced
    meanwhile: which of them its Secret holds cannot be read."""

    @classmethod
    def settled(cls, generation: int, hashes: Mapping[int, tuple[str, ...]] | None = None) -> Self:
        """One for everybody."""
        return cls(taken=(generation,), given=generation, hashes=hashes or {})


_OF_GENERATION: Final = re.compile(r"([1-9][0-9]{0,5})=([0-9a-f]{64}(?:\+[0-9a-f]{64}){0,7})")
FIRST: Final = Passwords.settled(1)


def window(generation: int) -> range:
    """The generations that an instance is mounted together with this one."""
    first = (generation - 1) // WINDOW * WINDOW + 1
    return range(first, first + WINDOW)


def password_secret_name(cluster: WebSocketCluster, *generations: int) -> str:
    """The Secret with these passwords."""
    return f"{cluster.name}-redis-{cluster.uid[:8]}-{'-'.join(map(str, generations))}"


def taken_secret_name(cluster: WebSocketCluster, passwords: Passwords) -> str:
    """The Secret with what Redis takes. One with several says in its name which they are."""
    name = password_secret_name(cluster, *passwords.taken)
    return name if len(passwords.taken) == 1 else f"{name}-{fingerprint(_words(passwords.hashes))[:8]}"


def hashes_text(hashes: Mapping[int, tuple[str, ...]]) -> str:
    """For the annotation: `1=hash,2=hash+hash`. The passwords are random, so that a hash gives none away."""
    return ",".join(f"{generation}={'+'.join(each)}" for generation, each in sorted(hashes.items()))


def hashes_of(workload: Mapping[str, Any]) -> dict[int, tuple[str, ...]]:
    """What a StatefulSet says; nothing of what isn't written as above."""
    annotations = workload["metadata"].get("annotations") or {}
    found: dict[int, tuple[str, ...]] = {}
    for part in str(annotations.get(names.PASSWORD_HASHES_ANNOTATION, "")).split(","):
        if (read := _OF_GENERATION.fullmatch(part)) is not None:
            found[int(read[1])] = tuple(read[2].split("+"))
    return found


def _words(hashes: Mapping[int, tuple[str, ...]]) -> list[str]:
    return [word for _, each in sorted(hashes.items()) for word in each]


def passwords_in(cluster: WebSocketCluster, secret: str) -> tuple[int, ...]:
    """The generations in a Secret's name; none where it isn't one of ours."""
    head = re.escape(password_secret_name(cluster))
    found = re.fullmatch(rf"{head}([1-9][0-9]{{0,5}})(?:-([1-9][0-9]{{0,5}})(?:-[0-9a-f]{{8}})?)?", secret)
    return () if found is None else tuple(int(part) for part in found.groups() if part)
