"""From a snapshot to what is to be done: the one decision. No I/O, and no clock but the given one."""

import dataclasses
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from tableforge_dataplane.contract.fleet import Fleet, RedisState
from tableforge_operator import api
from tableforge_operator.api import RedisStatus, Status, WebSocketCluster, names
from tableforge_operator.decide import (
    advice,
    autoscaling,
    balance,
    capacity,
    changes,
    cordons,
    deletion_costs,
    findings,
    ingress,
    instance_table,
    live_settings,
    orders,
    ownership,
    progress,
    redis_passwords,
    repairs,
    resources,
    rollout,
    routing,
    storage,
)
from tableforge_operator.decide import status as verdict
from tableforge_operator.decide.changes import Apply
from tableforge_operator.decide.cordons import Marking
from tableforge_operator.decide.deletion_costs import Cost
from tableforge_operator.decide.findings import Finding
from tableforge_operator.decide.leftovers import leftovers
from tableforge_operator.decide.orders import Word
from tableforge_operator.decide.reasons import RedisReason
from tableforge_operator.decide.redis_words import meaning
from tableforge_operator.decide.resources import DerivedSecrets
from tableforge_operator.decide.resources.floor import Floor
from tableforge_operator.decide.rollout import News, Rollout, Scale
from tableforge_operator.decide.snapshot import ChildKey, Now, Object, Snapshot
from tableforge_operator.decide.status import Counters, Event, Facts
from tableforge_operator.decide.storage import Growth

POLL_SECONDS: Final = 12.0
"""How often the fleet of a cluster that is Ready is asked."""
POLL_UNSETTLED_SECONDS: Final = 4.0
"""How often it is asked while the cluster is not: what instances wait for shows nowhere else."""
NOTES_SHOWN: Final = 3
"""How many remarks beside the verdict are told."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be done now. Where objects are to change, the status waits until they have."""

    secrets: tuple[dict[str, Any], ...] = ()
    costs: tuple[Cost, ...] = ()
    """Deletion costs of pods, before anything else."""
    markings: tuple[Marking, ...] = ()
    """Labels and annotations of pods, likewise."""
    applies: tuple[Apply, ...] = ()
    growth: Growth | None = None
    scales: tuple[Scale, ...] = ()
    withdrawals: tuple[Object, ...] = ()
    """Children to delete, once the applies are done."""
    news: tuple[News, ...] = ()
    """What to tell of these, as far as they come about."""
    floor: Floor | None = None
    """The least number of instances from now on; None where no autoscaler is wanted."""
    status: dict[str, Any] | None = None
    """The whole status to write; None where it stands already."""
    counters: bool = False
    """Whether `status` brings new counters."""
    rebalance: bool = False
    """Whether it brings news of the load."""
    word: Word = Word()
    """What to tell the instances, once nothing is left to do about objects."""
    events: tuple[Event, ...] = ()
    """To be told once `status` is written."""
    requeue_seconds: float | None = None
    """When to look again though nothing has happened; None where there is no need."""

    @property
    def changes_objects(self) -> bool:
        return any(
            (
                self.costs,
                self.markings,
                self.secrets,
                self.applies,
                self.growth,
                self.scales,
                self.withdrawals,
            )
        )


