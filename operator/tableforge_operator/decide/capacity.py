"""What a cluster has no room or no time for: clients beyond its instances, drains beyond its budget."""

import math
from collections.abc import Iterator
from typing import Final

from tableforge_operator.api import WebSocketCluster
from tableforge_operator.decide import findings
from tableforge_operator.decide.rollout import SHARE
from tableforge_operator.decide.snapshot import Now, Snapshot
from tableforge_operator.decide.status import Event

ROOM_AGAIN: Final = 0.95
"""How full the emptiest instance may be for a fleet that was full to have room again: clients who come and go
at the limit would be news each time.
"""
FOLLOW_SECONDS: Final = 2
"""Of a drain's time, what the last ones told have to connect elsewhere by themselves."""
_FULL: Final = "No new client gets in, each is answered with 503"


def full(cluster: WebSocketCluster, snapshot: Snapshot, now: Now) -> Iterator[Event]:
    """That no instance that takes clients has room for one more."""
    view = snapshot.fleet
    if view.fleet is None or now.monotonic - view.fleet_at > findings.FLEET_MEMORY_SECONDS:
        return
    taking = [
        record
        for record in view.fleet.instances
        if record.alive and not record.draining and not record.cordoned and record.capacity > 0
    ]
    standing = any(found.type == "Ready" and _FULL in found.message for found in cluster.status.conditions)
    enough = ROOM_AGAIN if standing else 1.0
    if not taking or min(record.connections / record.capacity for record in taking) < enough:
        return
    more = "spec.autoscaling.maxReplicas" if cluster.autoscaled else "spec.replicas"
    by_socket = cluster.capacity == cluster.spec.websocket.max_connections
    each = "spec.websocket.maxConnections" if by_socket else "spec.loadBalancing.maxConnectionsPerInstance"
    yield Event(
        type="Warning",
        reason="AllFull",
        message=f"{_FULL}: all instances are full. Raise {more}, or {each} ({cluster.capacity}) where they "
        "have CPU and memory to spare.",
    )


def drains(cluster: WebSocketCluster) -> Iterator[Event]:
    """That a full instance cannot leave within the cluster's budget of reconnects."""
    rollout = cluster.spec.rollout
    needed = math.ceil(cluster.capacity / (SHARE * rollout.max_reconnects_per_second) + FOLLOW_SECONDS)
    if rollout.drain_timeout.seconds >= needed:
        return
    yield Event(
        type="Warning",
        reason="DrainTooShort",
        message=f"A full instance leaves faster than the budget allows: {cluster.capacity} clients take "
        f"{needed} s. Raise spec.rollout.drainTimeout ({rollout.drain_timeout}) to that, or "
        f"spec.rollout.maxReconnectsPerSecond ({rollout.max_reconnects_per_second}).",
    )
