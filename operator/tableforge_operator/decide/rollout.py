"""How a changed template reaches the instances: in place, one by one, or by way of the other track.

All that a rollout has to know stands in the objects: which track clients are sent to in the client Service's
selector, which template a Deployment has in an annotation of it, and which one it replaces in another. So an
operator that starts in the middle goes on, and a spec that is set back in the middle undoes it.

Kubernetes' own controllers would drain a whole fleet in seconds. What makes clients reconnect is paced here:
in place by `minReadySeconds`, on the other track by how many instances leave at the same time.
"""

import bisect
import dataclasses
import math
from collections.abc import Mapping
from typing import Final

from tableforge_operator.api import WebSocketCluster, names
from tableforge_operator.decide import findings, instances
from tableforge_operator.decide.resources.deployment import FIRST_READY_SECONDS
from tableforge_operator.decide.resources.kinds import AUTOSCALER
from tableforge_operator.decide.resources.metadata import Track, fleet_name
from tableforge_operator.decide.resources.tracks import Instances, Tracks
from tableforge_operator.decide.snapshot import ChildKey, Now, Object, Snapshot
from tableforge_operator.decide.status import Event

SHARE: Final = 0.7
"""Of `maxReconnectsPerSecond`, for a rollout: the rest is for what else sends clients elsewhere meanwhile."""
PAUSES_SECONDS: Final = (
    *(0, 5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 240, 300, 450, 600, 900, 1200, 1800, 2700, 3600),
)
"""What `minReadySeconds` can be: in coarse steps, since each change of it is a write."""


GAVE_UP: Final = "ProgressDeadlineExceeded"
"""What a Deployment says in its condition `Progressing` where its controller waits no longer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale:
    """A Deployment whose template stays as it is, and how many instances it should have."""

    deployment: Object
    replicas: int

    @property
    def digest(self) -> str:
        """Stands for what is asked, in what the operator remembers of a refusal."""
        return f"scaled to {self.replicas}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class News:
    """An Event, to be told once the child that it is about has been written."""

    child: ChildKey
    event: Event


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rollout:
    """What is to be done about the tracks now."""

    active: Track
    """The track that clients are sent to before anything of this is done."""
    tracks: Tracks
    prepared: Track | None = None
    """The track that is being made ready to take over."""
    scales: tuple[Scale, ...] = ()
    withdrawals: tuple[Object, ...] = ()
    """Deployments to delete."""
    news: tuple[News, ...] = ()


def decide(cluster: WebSocketCluster, snapshot: Snapshot, now: Now, *, template: str) -> Rollout:
    """What to do about the tracks. `template` is the hash of the template that the spec asks for."""
    active = active_track(cluster, snapshot)
    here, there = deployment(cluster, snapshot, active), deployment(cluster, snapshot, other(active))
    if "Deployment" in snapshot.blind or ("Service" in snapshot.blind and here is not None):
        return _unseeing(cluster, active)
    loads = _loads(snapshot, now)
    if (
        here is None
        or cluster.spec.rollout.strategy == "RollingUpdate"
        # An older operator left no hash. What it left is most likely as it should be.
        or template_of(here) in ("", template)
    ):
        return _in_place(cluster, snapshot, active, here, there, loads, template)
    return _other_track(cluster, snapshot, active, here, there, loads, template)


def active_track(cluster: WebSocketCluster, snapshot: Snapshot) -> Track:
    """The track that clients are sent to: by the client Service, unless somebody else has changed it."""
    service = snapshot.children.get(("Service", cluster.name))
    selector = ((service or {}).get("spec") or {}).get("selector") or {}
    selected = selector.get(names.TRACK_LABEL)
    said: list[str | None] = [selected, cluster.status.active_track]
    if service is not None and not _selector_is_ours(service):
        said.reverse()
    candidates: list[Track] = [track for track in (*said, "a", "b") if track in ("a", "b")]  # type: ignore[misc]
    for track in candidates:
        if deployment(cluster, snapshot, track) is not None:
            return track
    return candidates[0]


def other(track: Track) -> Track:
    """The other one."""
    return "b" if track == "a" else "a"


def deployment(cluster: WebSocketCluster, snapshot: Snapshot, track: Track) -> Object | None:
    """A track's Deployment."""
    return snapshot.children.get(("Deployment", fleet_name(cluster, track)))