def decide(snapshot: Snapshot, now: Now, *, secrets: DerivedSecrets) -> Plan:
    """What to do about one cluster. Deciding again once it is done yields nothing more to do."""
    try:
        asked = api.load(snapshot.cluster)
    except api.InvalidClusterError as error:
        return _invalid(snapshot, now, str(error))
    if asked.paused or asked.deletion_timestamp is not None:
        return Plan()
    cluster = routing.attainable(asked, snapshot)
    passwords = redis_passwords.passwords(cluster, snapshot, now, secrets=secrets)
    template = resources.template_of(cluster, secrets=secrets, passwords=passwords)
    fleets = rollout.decide(cluster, snapshot, now, template=template)
    floor = autoscaling.floor_of(cluster, snapshot, now)
    if costs := deletion_costs.due(cluster, snapshot, now, track=fleets.active, floor=floor):
        return Plan(costs=costs, floor=floor)
    closed = balance.closed(cluster, snapshot)
    if markings := cordons.due(cluster, snapshot, now, closed=closed):
        return Plan(markings=markings, floor=floor)
    tracks = dataclasses.replace(
        fleets.tracks, accepting=cordons.service_may_ask(cluster, snapshot, fleets.tracks.selected)
    )
    rendered = resources.children(
        cluster,
        secrets=secrets,
        surroundings=snapshot.surroundings,
        tracks=tracks,
        floor=floor,
        passwords=passwords,
        live_redis=snapshot.children.get(("StatefulSet", resources.redis_name(cluster))),
    )
    creates = changes.secrets(rendered.secrets, snapshot=snapshot, now=now)
    creates = redis_passwords.secrets_due(creates, cluster, snapshot)
    applies = autoscaling.sized(
        changes.applies(
            rendered.applied,
            snapshot=snapshot,
            now=now,
            amiss=lambda obj: autoscaling.emptied(cluster, snapshot, obj),
        ),
        cluster,
        snapshot,
    )
    applies = redis_passwords.with_secret(applies, cluster, snapshot, passwords)
    applies = (*applies, *routing.applies(cluster, snapshot, now))
    unused = leftovers(cluster, snapshot, rendered.applied)
    withdrawals = (
        *changes.withdrawals(rendered.applied, snapshot=snapshot, now=now),
        *changes.due(unused, snapshot=snapshot, now=now),
        *changes.due(fleets.withdrawals, snapshot=snapshot, now=now),
    )
    scales = tuple(
        scale
        for scale in fleets.scales
        if changes.due((scale.deployment,), digest=scale.digest, snapshot=snapshot, now=now)
    )
    growth = storage.due(cluster, snapshot, now)
    if creates or applies or growth or scales or withdrawals:
        return Plan(
            secrets=creates,
            growth=growth,
            applies=applies,
            scales=scales,
            withdrawals=withdrawals,
            news=(*fleets.news, *autoscaling.news(cluster, snapshot, floor)),
            floor=floor,
        )
    digests = {changes.key_of(obj): ownership.digest(obj) for obj in (*rendered.secrets, *rendered.applied)}
    if (refused := storage.growth(cluster, snapshot)) is not None:
        digests[changes.key_of(refused.claim)] = refused.digest
    digests |= dict.fromkeys(changes.unwanted(rendered.applied, snapshot=snapshot), changes.WITHDRAWN)
    digests |= {changes.key_of(obj): changes.WITHDRAWN for obj in (*unused, *fleets.withdrawals)}
    digests |= {changes.key_of(scale.deployment): scale.digest for scale in fleets.scales}
    digests |= routing.digests(cluster, snapshot)
    return _assess(cluster, snapshot, now, digests, fleets, floor, asked)


def _assess(
    cluster: WebSocketCluster,
    snapshot: Snapshot,
    now: Now,
    digests: dict[ChildKey, str],
    fleets: Rollout,
    floor: Floor | None,
    asked: WebSocketCluster,
) -> Plan:
    deployment = rollout.deployment(cluster, snapshot, fleets.active)
    found = tuple(_findings(cluster, snapshot, fleets, now, digests, asked))
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
            instances=fleet.totals.instances,
            connections=fleet.totals.connections,
            rooms=fleet.totals.rooms,
            table=instance_table.table(cluster, snapshot, fleet),
        )
    word = orders.word(
        cluster,
        snapshot,
        now,
        closed=balance.closed(cluster, snapshot),
        addresses=routing.addresses(cluster, snapshot),
        track=fleets.active,
    )
    balanced = balance.aspect(cluster, snapshot, now)
    notes = (
        *capacity.full(cluster, snapshot, now),
        *cordons.notes(cluster, snapshot),
        *orders.notes(snapshot, word),
        *repairs.notes(snapshot, now),
        *capacity.drains(cluster),
    )
    progressed_at, gave_up = progress.under_way(cluster, snapshot, fleets)
    facts = Facts(
        generation=cluster.generation,
        findings=advice.about_pods(found),
        ready_message=_ready_message(_serving(cluster, deployment), redis_message),
        redis=redis_status,
        redis_reason=redis_reason,
        redis_message=redis_message,
        progress_deadline_seconds=cluster.spec.rollout.progress_deadline.seconds,
        progressed_at=progressed_at,
        gave_up=gave_up,
        note=_blind_note(cluster, snapshot) + live_settings.note(cluster, snapshot, now) + _few(notes),
        aspects={
            **({} if balanced is None else {"Balanced": balanced[0]}),
            **autoscaling.condition(cluster, snapshot, floor, now),
        },
    )
    conditions, until = verdict.conditions(facts, previous=cluster.status, now=now)
    cause = facts.findings[0].reason if facts.findings else ""
    events = (
        *verdict.events(cluster.status.conditions, conditions, cause=cause),
        *_untold(cluster, notes),
    )
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
        track=fleets.active,
        selector=resources.scale_selector(cluster),
        redis=_redis_status(cluster, snapshot, redis),
        rebalance=None if balanced is None else balanced[1],
    ).to_dict()
    stands = verdict.same(wanted_status, snapshot.cluster.get("status"))
    return Plan(
        floor=floor,
        status=None if stands else wanted_status,
        counters=due and not stands,
        rebalance=not stands and balanced is not None and balanced[1] != cluster.status.rebalance,
        events=() if stands else events,
        word=word,
        requeue_seconds=_requeue(
            snapshot,
            now,
            digests,
            settled=not found and not word.anything and _all_told(fleet, deployment),
            until=until,
        ),
    )


