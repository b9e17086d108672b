"""Rebalancing, as far as it is about pods, specs and the status: what `rebalancing.cycle` is asked, and what
its answer comes to.
"""

import dataclasses
import datetime as dt
import math
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from tableforge_operator.api import RebalanceStatus, WebSocketCluster
from tableforge_operator.decide import annotations, instances, rollout
from tableforge_operator.decide.findings import legible
from tableforge_operator.decide.rebalancing import cycle
from tableforge_operator.decide.rebalancing.load import Load, load_of
from tableforge_operator.decide.rebalancing.state import Report, Settings, Sight, State, Turn
from tableforge_operator.decide.rollout import active_track
from tableforge_operator.decide.snapshot import Now, Snapshot
from tableforge_operator.decide.status import COUNTERS_EVERY_SECONDS, Aspect, Event, parse_time

SOON_SECONDS: Final = 1.0
HURRY_SECONDS: Final = 10.0
"""For how long a request has the fleet looked at that often: one that does not answer may take for ever."""
LARGE: Final = 5_000
"""Rooms from which on a step is large: it takes more than some milliseconds."""
SPREAD_MOVED: Final = 0.05
"""By how much the spread must have moved before it is written again, where nothing else has changed."""


def begin(cluster: WebSocketCluster, now: Now) -> State:
    """What a new operator begins with: of what was before it knows what stands in the status."""
    written = cluster.status.rebalance or RebalanceStatus()
    return cycle.begin(
        now=now.monotonic, last_request=written.last_request, planned_at=parse_time(written.last_plan_at)
    )


def answered(state: State, answers: Iterable[tuple[str, Mapping[str, str]]]) -> State:
    """The state once the fleet has taken these commands, each with what became of its moves."""
    for command, outcomes in answers:
        state = cycle.answered(state, command, outcomes)
    return state


def is_large(snapshot: Snapshot) -> bool:
    """Whether a step takes so long that others should not have to wait for it."""
    fleet = snapshot.fleet.fleet
    return fleet is not None and sum(len(record.heaviest_rooms) for record in fleet.instances) > LARGE


def requested(cluster: WebSocketCluster, state: State) -> str | None:
    """The request that is still to be served, where there is one."""
    request, _ = annotations.of_cluster(cluster)
    return None if request == state.last_request else request


def step(
    cluster: WebSocketCluster,
    snapshot: Snapshot,
    state: State,
    now: Now,
    *,
    reign: str,
    requested_at: float = -math.inf,
) -> Turn:
    """One step for a cluster. It touches nothing, and may run beside the event loop.

    `requested_at`: when the request was first seen that is still to be served (`Now.monotonic`). It waits for
    a look at the load that is newer: who asks for a plan has seen something just now.
    """
    request, _ = annotations.of_cluster(cluster)
    # Of a fleet without instances nothing newer comes.
    waits = (
        requested(cluster, state) is not None
        and snapshot.fleet.fleet_at <= requested_at
        and cluster.spec.replicas > 0
    )
    turn = cycle.step(
        state,
        sight=_sight(cluster, snapshot, now),
        settings=_settings(cluster),
        now=now.monotonic,
        wall=now.wall,
        request=state.last_request if waits else request,
        reign=reign,
    )
    hurries = waits and now.monotonic - requested_at < HURRY_SECONDS
    return dataclasses.replace(turn, again_in_seconds=SOON_SECONDS) if hurries else turn


def events(turn: Turn) -> tuple[Event, ...]:
    """What happened in it."""
    return tuple(Event(type=one.type, reason=one.reason, message=legible(one.message)) for one in turn.news)


def closed(cluster: WebSocketCluster, snapshot: Snapshot) -> frozenset[str]:
    """The instances that take no new clients for now, by the planner's word; never all that would."""
    wanted = frozenset() if snapshot.rebalance is None else snapshot.rebalance.closed
    return wanted if not wanted or _accepting(cluster, snapshot) - wanted else frozenset()


