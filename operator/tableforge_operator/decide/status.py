"""The status of a cluster, by the rules of kstatus, and the Events that go with its transitions."""

import dataclasses
import datetime as dt
import re
from collections.abc import Mapping
from typing import Any, Final, Literal, cast

from tableforge_operator.api import (
    Condition,
    InstanceStatus,
    RebalanceStatus,
    RedisStatus,
    Status,
    WebSocketCluster,
    names,
)
from tableforge_operator.api.status import INSTANCES_SHOWN
from tableforge_operator.decide import instance_table
from tableforge_operator.decide.findings import Finding, legible
from tableforge_operator.decide.reasons import (
    AutoscaledReason,
    BalancedReason,
    ConditionReason,
    EventReason,
    FindingReason,
    ReadyReason,
    RedisReason,
)
from tableforge_operator.decide.snapshot import Now, Object

WORTH_A_WARNING: Final[frozenset[FindingReason]] = frozenset(
    {
        "ConfigMapMissing",
        "EnvironmentMissing",
        "GatewayApiMissing",
        "ImagePullFailed",
        "IngressClassMissing",
        "LimitRangeViolated",
        "PolicyDenied",
        "PriorityClassMissing",
        "QuotaExceeded",
        "RedisPasswordMissing",
        "RouteRefused",
        "SecretMissing",
        "StorageClassMissing",
        "Unschedulable",
    }
)
"""Reasons that somebody should hear of, though it may still come right by itself."""

NAMING_A_FIELD: Final[frozenset[FindingReason]] = WORTH_A_WARNING | {
    "Invalid",
    "NameConflict",
    "Rejected",
    "StorageNotGrown",
}
"""Reasons whose messages name what to mend: another message is another trouble, and news."""
_DEADLINE: Final = "ProgressDeadlineExceeded"
_PASSING: Final = re.compile(r"\b\d+ of \d+\b|\bpod \S+|\bused: \S+")
"""What of a message changes while the trouble stays the same."""

COUNTERS_EVERY_SECONDS: Final = 30.0

ConditionStatus = Literal["True", "False", "Unknown"]
Aspect = tuple[ConditionStatus, BalancedReason | AutoscaledReason, str]
"""Status, reason and message of a further condition."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened to a cluster, for `kubectl describe`."""

    type: Literal["Normal", "Warning"]
    reason: EventReason
    message: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counters:
    """What changes all the time."""

    instances: int
    connections: int
    rooms: int
    table: tuple[InstanceStatus, ...] = ()
    """All instances, fullest first."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """What the status is made from, once the findings are known."""

    generation: int
    findings: tuple[Finding, ...]
    ready_message: str
    redis: ConditionStatus
    redis_reason: RedisReason
    redis_message: str
    progress_deadline_seconds: float
    progressed_at: dt.datetime | None
    """When the rollout last made progress, by the Deployment's word."""
    gave_up: bool
    """Whether the Deployment controller has given up waiting for progress."""
    note: str
    """What else should be known, after the message of Ready; may be empty."""
    aspects: Mapping[str, Aspect] = dataclasses.field(default_factory=dict)
    """Further conditions, by type."""