def template_of(deployment: Object) -> str:
    """The hash of the template that a Deployment was given; empty where it says nothing of it."""
    return _annotation(deployment, names.TEMPLATE_HASH_ANNOTATION)


def size_of(deployment: Object) -> int:
    """How many instances it should have."""
    return int(deployment["spec"].get("replicas", 1))


def size_wanted(cluster: WebSocketCluster, active: Object | None) -> int:
    """How many instances serve clients: what the spec says, or as many as the autoscaler has there now."""
    return size_of(active) if cluster.autoscaled and active is not None else cluster.spec.replicas


def pods_of(cluster: WebSocketCluster, snapshot: Snapshot, track: Track) -> tuple[Object, ...]:
    """A track's pods, those that are leaving included."""
    return tuple(instances.of_tracks(cluster, snapshot, (track,)))


def complete(deployment: Object) -> bool:
    """Whether all that it should have are there, of its newest template, and ready, and no others."""
    state, size = deployment.get("status") or {}, size_of(deployment)
    return bool(
        state.get("observedGeneration", 0) >= deployment["metadata"].get("generation", 0)
        and state.get("replicas", 0) == state.get("updatedReplicas", 0) == size
        and state.get("readyReplicas", 0) >= size
    )


def replaces_instances(cluster: WebSocketCluster, snapshot: Snapshot) -> bool:
    """Whether instances that serve clients, or did until now, give way to others.

    Not where that has come to nothing: who is left stays until the template is mended.
    """
    active = active_track(cluster, snapshot)
    here, there = deployment(cluster, snapshot, active), deployment(cluster, snapshot, other(active))
    if here is None:
        return False
    state = here.get("status") or {}
    if any(condition.get("reason") == GAVE_UP for condition in state.get("conditions") or ()):
        return False
    unseen = state.get("observedGeneration", 0) < here["metadata"].get("generation", 0)
    # Whoever has changed the template: a number that grows makes instances of the newest one alone.
    older = state.get("updatedReplicas", 0) < state.get("replicas", 0)
    return older or (bool(_replaces(here)) and (unseen or there is not None))


def _in_place(
    cluster: WebSocketCluster,
    snapshot: Snapshot,
    active: Track,
    here: Object | None,
    there: Object | None,
    loads: Mapping[str, int] | None,
    template: str,
) -> Rollout:
    """The active track gets the template; the other one, if there is one, is no longer needed."""
    scales, withdrawals, news = _retire(cluster, snapshot, active, here, there, loads)
    replaces = ""
    if here is not None:
        key, before, mark = _key(here), template_of(here), _replaces(here)
        if before and before != template:
            replaces = mark if mark and mark != template else before
            news = (*news, News(child=key, event=_begun(cluster, active, here, undone=mark == template)))
        elif mark and not (complete(here) and (there is None or withdrawals)):
            replaces = mark
        elif mark:
            news = (*news, News(child=key, event=_completed(cluster, here)))
    return Rollout(
        active=active,
        tracks=Tracks(
            selected=active,
            applied=(
                Instances(
                    track=active,
                    replicas=_going_down(cluster, snapshot, active, here, loads),
                    min_ready_seconds=_pause(cluster, here, _most(loads), template),
                    replaces=replaces,
                ),
            ),
        ),
        scales=scales,
        withdrawals=withdrawals,
        news=news,
    )


