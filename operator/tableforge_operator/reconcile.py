"""Observe, decide, act: one turn for one cluster."""

import asyncio
import collections
import dataclasses
import datetime as dt
import functools
import logging
import math
import random
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final

from tableforge_operator import api, metrics
from tableforge_operator.act import events as act_events
from tableforge_operator.act import pods as act_pods
from tableforge_operator.act.children import Children, Outcome
from tableforge_operator.act.commands import Commands, Reign
from tableforge_operator.act.memory import Memory
from tableforge_operator.act.status import write_status
from tableforge_operator.api import names
from tableforge_operator.decide import balance, findings, ownership, resources, routing, storage
from tableforge_operator.decide import status as verdict
from tableforge_operator.decide.plan import Plan, decide
from tableforge_operator.decide.rebalancing.state import Turn
from tableforge_operator.decide.resources import DerivedSecrets
from tableforge_operator.decide.resources.kinds import HTTP_ROUTE, SERVICE
from tableforge_operator.decide.resources.surroundings import DEFAULT_OPERATOR_NAMESPACE, Surroundings
from tableforge_operator.decide.snapshot import Now, Object, Snapshot
from tableforge_operator.decide.status import Event
from tableforge_operator.kube import (
    CLAIMS,
    CLUSTERS,
    INGRESS_CLASSES,
    STORAGE_CLASSES,
    ApiError,
    Kube,
    NamespaceTerminatingError,
    NotFoundError,
    TooManyRequestsError,
    somebody_waits,
)
from tableforge_operator.observe.classes import Classes
from tableforge_operator.observe.fleet import Addressees, FleetReader, addressees
from tableforge_operator.observe.refusals import PodRefusals
from tableforge_operator.observe.store import ClusterKey, Store
from tableforge_operator.workqueue import WorkQueue

WORKERS: Final = 8
"""Clusters that are worked on at the same time."""
URGENT_WORKERS: Final = 2
"""How many of the workers wait for what somebody has just changed, whatever else there is to do."""
FLEET_READ_EVERY_SECONDS: Final = 1.0
"""A fleet is not asked more often than this while the same instances are ready, whatever else happens."""
FLEET_READ_APART_SECONDS: Final = 0.2
"""Nor more often than this when they change."""
FLEET_PATIENCE_SECONDS: Final = 0.5
"""How long a turn waits for a fleet's answer. One that comes later makes a turn of its own."""
GATHER_SECONDS: Final = 0.05
"""How long a change of a child waits for others: what happens to pods happens in bursts."""
RESYNC_SECONDS: Final = 600.0
"""How often all clusters are listed, give or take a fifth: an event that was lost shows nowhere."""
DOUBT_SECONDS: Final = 60.0
"""How often Secrets are created anew at most, while what an instance says may come of one that is gone."""
PASSES: Final = 3
"""Decide and act this often in one turn at most; the second one normally finds nothing left to do."""

log = logging.getLogger(__name__)