def conditions(facts: Facts, *, previous: Status, now: Now) -> tuple[list[Condition], float | None]:
    """The conditions, and in how many seconds what is under way counts as stalled (None: nothing is)."""
    stalled, until = _stalled(facts, previous, now)
    ready: tuple[ConditionStatus, ReadyReason, str]
    if facts.findings:
        first = stalled or facts.findings[0]
        ready = ("False", first.reason, first.message)
    else:
        ready = ("True", "InstancesReady", facts.ready_message)
    wanted: dict[str, tuple[ConditionStatus, ConditionReason, str]] = {
        "Ready": (ready[0], ready[1], ready[2] + facts.note),
        "RedisReady": (facts.redis, facts.redis_reason, facts.redis_message),
        **facts.aspects,
    }
    if stalled is not None:
        wanted["Stalled"] = ("True", stalled.reason, stalled.message)
    elif facts.findings:
        wanted["Reconciling"] = ("True", facts.findings[0].reason, facts.findings[0].message)
    before = {condition.type: condition for condition in previous.conditions}
    stamp = now.wall.strftime("%Y-%m-%dT%H:%M:%SZ")
    found: list[Condition] = []
    for kind, (state, reason, message) in wanted.items():
        old = before.get(kind)
        found.append(
            Condition(
                type=kind,
                status=state,
                reason=reason,
                message=legible(message),
                last_transition_time=old.last_transition_time
                if old is not None and old.status == state
                else stamp,
                observed_generation=facts.generation,
            )
        )
    return found, until


def _stalled(facts: Facts, previous: Status, now: Now) -> tuple[Finding | None, float | None]:
    """The finding that makes the cluster stalled, or the seconds until the progress deadline makes it so."""
    for finding in facts.findings:
        if finding.only_user:
            return finding, None
    if not facts.findings:
        return None, None
    first = facts.findings[0]
    since = now.wall
    expired = facts.gave_up
    for condition in previous.conditions:
        if condition.observed_generation != facts.generation:
            continue
        at = parse_time(condition.last_transition_time)
        if condition.type == "Reconciling" and at is not None:
            since = min(at, now.wall)
        elif condition.type == "Stalled" and condition.reason == _DEADLINE:
            expired = True
            since = at or now.wall
    deadline = facts.progress_deadline_seconds
    if facts.progressed_at is not None and since < facts.progressed_at <= now.wall:
        since, expired = facts.progressed_at, facts.gave_up
    left = deadline - (now.wall - since).total_seconds()
    if not expired and left > 0:
        return None, left
    message = (
        f"No progress within spec.rollout.progressDeadline ({deadline:g} s): {first.message} "
        "It goes on by itself once that is mended; raise spec.rollout.progressDeadline if it needs longer."
    )
    return Finding(reason=_DEADLINE, message=message), None


def counters_due(new: Counters, *, previous: Status, written_at: float | None, now: Now) -> bool:
    """Whether the counters have moved far enough, and the last ones have stood long enough, to be written.

    The number of instances is told at once: it changes only when pods come and go, and a table that says 2
    where 3 are ready looks like a fault. So is what becomes of single ones, their numbers aside.
    """
    if new.instances != previous.instances or instance_table.news(new.table, previous=previous):
        return True
    moved = (
        instance_table.far(new.connections, previous.connections)
        or instance_table.far(new.rooms, previous.rooms)
        or instance_table.moved(new.table, previous=previous)
    )
    return moved and (written_at is None or now.monotonic - written_at >= COUNTERS_EVERY_SECONDS)


def events(before: list[Condition], after: list[Condition], *, cause: str = "") -> tuple[Event, ...]:
    """What changed from one set of conditions to the next, told once each.

    `cause`: the reason of what comes first, which a deadline that has passed hides.
    """
    old = {condition.type: condition for condition in before}
    new = {condition.type: condition for condition in after}
    found: list[Event] = []
    if (stalled := new.get("Stalled")) is not None and _differs(old.get("Stalled"), stalled, cause):
        found.append(_told("Warning", stalled))
    ready, was = new["Ready"], old.get("Ready")
    if ready.status == "True" and (was is None or was.status != "True"):
        found.append(Event(type="Normal", reason="Ready", message=ready.message))
    elif (
        ready.status != "True"
        and was is not None
        and (was.status, was.observed_generation) == ("True", ready.observed_generation)
        and "Stalled" not in new
    ):
        # With another generation it is no trouble but what the user has just asked for.
        found.append(Event(type="Warning", reason="NotReady", message=f"{ready.reason}: {ready.message}"))
    elif ready.status != "True" and "Stalled" not in new and _differs(was, ready):
        found.append(_told("Warning" if ready.reason in WORTH_A_WARNING else "Normal", ready))
    redis, was = new["RedisReady"], old.get("RedisReady")
    if redis.status == "True" and (was is None or was.status != "True"):
        found.append(Event(type="Normal", reason="RedisConnected", message=redis.message))
    elif (
        redis.status != "True" and redis.reason != "NoInstances" and was is not None and was.status == "True"
    ):
        found.append(Event(type="Warning", reason="RedisNotReady", message=redis.message))
    return tuple(found)


