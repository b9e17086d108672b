"""How often a child is set back that somebody else keeps changing: ever less, and it is told who does.

Two who each insist on a field would else keep the API server busy with it for ever.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from tableforge_operator.api import names
from tableforge_operator.decide.findings import legible
from tableforge_operator.decide.snapshot import ChildKey, Now, Object, Repairs, Snapshot
from tableforge_operator.decide.status import Event

AT_ONCE: Final = 3
"""Repairs of a child without a pause: a person who tries something out is none who insists."""
FIRST_SECONDS: Final = 2.0
"""The pause after these; each one is twice the one before."""
LONGEST_SECONDS: Final = 300.0
QUIET_SECONDS: Final = 60.0
"""A child that is left alone for that long, and for twice its last pause, begins anew."""
SHOWN: Final = 100
"""Characters of another manager's name, and of a field's."""


def waits(key: ChildKey, snapshot: Snapshot, now: Now) -> bool:
    """Whether a child that has drifted is not to be set back yet."""
    before = snapshot.repairs.get(key)
    return before is not None and now.monotonic < before.retry_at


def after(before: Repairs | None, contested: tuple[str, str] | None, now: float) -> Repairs | None:
    """What to remember of a child that was set back just now, `contested` being by whom and which field; None
    where nothing tells of anybody. `before` is what is remembered of the last time.
    """
    if contested is None:
        return before
    count = 1 if before is None or _over(before, now) else before.count + 1
    manager, field = contested
    return Repairs(count=count, at=now, retry_at=now + _pause(count), manager=manager, field=field)


def insists(before: Repairs | None) -> bool:
    """Whether somebody is known to."""
    return before is not None and before.count > AT_ONCE


def notes(snapshot: Snapshot, now: Now) -> Iterator[Event]:
    """Who keeps changing what is the operator's."""
    for (kind, name), found in sorted(snapshot.repairs.items()):
        if insists(found) and not _over(found, now.monotonic):
            message = (
                f"{kind} {name}: field manager {_shown(found.manager)} keeps changing {_shown(found.field)}, "
                "which is the operator's and is set back less and less often. Have that manager leave it "
                "alone, or have the spec say what it should be."
            )
            yield Event(type="Warning", reason="FieldContested", message=message)


def contested(before: str, live: Object) -> tuple[str, str] | None:
    """Who has taken which of our fields from us; None where nobody has. `before` is our entry of
    `managedFields` as the last apply left it (`ownership.applied_fields`).

    A field that was taken out is nobody's. Then it is who wrote last.
    """
    entries: list[Mapping[str, Any]] = list(live["metadata"].get("managedFields") or ())
    ours = [entry for entry in entries if entry.get("manager") == names.FIELD_MANAGER]
    lost = _leaves(json.loads(before)) if before else set[tuple[str, ...]]()
    for entry in ours:
        if entry.get("operation") == "Apply" and not entry.get("subresource"):
            lost -= _leaves(entry)
    if not lost:
        return None
    # What the operator writes under other names, such as how many instances there are, it does itself.
    others = [entry for entry in entries if not str(entry.get("manager")).startswith(names.FIELD_MANAGER)]
    others.sort(key=lambda entry: str(entry.get("time", "")), reverse=True)
    for entry in others:
        if taken := lost & _leaves(entry):
            return str(entry.get("manager")), _path(min(taken))
    owned = {leaf for entry in entries for leaf in _leaves(entry)}
    if others and (removed := lost - owned):
        return str(others[0].get("manager")), _path(min(removed))
    return None


def _over(found: Repairs, now: float) -> bool:
    return now - found.at > max(QUIET_SECONDS, 2 * (found.retry_at - found.at))


def _pause(count: int) -> float:
    return 0.0 if count < AT_ONCE else min(FIRST_SECONDS * 2.0 ** min(count - AT_ONCE, 16), LONGEST_SECONDS)


def _leaves(entry: Mapping[str, Any]) -> set[tuple[str, ...]]:
    found: set[tuple[str, ...]] = set()
    todo: list[tuple[tuple[str, ...], Any]] = [((), entry.get("fieldsV1"))]
    while todo:
        path, below = todo.pop()
        if isinstance(below, Mapping) and below:
            todo += [((*path, part), rest) for part, rest in below.items() if part != "."]
        elif path:
            found.add(path)
    return found


def _path(leaf: tuple[str, ...]) -> str:
    """`f:spec`, `f:ports`, `k:{"port":80}`, `f:name` as `spec.ports[{"port":80}].name`."""
    found = ""
    for part in leaf:
        what, _, rest = part.partition(":")
        found += f".{rest}" if what == "f" else f"[{rest}]"
    return found.removeprefix(".")


def _shown(text: str) -> str:
    text = legible(text)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