def _other_track(
    cluster: WebSocketCluster,
    snapshot: Snapshot,
    active: Track,
    here: Object,
    there: Object | None,
    loads: Mapping[str, int] | None,
    template: str,
) -> Rollout:
    """The other track gets the template at full size; once all of it is ready, clients are sent there."""
    prepared = other(active)
    size = size_wanted(cluster, here)
    # Clients may be there still: from a rollout that this one overtakes.
    names_there = [pod["metadata"]["name"] for pod in pods_of(cluster, snapshot, prepared)]
    most = None if loads is None else max((loads.get(name, 0) for name in names_there), default=0)
    wanted = Instances(
        track=prepared,
        replicas=size,
        min_ready_seconds=_pause(cluster, there, most, template),
        replaces=template_of(here),
    )
    news: list[News] = []
    taken_over = (
        there is not None
        and template_of(there) == template
        and _replaces(there) == wanted.replaces
        and size_of(there) == size
        and complete(there)
    )
    if there is None or template_of(there) != template or _replaces(there) != wanted.replaces:
        event = _begun(cluster, prepared, here, undone=_replaces(here) == template)
        news.append(News(child=("Deployment", fleet_name(cluster, prepared)), event=event))
    if taken_over:
        message = (
            f"All {size} instances of track {prepared} are ready: clients are sent there from now on, and "
            f"those on track {active} follow as its instances leave."
        )
        event = Event(type="Normal", reason="TrackSwitched", message=message)
        news.append(News(child=("Service", cluster.name), event=event))
    now = _going_down(cluster, snapshot, active, here, loads) or size
    return Rollout(
        active=active,
        tracks=Tracks(selected=prepared if taken_over else active, applied=(wanted,)),
        prepared=prepared,
        scales=() if size_of(here) == now else (Scale(deployment=here, replicas=now),),
        news=tuple(news),
    )


def _retire(
    cluster: WebSocketCluster,
    snapshot: Snapshot,
    active: Track,
    here: Object | None,
    there: Object | None,
    loads: Mapping[str, int] | None,
) -> tuple[tuple[Scale, ...], tuple[Object, ...], tuple[News, ...]]:
    """The inactive track's instances go, so many at a time as the budget bears, and then its Deployment."""
    if here is None or there is None or "Pod" in snapshot.blind:
        return (), (), ()
    service = snapshot.children.get(("Service", cluster.name))
    selected = ((service or {}).get("spec") or {}).get("selector", {}).get(names.TRACK_LABEL)
    if selected != active or not complete(here):
        # Whoever is there is served there, until all can be served here.
        return (), (), ()
    autoscaler = snapshot.children.get((AUTOSCALER.kind, cluster.name))
    if autoscaler is not None and autoscaler["spec"]["scaleTargetRef"]["name"] != here["metadata"]["name"]:
        # It would make again what is sent away.
        return (), (), ()
    size, pods = size_of(there), pods_of(cluster, snapshot, other(active))
    if size == 0:
        gone = not pods and not (there.get("status") or {}).get("replicas", 0)
        return (), (there,) if gone else (), ()
    left = _fewer(cluster, pods, size, loads)
    if left == size:
        return (), (), ()
    news: tuple[News, ...] = ()
    if _replaces(there) == template_of(here) != "" and _replaces(here) != template_of(there):
        message = f"The spec was set back: track {active} stays, and track {other(active)} goes."
        event = Event(type="Normal", reason="RolloutUndone", message=message)
        news = (News(child=_key(there), event=event),)
    return (Scale(deployment=there, replicas=left),), (), news


def _going_down(
    cluster: WebSocketCluster,
    snapshot: Snapshot,
    track: Track,
    here: Object | None,
    loads: Mapping[str, int] | None,
) -> int | None:
    """How many instances serve clients for now where fewer are asked for; None where it is as many as asked.

    Where all are to go, there is nobody whom their clients could overrun. An autoscaler has its own pace.
    """
    wanted = cluster.spec.replicas
    if here is None or cluster.autoscaled or wanted == 0 or size_of(here) <= wanted:
        return None
    if "Pod" in snapshot.blind:
        return size_of(here)  # who is still leaving is not known
    return max(wanted, _fewer(cluster, pods_of(cluster, snapshot, track), size_of(here), loads))


def _fewer(
    cluster: WebSocketCluster, pods: tuple[Object, ...], size: int, loads: Mapping[str, int] | None
) -> int:
    """What is left of a fleet of this size that shrinks, once as many leave as may leave now."""
    staying = [pod for pod in pods if not pod["metadata"].get("deletionTimestamp")]
    # Those that the ReplicaSet has yet to send away are as good as leaving, and those that it has yet to make
    # as good as gone.
    leaving = len(pods) - len(staying) + max(0, len(staying) - size)
    return max(0, min(size, len(staying)) - max(0, _at_once(cluster, staying, loads) - leaving))