def _told(grave: Literal["Normal", "Warning"], condition: Condition) -> Event:
    return Event(type=grave, reason=cast("FindingReason", condition.reason), message=condition.message)


def _differs(old: Condition | None, new: Condition, cause: str = "") -> bool:
    if old is None or (old.status, old.reason) != (new.status, new.reason):
        return True
    reason = cause if new.reason == _DEADLINE else new.reason
    return reason in NAMING_A_FIELD and _PASSING.sub("", old.message) != _PASSING.sub("", new.message)


def build(
    cluster: WebSocketCluster,
    *,
    conditions: list[Condition],
    counters: Counters | None,
    deployment: Object | None,
    track: Literal["a", "b"],
    selector: str,
    redis: RedisStatus | None,
    rebalance: RebalanceStatus | None = None,
) -> Status:
    """The whole status. Counters that are None stay as they were."""
    previous = cluster.status
    state = (deployment or {}).get("status") or {}
    shown, more = previous.instance_table, previous.instances_not_shown
    if counters is not None:
        shown = list(counters.table[:INSTANCES_SHOWN])
        more = len(counters.table) - len(shown) or None
    return Status(
        observed_generation=cluster.generation,
        conditions=conditions,
        replicas=state.get("replicas", 0) if deployment is not None else previous.replicas or 0,
        ready_replicas=state.get("readyReplicas", 0)
        if deployment is not None
        else previous.ready_replicas or 0,
        selector=selector,
        instances=previous.instances if counters is None else counters.instances,
        connections=previous.connections if counters is None else counters.connections,
        rooms=previous.rooms if counters is None else counters.rooms,
        instance_table=shown,
        instances_not_shown=more,
        url=cluster.url,
        active_track=track,
        redis=redis if redis is not None else previous.redis,
        rebalance=rebalance if rebalance is not None else previous.rebalance,
    )


def same(status: dict[str, Any], current: Object | None) -> bool:
    """Whether the object's status already says what `status` says."""
    return _sorted(status) == _sorted(dict(current or {}))


def _sorted(status: dict[str, Any]) -> dict[str, Any]:
    ordered = sorted(status.get("conditions") or (), key=lambda condition: str(condition.get("type")))
    return {**status, "conditions": ordered}


def state(cluster: Object) -> Literal["Ready", "Reconciling", "Stalled", "Paused", "Unknown"]:
    """What a cluster's status comes to, in one word; Unknown where it says nothing of the present spec."""
    metadata, status = cluster["metadata"], cluster.get("status") or {}
    if (metadata.get("annotations") or {}).get(names.PAUSED_ANNOTATION) == "true":
        return "Paused"
    if not judged(cluster):
        return "Unknown"
    true = {found["type"] for found in status.get("conditions") or () if found["status"] == "True"}
    for kind in ("Stalled", "Reconciling", "Ready"):
        if kind in true:
            return kind
    return "Unknown"


def judged(cluster: Object) -> bool:
    """Whether the status is about the spec as it is: if not, somebody waits for it."""
    observed = (cluster.get("status") or {}).get("observedGeneration")
    return bool(observed == cluster["metadata"].get("generation"))


def parse_time(text: str | None) -> dt.datetime | None:
    """RFC 3339 as Kubernetes writes it; None where it is something else."""
    try:
        return dt.datetime.fromisoformat(text) if text else None
    except ValueError:
        return None
