"""From a snapshot to what is to be done: the one decision. No I/O, and no clock but the given one."""

import dataclasses
import datetime as dt
from collections.abc import Iterator
from typing import Any, Final, Literal

import msgspec

from tableforge_dataplane.contract.fleet import Fleet
from tableforge_operator import api
from tableforge_operator.api import RedisStatus, Status, WebSocketCluster, names
from tableforge_operator.decide import changes, findings, ownership, resources
from tableforge_operator.decide import status as verdict
from tableforge_operator.decide.changes import Apply
from tableforge_operator.decide.findings import Finding
from tableforge_operator.decide.resources import DerivedSecrets
from tableforge_operator.decide.snapshot import ChildKey, Now, Object, Snapshot
from tableforge_operator.decide.status import Counters, Event, Facts

POLL_SECONDS: Final = 12.0
"""How often the fleet of a cluster that is Ready is asked."""
POLL_UNSETTLED_SECONDS: Final = 4.0
"""How often it is asked while the cluster is not: what instances wait for shows nowhere else."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be done now. Where objects are to change, the status waits until they have."""

    secrets: tuple[dict[str, Any], ...] = ()
    applies: tuple[Apply, ...] = ()
    status: dict[str, Any] | None = None
    """The whole status to write; None where it stands already."""
    counters: bool = False
    """Whether `status` brings new counters."""
    events: tuple[Event, ...] = ()
    """To be told once `status` is written."""
    requeue_seconds: float | None = None
    """When to look again though nothing has happened; None where there is no need."""

    @property
    def changes_objects(self) -> bool:
        return bool(self.secrets or self.applies)


def decide(snapshot: Snapshot, now: Now, *, secrets: DerivedSecrets) -> Plan:
    """What to do about one cluster. Deciding again once it is done yields nothing more to do."""
    try:
        cluster = api.load(snapshot.cluster)
    except api.InvalidClusterError as error:
        return _invalid(snapshot, now, str(error))
    if cluster.paused or cluster.deletion_timestamp is not None:
        return Plan()
    rendered = resources.children(cluster, secrets=secrets)
    creates = changes.secrets(rendered.secrets, snapshot=snapshot, now=now)
    applies = changes.applies(rendered.applied, snapshot=snapshot, now=now)
    if creates or applies:
        return Plan(secrets=creates, applies=applies)
    digests = {changes.key_of(obj): ownership.digest(obj) for obj in (*rendered.secrets, *rendered.applied)}
    return _assess(cluster, snapshot, now, digests)


def _assess(cluster: WebSocketCluster, snapshot: Snapshot, now: Now, digests: dict[ChildKey, str]) -> Plan:
    track = _active_track(cluster, snapshot)
    deployment = _deployment(snapshot, track)
    found = tuple(_findings(cluster, snapshot, deployment, now, digests))
    wanted = cluster.spec.replicas
    redis_status, redis_reason, redis_message = _redis_condition(cluster, snapshot, found, now)
    fleet = snapshot.fleet.fleet
    fresh = fleet is not None and now.monotonic - snapshot.fleet.fleet_at <= findings.FLEET_MEMORY_SECONDS
    counters = None
    if wanted == 0:
        counters = Counters(instances=0, connections=0, rooms=0)
    elif fleet is not None and fresh and fleet.as_of > 0:
        # 0: an instance that has not read the fleet yet, while Redis is away, knows of itself alone
        counters = Counters(
            instances=fleet.totals.instances, connections=fleet.totals.connections, rooms=fleet.totals.rooms
        )
    progressed_at, gave_up = _progress(deployment)
    facts = Facts(
        generation=cluster.generation,
        findings=found,
        ready_message=_ready_message(wanted, redis_message),
        redis=redis_status,
        redis_reason=redis_reason,
        redis_message=redis_message,
        progress_deadline_seconds=cluster.spec.rollout.progress_deadline.seconds,
        progressed_at=progressed_at,
        gave_up=gave_up,
        note=_blind_note(snapshot),
    )
    conditions, until = verdict.conditions(facts, previous=cluster.status, now=now)
    events = verdict.events(cluster.status.conditions, conditions)
    due = counters is not None and (
        bool(events)
        or verdict.counters_due(counters, previous=cluster.status, written_at=snapshot.counters_at, now=now)
    )
    redis = findings.redis_of(cluster, snapshot, monotonic=now.monotonic)
    wanted_status = verdict.build(
        cluster,
        conditions=conditions,
        counters=counters if due else None,
        deployment=deployment,
        track=track,
        selector=resources.scale_selector(cluster),
        redis=RedisStatus(durability=redis.durability, version=findings.legible(redis.version)[:64])
        if redis is not None and redis.connected
        else None,
    ).to_dict()
    stands = verdict.same(wanted_status, snapshot.cluster.get("status"))
    return Plan(
        status=None if stands else wanted_status,
        counters=due and not stands,
        events=() if stands else events,
        requeue_seconds=_requeue(
            snapshot, now, settled=not found and _all_told(fleet, deployment), until=until
        ),
    )


