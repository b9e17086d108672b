"""What stands between a cluster and Ready: each with a reason, what is going on, and what to do about it."""

import collections
import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Final, cast

from tableforge_dataplane.contract.fleet import RedisState
from tableforge_operator.api import WebSocketCluster, names
from tableforge_operator.api.references import Reference
from tableforge_operator.decide import ownership, redis_words
from tableforge_operator.decide.reasons import FindingReason, RedisTrouble
from tableforge_operator.decide.snapshot import ChildKey, FleetView, Object, Snapshot

MESSAGE_LIMIT: Final = 1000
"""Characters of a message. Parts of it come from pods, which may say anything."""
FLEET_MEMORY_SECONDS: Final = 60.0
"""For how long an instance's last word counts when none answers: one lost question makes no outage."""

_MISSING: Final[Mapping[str, FindingReason]] = {"ConfigMap": "ConfigMapMissing", "Secret": "SecretMissing"}
_DEPLOYMENT: Final = "Deployment"
_STATEFUL_SET: Final = "StatefulSet"
_OF_POD: Final = re.compile(r'pods "[^"]*" is forbidden')
_PULL_AGAIN: Final = re.compile(r'^Back-off pulling image "[^"]*"(: )?(ErrImagePull(: )?)?')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that keeps the cluster from being Ready."""

    reason: FindingReason
    message: str
    only_user: bool = False
    """Whether only the user can mend it; otherwise it may still come by itself."""


def legible(text: str) -> str:
    """`text` in one line, without control characters, cut to MESSAGE_LIMIT."""
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return line if len(line) <= MESSAGE_LIMIT else line[: MESSAGE_LIMIT - 1] + "…"


def refused(snapshot: Snapshot, rendered: Mapping[ChildKey, str]) -> Iterator[Finding]:
    """What the API server did not take. `rendered` has each child's digest."""
    current = {
        key: refusal
        for key in sorted(rendered)
        if (refusal := snapshot.refusals.get(key)) is not None and refusal.digest == rendered[key]
    }
    taken = [" ".join(key) for key, refusal in current.items() if refusal.reason == "NameConflict"]
    for key, refusal in current.items():
        if refusal.reason == "NotServed":
            continue
        message = refusal.message
        # All at once: who has to find a name for one of them must do so for the others too.
        if taken and taken[0] == " ".join(key) and len(taken) > 1:
            message += f" The same goes for {', '.join(taken[1:])}."
        yield Finding(
            reason=refusal.reason,
            message=message,
            only_user=refusal.reason in ("NameConflict", "Rejected", "StorageNotGrown"),
        )


def redis_workload(cluster: WebSocketCluster, snapshot: Snapshot) -> Iterator[Finding]:
    """A managed Redis whose pod isn't up."""
    redis = cluster.managed_redis
    if redis is None or _STATEFUL_SET in snapshot.blind:
        return
    for workload in of_kind(snapshot, _STATEFUL_SET):
        wanted = workload["spec"].get("replicas", 1)
        state = workload.get("status") or {}
        # A pod that is about to be replaced is ready, too.
        replaced = state.get("currentRevision") == state.get("updateRevision")
        if observed(workload) and replaced and state.get("readyReplicas", 0) >= wanted:
            continue
        trouble = pod_trouble(pods_of(snapshot, names.REDIS))
        if trouble is None:
            trouble = _on_its_way(workload, snapshot)
        elif "PersistentVolumeClaim" in trouble:
            storage = redis.storage.storage_class_name
            trouble = (
                f"{trouble.rstrip('.')}; its claim waits for "
                f"{'the default StorageClass' if storage is None else f'StorageClass {storage}'} "
                "(spec.redis.managed.storage.storageClassName) to give it a volume"
            )
        yield Finding(
            reason="RedisStarting",
            message=sentence(f"Waiting for the managed Redis ({workload['metadata']['name']}): {trouble}"),
        )


