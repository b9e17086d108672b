"""Which instances new clients come to: by a label of their pods, that the client Service goes by.

A new pod has the label from birth. Where a cluster comes from an operator that knew of no such label, its
pods get it before the Service asks for it, or the Service would lead nowhere for a while.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Final

from tableforge_operator.api import WebSocketCluster, names
from tableforge_operator.decide import annotations, instances
from tableforge_operator.decide.resources.metadata import Track
from tableforge_operator.decide.snapshot import Now, Object, Snapshot
from tableforge_operator.decide.status import Event

AT_ONCE: Final = 100
"""Pods that are written to in one pass. More follow in the next one."""
PATIENCE_SECONDS: Final = 60.0
"""For how long nothing is written to pods after one of them could not be written to."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Marking:
    """What a pod should carry, and doesn't yet."""

    pod: Object
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    annotations: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    """None: it is taken away."""


def due(
    cluster: WebSocketCluster, snapshot: Snapshot, now: Now, *, closed: frozenset[str] = frozenset()
) -> tuple[Marking, ...]:
    """What to write to pods. `closed`: the instances that the planner keeps new clients from."""
    failed_at = snapshot.markings_failed_at
    if "Pod" in snapshot.blind or (failed_at is not None and now.monotonic - failed_at < PATIENCE_SECONDS):
        return ()
    found: list[Marking] = []
    for pod in instances.staying(cluster, snapshot):
        name = pod["metadata"]["name"]
        accepting = name not in closed and not annotations.of_pod(pod).cordoned
        labels = {names.ACCEPTING_LABEL: "true" if accepting else "false"}
        if cluster.routed:
            labels[names.INSTANCE_LABEL] = name
        has = pod["metadata"].get("labels") or {}
        labels = {key: value for key, value in labels.items() if has.get(key) != value}
        wanted = "true" if name in closed else None
        written: dict[str, str | None] = {}
        if (pod["metadata"].get("annotations") or {}).get(names.SHEDDING_ANNOTATION) != wanted:
            written[names.SHEDDING_ANNOTATION] = wanted
        if labels or written:
            found.append(Marking(pod=pod, labels=labels, annotations=written))
    return tuple(found[:AT_ONCE])


def service_may_ask(cluster: WebSocketCluster, snapshot: Snapshot, track: Track) -> bool:
    """Whether the client Service may leave out pods without the label: it does already, or all have one."""
    service = snapshot.children.get(("Service", cluster.name))
    selector = ((service or {}).get("spec") or {}).get("selector") or {}
    if names.ACCEPTING_LABEL in selector:
        return True
    if "Pod" in snapshot.blind:
        return service is None and "Service" not in snapshot.blind
    return all(
        names.ACCEPTING_LABEL in (pod["metadata"].get("labels") or {})
        for pod in instances.staying(cluster, snapshot, (track,))
    )


def notes(cluster: WebSocketCluster, snapshot: Snapshot) -> tuple[Event, ...]:
    """What should be known about annotations and cordons."""
    by_pod = {
        pod["metadata"]["name"]: annotations.of_pod(pod) for pod in instances.staying(cluster, snapshot)
    }
    wishes = by_pod.values()
    problems = [
        *annotations.of_cluster(cluster)[1],
        *(problem for wish in wishes for problem in wish.problems),
        *_idle_weights(cluster, sorted(name for name, wish in by_pod.items() if wish.weight is not None)),
    ]
    found = [Event(type="Warning", reason="AnnotationIgnored", message=problem) for problem in problems]
    if wishes and all(wish.cordoned for wish in wishes):
        message = (
            f"All instances ({len(wishes)}) are cordoned, so no new client gets in: remove the annotation "
            f"{names.CORDON_ANNOTATION} from a pod."
        )
        found.append(Event(type="Warning", reason="AllCordoned", message=message))
    if snapshot.markings_refused:
        message = f"Cordons do not act, because pods cannot be written to: {snapshot.markings_refused}."
        found.append(Event(type="Warning", reason="PodsNotWritten", message=message))
    return tuple(found)


def _idle_weights(cluster: WebSocketCluster, pods: list[str]) -> Iterator[str]:
    """That weights of these pods change nothing, where they don't: one sentence for all."""
    strategy = cluster.spec.load_balancing.strategy
    if pods and strategy != "Weighted":
        more = f" and {len(pods) - 1} more" if len(pods) > 1 else ""
        yield (
            f"Annotation {names.WEIGHT_ANNOTATION} of pod {pods[0]}{more} changes nothing while "
            f"spec.loadBalancing.strategy is {strategy}: set that to Weighted, or remove the annotation."
        )
