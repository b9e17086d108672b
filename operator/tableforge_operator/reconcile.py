"""Observe, decide, act: one turn for one cluster."""

import asyncio
import datetime as dt
import logging
import random
import time
from collections.abc import AsyncIterator, Sequence
from typing import Final

from tableforge_operator import api, metrics
from tableforge_operator.act import events as act_events
from tableforge_operator.act.children import Children, Outcome
from tableforge_operator.act.memory import Memory
from tableforge_operator.act.status import write_status
from tableforge_operator.api import names
from tableforge_operator.decide import resources
from tableforge_operator.decide.plan import Plan, decide
from tableforge_operator.decide.resources import DerivedSecrets
from tableforge_operator.decide.snapshot import Now, Object, Snapshot
from tableforge_operator.decide.status import Event
from tableforge_operator.kube import (
    CLUSTERS,
    ApiError,
    Kube,
    NamespaceTerminatingError,
    NotFoundError,
    TooManyRequestsError,
)
from tableforge_operator.observe.fleet import FleetReader, addressees
from tableforge_operator.observe.store import ClusterKey, Store
from tableforge_operator.workqueue import WorkQueue

WORKERS: Final = 8
"""Clusters that are worked on at the same time."""
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
"""How often Secrets are created anew at most, when an instance says that one is missing."""
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
        master_key: bytes,
        namespaces: Sequence[str] | None,
        reporter: str,
        rng: random.Random | None = None,
    ) -> None:
        self.queue: WorkQueue[ClusterKey] = WorkQueue(rng=rng)
        self.store = Store(self._child_changed)
        self._kube = kube
        self._fleets = fleets
        self._children = Children(kube, self.store)
        self._master_key = master_key
        self._namespaces = namespaces
        self._reporter = reporter
        self._rng = rng or random.Random()  # noqa: S311 - jitter
        self._clusters: dict[ClusterKey, Object] = {}
        self._stale: set[ClusterKey] = set()
        self._memories: dict[ClusterKey, Memory] = {}

    def notice(self, key: ClusterKey, resource_version: str | None = None) -> None:
        """Something happened to the cluster itself; at `resource_version`, where that is known."""
        known = self._clusters.get(key)
        if (
            known is not None
            and resource_version is not None
            and known["metadata"]["resourceVersion"] == resource_version
        ):
            return
        self._stale.add(key)
        self.queue.add(key)

    async def run(self) -> None:
        """Work until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._resync(), name="cluster resync")
                for number in range(WORKERS):
                    tasks.create_task(self._work(), name=f"reconcile worker {number}")
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
        self.queue.add(key, delay_seconds=GATHER_SECONDS)

    async def _resync(self) -> None:
        while True:
            delay = RESYNC_SECONDS * self._rng.uniform(0.8, 1.2)
            try:
                present: set[ClusterKey] = set()
                for namespace in self._namespaces or (None,):
                    for obj in (await self._kube.list(CLUSTERS, namespace))[0]:
                        present.add(_key(obj))
                        self.notice(_key(obj), obj["metadata"]["resourceVersion"])
                for key in set(self._clusters) - present:
                    self.notice(key)
            except ApiError as error:
                log.warning("cannot list clusters", extra={"error": error.message})
                delay = 10.0
            await asyncio.sleep(delay)

    async def _work(self) -> None:
        while True:
            key = await self.queue.take()
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
                self.queue.add(key, delay_seconds=error.retry_after_seconds * self._rng.uniform(1.0, 1.5))
            except ApiError as error:
                outcome = "requeued"
                delay = self.queue.add_after_failure(key)
                log.warning(
                    "reconcile put off",
                    extra={
                        "cluster": "/".join(key),
                        "error": error.message,
                        "delay_seconds": round(delay, 1),
                    },
                )
            except Exception:
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
        outcomes: list[Outcome] = []
        try:
            for _ in range(PASSES):
                plan = decide(self._snapshot(key, cluster, memory), _now(), secrets=secrets)
                if not plan.changes_objects:
                    break
                async for outcome in self._act_on_children(cluster, plan, memory):
                    outcomes.append(outcome)  # noqa: PERF401 - those before a failure count
        except NamespaceTerminatingError:
            # Its end takes everything along; nothing here is worth another attempt before it is over.
            return 5.0
        finally:
            self._log_outcomes(key, outcomes)
            news = act_events.of_outcomes(outcomes)
            if news:
                await self._tell(cluster, news, memory)
        if plan.changes_objects:
            return 1.0
        await self._act_on_status(key, cluster, plan, memory)
        return plan.requeue_seconds

    async def _act_on_children(self, cluster: Object, plan: Plan, memory: Memory) -> AsyncIterator[Outcome]:
        for secret in plan.secrets:
            yield await self._children.create_secret(secret, memory=memory)
        for wanted in plan.applies:
            yield await self._children.apply(wanted, cluster=cluster, memory=memory)

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
        metrics.CLUSTERS.set(len(self._clusters))
        return cluster

    async def _observe_fleet(
        self, key: ClusterKey, cluster: Object, memory: Memory, secrets: DerivedSecrets
    ) -> None:
        try:
            typed = api.load(cluster)
        except api.InvalidClusterError:
            return
        if typed.paused or typed.deletion_timestamp is not None:
            return
        of_cluster = tuple(self.store.of_cluster(key))
        whom = addressees(
            (obj for obj in of_cluster if obj["kind"] == "Pod"),
            (obj for obj in of_cluster if obj["kind"] == "Deployment" and _owned(obj, memory.uid)),
        )
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
            self._fleets.read(typed, addressees=whom, fleet_key=secrets.fleet_key, previous=memory.fleet),
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
        if memory.fleet.secrets_missing and (
            memory.secrets_doubted_at is None or now - memory.secrets_doubted_at >= DOUBT_SECONDS
        ):
            memory.secrets_doubted_at = now
            memory.secrets_created.clear()

    def _snapshot(self, key: ClusterKey, cluster: Object, memory: Memory) -> Snapshot:
        of_cluster = tuple(self.store.of_cluster(key))
        return Snapshot(
            cluster=cluster,
            children={
                (obj["kind"], obj["metadata"]["name"]): obj
                for obj in of_cluster
                if obj["kind"] != "Pod" and _owned(obj, memory.uid)
            },
            pods=tuple(obj for obj in of_cluster if obj["kind"] == "Pod"),
            blind=self.store.blind(key[0]),
            fleet=memory.fleet,
            applied=dict(memory.applied),
            refusals=dict(memory.refusals),
            secrets_created=frozenset(memory.secrets_created),
            counters_at=memory.counters_at,
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
        for part in ("generation", "annotations", "deletionTimestamp"):
            if after["metadata"].get(part) != cluster["metadata"].get(part):
                # It changed meanwhile, and the event may be passed over as one of our own write.
                self.notice(key)
        self._clusters[key] = after
        await self._tell(after, plan.events, memory)

    async def _tell(self, cluster: Object, events: Sequence[Event], memory: Memory) -> None:
        await act_events.tell(self._kube, cluster, events, memory=memory, reporter=self._reporter)

    def _log_outcomes(self, key: ClusterKey, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            if outcome.result == "refused":
                continue  # told where it happened, with the reason
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
        metrics.CLUSTERS.set(len(self._clusters))


def _give_up_asking(memory: Memory | None) -> None:
    if memory is not None and memory.asking is not None:
        memory.asking.cancel()


def _key(obj: Object) -> ClusterKey:
    return obj["metadata"]["namespace"], obj["metadata"]["name"]


def _owned(obj: Object, uid: str) -> bool:
    return any(
        reference.get("controller") and reference.get("uid") == uid and reference.get("kind") == names.KIND
        for reference in obj["metadata"].get("ownerReferences") or ()
    )


def _now() -> Now:
    return Now(wall=dt.datetime.now(dt.UTC), monotonic=asyncio.get_running_loop().time())
