"""What to create and apply so that the children are as rendered: nothing, where they are."""

import dataclasses
from collections.abc import Iterable
from typing import Any, Literal

from tableforge_operator.decide import ownership
from tableforge_operator.decide.snapshot import ChildKey, Now, Snapshot

ApplyReason = Literal["Missing", "Changed", "Drifted", "Adopted", "Unwatched"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Apply:
    """A child to apply, and why."""

    obj: dict[str, Any]
    digest: str
    reason: ApplyReason

    @property
    def key(self) -> ChildKey:
        return key_of(self.obj)


def key_of(obj: Any) -> ChildKey:
    """Kind and name of an object."""
    return obj["kind"], obj["metadata"]["name"]


def applies(rendered: Iterable[dict[str, Any]], *, snapshot: Snapshot, now: Now) -> tuple[Apply, ...]:
    """The children that are not as rendered, less those whose next attempt is not due yet."""
    found: list[Apply] = []
    for obj in rendered:
        key, wanted = key_of(obj), ownership.digest(obj)
        refusal = snapshot.refusals.get(key)
        if refusal is not None and refusal.digest == wanted and now.monotonic < refusal.retry_at:
            continue
        reason = _reason(key, wanted, snapshot)
        if reason is not None:
            found.append(Apply(obj=obj, digest=wanted, reason=reason))
    return tuple(found)


def _reason(key: ChildKey, wanted: str, snapshot: Snapshot) -> ApplyReason | None:
    applied, live = snapshot.applied.get(key), snapshot.children.get(key)
    if key[0] in snapshot.blind:
        # Not seeing a child must not look like its absence, or every turn would apply it.
        return None if applied is not None and applied.digest == wanted else "Unwatched"
    if live is None:
        return "Missing"
    if applied is None or applied.uid != live["metadata"]["uid"]:
        return "Adopted"
    if applied.digest != wanted:
        return "Changed"
    if applied.fields != ownership.applied_fields(live):
        return "Drifted"
    return None


def secrets(
    rendered: Iterable[dict[str, Any]], *, snapshot: Snapshot, now: Now
) -> tuple[dict[str, Any], ...]:
    """The Secrets that are not known to exist. They can be created and never read, so each is tried once."""
    due: list[dict[str, Any]] = []
    for obj in rendered:
        refusal = snapshot.refusals.get(key_of(obj))
        if obj["metadata"]["name"] not in snapshot.secrets_created and (
            refusal is None or now.monotonic >= refusal.retry_at
        ):
            due.append(obj)
    return tuple(due)
