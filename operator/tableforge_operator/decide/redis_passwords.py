"""How the password of a managed Redis changes while everybody stays connected.

Redis takes the old and the new one; then the instances are given the new one, and once each of them has it
Redis takes no other. Redis restarts twice for that, and no instance does. How far it is can be read from
Redis's StatefulSet: the operator may end at any point and goes on.

What a Secret holds cannot be read, and is not what is derived now where the master key has been replaced
since. So the StatefulSet also says, by hash, which passwords Redis may have been given, and Redis takes the
old one by that. Where StatefulSets are not seen, all of this stays as it is.
"""

from collections.abc import Iterator
from typing import Any, Final

from tableforge_operator.api import WebSocketCluster, names
from tableforge_operator.decide import instances, rollout
from tableforge_operator.decide.changes import Apply
from tableforge_operator.decide.findings import FLEET_MEMORY_SECONDS, Finding, observed, redis_of
from tableforge_operator.decide.resources.kinds import DEPLOYMENT, STATEFUL_SET
from tableforge_operator.decide.resources.metadata import fleet_name, redis_name
from tableforge_operator.decide.resources.passwords import (
    AUTH_VOLUME,
    Passwords,
    hashes_of,
    passwords_in,
    taken_secret_name,
)
from tableforge_operator.decide.resources.secrets import DerivedSecrets
from tableforge_operator.decide.snapshot import ChildKey, Now, Object, Snapshot

MASTER_KEYS: Final = 8
"""Of so many the operator remembers the passwords that it may have made of them, during one change."""

_FIELD: Final = "spec.redis.managed.passwordGeneration"


def passwords(
    cluster: WebSocketCluster, snapshot: Snapshot, now: Now, *, secrets: DerivedSecrets
) -> Passwords:
    """Which passwords Redis takes, and which one the instances are given, from now on."""
    redis = cluster.managed_redis
    if redis is None:
        return Passwords.settled(1)
    wanted = redis.password_generation
    workload = _workload(cluster, snapshot)
    taken = _taken(cluster, workload)
    if workload is None or not taken:
        if _unseen(cluster, snapshot):
            wanted = _mounted(cluster, snapshot) or wanted
        return Passwords.settled(wanted, {wanted: (secrets.redis_password_hash(wanted),)})
    held = hashes_of(workload)
    # An older operator wrote down none: it had the master key that there is.
    first = held.get(taken[0]) or (secrets.redis_password_hash(taken[0]),)
    if len(taken) == 1:
        (old,) = taken
        if wanted == old:
            return Passwords.settled(old, {old: first})
        hashes = {old: first, wanted: (secrets.redis_password_hash(wanted),)}
        return Passwords(taken=(old, wanted), given=old, hashes=hashes)
    old, new = taken
    made = secrets.redis_password_hash(new)
    # The Secret with the new one may be there already, made from an earlier master key, or be made now.
    both = {old: first, new: tuple(dict.fromkeys([*held.get(new, ()), made]))[-MASTER_KEYS:]}
    if not _has_rolled(workload) or made not in held.get(new, ()):
        return Passwords(taken=taken, given=old, hashes=both)
    if _lacking(cluster, snapshot, new, now) is not None:
        return Passwords(taken=taken, given=new, hashes=both)
    return Passwords.settled(new, {new: both[new]})


def with_secret(
    applies: tuple[Apply, ...], cluster: WebSocketCluster, snapshot: Snapshot, wanted: Passwords
) -> tuple[Apply, ...]:
    """The applies, without Redis's StatefulSet as long as the Secret that its pod needs is not there: a quota
    that refuses the Secret would else end a Redis that runs. Nor while it is not seen, since what would be
    applied depends on what is there; nor then an instance's template that nobody sees either.
    """
    held: set[ChildKey] = set()
    if _unseen(cluster, snapshot) or taken_secret_name(cluster, wanted) not in snapshot.secrets_created:
        held.add((STATEFUL_SET.kind, redis_name(cluster)))
    if _unseen(cluster, snapshot) and DEPLOYMENT.kind in snapshot.blind:
        held |= {(DEPLOYMENT.kind, fleet_name(cluster, track)) for track in ("a", "b")}
    return tuple(one for one in applies if one.key not in held)


