"""The table of instances in the status: who is alive, how it is, and how much it carries."""

from collections.abc import Mapping
from typing import Final

from tableforge_dataplane.contract.fleet import Fleet, InstanceRecord
from tableforge_operator.api import InstanceStatus, Status, WebSocketCluster
from tableforge_operator.api.status import INSTANCE_NAME_LENGTH, INSTANCES_SHOWN, VERSION_LENGTH
from tableforge_operator.decide import instances
from tableforge_operator.decide.findings import legible
from tableforge_operator.decide.resources.metadata import fleet_name
from tableforge_operator.decide.snapshot import Snapshot

MOVED: Final = 0.05
"""By which share a number must have moved before it is written again."""


def table(cluster: WebSocketCluster, snapshot: Snapshot, fleet: Fleet) -> tuple[InstanceStatus, ...]:
    """All instances that are alive by the fleet's word, fullest first."""
    ready: Mapping[str, bool] | None = None
    if "Pod" not in snapshot.blind:
        ready = {
            pod["metadata"]["name"]: instances.ready(pod) for pod in instances.staying(cluster, snapshot)
        }
    rows = [_row(cluster, record, ready) for record in fleet.instances if record.alive]
    found = {row.name: row for row in rows}.values()
    return tuple(sorted(found, key=lambda row: (-row.connections, -row.rooms, row.name)))


def _row(
    cluster: WebSocketCluster, record: InstanceRecord, ready: Mapping[str, bool] | None
) -> InstanceStatus:
    return InstanceStatus(
        name=_short(record.instance, INSTANCE_NAME_LENGTH),
        # By its name, which it keeps when its pod is gone.
        track=next(
            (
                track
                for track in instances.TRACKS
                if record.instance.startswith(f"{fleet_name(cluster, track)}-")
            ),
            None,
        ),
        ready=None if ready is None else ready.get(record.instance, False),
        accepting=not record.cordoned and not record.draining,
        draining=record.draining,
        connections=record.connections,
        rooms=record.rooms,
        version=_short(record.version, VERSION_LENGTH),
    )


def _short(text: str, limit: int) -> str:
    """An instance may say anything; in an ordinary fleet of 500 nothing of it has to be made legible."""
    return text if len(text) <= limit and text.isprintable() else legible(text[:limit])


def news(found: tuple[InstanceStatus, ...], *, previous: Status) -> bool:
    """Whether somebody came or went, or is otherwise than the status shows: told at once.

    Of those that are not shown only the number is known.
    """
    if len(found) != len(previous.instance_table) + (previous.instances_not_shown or 0):
        return True
    now = {row.name: _kind(row) for row in found}
    return any(now.get(row.name) != _kind(row) for row in previous.instance_table)


def _kind(row: InstanceStatus) -> tuple[object, ...]:
    """All of a row but its numbers."""
    return row.track, row.ready, row.accepting, row.draining, row.version


def moved(found: tuple[InstanceStatus, ...], *, previous: Status) -> bool:
    """Whether numbers that are to be shown are far from those that are."""
    before = {row.name: row for row in previous.instance_table}
    # The others had no more than the emptiest that is shown.
    least = previous.instance_table[-1].connections if previous.instance_table else 0
    for row in found[:INSTANCES_SHOWN]:
        if (old := before.get(row.name)) is None:
            if far(row.connections, least):
                return True
        elif far(row.connections, old.connections) or far(row.rooms, old.rooms):
            return True
    return False


def far(after: int, before: int | None) -> bool:
    """Whether a number has moved so far that it is worth a write."""
    return before is None or abs(after - before) > MOVED * before