def _at_once(cluster: WebSocketCluster, pods: list[Object], loads: Mapping[str, int] | None) -> int:
    """How many of these pods may leave at the same time.

    Each spreads its clients over the drain timeout; together they stay within the budget.
    """
    most = 0
    for pod in pods:
        count = (loads or {}).get(pod["metadata"]["name"])
        if count is None and _ready(pod):
            return 1  # nobody has told how many clients it has
        most = max(most, count or 0)
    if most == 0:
        return len(pods)
    rollout = cluster.spec.rollout
    return max(1, int(SHARE * rollout.max_reconnects_per_second * rollout.drain_timeout.seconds / most))


def _pause(cluster: WebSocketCluster, before: Object | None, most: int | None, template: str) -> int:
    """`minReadySeconds`: a drained pod's clients have reconnected, within the budget, before the next goes.

    `most`: the connections of the fullest pod, None where nobody has told. It is changed only while instances
    are replaced, or about to be.
    """
    now = 0 if before is None else int(before["spec"].get("minReadySeconds", 0))
    begins = before is not None and template_of(before) != template
    # An autoscaler's new instance makes it incomplete, too, and replaces nothing.
    under_way = before is not None and bool(_replaces(before)) and not complete(before)
    if before is None or most is None or not (begins or under_way):
        return now
    seconds = math.ceil(most / (SHARE * cluster.spec.rollout.max_reconnects_per_second)) - FIRST_READY_SECONDS
    wanted = PAUSES_SECONDS[min(bisect.bisect_left(PAUSES_SECONDS, seconds), len(PAUSES_SECONDS) - 1)]
    return wanted if begins else max(now, wanted)


def _most(loads: Mapping[str, int] | None) -> int | None:
    return None if loads is None else max(loads.values(), default=0)


def _loads(snapshot: Snapshot, now: Now) -> dict[str, int] | None:
    """Connections by pod, of those that live and aren't draining; None where nobody has told lately."""
    view = snapshot.fleet
    if view.fleet is None or now.monotonic - view.fleet_at > findings.FLEET_MEMORY_SECONDS:
        return None
    return {
        record.instance: max(0, record.connections)
        for record in view.fleet.instances
        if record.alive and not record.draining
    }


def _unseeing(cluster: WebSocketCluster, active: Track) -> Rollout:
    """Without a look at the Deployments or the Service no track is begun, switched or ended."""
    waits = cluster.spec.rollout.strategy == "BlueGreen" and cluster.status.active_track is not None
    applied = () if waits else (Instances(track=active),)
    return Rollout(active=active, tracks=Tracks(selected=active, applied=applied))


def _begun(cluster: WebSocketCluster, track: Track, here: Object, *, undone: bool) -> Event:
    count = size_of(here)
    if undone:
        message = (
            f"The spec was set back: generation {cluster.generation} undoes the change that was under way."
        )
        return Event(type="Normal", reason="RolloutUndone", message=message)
    how = (
        f"{count} instances are replaced one by one"
        if cluster.spec.rollout.strategy == "RollingUpdate"
        else f"track {track} is made ready beside the {count} instances that serve clients"
    )
    message = f"Generation {cluster.generation} is rolled out: {how}."
    return Event(type="Normal", reason="RolloutStarted", message=message)


def _completed(cluster: WebSocketCluster, here: Object) -> Event:
    message = f"All {size_of(here)} instances run generation {cluster.generation}."
    return Event(type="Normal", reason="RolloutCompleted", message=message)


def _selector_is_ours(service: Object) -> bool:
    for entry in service["metadata"].get("managedFields") or ():
        if entry.get("manager") == names.FIELD_MANAGER and entry.get("operation") == "Apply":
            fields = entry.get("fieldsV1")
            return not isinstance(fields, Mapping) or "f:selector" in (fields.get("f:spec") or {})
    return True


def _ready(pod: Object) -> bool:
    return any(
        condition.get("type") == "Ready" and condition.get("status") == "True"
        for condition in (pod.get("status") or {}).get("conditions") or ()
    )


def _replaces(deployment: Object) -> str:
    return _annotation(deployment, names.REPLACES_ANNOTATION)


def _annotation(obj: Object, name: str) -> str:
    return str((obj["metadata"].get("annotations") or {}).get(name, ""))


def _key(obj: Object) -> ChildKey:
    return obj["kind"], obj["metadata"]["name"]
