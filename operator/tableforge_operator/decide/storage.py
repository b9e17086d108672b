"""The claim of a managed Redis: it grows with the spec, and never shrinks.

The StatefulSet's template of it cannot change once it is there, and stays as it was. The claim itself can
grow where its StorageClass lets it; whether it does, the API server says when it is asked.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, Final

from tableforge_operator.api import WebSocketCluster
from tableforge_operator.api.quantities import quantity_bytes
from tableforge_operator.decide import changes
from tableforge_operator.decide.findings import Finding, legible, sentence
from tableforge_operator.decide.resources.metadata import redis_name
from tableforge_operator.decide.snapshot import Now, Object, Snapshot

_FIELD: Final = "spec.redis.managed.storage.size"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Growth:
    """A claim that is to be larger."""

    claim: Object
    size: str

    @property
    def digest(self) -> str:
        """Stands for this in what the operator remembers of a refusal."""
        return f"grow to {self.size}"

    def refused(self, said: str) -> str:
        """What to make of it that the API server says no."""
        name = self.claim["metadata"]["name"]
        has = self.claim["status"].get("capacity", {}).get("storage", requested(self.claim))
        return (
            f"Claim {name} cannot grow to {self.size} ({_FIELD}): {said.rstrip('.')}. Let its StorageClass "
            f"expand volumes (allowVolumeExpansion: true), or set {_FIELD} back to {has}."
        )


def growth(cluster: WebSocketCluster, snapshot: Snapshot) -> Growth | None:
    """What the claim lacks; None where it is as large as the spec asks for, larger, or not known."""
    redis, claim = cluster.managed_redis, _claim(cluster, snapshot)
    if redis is None or claim is None or (claim.get("status") or {}).get("phase") != "Bound":
        return None
    if quantity_bytes(requested(claim)) >= quantity_bytes(redis.storage.size):
        return None
    return Growth(claim=claim, size=redis.storage.size)


def due(cluster: WebSocketCluster, snapshot: Snapshot, now: Now) -> Growth | None:
    """`growth`, where it was not refused a moment ago."""
    wanted = growth(cluster, snapshot)
    if wanted is None or not changes.due((wanted.claim,), digest=wanted.digest, snapshot=snapshot, now=now):
        return None
    return wanted


def findings(cluster: WebSocketCluster, snapshot: Snapshot) -> Iterator[Finding]:
    """A claim that waits for a class that isn't there, or is still growing.

    One that is refused to grow is told with other refusals.
    """
    redis, claim = cluster.managed_redis, _claim(cluster, snapshot)
    if redis is None or claim is None:
        return
    if (missing := _class_missing(claim, snapshot)) is not None:
        yield Finding(reason="StorageClassMissing", message=missing)
    name, size, has = claim["metadata"]["name"], redis.storage.size, capacity(cluster, snapshot)
    if growth(cluster, snapshot) is None and has is not None and quantity_bytes(has) < quantity_bytes(size):
        yield Finding(
            reason="StorageGrowing",
            message=sentence(f"Claim {name} grows from {has} to {size} ({_FIELD}){_said_of(claim)}"),
        )


def class_waited_for(cluster: Object, claims: Iterable[Object]) -> str | None:
    """The StorageClass that the spec names, where a claim waits for it. A default one exists by itself."""
    managed = (cluster["spec"].get("redis") or {}).get("managed") or {}
    name: str | None = (managed.get("storage") or {}).get("storageClassName")
    waits = any(_waits(claim) and claim["spec"].get("storageClassName") == name for claim in claims)
    return name if waits else None


def _class_missing(claim: Object, snapshot: Snapshot) -> str | None:
    """What a claim that nobody gives a volume needs."""
    if not _waits(claim):
        return None
    name, asked = claim["metadata"]["name"], claim["spec"].get("storageClassName")
    if asked is None:
        # The API server would have filled in the default one, and does so once there is one.
        return (
            f"There is no default StorageClass, so claim {name} of the managed Redis gets no volume: make "
            f"one the default, or {_anew(name)}."
        )
    if asked and snapshot.storage_class_missing:
        return (
            f"StorageClass {asked} does not exist, so claim {name} of the managed Redis gets no volume: "
            f"create it, or {_anew(name)}."
        )
    return None


def _anew(name: str) -> str:
    # The field counts when the claim is made, and cannot change later.
    return (
        f"delete this WebSocketCluster and claim {name}, and create it anew with one of "
        "`kubectl get storageclass` in spec.redis.managed.storage.storageClassName"
    )


def _waits(claim: Object) -> bool:
    return (claim.get("status") or {}).get("phase") == "Pending" and not claim["spec"].get("volumeName")


def capacity(cluster: WebSocketCluster, snapshot: Snapshot) -> str | None:
    """How large the claim's volume is; None where it is not known."""
    claim = _claim(cluster, snapshot)
    size = ((claim or {}).get("status") or {}).get("capacity", {}).get("storage")
    return None if size is None else str(size)


def requested(claim: Object) -> str:
    """What a claim asks for."""
    size: Any = claim["spec"]["resources"]["requests"]["storage"]
    return str(size)


def _claim(cluster: WebSocketCluster, snapshot: Snapshot) -> Object | None:
    name = f"data-{redis_name(cluster)}-0"
    return next(
        (
            claim
            for claim in snapshot.claims
            if claim["metadata"]["name"] == name and not claim["metadata"].get("deletionTimestamp")
        ),
        None,
    )


def _said_of(claim: Object) -> str:
    """What whoever grows the volume says of it."""
    said = [
        legible(condition.get("message") or "")
        for condition in (claim.get("status") or {}).get("conditions") or ()
        if condition.get("status") == "True"
    ]
    return f": {said[-1]}" if said and said[-1] else ""