def without_pod(workload: Object) -> bool:
    """Whether a StatefulSet's controller has looked at it, and has made no pod."""
    state = workload.get("status") or {}
    return observed(workload) and not state.get("replicas", 0) and workload["spec"].get("replicas", 1) > 0


def _on_its_way(workload: Object, snapshot: Snapshot) -> str:
    if not without_pod(workload):
        return "its pod is starting"
    return legible(snapshot.redis_pod_refused) or (
        "its pod is not made yet; should it not come, "
        f"`kubectl describe statefulset {workload['metadata']['name']}` says why"
    )


def redis_away(redis: RedisState | None) -> Iterator[Finding]:
    """A Redis that the instances cannot use, or that takes no publishes."""
    if redis is not None and redis.reason != "Connected":
        yield Finding(reason=redis_reason(redis), message=redis.message)


def silence(snapshot: Snapshot, deployment: Object | None, *, monotonic: float) -> Iterator[Finding]:
    """Instances that are ready by Kubernetes's word and don't answer the operator."""
    ready = ((deployment or {}).get("status") or {}).get("readyReplicas", 0)
    if ready and not _fleet_known(snapshot.fleet, monotonic):
        why = snapshot.fleet.failures[0] if snapshot.fleet.failures else "none of them has answered yet"
        yield Finding(
            reason="FleetUnreachable",
            message=f"No instance answers the operator: {why}. Check that network policies let the operator "
            "reach the pods' internal port.",
        )


def redis_of(cluster: WebSocketCluster, snapshot: Snapshot, *, monotonic: float) -> RedisState | None:
    """How Redis is by the instances' word; None where no instance has told."""
    view = snapshot.fleet
    if view.fleet is not None and _fleet_known(view, monotonic):
        redis = view.fleet.redis
    elif view.healths:
        redis = view.healths[0].redis
    else:
        return None
    return redis_words.told(cluster, redis)


def _fleet_known(view: FleetView, monotonic: float) -> bool:
    return view.fleet is not None and monotonic - view.fleet_at <= FLEET_MEMORY_SECONDS


def waiting_for(cluster: WebSocketCluster, snapshot: Snapshot) -> str | None:
    """What most instances that are not ready are waiting for, in their own words."""
    counted = collections.Counter(
        sentence for health in snapshot.fleet.healths if not health.ready for sentence in health.waiting_for
    )
    if not counted:
        return None
    most = max(counted.values())
    return _naming_secrets(cluster, min(sentence for sentence, count in counted.items() if count == most))


def _naming_secrets(cluster: WebSocketCluster, sentence: str) -> str:
    """An instance's sentence with the user's object for the file: the file is all that the instance knows."""
    sentence = redis_words.in_fields(cluster, sentence)
    for ref in cluster.references:
        before, file = sentence, f"{ref.variable}={ref.file}"
        # without the key there is no file either, and what is there must not be told to be created
        sentence = sentence.replace(f"{file} does not exist", _absent(ref)).replace(file, _named(ref))
        sentence = sentence.replace(f"{ref.variable.removesuffix('_FILE')} holds ", f"{_named(ref)} holds ")
        if sentence != before and ref.field not in sentence:
            sentence = f"{sentence.rstrip('.')} (spec.{ref.field})."
    return sentence


def absent(cluster: WebSocketCluster, sentence: str | None) -> FindingReason | None:
    """The reason of its own where what is waited for is an object of the user's that is not there."""
    kinds = (ref.kind for ref in cluster.references if sentence is not None and _absent(ref) in sentence)
    return next((_MISSING[kind] for kind in kinds), None)


def _absent(ref: Reference) -> str:
    return f"{ref.kind} {ref.name}, or its key {ref.key}, does not exist"


def _named(ref: Reference) -> str:
    return f"{ref.kind} {ref.name} (key {ref.key})"


def sentence(text: str) -> str:
    """With one full stop: what others say, which it may end with, has one already or has none."""
    return f"{text.rstrip('.')}."


