"""How far the instances are: what a rollout waits for, in the words of the status."""

import datetime as dt
from collections.abc import Iterator

from tableforge_operator.api import WebSocketCluster, names
from tableforge_operator.decide import findings, rollout
from tableforge_operator.decide.findings import Finding
from tableforge_operator.decide.reasons import FindingReason
from tableforge_operator.decide.resources.metadata import Track
from tableforge_operator.decide.rollout import Rollout
from tableforge_operator.decide.snapshot import Object, Snapshot
from tableforge_operator.decide.status import parse_time


def instances(cluster: WebSocketCluster, snapshot: Snapshot, plan: Rollout) -> Iterator[Finding]:
    """Instances that are missing, old, not ready, or still there."""
    if why := snapshot.blind.get("Deployment"):
        yield Finding(reason="Blind", message=f"Whether the instances are ready is not known: {why}.")
        return
    active = rollout.deployment(cluster, snapshot, plan.active)
    if plan.prepared is not None:
        yield _prepared(cluster, snapshot, plan.active, plan.prepared)
    elif active is None:
        yield Finding(reason="Creating", message="The Deployment of the instances is not there yet.")
    else:
        yield from _shrinking(cluster, snapshot, plan.active, active)
        yield from _in_place(cluster, snapshot, plan.active, active)
        yield from _leaving(cluster, snapshot, rollout.other(plan.active))


def under_way(
    cluster: WebSocketCluster, snapshot: Snapshot, plan: Rollout
) -> tuple[dt.datetime | None, bool]:
    """When the instances last made progress, and whether their controller has given up waiting for more."""
    deployment = rollout.deployment(cluster, snapshot, plan.prepared or plan.active)
    for condition in ((deployment or {}).get("status") or {}).get("conditions") or ():
        if condition.get("type") == "Progressing":
            gave_up = condition.get("reason") == rollout.GAVE_UP
            told = parse_time(condition.get("lastUpdateTime"))
            known = [at for at in (told, _sent_away(cluster, snapshot)) if at is not None]
            return None if gave_up else max(known, default=None), gave_up
    return _sent_away(cluster, snapshot), False


def _shrinking(
    cluster: WebSocketCluster, snapshot: Snapshot, track: Track, deployment: Object
) -> Iterator[Finding]:
    """Fewer are asked for than there are, and they leave one after another."""
    size, wanted = rollout.size_of(deployment), cluster.spec.replicas
    if cluster.autoscaled or wanted == 0 or size <= wanted:
        return
    if why := snapshot.blind.get("Pod"):
        waits = f"none leaves while pods are not seen: {why}"
    else:
        waits = (
            f"so many leave at a time as spec.rollout.maxReconnectsPerSecond "
            f"({cluster.spec.rollout.max_reconnects_per_second}) and spec.rollout.drainTimeout "
            f"({cluster.spec.rollout.drain_timeout}) allow, {len(_going(cluster, snapshot, track))} now"
        )
    message = f"{size} instances are to run for now, and {wanted} once all have left that should: {waits}."
    yield Finding(reason="ScalingDown", message=message)


def _going(cluster: WebSocketCluster, snapshot: Snapshot, track: Track) -> list[Object]:
    pods = rollout.pods_of(cluster, snapshot, track)
    return [pod for pod in pods if pod["metadata"].get("deletionTimestamp")]


def _sent_away(cluster: WebSocketCluster, snapshot: Snapshot) -> dt.datetime | None:
    """When the last of the instances that are leaving was told to, which is progress too."""
    found = [
        at - dt.timedelta(seconds=pod["metadata"].get("deletionGracePeriodSeconds", 0))
        for track in ("a", "b")
        for pod in _going(cluster, snapshot, track)
        if (at := parse_time(pod["metadata"]["deletionTimestamp"])) is not None
    ]
    return max(found, default=None)


