"""How many instances the connections need at least. CPU and memory are the HorizontalPodAutoscaler's.

The number is the autoscaler's `minReplicas`. It goes up when the instances that it stands for are full to the
threshold, and down once fewer were enough for a whole cooldown, with a tenth to spare: connections that go to
and fro by less don't move it, and nothing moves it twice within a cooldown. Only a fleet without any room
left does not wait.
"""

import dataclasses
import datetime as dt
import math
from collections.abc import Mapping
from typing import Final

from tableforge_operator.api import WebSocketCluster
from tableforge_operator.decide.changes import Apply
from tableforge_operator.decide.findings import FLEET_MEMORY_SECONDS
from tableforge_operator.decide.reasons import EventReason
from tableforge_operator.decide.resources.floor import Floor
from tableforge_operator.decide.resources.horizontal_pod_autoscaler import FLOOR_CHANGED_ANNOTATION, stamp
from tableforge_operator.decide.resources.kinds import AUTOSCALER, DEPLOYMENT
from tableforge_operator.decide.rollout import News
from tableforge_operator.decide.snapshot import Now, Object, Snapshot
from tableforge_operator.decide.status import Aspect, Event, parse_time

MEASURING_SECONDS: Final = 120.0
"""For how long an autoscaler may know nothing before something is amiss: instances must be measured twice."""
TOLERANCE: Final = 0.1
"""By which share the connections must have room in fewer instances. The autoscaler's own is the same."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What the floor goes by."""

    lowest: int
    highest: int
    capacity: int
    """Connections that an instance takes."""
    threshold: float
    """Share of it from which on an instance counts as full."""
    up_seconds: float
    down_seconds: float

    def needed(self, connections: float) -> int:
        """Instances that have room for so many, within `lowest` and `highest`."""
        # What is a whole number but for the floating point's last digit is that number.
        number = math.ceil(connections / (self.capacity * self.threshold) - 1e-9)
        return min(max(number, self.lowest), self.highest)


def limits(cluster: WebSocketCluster) -> Limits:
    """What a cluster's spec says."""
    balancing = cluster.spec.load_balancing
    return Limits(
        lowest=cluster.spec.replicas,
        highest=max(cluster.spec.autoscaling.max_replicas, cluster.spec.replicas),
        capacity=cluster.capacity,
        threshold=balancing.connection_threshold,
        up_seconds=balancing.scale_up_cooldown.seconds,
        down_seconds=balancing.scale_down_cooldown.seconds,
    )


def floor_of(cluster: WebSocketCluster, snapshot: Snapshot, now: Now) -> Floor | None:
    """The floor from now on; None where the cluster is not autoscaled."""
    if not cluster.autoscaled:
        return None
    bounds = limits(cluster)
    held = snapshot.floor or _written(snapshot.children.get((AUTOSCALER.kind, cluster.name)), now)
    return next_floor(held, connections=_connections(snapshot, now), limits=bounds, now=now)


def next_floor(held: Floor | None, *, connections: int | None, limits: Limits, now: Now) -> Floor:
    """The floor after `held`. Connections are None where nobody has told lately: then it stays."""
    replicas = limits.lowest if held is None else min(max(held.replicas, limits.lowest), limits.highest)
    changed_at = None if held is None else held.changed_at
    if connections is None:
        return Floor(
            replicas=replicas,
            changed_at=changed_at,
            watched_since=None if held is None else held.watched_since,
            peaks=() if held is None else held.peaks,
        )
    known_since = held.watched_since if held is not None else None
    watched_since = now.monotonic if known_since is None else known_since
    peaks = _with_peak(
        () if held is None else held.peaks,
        need=limits.needed(connections * (1 + TOLERANCE)),
        at=now.monotonic,
        window_seconds=limits.down_seconds,
    )
    since_change = math.inf if changed_at is None else max((now.wall - changed_at).total_seconds(), 0.0)
    wanted, calm = limits.needed(connections), peaks[0][1]
    full = connections >= replicas * limits.capacity
    if wanted > replicas and (full or since_change >= limits.up_seconds):
        replicas, changed_at = wanted, now.wall
    elif (
        calm < replicas
        and since_change >= limits.down_seconds
        and now.monotonic - watched_since >= limits.down_seconds
    ):
        replicas, changed_at = calm, now.wall
    return Floor(replicas=replicas, changed_at=changed_at, watched_since=watched_since, peaks=peaks)


def emptied(cluster: WebSocketCluster, snapshot: Snapshot, obj: Object) -> bool:
    """Whether a Deployment has no instance though one is wanted: then no autoscaler touches it."""
    live = snapshot.children.get((obj["kind"], obj["metadata"]["name"]))
    return (
        cluster.autoscaled
        and obj["kind"] == DEPLOYMENT.kind
        and "replicas" not in obj["spec"]
        and live is not None
        and live["spec"].get("replicas") == 0
    )


def sized(applies: tuple[Apply, ...], cluster: WebSocketCluster, snapshot: Snapshot) -> tuple[Apply, ...]:
    """The applies, with what those of Deployments must know of their size.

    While the autoscaler is still to be deleted, no Deployment gets a size that it would change at once.
    """
    if not cluster.autoscaled and (AUTOSCALER.kind, cluster.name) in snapshot.children:
        applies = tuple(wanted for wanted in applies if wanted.key[0] != DEPLOYMENT.kind)
    return tuple(
        dataclasses.replace(wanted, instances_at_least=cluster.spec.replicas)
        if wanted.key[0] == DEPLOYMENT.kind and "replicas" not in wanted.obj["spec"]
        else wanted
        for wanted in applies
    )


