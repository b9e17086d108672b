"""What to create and apply so that the children are as rendered: nothing, where they are."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Literal

from tableforge_operator.decide import ownership, repairs
from tableforge_operator.decide.resources.kinds import WITHDRAWN_KINDS
from tableforge_operator.decide.snapshot import ChildKey, Now, Object, Snapshot

ApplyReason = Literal["Missing", "Changed", "Drifted", "Adopted", "Unwatched"]

WITHDRAWN: Final = "withdrawn"
"""Stands for the digest of a child that is to go, in what the operator remembers of a refusal."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Apply:
    """A child to apply, and why."""

    obj: dict[str, Any]
    digest: str
    reason: ApplyReason
    instances_at_least: int | None = None
    """Of a Deployment whose size is an autoscaler's: the size at which it begins."""

    @property
    def key(self) -> ChildKey:
        return key_of(self.obj)


def key_of(obj: Any) -> ChildKey:
    """Kind and name of an object."""
    return obj["kind"], obj["metadata"]["name"]


def applies(
    rendered: Iterable[dict[str, Any]],
    *,
    snapshot: Snapshot,
    now: Now,
    amiss: Callable[[Object], bool] = lambda _: False,
) -> tuple[Apply, ...]:
    """The children that are not as rendered, less those whose next attempt is not due yet.

    `amiss` tells of those that are, and whose other fields are not as they should be.
    """
    found: list[Apply] = []
    for obj in rendered:
        key, wanted = key_of(obj), ownership.digest(obj)
        refusal = snapshot.refusals.get(key)
        if refusal is not None and refusal.digest == wanted and now.monotonic < refusal.retry_at:
            continue
        why = due_reason(key, wanted, snapshot, now) or ("Drifted" if amiss(obj) else None)
        if why is not None:
            found.append(Apply(obj=obj, digest=wanted, reason=why))
    # What a restart finds as it should be comes last: nobody waits for that.
    return tuple(sorted(found, key=lambda item: item.reason == "Adopted" and _as_asked(item, snapshot)))


def _as_asked(item: Apply, snapshot: Snapshot) -> bool:
    """Whether nothing seems to change by it. (Where the API server writes a value otherwise, it seems to.)"""
    return _contains(snapshot.children[item.key], item.obj)


def _contains(live: Any, wanted: Any) -> bool:
    if isinstance(wanted, Mapping) and isinstance(live, Mapping):
        return all(name in live and _contains(live[name], value) for name, value in wanted.items())
    if isinstance(wanted, list) and isinstance(live, list):
        return len(live) == len(wanted) and all(map(_contains, live, wanted))
    return bool(live == wanted)


def withdrawals(rendered: Iterable[dict[str, Any]], *, snapshot: Snapshot, now: Now) -> tuple[Object, ...]:
    """The children to delete: of kinds that the spec can do without, those it no longer asks for."""
    return due(unwanted(rendered, snapshot=snapshot).values(), snapshot=snapshot, now=now)


def due(
    objects: Iterable[Object], *, digest: str = WITHDRAWN, snapshot: Snapshot, now: Now
) -> tuple[Object, ...]:
    """Those of the children whose next attempt at `digest` need not wait."""
    found: list[Object] = []
    for live in objects:
        refusal = snapshot.refusals.get(key_of(live))
        if refusal is None or refusal.digest != digest or now.monotonic >= refusal.retry_at:
            found.append(live)
    return tuple(found)


def unwanted(rendered: Iterable[dict[str, Any]], *, snapshot: Snapshot) -> dict[ChildKey, Object]:
    """The children that are there, are not on their way out, and are not rendered.

    What leads to a single instance goes with its pod: clients may be there still.
    """
    wanted = {key_of(obj) for obj in rendered}
    return {
        key: live
        for key, live in sorted(snapshot.children.items())
        if key[0] in WITHDRAWN_KINDS
        and key not in wanted
        and not live["metadata"].get("deletionTimestamp")
        and not ownership.of_pod(live)
    }


def reason(key: ChildKey, wanted: str, snapshot: Snapshot) -> ApplyReason | None:
    """Why a child has to be applied, of which `wanted` is the digest; None where it hasn't."""
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


def due_reason(key: ChildKey, wanted: str, snapshot: Snapshot, now: Now) -> ApplyReason | None:
    """The same; None also for a child that somebody keeps changing, until it is set back again."""
    found = reason(key, wanted, snapshot)
    return None if found == "Drifted" and repairs.waits(key, snapshot, now) else found


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
