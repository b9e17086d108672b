"""The instances' pods, by whose they are: a label makes none of somebody else's one of them."""

from collections.abc import Iterator

from tableforge_operator.api import WebSocketCluster, names
from tableforge_operator.decide import ownership
from tableforge_operator.decide.findings import pods_of
from tableforge_operator.decide.resources.metadata import Track, fleet_name
from tableforge_operator.decide.snapshot import Object, Snapshot

TRACKS: tuple[Track, ...] = ("a", "b")


def staying(
    cluster: WebSocketCluster, snapshot: Snapshot, tracks: tuple[Track, ...] = TRACKS
) -> Iterator[Object]:
    """The tracks' own pods that stay so far."""
    return (
        pod for pod in of_tracks(cluster, snapshot, tracks) if not pod["metadata"].get("deletionTimestamp")
    )


def of_tracks(
    cluster: WebSocketCluster, snapshot: Snapshot, tracks: tuple[Track, ...] = TRACKS
) -> Iterator[Object]:
    """The tracks' own pods, those that are leaving included."""
    fleets = {fleet_name(cluster, track) for track in tracks}
    for pod in pods_of(snapshot, names.DATAPLANE):
        metadata, owner = pod["metadata"], ownership.controller(pod)
        template = (metadata.get("labels") or {}).get("pod-template-hash")
        if (
            owner is not None
            and owner.get("kind") == "ReplicaSet"
            and owner.get("name") in {f"{fleet}-{template}" for fleet in fleets}
        ):
            yield pod


def ready(pod: Object) -> bool:
    """Whether Kubernetes counts it as ready."""
    return any(
        condition.get("type") == "Ready" and condition.get("status") == "True"
        for condition in (pod.get("status") or {}).get("conditions") or ()
    )
