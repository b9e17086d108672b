"""Which pods go first when the fleet shrinks: the emptiest, by `controller.kubernetes.io/pod-deletion-cost`.

A ReplicaSet deletes the pods that cost least. The cost is written only while a shrink is near, in steps that
connections must leave by far before they are written again.
"""

import dataclasses
import math
from typing import Any, Final

from tableforge_operator.api import WebSocketCluster
from tableforge_operator.decide import instances
from tableforge_operator.decide.findings import FLEET_MEMORY_SECONDS
from tableforge_operator.decide.resources.floor import Floor
from tableforge_operator.decide.resources.kinds import AUTOSCALER, DEPLOYMENT
from tableforge_operator.decide.resources.metadata import Track, fleet_name
from tableforge_operator.decide.snapshot import Now, Object, Snapshot

ANNOTATION: Final = "controller.kubernetes.io/pod-deletion-cost"
STEPS_PER_DOUBLING: Final = 2
SLACK_STEPS: Final = 0.5
"""How far beyond a step's borders connections may be before another step is written."""
AT_ONCE: Final = 100
"""Pods that are written to in one pass. More follow in the next one."""
PATIENCE_SECONDS: Final = 60.0
"""For how long a shrink goes on without costs after a pod could not be written to."""
REST_SECONDS: Final = 10.0
"""For how long after a write no cost is written anew: instances that tell something else at every look must
not take up the operator's calls, which are everybody's.
"""
AUTOSCALER_TOLERANCE: Final = 0.1
"""The autoscaler's: it leaves the number as it is while the load is that close to the target."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """What a pod's deletion should cost, and doesn't yet."""

    pod: Object
    value: int


def due(
    cluster: WebSocketCluster, snapshot: Snapshot, now: Now, *, track: Track, floor: Floor | None
) -> tuple[Cost, ...]:
    """The costs to write before anything else. `track` is the one that serves clients."""
    view = snapshot.fleet
    if (
        view.fleet is None
        or now.monotonic - view.fleet_at > FLEET_MEMORY_SECONDS
        or (
            snapshot.costs_failed_at is not None
            and now.monotonic - snapshot.costs_failed_at < PATIENCE_SECONDS
        )
        or not shrink_is_near(cluster, snapshot, track=track, floor=floor)
    ):
        return ()
    rests = snapshot.costs_written_at is not None and now.monotonic - snapshot.costs_written_at < REST_SECONDS
    connections = {record.instance: record.connections for record in view.fleet.instances if record.alive}
    found = [
        Cost(pod=pod, value=value)
        for pod in instances.staying(cluster, snapshot, (track,))
        if (load := connections.get(pod["metadata"]["name"])) is not None
        and ((before := _written(pod)) is None or (before >= 0 and not rests))
        and (value := step(load, before=before)) != before
    ]
    # Those whose cost is the most wrong first.
    found.sort(key=lambda cost: -abs(cost.value - (_written(cost.pod) or 0)))
    return tuple(found[:AT_ONCE])


def step(connections: int, *, before: int | None) -> int:
    """The cost of a pod with so many connections: two steps for every doubling.

    `before` is what it was; it stays as long as the connections are close.
    """
    exact = STEPS_PER_DOUBLING * math.log2(1 + max(connections, 0))
    if before is not None and before - SLACK_STEPS <= exact < before + 1 + SLACK_STEPS:
        # An empty pod is never taken for one with clients.
        return before if connections or not before else 0
    return int(exact)


def shrink_is_near(
    cluster: WebSocketCluster, snapshot: Snapshot, *, track: Track, floor: Floor | None
) -> bool:
    """Whether instances will be sent away once this turn is done, or may be before long."""
    deployment = snapshot.children.get((DEPLOYMENT.kind, fleet_name(cluster, track)))
    if deployment is None:
        return False
    size = int(deployment["spec"].get("replicas", 1))
    if floor is None:
        # Where all of them go, none goes first.
        return size > cluster.spec.replicas > 0
    autoscaler = snapshot.children.get((AUTOSCALER.kind, cluster.name))
    if autoscaler is None:
        return False
    spec = autoscaler["spec"]
    lowered = floor.replicas < spec.get("minReplicas", 1) or cluster.spec.autoscaling.max_replicas < size
    return lowered or (size > floor.replicas and _recommends_fewer(autoscaler, size))


def _recommends_fewer(autoscaler: Object, size: int) -> bool:
    """Whether the autoscaler's own arithmetic, from what it last measured, comes to fewer instances."""
    targets = {
        metric["resource"]["name"]: metric["resource"]["target"].get("averageUtilization")
        for metric in autoscaler["spec"].get("metrics") or ()
        if metric.get("type") == "Resource"
    }
    ratios: dict[str, float] = {}
    for metric in (autoscaler.get("status") or {}).get("currentMetrics") or ():
        resource: dict[str, Any] = metric.get("resource") or {}
        current = (resource.get("current") or {}).get("averageUtilization")
        if (target := targets.get(resource.get("name"))) and isinstance(current, int):
            ratios[resource["name"]] = current / target
    # It takes away nothing while it does not know all of them.
    if not targets or ratios.keys() != targets.keys():
        return False
    most = max(ratios.values())
    return most < 1 - AUTOSCALER_TOLERANCE and math.ceil(size * most) < size


def _written(pod: Object) -> int | None:
    """What stands there; less than 0 is a person's, since ours never is."""
    text = (pod["metadata"].get("annotations") or {}).get(ANNOTATION, "")
    return int(text) if text.removeprefix("-").isdecimal() else None