def aspect(cluster: WebSocketCluster, snapshot: Snapshot, now: Now) -> tuple[Aspect, RebalanceStatus] | None:
    """The condition `Balanced` and the status; None where nobody has looked at the load.

    While nothing but the load itself has changed, both stay as they are for a while.
    """
    if snapshot.rebalance is None:
        return None
    report = snapshot.rebalance.report
    found: Aspect = (report.balanced, report.reason, legible(report.message))
    status = _status(report)
    before = cluster.status.rebalance
    said = next((one for one in cluster.status.conditions if one.type == "Balanced"), None)
    if before is None or said is None or said.observed_generation != cluster.generation:
        return found, status
    same = msgspec.structs.replace(status, spread=before.spread) == before
    if not same or (said.status, said.reason) != found[:2]:
        return found, status
    rests = (
        snapshot.rebalance_at is not None and now.monotonic - snapshot.rebalance_at < COUNTERS_EVERY_SECONDS
    )
    if rests or abs((status.spread or 0.0) - (before.spread or 0.0)) <= SPREAD_MOVED:
        return (*found[:2], said.message), before
    return found, status


def _status(report: Report) -> RebalanceStatus:
    return RebalanceStatus(
        phase=report.phase,
        moves_planned=report.moves_planned,
        moves_done=report.moves_done,
        moves_failed=report.moves_failed,
        spread_before=report.spread_before,
        spread=report.spread,
        last_plan_at=_stamp(report.last_plan_at),
        last_request=report.last_request,
    )


def _stamp(at: dt.datetime | None) -> str | None:
    return None if at is None else at.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _settings(cluster: WebSocketCluster) -> Settings:
    spec = cluster.spec
    return Settings(
        enabled=spec.clustering.enable_load_rebalancing,
        mode=spec.routing.mode,
        measure="weight" if spec.load_balancing.strategy == "Weighted" else "capacity",
        threshold=spec.clustering.rebalance_threshold,
        interval_seconds=spec.clustering.rebalance_interval.seconds,
        most_moves=spec.clustering.max_moves_per_cycle,
        cooldown_seconds=spec.clustering.move_cooldown.seconds,
        reconnects_per_second=spec.rollout.max_reconnects_per_second,
        heartbeat_seconds=spec.scaling.heartbeat_interval.seconds,
    )


def _sight(cluster: WebSocketCluster, snapshot: Snapshot, now: Now) -> Sight:
    if cluster.spec.replicas == 0:
        # Nobody is there to ask: that is known, however long ago somebody last answered.
        return Sight(load=Load(instances=()), seen_at=math.inf)
    fleet = snapshot.fleet.fleet
    if fleet is None or fleet.as_of <= 0:
        # 0: an instance that has not read the fleet yet knows of itself alone.
        return Sight(load=None, leaving=_leaving(cluster, snapshot, now))
    apart = {record.instance for record in fleet.instances} - _accepting(cluster, snapshot)
    return Sight(
        load=load_of(fleet, cordoned=apart),
        seen_at=snapshot.fleet.fleet_at,
        redis_connected=fleet.redis.connected,
        leaving=_leaving(cluster, snapshot, now),
    )


def _leaving(cluster: WebSocketCluster, snapshot: Snapshot, now: Now) -> str:
    """Why instances leave, or will next; empty where none does. What is only added takes nobody's place."""
    fleet = rollout.deployment(cluster, snapshot, active_track(cluster, snapshot))
    if fleet is not None and not cluster.autoscaled and rollout.size_of(fleet) > cluster.spec.replicas:
        return "the fleet shrinks"
    if rollout.replaces_instances(cluster, snapshot):
        return "a rollout replaces instances"
    for pod in instances.of_tracks(cluster, snapshot):
        # The time until which it may take. One that is there still is on a node that does not answer.
        until = parse_time(pod["metadata"].get("deletionTimestamp"))
        if until is not None and now.wall <= until:
            return "instances leave"
    return ""


def _accepting(cluster: WebSocketCluster, snapshot: Snapshot) -> frozenset[str]:
    """The instances that new clients come to, unless the planner keeps them from it: those of the track that
    the client Service points to.
    """
    track = active_track(cluster, snapshot)
    return frozenset(
        pod["metadata"]["name"]
        for pod in instances.staying(cluster, snapshot, (track,))
        if instances.ready(pod) and not annotations.of_pod(pod).cordoned
    )