def _prepared(cluster: WebSocketCluster, snapshot: Snapshot, active: Track, prepared: Track) -> Finding:
    deployment = rollout.deployment(cluster, snapshot, prepared)
    size, new = rollout.size_wanted(cluster, rollout.deployment(cluster, snapshot, active)), 0
    why = None
    if deployment is not None and findings.observed(deployment):
        new = min(_new_and_ready(deployment), size)
        why = _why(cluster, snapshot, prepared, deployment)
    return Finding(
        reason=findings.absent(cluster, why) or "RollingOut",
        message=findings.sentence(
            f"{new} of {size} instances run the new spec, on track {prepared}; "
            f"clients stay on track {active} until all do{f': {why}' if why else ''}"
        ),
    )


def _in_place(
    cluster: WebSocketCluster, snapshot: Snapshot, track: Track, deployment: Object
) -> Iterator[Finding]:
    state, size = deployment.get("status") or {}, rollout.size_of(deployment)
    ready, updated = state.get("readyReplicas", 0), state.get("updatedReplicas", 0)
    total = state.get("replicas", 0)
    if _only_scales(cluster, snapshot, track, deployment):
        return
    if not findings.observed(deployment):
        yield Finding(reason="RollingOut", message="A change is being rolled out.")
    elif updated < size or ready < size or total > size:
        wanting = findings.waiting_for(cluster, snapshot)
        why = wanting or _why(cluster, snapshot, track, deployment)
        if total > updated:
            counts = f"{min(_new_and_ready(deployment), size)} of {size} instances run the new spec"
            if ready < size:
                counts += f", {ready} of {size} are ready"
        else:
            counts = f"{min(ready, size)} of {size} instances are ready"
            if total > size:
                counts += f", {total - size} more {'is' if total - size == 1 else 'are'} leaving"
        otherwise: FindingReason = "InstancesWaiting" if wanting else "RollingOut"
        reason = findings.absent(cluster, wanting) or otherwise
        yield Finding(reason=reason, message=findings.sentence(f"{counts}: {why}" if why else counts))


def _only_scales(cluster: WebSocketCluster, snapshot: Snapshot, track: Track, deployment: Object) -> bool:
    """Whether an autoscaler is at work and nothing else: who follows the load is as wanted."""
    ready = (deployment.get("status") or {}).get("readyReplicas", 0)
    return bool(
        cluster.autoscaled
        and not (deployment["metadata"].get("annotations") or {}).get(names.REPLACES_ANNOTATION)
        and ready >= cluster.spec.replicas
        and not findings.pod_trouble(rollout.pods_of(cluster, snapshot, track))
        and not findings.deployment_trouble(deployment)
    )


def _leaving(cluster: WebSocketCluster, snapshot: Snapshot, track: Track) -> Iterator[Finding]:
    deployment = rollout.deployment(cluster, snapshot, track)
    if deployment is None:
        return
    if why := snapshot.blind.get("Pod"):
        message = f"Track {track} is no longer needed, and cannot leave while its pods are not seen: {why}."
        yield Finding(reason="RollingOut", message=message)
        return
    count = len(rollout.pods_of(cluster, snapshot, track))
    message = (
        f"Clients are sent to the new instances; {count} of track {track} "
        f"{'has' if count == 1 else 'have'} yet to leave, within spec.rollout.maxReconnectsPerSecond "
        f"({cluster.spec.rollout.max_reconnects_per_second})."
    )
    yield Finding(reason="RollingOut", message=message)


def _new_and_ready(deployment: Object) -> int:
    """Ready ones of the newest template: all that are ready less the old ones, who are until they go."""
    state = deployment.get("status") or {}
    updated = state.get("updatedReplicas", 0)
    old = state.get("replicas", 0) - updated
    return int(min(updated, max(0, state.get("readyReplicas", 0) - old)))


def _why(cluster: WebSocketCluster, snapshot: Snapshot, track: Track, deployment: Object) -> str | None:
    return (
        findings.waiting_for(cluster, snapshot)
        or findings.pod_trouble(rollout.pods_of(cluster, snapshot, track))
        or findings.deployment_trouble(deployment)
    )