def pod_trouble(pods: tuple[Object, ...]) -> str | None:
    """The worst that Kubernetes says of pods that are not ready, in one sentence without its full stop."""
    for pod in sorted(pods, key=lambda pod: pod["metadata"]["name"]):
        if pod["metadata"].get("deletionTimestamp"):
            continue
        name, state = pod["metadata"]["name"], pod.get("status") or {}
        for container in state.get("containerStatuses") or ():
            if container.get("ready"):
                continue
            waiting = (container.get("state") or {}).get("waiting") or {}
            ended = (container.get("lastState") or {}).get("terminated") or {}
            ended = ended or (container.get("state") or {}).get("terminated") or {}
            last = legible(ended.get("message") or "")
            if waiting.get("reason") == "CrashLoopBackOff" or (ended and container.get("restartCount", 0)):
                said = last or f"exit code {ended.get('exitCode', 'unknown')}, see `kubectl logs {name} -p`"
                return f"pod {name} keeps stopping: {said}"
            if waiting.get("reason") in ("ErrImagePull", "ImagePullBackOff"):
                # The kubelet goes to and fro between the two, which is no news.
                detail = _PULL_AGAIN.sub("", legible(waiting.get("message") or ""))
                image = f"image {container.get('image')} ({_image_field(pod)})"
                return f"pod {name} cannot pull {image}{': ' + detail if detail else ''}"
            if waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
                detail = legible(waiting.get("message") or "")
                return f"pod {name}: {waiting['reason']}{': ' + detail if detail else ''}"
        for condition in state.get("conditions") or ():
            if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
                return f"pod {name} has no node: {legible(condition.get('message') or '')}"
    return None


def _image_field(pod: Object) -> str:
    """Where the spec says which image a pod runs."""
    component = (pod["metadata"].get("labels") or {}).get(names.COMPONENT_LABEL)
    return "spec.redis.managed.image" if component == names.REDIS else "spec.image"


def of_kind(snapshot: Snapshot, kind: str) -> tuple[Object, ...]:
    """The children of a kind, by name."""
    return tuple(obj for (found, _), obj in sorted(snapshot.children.items()) if found == kind)


def pods_of(snapshot: Snapshot, component: str) -> tuple[Object, ...]:
    """The pods of a component, less those that have ended, as after an eviction: they stay in the list for
    good, others have taken their places, and nothing must wait for them.
    """
    return tuple(
        pod
        for pod in snapshot.pods
        if (pod["metadata"].get("labels") or {}).get(names.COMPONENT_LABEL) == component
        and (pod.get("status") or {}).get("phase") not in ("Failed", "Succeeded")
    )


def previous_incarnation(snapshot: Snapshot, obj: Object) -> bool:
    """Whether `obj` belongs to a cluster of the same name that is gone, and is about to go too."""
    owner = ownership.controller(obj)
    return (
        owner is not None
        and ownership.cluster_name(obj) == snapshot.cluster["metadata"]["name"]
        and owner["uid"] != snapshot.cluster["metadata"]["uid"]
    )


def observed(workload: Object) -> bool:
    """Whether its status is about what was last asked of it."""
    seen = (workload.get("status") or {}).get("observedGeneration", 0)
    return bool(seen >= workload["metadata"].get("generation", 0))


def deployment_trouble(deployment: Object) -> str | None:
    """Why its controller cannot make pods."""
    for condition in (deployment.get("status") or {}).get("conditions") or ():
        if condition.get("type") == "ReplicaFailure" and condition.get("status") == "True":
            # Each attempt is about a pod of another name, which is no news.
            return _OF_POD.sub("pods are forbidden", legible(condition.get("message") or ""))
    return None


def redis_reason(redis: RedisState) -> RedisTrouble:
    """The reason under which a Redis that cannot be used stands in the conditions."""
    return cast("RedisTrouble", f"Redis{redis.reason}")
