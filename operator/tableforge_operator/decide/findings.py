"""What stands between a cluster and Ready: each with a reason, what is going on, and what to do about it."""

import collections
import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from tableforge_dataplane.contract import endpoints, settings
from tableforge_dataplane.contract.fleet import RedisState
from tableforge_operator.api import WebSocketCluster, names
from tableforge_operator.api.spec import JwtSecretRef, PasswordSecretRef
from tableforge_operator.decide import ownership
from tableforge_operator.decide.snapshot import ChildKey, FleetView, Object, Snapshot

MESSAGE_LIMIT: Final = 1000
"""Characters of a message. Parts of it come from pods, which may say anything."""
FLEET_MEMORY_SECONDS: Final = 60.0
"""For how long an instance's last word counts when none answers: one lost question makes no outage."""

_MOUNTED: Final = {
    "auth.jwt_secret": endpoints.JWT_SECRET_FILE,
    "redis.password": endpoints.REDIS_PASSWORD_FILE,
}
_SETTINGS: Final = settings.specs()
_DEPLOYMENT: Final = "Deployment"
_STATEFUL_SET: Final = "StatefulSet"
_PULL_AGAIN: Final = re.compile(r'^Back-off pulling image "[^"]*"(: )?(ErrImagePull(: )?)?')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that keeps the cluster from being Ready."""

    reason: str
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
        message = refusal.message
        # All at once: who has to find a name for one of them must do so for the others too.
        if taken and taken[0] == " ".join(key) and len(taken) > 1:
            message += f" The same goes for {', '.join(taken[1:])}."
        yield Finding(
            reason=refusal.reason,
            message=message,
            only_user=refusal.reason in ("NameConflict", "Rejected"),
        )


def redis_workload(cluster: WebSocketCluster, snapshot: Snapshot) -> Iterator[Finding]:
    """A managed Redis whose pod isn't up."""
    redis = cluster.managed_redis
    if redis is None or _STATEFUL_SET in snapshot.blind:
        return
    for workload in of_kind(snapshot, _STATEFUL_SET):
        wanted = workload["spec"].get("replicas", 1)
        state = workload.get("status") or {}
        if _observed(workload) and state.get("readyReplicas", 0) >= wanted:
            continue
        trouble = pod_trouble(pods_of(snapshot, names.REDIS)) or "its pod is starting"
        if "PersistentVolumeClaim" in trouble:
            storage = redis.storage.storage_class_name
            trouble = (
                f"{trouble.rstrip('.')}; its claim waits for "
                f"{'the default StorageClass' if storage is None else f'StorageClass {storage}'} "
                "(spec.redis.managed.storage.storageClassName) to give it a volume"
            )
        yield Finding(
            reason="RedisStarting",
            message=_sentence(f"Waiting for the managed Redis ({workload['metadata']['name']}): {trouble}"),
        )


def rollout(cluster: WebSocketCluster, snapshot: Snapshot, deployment: Object | None) -> Iterator[Finding]:
    """Instances that are missing, old or not ready."""
    if _DEPLOYMENT in snapshot.blind:
        yield Finding(
            reason="Blind",
            message=f"Whether the instances are ready is not known: {snapshot.blind[_DEPLOYMENT]}.",
        )
        return
    if deployment is None:
        yield Finding(reason="Creating", message="The Deployment of the instances is not there yet.")
        return
    state = deployment.get("status") or {}
    wanted = deployment["spec"].get("replicas", 1)
    ready, updated = state.get("readyReplicas", 0), state.get("updatedReplicas", 0)
    total = state.get("replicas", 0)
    if not _observed(deployment):
        yield Finding(reason="RollingOut", message="A change is being rolled out.")
    elif updated < wanted or ready < wanted or total > wanted:
        wanting = waiting_for(cluster, snapshot)
        why = wanting or pod_trouble(pods_of(snapshot, names.DATAPLANE)) or _deployment_trouble(deployment)
        counts = f"{min(ready, wanted)} of {wanted} instances are ready"
        if updated < wanted:
            counts += f", {updated} of {wanted} are up to date"
        if total > max(wanted, updated):
            leaving = total - wanted
            counts += f", {leaving} more {'is' if leaving == 1 else 'are'} leaving"
        reason = "InstancesWaiting" if wanting else "RollingOut"
        yield Finding(reason=reason, message=_sentence(f"{counts}: {why}" if why else counts))


def redis_away(redis: RedisState | None) -> Iterator[Finding]:
    """A Redis that the instances cannot use."""
    if redis is not None and not redis.connected:
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
    message = _naming_secrets(cluster, redis.message)
    if redis.reason == "AuthenticationFailed" and cluster.spec.redis.external is not None:
        ref = cluster.secret_refs.get("redis.password")
        message += (
            " It is given none: name its Secret in spec.redis.external.passwordSecretRef."
            if ref is None
            else f" It is given what {_secret(ref)} holds."
        )
    return msgspec.structs.replace(redis, message=message)


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
    """An instance's sentence with the user's Secret for the file: the file is all that the instance knows."""
    for setting, ref in cluster.secret_refs.items():
        env = _SETTINGS[setting][0].env
        file = f"{env}_FILE={_MOUNTED[setting]}"
        # without the key there is no file either, and a Secret that is there must not be told to be created
        absent = f"Secret {ref.name}, or its key {ref.key}, does not exist"
        sentence = sentence.replace(f"{file} does not exist", absent).replace(file, _secret(ref))
        sentence = sentence.replace(f"{env} holds ", f"{_secret(ref)} holds ")
    return sentence


def _secret(ref: JwtSecretRef | PasswordSecretRef) -> str:
    return f"Secret {ref.name} (key {ref.key})"


def _sentence(text: str) -> str:
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
                return (
                    f"pod {name} cannot pull image {container.get('image')}{': ' + detail if detail else ''}"
                )
            if waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
                detail = legible(waiting.get("message") or "")
                return f"pod {name}: {waiting['reason']}{': ' + detail if detail else ''}"
        for condition in state.get("conditions") or ():
            if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
                return f"pod {name} has no node: {legible(condition.get('message') or '')}"
    return None


def of_kind(snapshot: Snapshot, kind: str) -> tuple[Object, ...]:
    """The children of a kind, by name."""
    return tuple(obj for (found, _), obj in sorted(snapshot.children.items()) if found == kind)


def pods_of(snapshot: Snapshot, component: str) -> tuple[Object, ...]:
    """The pods of a component."""
    return tuple(
        pod
        for pod in snapshot.pods
        if (pod["metadata"].get("labels") or {}).get(names.COMPONENT_LABEL) == component
    )


def previous_incarnation(snapshot: Snapshot, obj: Object) -> bool:
    """Whether `obj` belongs to a cluster of the same name that is gone, and is about to go too."""
    owner = ownership.controller(obj)
    return (
        owner is not None
        and ownership.cluster_name(obj) == snapshot.cluster["metadata"]["name"]
        and owner["uid"] != snapshot.cluster["metadata"]["uid"]
    )


def _observed(workload: Object) -> bool:
    seen = (workload.get("status") or {}).get("observedGeneration", 0)
    return bool(seen >= workload["metadata"].get("generation", 0))


def _deployment_trouble(deployment: Object) -> str | None:
    for condition in (deployment.get("status") or {}).get("conditions") or ():
        if condition.get("type") == "ReplicaFailure" and condition.get("status") == "True":
            return legible(condition.get("message") or "")
    return None


def redis_reason(redis: RedisState) -> str:
    """The reason under which a Redis that is away stands in the conditions."""
    return f"Redis{redis.reason}"