class Reconciler:
    """Knows the clusters, and gives each its turns."""

    def __init__(
        self,
        *,
        kube: Kube,
        fleets: FleetReader,
        reign: Reign,
        master_key: bytes,
        namespaces: Sequence[str] | None,
        own_namespace: str = DEFAULT_OPERATOR_NAMESPACE,
        reporter: str,
        rng: random.Random | None = None,
    ) -> None:
        self.queue: WorkQueue[ClusterKey] = WorkQueue(rng=rng)
        self.store = Store(self._child_changed)
        self._kube = kube
        self._fleets = fleets
        self._children = Children(kube, self.store)
        self._commands = Commands(kube, fleets, reign)
        self._reign = reign
        # They have no namespace: nothing to see for who is let into some namespaces only.
        self._ingress_classes = Classes(kube, INGRESS_CLASSES) if namespaces is None else None
        self._storage_classes = Classes(kube, STORAGE_CLASSES) if namespaces is None else None
        self._pod_refusals = PodRefusals(kube)
        self._master_key = master_key
        self._namespaces = namespaces
        self._own_namespace = own_namespace
        self._reporter = reporter
        self._rng = rng or random.Random()  # noqa: S311 - jitter
        self._clusters: dict[ClusterKey, Object] = {}
        self._stale: set[ClusterKey] = set()
        self._memories: dict[ClusterKey, Memory] = {}

    def notice(self, key: ClusterKey, resource_version: str | None = None, *, urgent: bool = False) -> None:
        """Something happened to the cluster itself; at `resource_version`, where that is known.

        Urgent is what somebody has just done, or did while nobody looked, and not what merely is in a list.
        """
        known = self._clusters.get(key)
        if (
            known is not None
            and resource_version is not None
            and known["metadata"]["resourceVersion"] == resource_version
        ):
            return
        self._stale.add(key)
        self.queue.add(key, urgent=urgent)

    async def run(self) -> None:
        """Work until cancelled."""
        metrics.QUEUE_DEPTH.set_function(self.queue.depth)
        metrics.QUEUE_AGE_SECONDS.set_function(self.queue.age_seconds)
        metrics.CLUSTERS.count = self.states
        metrics.REBALANCE_SPREADS.known = self.spreads
        try:
            async with asyncio.TaskGroup() as tasks:
                for namespace in self._namespaces or (None,):
                    tasks.create_task(self._resync(namespace), name=f"resync of {namespace or 'all'}")
                for number in range(WORKERS):
                    urgent_only = number < URGENT_WORKERS
                    tasks.create_task(self._work(urgent_only), name=f"reconcile worker {number}")
        finally:
            for memory in self._memories.values():
                _give_up_asking(memory)

    def _child_changed(self, key: ClusterKey, removed: bool) -> None:
        if removed and key in self._clusters:
            # Perhaps because the cluster itself went, and its event was lost.
            self._stale.add(key)
            memory = self._memories.get(key)
            for child, refusal in list(memory.refusals.items() if memory is not None else ()):
                if memory is not None and refusal.reason == "WaitingForDeletion":
                    del memory.refusals[child]
        self.queue.add(key, delay_seconds=GATHER_SECONDS, urgent=removed)

    async def _resync(self, namespace: str | None) -> None:
        failed = False
        while True:
            delay = RESYNC_SECONDS * self._rng.uniform(0.8, 1.2)
            try:
                listed, _ = await self._kube.list(CLUSTERS, namespace)
            except ApiError as error:
                log.log(
                    logging.DEBUG if failed else logging.WARNING,
                    "cannot list clusters",
                    extra={"namespace": namespace or "all", "error": error.message},
                )
                failed, delay = True, 10.0
            else:
                failed = False
                for obj in listed:
                    self.notice(_key(obj), obj["metadata"]["resourceVersion"], urgent=not verdict.judged(obj))
                for key in self._clusters.keys() - {_key(obj) for obj in listed}:
                    if namespace in (None, key[0]):
                        self.notice(key)
            await asyncio.sleep(delay)

    async def _work(self, urgent_only: bool) -> None:
        while True:
            key = await self.queue.take(urgent_only=urgent_only)
            somebody_waits.set(functools.partial(self.queue.is_urgent, key))
            started = time.monotonic()
            outcome = "failed"
            try:
                delay = await self._turn(key)
                outcome = "ok"
                self.queue.succeeded(key)
                if delay is not None:
                    self.queue.add(key, delay_seconds=delay * self._rng.uniform(0.9, 1.1))
            except TooManyRequestsError as error:
                outcome = "requeued"
                _count(error)
                self.queue.add(key, delay_seconds=error.retry_after_seconds * self._rng.uniform(1.0, 1.5))
            except ApiError as error:
                outcome = "requeued"
                _count(error)
                delay = self.queue.add_after_failure(key)
                log.warning(
                    "reconcile put off",
                    extra={
                        "cluster": "/".join(key),
                        "error": error.message,
                        "delay_seconds": round(delay, 1),
                    },
                )
            except Exception as error:
                _count(error)
                delay = self.queue.add_after_failure(key)
                log.exception(
                    "reconcile failed", extra={"cluster": "/".join(key), "delay_seconds": round(delay, 1)}
                )
            finally:
                self.queue.done(key)
                metrics.RECONCILES.labels(outcome).inc()
                metrics.RECONCILE_SECONDS.observe(time.monotonic() - started)

    async def _turn(self, key: ClusterKey) -> float | None:
        """One turn; in how many seconds the next one is wanted though nothing happens."""
        cluster = await self._observe_cluster(key)
        if cluster is None:
            # Where it is stale again, something came while it was read: another one by that name, perhaps.
            if key not in self._stale:
                self._forget(key)
            return None
        memory = self._memories.get(key)
        if memory is None or memory.uid != cluster["metadata"]["uid"]:
            _give_up_asking(memory)
            memory = self._memories[key] = Memory(uid=cluster["metadata"]["uid"])
        secrets = resources.derive(self._master_key, memory.uid)
        await self._observe_fleet(key, cluster, memory, secrets)
        await self._observe_classes(key, cluster, memory)
        await self._observe_redis_pod(key, memory)
        outcomes: list[Outcome] = []
        balanced = await self._rebalance(key, cluster, memory)
        news: list[Event] = [] if balanced is None else [*balance.events(balanced)]
        try:
            for _ in range(PASSES):
                snapshot = dataclasses.replace(self._snapshot(key, cluster, memory), rebalance=balanced)
                plan = decide(snapshot, _now(), secrets=secrets)
                memory.floor = plan.floor
                if not plan.changes_objects:
                    break
                async for outcome in self._act_on_children(cluster, plan, memory):
                    outcomes.append(outcome)
                    news += act_events.of_plan(plan.news, outcome)
        except NamespaceTerminatingError:
            # Its end takes everything along; nothing here is worth another attempt before it is over.
            return 5.0
        finally:
            self._log_outcomes(key, outcomes)
            news += act_events.of_outcomes(outcomes)
            if news:
                await self._tell(cluster, news, memory)
        if plan.changes_objects:
            return 1.0
        await self._act_on_status(key, cluster, plan, memory)
        await self._act_on_fleet(key, plan, memory, secrets)
        return plan.requeue_seconds

    async def _rebalance(self, key: ClusterKey, cluster: Object, memory: Memory) -> Turn | None:
        """What the planner says of the load; None where it is not asked."""
        memory.spread = None
        try:
            typed = api.load(cluster)
        except api.InvalidClusterError:
            return None
        if typed.paused or typed.deletion_timestamp is not None:
            return None
        snapshot, now, reign = self._snapshot(key, cluster, memory), _now(), str(self._reign.transitions)
        typed = routing.attainable(typed, snapshot)
        before = memory.rebalancing or balance.begin(typed, now)
        before = balance.answered(before, memory.answers)
        memory.answers.clear()
        if (request := balance.requested(typed, before)) is None:
            memory.requested = None
        elif memory.requested is None or memory.requested[0] != request:
            memory.requested = (request, now.monotonic)
        since = -math.inf if memory.requested is None else memory.requested[1]
        if balance.is_large(snapshot):
            # It takes some tenths of a second, which the lease and every other cluster would have to wait.
            turn = await asyncio.to_thread(
                balance.step, typed, snapshot, before, now, reign=reign, requested_at=since
            )
        else:
            turn = balance.step(typed, snapshot, before, now, reign=reign, requested_at=since)
        memory.rebalancing, memory.spread = turn.state, turn.report.spread
        if turn.finished is not None:
            metrics.REBALANCE_MOVES.labels("done").inc(turn.finished.done)
            metrics.REBALANCE_MOVES.labels("failed").inc(turn.finished.failed)
        for one in turn.news:
            metrics.REBALANCES.labels(one.reason).inc()
            log.info(
                "rebalancing", extra={"cluster": "/".join(key), "reason": one.reason, "what": one.message}
            )
        return turn

    async def _act_on_children(self, cluster: Object, plan: Plan, memory: Memory) -> AsyncIterator[Outcome]:
        await act_pods.write_costs(self._kube, self.store, plan.costs, memory=memory)
        await act_pods.write_markings(self._kube, self.store, plan.markings, memory=memory)
        for secret in plan.secrets:
            yield await self._children.create_secret(secret, memory=memory)
        for wanted in plan.applies:
            # Who has just changed something does not wait until all that a start finds has been applied.
            paced = not self.queue.is_urgent(_key(cluster))
            if ownership.of_pod(wanted.obj):
                memory.led_to.add(wanted.key[1])
            yield await self._children.apply(wanted, cluster=cluster, memory=memory, paced=paced)
        if plan.growth is not None:
            yield await self._children.grow(plan.growth, memory=memory)
        for scale in plan.scales:
            yield await self._children.scale(scale, memory=memory)
        for live in plan.withdrawals:
            yield await self._children.withdraw(live, cluster=cluster, memory=memory)

    async def _observe_cluster(self, key: ClusterKey) -> Object | None:
        known = self._clusters.get(key)
        if known is not None and key not in self._stale:
            return known
        self._stale.discard(key)
        try:
            cluster = await self._kube.get(CLUSTERS, *key)
        except NotFoundError:
            return None
        except ApiError:
            self._stale.add(key)
            raise
        self._clusters[key] = cluster
        return cluster

    async def _observe_classes(self, key: ClusterKey, cluster: Object, memory: Memory) -> None:
        name = (cluster["spec"].get("ingress") or {}).get("className")
        memory.ingress_class_missing = await _is_missing(self._ingress_classes, name)
        name = storage.class_waited_for(cluster, self._claims(key))
        memory.storage_class_missing = await _is_missing(self._storage_classes, name)

    async def _observe_redis_pod(self, key: ClusterKey, memory: Memory) -> None:
        memory.redis_pod_refused = ""
        for obj in tuple(self.store.of_cluster(key)):
            if obj["kind"] == "StatefulSet" and _owned(obj, memory.uid) and findings.without_pod(obj):
                memory.redis_pod_refused = await self._pod_refusals.of_stateful_set(
                    key[0], obj["metadata"]["uid"]
                )

    def _claims(self, key: ClusterKey) -> tuple[Object, ...]:
        return tuple(obj for obj in self.store.of_cluster(key) if obj["kind"] == CLAIMS.kind)

    async def _observe_fleet(
        self, key: ClusterKey, cluster: Object, memory: Memory, secrets: DerivedSecrets
    ) -> None:
        try:
            typed = api.load(cluster)
        except api.InvalidClusterError:
            return
        if typed.paused or typed.deletion_timestamp is not None:
            return
        whom = self._whom(key, memory)
        now = asyncio.get_running_loop().time()
        if memory.asking is not None:
            if not memory.asking.done():
                return
            self._take_answer(memory)
            if whom == memory.fleet_asked:
                return
        if memory.fleet_asked_at is not None:
            age = now - memory.fleet_asked_at
            if whom == memory.fleet_asked and age < FLEET_READ_EVERY_SECONDS:
                return
            if age < FLEET_READ_APART_SECONDS:
                # What was heard before instances became ready, or ceased to be, says nothing of now.
                await asyncio.sleep(FLEET_READ_APART_SECONDS - age)
        memory.fleet_asked_at, memory.fleet_asked = now, whom
        memory.asking = asyncio.create_task(
            self._fleets.read(
                addressees=whom,
                fleet_key=secrets.fleet_key,
                managed_redis=typed.managed_redis is not None,
                previous=memory.fleet,
            ),
            name=f"fleet of {'/'.join(key)}",
        )
        await asyncio.wait([memory.asking], timeout=FLEET_PATIENCE_SECONDS)
        if memory.asking.done():
            self._take_answer(memory)
        else:
            # A worker that waited longer would be missing to every other cluster.
            memory.asking.add_done_callback(lambda asked: None if asked.cancelled() else self.queue.add(key))

    def _take_answer(self, memory: Memory) -> None:
        asked, memory.asking = memory.asking, None
        assert asked is not None  # noqa: S101 - only called while there is one
        memory.fleet = asked.result()
        now = asyncio.get_running_loop().time()
        if memory.fleet.secrets_doubted and (
            memory.secrets_doubted_at is None or now - memory.secrets_doubted_at >= DOUBT_SECONDS
        ):
            memory.secrets_doubted_at = now
            memory.secrets_doubted = frozenset(memory.secrets_created)
            memory.secrets_created.clear()

    def _snapshot(self, key: ClusterKey, cluster: Object, memory: Memory) -> Snapshot:
        of_cluster = tuple(self.store.of_cluster(key))
        pods = tuple(obj for obj in of_cluster if obj["kind"] == "Pod")
        uids = {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in pods}
        _forget_instances(memory, uids)
        return Snapshot(
            cluster=cluster,
            children={
                (obj["kind"], obj["metadata"]["name"]): obj
                for obj in of_cluster
                if obj["kind"] != "Pod" and (_owned(obj, memory.uid) or _leads_to(obj, uids))
            },
            pods=pods,
            replica_sets=tuple(obj for obj in of_cluster if obj["kind"] == "ReplicaSet"),
            claims=self._claims(key),
            blind=self.store.blind(key[0]),
            ingress_class_missing=memory.ingress_class_missing,
            storage_class_missing=memory.storage_class_missing,
            redis_pod_refused=memory.redis_pod_refused,
            surroundings=Surroundings(
                operator_namespace=self._own_namespace, absent_kinds=self.store.absent(key[0])
            ),
            fleet=memory.fleet,
            applied=dict(memory.applied),
            refusals=dict(memory.refusals),
            repairs=dict(memory.repairs),
            secrets_created=frozenset(memory.secrets_created),
            floor=memory.floor,
            costs_failed_at=memory.costs_failed_at,
            costs_written_at=memory.costs_written_at,
            counters_at=memory.counters_at,
            markings_failed_at=memory.markings_failed_at,
            markings_refused=memory.markings_refused,
            orders_sent=dict(memory.orders_sent),
            forgotten=frozenset(memory.forgotten),
            forget_at=memory.forget_at,
            command_refused=memory.command_refused,
            command_retry_at=memory.command_retry_at,
            rebalance_at=memory.rebalance_at,
        )

    async def _act_on_status(self, key: ClusterKey, cluster: Object, plan: Plan, memory: Memory) -> None:
        if plan.status is None:
            return
        after = await write_status(self._kube, cluster, plan.status)
        if after is None:
            self.notice(key)
            return
        if plan.counters:
            memory.counters_at = asyncio.get_running_loop().time()
        if plan.rebalance:
            memory.rebalance_at = asyncio.get_running_loop().time()
        for part in ("generation", "annotations", "deletionTimestamp"):
            if after["metadata"].get(part) != cluster["metadata"].get(part):
                # It changed meanwhile, and the event may be passed over as one of our own write.
                self.notice(key)
        self._clusters[key] = after
        await self._tell(after, plan.events, memory)

    async def _act_on_fleet(
        self, key: ClusterKey, plan: Plan, memory: Memory, secrets: DerivedSecrets
    ) -> None:
        if not plan.word.anything or plan.word.held or memory.commanding is not None:
            return
        memory.commanding = asyncio.create_task(
            self._commands.carry(
                key, plan.word, whom=self._whom(key, memory), fleet_key=secrets.fleet_key, memory=memory
            ),
            name=f"commands to {'/'.join(key)}",
        )
        memory.commanding.add_done_callback(lambda done: self._commanded(key, memory, done))
        # As with questions: a worker that waited longer would be missing to every other cluster.
        await asyncio.wait([memory.commanding], timeout=FLEET_PATIENCE_SECONDS)

    def _commanded(self, key: ClusterKey, memory: Memory, done: "asyncio.Task[None]") -> None:
        memory.commanding = None
        if not done.cancelled():
            done.result()
            self.queue.add(key, delay_seconds=FLEET_READ_EVERY_SECONDS)

    def _whom(self, key: ClusterKey, memory: Memory) -> Addressees:
        of_cluster = tuple(self.store.of_cluster(key))
        return addressees(
            (obj for obj in of_cluster if obj["kind"] == "Pod"),
            (obj for obj in of_cluster if obj["kind"] == "Deployment" and _owned(obj, memory.uid)),
        )

    async def _tell(self, cluster: Object, events: Sequence[Event], memory: Memory) -> None:
        await act_events.tell(self._kube, cluster, events, memory=memory, reporter=self._reporter)

    def _log_outcomes(self, key: ClusterKey, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            if outcome.result == "refused":
                continue  # told and counted where it happened, with the reason
            log.log(
                logging.DEBUG if outcome.result == "unchanged" else logging.INFO,
                "child",
                extra={
                    "cluster": "/".join(key),
                    "object": " ".join(outcome.key),
                    "result": outcome.result,
                },
            )

    def _forget(self, key: ClusterKey) -> None:
        if self._clusters.pop(key, None) is not None:
            log.info("cluster gone", extra={"cluster": "/".join(key)})
        _give_up_asking(self._memories.pop(key, None))
        self._stale.discard(key)
        self.queue.forget(key)

    def states(self) -> Mapping[str, int]:
        """How many of the known clusters are in each state."""
        return collections.Counter(verdict.state(cluster) for cluster in self._clusters.values())

    def spreads(self) -> Mapping[ClusterKey, float]:
        """How uneven the load of the clusters is, as far as it is known."""
        return {key: memory.spread for key, memory in self._memories.items() if memory.spread is not None}


def _count(error: Exception) -> None:
    metrics.RECONCILE_ERRORS.labels(type(error).__name__.removesuffix("Error")).inc()


async def _is_missing(classes: Classes | None, name: str | None) -> bool:
    return name is not None and classes is not None and await classes.is_missing(name)


def _give_up_asking(memory: Memory | None) -> None:
    for task in () if memory is None else (memory.asking, memory.commanding):
        if task is not None:
            task.cancel()


def _leads_to(obj: Object, pods: Mapping[str, str]) -> bool:
    """Whether it belongs to one of the pods, given by name with their uids, and bears its name."""
    owner = ownership.controller(obj) if ownership.of_pod(obj) else None
    return owner is not None and pods.get(obj["metadata"]["name"]) == owner["uid"]


def _forget_instances(memory: Memory, pods: Mapping[str, str]) -> None:
    """Drop what is remembered of instances that are gone, so that it does not grow with every pod."""
    records = memory.fleet.fleet.instances if memory.fleet.fleet is not None else ()
    memory.forgotten.intersection_update({record.instance for record in records} - pods.keys())
    for name in memory.orders_sent.keys() - pods.keys():
        del memory.orders_sent[name]
    for name in memory.led_to - pods.keys():
        for kind in (SERVICE.kind, HTTP_ROUTE.kind):
            memory.applied.pop((kind, name), None)
            memory.refusals.pop((kind, name), None)
            memory.repairs.pop((kind, name), None)
        memory.led_to.discard(name)


def _key(obj: Object) -> ClusterKey:
    return obj["metadata"]["namespace"], obj["metadata"]["name"]


def _owned(obj: Object, uid: str) -> bool:
    return any(
        reference.get("controller") and reference.get("uid") == uid and reference.get("kind") == names.KIND
        for reference in obj["metadata"].get("ownerReferences") or ()
    )


def _now() -> Now:
    return Now(wall=dt.datetime.now(dt.UTC), monotonic=asyncio.get_running_loop().time())