def news(cluster: WebSocketCluster, snapshot: Snapshot, floor: Floor | None) -> tuple[News, ...]:
    """What to tell once the autoscaler has its new floor; nothing where it is the spec that moved it."""
    key = (AUTOSCALER.kind, cluster.name)
    autoscaler, fleet = snapshot.children.get(key), snapshot.fleet.fleet
    if autoscaler is None or fleet is None or floor is None or floor.changed_at is None:
        return ()
    was = autoscaler["spec"].get("minReplicas")
    if was == floor.replicas or stamp(floor.changed_at) == _annotation(autoscaler):
        return ()
    bounds = limits(cluster)
    message = (
        f"At least {floor.replicas} instances run ({was} before): there are {fleet.totals.connections} "
        f"connections, and an instance takes {bounds.capacity} and counts as full at {bounds.threshold:.0%}."
    )
    reason: EventReason = "FloorRaised" if floor.replicas > was else "FloorLowered"
    return (News(child=key, event=Event(type="Normal", reason=reason, message=message)),)


def condition(
    cluster: WebSocketCluster, snapshot: Snapshot, floor: Floor | None, now: Now
) -> Mapping[str, Aspect]:
    """The condition `Autoscaled`; none where the cluster is not.

    It says nothing that changes all the time, or each change would be a write.
    """
    if floor is None:
        return {}
    return {"Autoscaled": _aspect(cluster, snapshot, floor, now)}


def _aspect(cluster: WebSocketCluster, snapshot: Snapshot, floor: Floor, now: Now) -> Aspect:
    scaling, bounds = cluster.spec.autoscaling, limits(cluster)
    autoscaler = snapshot.children.get((AUTOSCALER.kind, cluster.name))
    if autoscaler is None:
        return "Unknown", "Creating", f"The HorizontalPodAutoscaler {cluster.name} is not there yet."
    for found in (autoscaler.get("status") or {}).get("conditions") or ():
        if found.get("status") == "False" and (
            found.get("type") == "AbleToScale"
            or (found.get("type") == "ScalingActive" and found.get("reason") != "ScalingDisabled")
        ):
            since = parse_time(found.get("lastTransitionTime"))
            if since is not None and (now.wall - since).total_seconds() < MEASURING_SECONDS:
                message = "The autoscaler has not measured the instances yet; connections count already."
                return "Unknown", "Measuring", message
            return (
                "False",
                "MetricsMissing" if found["type"] == "ScalingActive" else "CannotScale",
                (
                    f"Only connections move the number of instances: the autoscaler says {found['reason']}. "
                    f"`kubectl describe hpa {cluster.name}` tells more; it needs a metrics server "
                    "(`kubectl top pods` works where there is one)."
                ),
            )
    by = [
        f"{name} ({percent} %)"
        for name, percent in (
            ("CPU", scaling.target_cpu_utilization),
            ("memory", scaling.target_memory_utilization),
        )
        if percent > 0
    ]
    message = f"{bounds.lowest} to {bounds.highest} instances, by {', '.join(by)} and connections."
    if floor.replicas == bounds.highest > bounds.lowest:
        return (
            "True",
            "AtMaximum",
            (
                f"{message} The connections need all {bounds.highest}: raise autoscaling.maxReplicas before "
                "they have no room."
            ),
        )
    if floor.replicas > bounds.lowest:
        return "True", "Connections", f"{message} The connections need at least {floor.replicas}."
    return "True", "WithinLimits", message


def _written(autoscaler: Object | None, now: Now) -> Floor | None:
    """The floor that an operator before this one has left."""
    if autoscaler is None or not isinstance(replicas := autoscaler["spec"].get("minReplicas"), int):
        return None
    changed_at = parse_time(_annotation(autoscaler))
    if changed_at is not None and changed_at.tzinfo is None:
        changed_at = changed_at.replace(tzinfo=dt.UTC)
    # A clock that has been set back must not hold the floor for longer than a cooldown.
    return Floor(replicas=replicas, changed_at=None if changed_at is None else min(changed_at, now.wall))


def _annotation(autoscaler: Object) -> str | None:
    annotations: Mapping[str, str] = autoscaler["metadata"].get("annotations") or {}
    return annotations.get(FLOOR_CHANGED_ANNOTATION)


def _connections(snapshot: Snapshot, now: Now) -> int | None:
    view = snapshot.fleet
    # `as_of` 0: an instance that has not read the fleet yet knows of itself alone.
    if (
        view.fleet is None
        or view.fleet.as_of <= 0
        or now.monotonic - view.fleet_at > FLEET_MEMORY_SECONDS
        or not view.fleet.redis.connected
    ):
        return None
    return view.fleet.totals.connections


def _with_peak(
    peaks: tuple[tuple[float, int], ...], *, need: int, at: float, window_seconds: float
) -> tuple[tuple[float, int], ...]:
    """The window's maxima after one more look: falling, so never more than there are numbers."""
    kept = [(when, value) for when, value in peaks if at - when < window_seconds and value > need]
    return (*kept, (at, need))
