"""What the instances have to be told: how they should be, and who of them is gone for good.

Level-triggered: an order is due while an instance's record says something else, whatever was sent before.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Final

from tableforge_dataplane.contract.fleet import InstanceOrder, InstanceRecord
from tableforge_operator.api import WebSocketCluster, names
from tableforge_operator.decide import annotations, findings, instances
from tableforge_operator.decide.rebalancing.state import Command
from tableforge_operator.decide.resources.metadata import TRACK, Track
from tableforge_operator.decide.snapshot import Now, Sent, Snapshot
from tableforge_operator.decide.status import Event

AT_ONCE: Final = 200
"""Instances in one command. More follow in the next one."""
FORGET_AT_ONCE: Final = 20
FORGET_EACH_SECONDS: Final = 0.5
"""For how long nobody else is looked up after one that may be gone: instances that name others at every look
must not take up the operator's calls, which are everybody's.
"""
COMMANDS_AT_ONCE: Final = 20
AGAIN_HEARTBEATS: Final = 1.5
"""After how long an order is sent again to who doesn't say that it holds: each heartbeat it looks it up."""
_UNTOLD_WEIGHT: Final = 1.0
"""Of a record that has none."""
_POD_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Word:
    """What to tell the fleet now."""

    orders: tuple[InstanceOrder, ...] = ()
    gone: tuple[str, ...] = ()
    """To be forgotten, once the API server has confirmed that their pods are gone."""
    commands: tuple[Command, ...] = ()
    """What the planner asks of the fleet."""
    held: bool = False
    """Whether there is something to tell, and the last attempt was too short a time ago."""

    @property
    def anything(self) -> bool:
        return bool(self.orders or self.gone or self.commands or self.held)


def word(
    cluster: WebSocketCluster,
    snapshot: Snapshot,
    now: Now,
    *,
    closed: frozenset[str] = frozenset(),
    addresses: Mapping[str, str | None] | None = None,
    track: Track = TRACK,
) -> Word:
    """What to tell the fleet. `closed`: the instances that the planner keeps new clients from. `track` is the
    one that clients are sent to.
    """
    orders = due(cluster, snapshot, now, closed=closed, addresses=addresses, track=track)
    lost = gone(snapshot, now)
    commands = () if snapshot.rebalance is None else snapshot.rebalance.commands[:COMMANDS_AT_ONCE]
    if now.monotonic < snapshot.command_retry_at:
        return Word(held=bool(orders or lost or commands))
    return Word(orders=orders, gone=lost, commands=commands)


def notes(snapshot: Snapshot, word: Word) -> tuple[Event, ...]:
    """That the instances don't take orders, where they don't."""
    if not snapshot.command_refused or not word.anything:
        return ()
    message = (
        f"The instances take no orders (cordons, weights, addresses, moves): {snapshot.command_refused}."
    )
    return (Event(type="Warning", reason="OrdersNotTaken", message=message),)


def due(
    cluster: WebSocketCluster,
    snapshot: Snapshot,
    now: Now,
    *,
    closed: frozenset[str] = frozenset(),
    addresses: Mapping[str, str | None] | None = None,
    track: Track = TRACK,
) -> tuple[InstanceOrder, ...]:
    """The orders to send. `addresses` of instances of which they are decided; None: nobody has one."""
    found: list[InstanceOrder] = []
    again_seconds = AGAIN_HEARTBEATS * cluster.spec.scaling.heartbeat_interval.seconds
    for record, wanted in _wanted(cluster, snapshot, now, closed=closed, addresses=addresses, track=track):
        sent = snapshot.orders_sent.get(record.instance)
        same = sent is not None and sent.order == wanted and sent.boot == record.boot
        if same and sent is not None and now.monotonic - sent.at < again_seconds:
            continue
        if (
            record.cordoned != wanted.cordoned
            or record.address != wanted.address
            or not _weight_holds(cluster, record, wanted, sent)
        ):
            found.append(wanted)
    return tuple(found[:AT_ONCE])


def _weight_holds(
    cluster: WebSocketCluster, record: InstanceRecord, wanted: InstanceOrder, sent: Sent | None
) -> bool:
    if wanted.weight is not None:
        return record.weight == wanted.weight
    # Its own holds, which is the spec's, or that of an older spec: told once, it is not told again. What says
    # nothing of weights is of an older version, and takes no orders.
    if sent is not None and sent.order.weight is not None:
        return False
    return sent is not None or record.weight in (cluster.weight, _UNTOLD_WEIGHT)


def _wanted(
    cluster: WebSocketCluster,
    snapshot: Snapshot,
    now: Now,
    *,
    closed: frozenset[str],
    addresses: Mapping[str, str | None] | None,
    track: Track,
) -> list[tuple[InstanceRecord, InstanceOrder]]:
    records = {record.instance: record for record in _records(snapshot, now) if record.alive}
    found = []
    for pod in instances.staying(cluster, snapshot):
        name = pod["metadata"]["name"]
        if (record := records.get(name)) is None:
            continue
        wishes = annotations.of_pod(pod)
        # Rooms would find their way to it by themselves, before clients should come or when all should go.
        apart = cluster.routed and pod["metadata"]["labels"].get(names.TRACK_LABEL) != track
        order = InstanceOrder(
            instance=name,
            cordoned=wishes.cordoned or name in closed or apart,
            weight=wishes.weight,
            address=None if addresses is None else addresses.get(name, record.address),
        )
        found.append((record, order))
    return found


def gone(snapshot: Snapshot, now: Now) -> tuple[str, ...]:
    """The instances whose pod is not there any more by what is watched, and that nobody was told of yet."""
    if "Pod" in snapshot.blind or now.monotonic < snapshot.forget_at:
        return ()
    # One that was evicted stays in the list for good, and runs nothing.
    there = {
        pod["metadata"]["name"]
        for pod in snapshot.pods
        if (pod.get("status") or {}).get("phase") not in ("Failed", "Succeeded")
    }
    # What no pod can be called was written by somebody's hand: no look-up and no command would take it.
    told = {name for record in _records(snapshot, now) if _POD_NAME.fullmatch(name := record.instance)}
    if not told & there:
        return ()  # somebody among them has answered: then it is the watch that has seen nobody
    return tuple(sorted(told - there - snapshot.forgotten)[:FORGET_AT_ONCE])


def _records(snapshot: Snapshot, now: Now) -> list[InstanceRecord]:
    """What the instances lately said; nothing where that is too old."""
    view = snapshot.fleet
    if view.fleet is None or now.monotonic - view.fleet_at > findings.FLEET_MEMORY_SECONDS:
        return []
    return view.fleet.instances