def _findings(
    cluster: WebSocketCluster,
    snapshot: Snapshot,
    deployment: Object | None,
    now: Now,
    digests: dict[ChildKey, str],
) -> Iterator[Finding]:
    yield from findings.refused(snapshot, digests)
    yield from findings.redis_workload(cluster, snapshot)
    if cluster.spec.replicas > 0:
        yield from findings.redis_away(findings.redis_of(cluster, snapshot, monotonic=now.monotonic))
    yield from findings.rollout(cluster, snapshot, deployment)
    if cluster.spec.replicas > 0:
        yield from findings.silence(snapshot, deployment, monotonic=now.monotonic)


def _redis_condition(
    cluster: WebSocketCluster, snapshot: Snapshot, found: tuple[Finding, ...], now: Now
) -> tuple[Literal["True", "False", "Unknown"], str, str]:
    if cluster.spec.replicas == 0:
        return "Unknown", "NoInstances", "No instance runs that could tell: spec.replicas is 0."
    redis = findings.redis_of(cluster, snapshot, monotonic=now.monotonic)
    for finding in found:
        if finding.reason == "RedisStarting":
            return "False", finding.reason, finding.message
    if redis is None:
        return "Unknown", "NoAnswer", "No instance has told yet."
    if redis.connected:
        meaning = "it is on disk" if redis.durability == "Disk" else "Redis has it in memory"
        return "True", "Connected", f"Redis is connected; a message is acknowledged once {meaning}."
    return "False", findings.redis_reason(redis), redis.message


def _ready_message(wanted: int, redis_message: str) -> str:
    if wanted == 0:
        return "No instance runs, as spec.replicas asks for."
    return f"{_count(wanted, 'instance is', 'instances are')} ready. {redis_message}"


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _blind_note(snapshot: Snapshot) -> str:
    if not snapshot.blind:
        return ""
    kinds = ", ".join(sorted(snapshot.blind))
    why = snapshot.blind[min(snapshot.blind)]
    return f" Changes to objects of kind {kinds} go unnoticed: {why}."


def _active_track(cluster: WebSocketCluster, snapshot: Snapshot) -> Literal["a", "b"]:
    service = snapshot.children.get(("Service", cluster.name))
    track = ((service or {}).get("spec") or {}).get("selector", {}).get(names.TRACK_LABEL)
    return "b" if track == "b" else "a"


def _deployment(snapshot: Snapshot, track: str) -> Object | None:
    for deployment in findings.of_kind(snapshot, "Deployment"):
        if (deployment["metadata"].get("labels") or {}).get(names.TRACK_LABEL) == track:
            return deployment
    return None


def _progress(deployment: Object | None) -> tuple[dt.datetime | None, bool]:
    for condition in ((deployment or {}).get("status") or {}).get("conditions") or ():
        if condition.get("type") == "Progressing":
            gave_up = condition.get("reason") == "ProgressDeadlineExceeded"
            return None if gave_up else verdict.parse_time(condition.get("lastUpdateTime")), gave_up
    return None, False


def _all_told(fleet: Fleet | None, deployment: Object | None) -> bool:
    """Whether the fleet knows of as many instances as are ready: a new one's record comes a little later."""
    ready = ((deployment or {}).get("status") or {}).get("readyReplicas", 0)
    return ready == 0 or (fleet is not None and fleet.totals.instances == ready)


def _requeue(snapshot: Snapshot, now: Now, *, settled: bool, until: float | None) -> float:
    delays = [POLL_SECONDS if settled else POLL_UNSETTLED_SECONDS]
    if until is not None:
        delays.append(until + 1)
    delays += [refusal.retry_at - now.monotonic for refusal in snapshot.refusals.values()]
    return max(min(delays), 0.1)


def _invalid(snapshot: Snapshot, now: Now, message: str) -> Plan:
    """An object that the CRD let through and this version cannot read, as after a downgrade."""
    metadata = snapshot.cluster["metadata"]
    if (metadata.get("annotations") or {}).get(names.PAUSED_ANNOTATION) == "true":
        return Plan()
    if metadata.get("deletionTimestamp"):
        return Plan()
    previous = _status_of(snapshot.cluster)
    facts = Facts(
        generation=metadata.get("generation", 0),
        findings=(Finding(reason="Invalid", message=f"The spec cannot be used: {message}.", only_user=True),),
        ready_message="",
        redis="Unknown",
        redis_reason="NoAnswer",
        redis_message="Not looked at, because the spec cannot be used.",
        progress_deadline_seconds=0,
        progressed_at=None,
        gave_up=False,
        note="",
    )
    conditions, _ = verdict.conditions(facts, previous=previous, now=now)
    wanted = msgspec.structs.replace(
        previous, observed_generation=facts.generation, conditions=conditions
    ).to_dict()
    if verdict.same(wanted, snapshot.cluster.get("status")):
        return Plan()
    return Plan(status=wanted, events=verdict.events(previous.conditions, conditions))


def _status_of(cluster: Object) -> Status:
    try:
        return msgspec.convert(cluster.get("status") or {}, Status)
    except msgspec.ValidationError:
        return Status()