def secrets_due(
    creates: tuple[dict[str, Any], ...], cluster: WebSocketCluster, snapshot: Snapshot
) -> tuple[dict[str, Any], ...]:
    """The Secrets to create, without Redis's while its StatefulSet is not seen: instances would use a
    password that Redis does not take.
    """
    if not _unseen(cluster, snapshot):
        return creates
    return tuple(one for one in creates if one["metadata"]["labels"][names.COMPONENT_LABEL] != names.REDIS)


def unseen(cluster: WebSocketCluster, snapshot: Snapshot, now: Now) -> Iterator[Finding]:
    """A Redis that is not known to be there, by anybody's word."""
    if not _unseen(cluster, snapshot) or _workload(cluster, snapshot) is not None:
        return
    redis = redis_of(cluster, snapshot, monotonic=now.monotonic)
    if redis is None or redis.reason != "Connected":
        why = snapshot.blind[STATEFUL_SET.kind]
        message = (
            f"Whether the managed Redis is there is not known, and it is neither made nor changed: {why}."
        )
        yield Finding(reason="Blind", message=message)


def findings(cluster: WebSocketCluster, snapshot: Snapshot, now: Now) -> Iterator[Finding]:
    """A change of the password that is under way."""
    workload = _workload(cluster, snapshot)
    taken = _taken(cluster, workload)
    if workload is None or len(taken) != 2:
        return
    old, new = taken
    waits = "Redis restarts, to take both"
    if _has_rolled(workload) and (lacking := _lacking(cluster, snapshot, new, now)) is not None:
        waits = f"waiting for {lacking} to have it"
    yield Finding(
        reason="PasswordChanging",
        message=f"Redis's password changes from generation {old} to {new} ({_FIELD}): {waits}.",
    )


def _unseen(cluster: WebSocketCluster, snapshot: Snapshot) -> bool:
    return cluster.managed_redis is not None and STATEFUL_SET.kind in snapshot.blind


def _mounted(cluster: WebSocketCluster, snapshot: Snapshot) -> int | None:
    """The first generation that the instances are mounted: another window would cost them what they use."""
    live = rollout.deployment(cluster, snapshot, rollout.active_track(cluster, snapshot))
    for volume in live["spec"]["template"]["spec"].get("volumes") or () if live is not None else ():
        for source in (volume.get("projected") or {}).get("sources") or ():
            if found := passwords_in(cluster, (source.get("secret") or {}).get("name", "")):
                return found[0]
    return None


def _workload(cluster: WebSocketCluster, snapshot: Snapshot) -> Object | None:
    if cluster.managed_redis is None:
        return None
    return snapshot.children.get(("StatefulSet", redis_name(cluster)))


def _taken(cluster: WebSocketCluster, workload: Object | None) -> tuple[int, ...]:
    """The generations that Redis takes by its StatefulSet's word, the older one first."""
    if workload is None:
        return ()
    for volume in workload["spec"]["template"]["spec"].get("volumes") or ():
        if volume["name"] == AUTH_VOLUME:
            return passwords_in(cluster, (volume.get("secret") or {}).get("secretName", ""))
    return ()


def _has_rolled(workload: Object) -> bool:
    """Whether Redis has been up with the template that is there now: it may be down again."""
    state = workload.get("status") or {}
    return observed(workload) and state.get("currentRevision") == state.get("updateRevision") is not None


def _lacking(cluster: WebSocketCluster, snapshot: Snapshot, generation: int, now: Now) -> str | None:
    """Who has not told yet that it has this password; None where everybody has."""
    if "Pod" in snapshot.blind:
        return "the instances, whose pods are not seen,"
    pods = {pod["metadata"]["name"] for pod in instances.staying(cluster, snapshot)}
    if not pods:
        return None
    view = snapshot.fleet
    if view.fleet is None or now.monotonic - view.fleet_at > FLEET_MEMORY_SECONDS:
        return "the instances"
    have = {
        record.instance
        for record in view.fleet.instances
        if record.alive and record.redis_password >= generation
    }
    missing = sorted(pods - have)
    if not missing:
        return None
    return f"instance {missing[0]}" if len(missing) == 1 else f"{len(missing)} instances"