def _findings(
    cluster: WebSocketCluster,
    snapshot: Snapshot,
    fleets: Rollout,
    now: Now,
    digests: dict[ChildKey, str],
    asked: WebSocketCluster,
) -> Iterator[Finding]:
    yield from findings.refused(snapshot, digests)
    yield from ingress.findings(cluster, snapshot)
    yield from routing.troubles(asked, snapshot)
    yield from redis_passwords.unseen(cluster, snapshot, now)
    yield from findings.redis_workload(cluster, snapshot)
    yield from storage.findings(cluster, snapshot)
    if cluster.spec.replicas > 0:
        yield from findings.redis_away(findings.redis_of(cluster, snapshot, monotonic=now.monotonic))
    yield from progress.instances(cluster, snapshot, fleets)
    if cluster.spec.replicas > 0:
        deployment = rollout.deployment(cluster, snapshot, fleets.active)
        yield from findings.silence(snapshot, deployment, monotonic=now.monotonic)
    yield from routing.waiting(cluster, snapshot)
    yield from redis_passwords.findings(cluster, snapshot, now)


def _redis_condition(
    cluster: WebSocketCluster, snapshot: Snapshot, found: tuple[Finding, ...], now: Now
) -> tuple[verdict.ConditionStatus, RedisReason, str]:
    if cluster.spec.replicas == 0:
        return "Unknown", "NoInstances", "No instance runs that could tell: spec.replicas is 0."
    redis = findings.redis_of(cluster, snapshot, monotonic=now.monotonic)
    for finding in found:
        if finding.reason == "RedisStarting":
            return "False", finding.reason, finding.message
    if redis is None:
        return "Unknown", "NoAnswer", "No instance has told yet."
    if redis.reason == "Connected":
        once = meaning(redis.durability)
        return "True", "Connected", f"Redis is connected; a message is acknowledged once {once}."
    return "False", findings.redis_reason(redis), redis.message


def _serving(cluster: WebSocketCluster, deployment: Object | None) -> int:
    """How many instances are ready, once the cluster is."""
    if not cluster.autoscaled:
        return cluster.spec.replicas
    return int(((deployment or {}).get("status") or {}).get("readyReplicas", 0))


def _redis_status(
    cluster: WebSocketCluster, snapshot: Snapshot, redis: RedisState | None
) -> RedisStatus | None:
    """What is known of it now; what nobody can tell at the moment stays as it was."""
    found = cluster.status.redis or RedisStatus()
    if redis is not None and redis.connected:
        version = findings.legible(redis.version)[:64]
        found = msgspec.structs.replace(found, durability=redis.durability, version=version)
    if (volume := storage.capacity(cluster, snapshot)) is not None:
        found = msgspec.structs.replace(found, storage=volume[:64])
    return None if found == RedisStatus() else found


def _ready_message(wanted: int, redis_message: str) -> str:
    if wanted == 0:
        return "No instance runs, as spec.replicas asks for."
    return f"{_count(wanted, 'instance is', 'instances are')} ready. {redis_message}"


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _blind_note(cluster: WebSocketCluster, snapshot: Snapshot) -> str:
    if not snapshot.blind:
        return ""
    kinds = ", ".join(sorted(snapshot.blind))
    why = snapshot.blind[min(snapshot.blind)]
    held = cluster.managed_redis is not None and "StatefulSet" in snapshot.blind
    stays = " The managed Redis stays as it is until then." if held else ""
    return f" Changes to objects of kind {kinds} go unnoticed: {why}.{stays}"


def _few(notes: tuple[Event, ...]) -> str:
    """The first of them: there may be one for each pod."""
    more = f" There are {len(notes) - NOTES_SHOWN} more such remarks." if len(notes) > NOTES_SHOWN else ""
    return "".join(f" {note.message}" for note in notes[:NOTES_SHOWN]) + more


def _untold(cluster: WebSocketCluster, notes: tuple[Event, ...]) -> tuple[Event, ...]:
    """Those that do not stand in the status yet."""
    told = "".join(found.message for found in cluster.status.conditions if found.type == "Ready")
    return tuple(note for note in notes[:NOTES_SHOWN] if note.message[:80] not in told)


def _all_told(fleet: Fleet | None, deployment: Object | None) -> bool:
    """Whether the fleet knows of as many instances as are ready: a new one's record comes a little later."""
    ready = ((deployment or {}).get("status") or {}).get("readyReplicas", 0)
    return ready == 0 or (fleet is not None and fleet.totals.instances == ready)


def _requeue(
    snapshot: Snapshot, now: Now, digests: dict[ChildKey, str], *, settled: bool, until: float | None
) -> float:
    delays = [POLL_SECONDS if settled else POLL_UNSETTLED_SECONDS]
    if snapshot.rebalance is not None:
        delays.append(snapshot.rebalance.again_in_seconds)
    if until is not None:
        delays.append(until + 1)
    # What was refused and is no longer wanted would have the cluster looked at again and again.
    delays += [snapshot.refusals[key].retry_at - now.monotonic for key in snapshot.refusals.keys() & digests]
    delays += [
        snapshot.repairs[key].retry_at - now.monotonic
        for key in snapshot.repairs
        if repairs.waits(key, snapshot, now)
    ]
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
