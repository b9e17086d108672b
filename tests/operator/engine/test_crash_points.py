"""The operator dies after each single write of a creation, a change, a rollout and a deletion, and is started
again.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from devcluster.cluster import Devcluster
from tableforge_operator.decide.leftovers import named_by
from tableforge_operator.decide.resources import OPTIONAL_KINDS, OWNED_KINDS
from tableforge_operator.kube import CLUSTERS, ConflictError, Kube, NotFoundError, Object, resource_of
from tableforge_operator.observe.reflector import LABEL_SELECTOR
from tests.operator.engine.clusters import ENVIRONMENT, condition, external, find, manifest, until_condition
from tests.operator.engine.differences import differences
from tests.operator.engine.mortal import Life, MortalKube, life
from tests.operator.engine.operators import PatientKube, kubectl, until
from tests.operator.engine.pods import Instance, fleet, pods_of, set_pod

pytestmark = pytest.mark.cluster

AT_ONCE = 5
"""Operators that live at the same time."""
KINDS = [
    *(resource_of(kind.api_version, kind.kind) for kind in OWNED_KINDS if kind.kind not in OPTIONAL_KINDS),
    resource_of("v1", "Secret"),
]
CHANGE: dict[str, Any] = {
    "replicas": 2,
    "websocket": {"port": 4001},
    "redis": {"managed": {"image": "redis:another"}},
}


@pytest.fixture
async def kube(installed: Devcluster) -> AsyncIterator[Kube]:
    async with await PatientKube.connect(installed.kubeconfig, calls_per_second=10_000) as kube:
        yield kube


class Worlds:
    """Namespaces of their own for runs that go on at the same time."""

    def __init__(self, kubeconfig: Path, kube: Kube, base: str, network: int) -> None:
        self.kubeconfig = kubeconfig
        self._network = network
        self.kube = kube
        self._base = base
        self._turn = asyncio.Semaphore(AT_ONCE)
        self.names: list[str] = []

    def address(self, point: int) -> str:
        """Where the pods of the run with this point can be pretended to listen."""
        return f"127.{self._network}.65.{point + 1}"

    async def each(self, run: Any, points: Iterable[int]) -> list[Any]:
        """`run(world, point)` for each point, a few at a time; what they give."""

        async def one(point: int) -> Any:
            async with self._turn:
                name = f"{self._base}-{run.__name__.strip('_').replace('_', '-')}-{point}"
                await asyncio.to_thread(kubectl, self.kubeconfig, "create", "namespace", name)
                self.names.append(name)
                return await run(self, name, point)

        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(one(point)) for point in points]
        return [task.result() for task in running]


@pytest.fixture
async def worlds(installed: Devcluster, kube: Kube, namespace: str) -> AsyncIterator[Worlds]:
    worlds = Worlds(installed.kubeconfig, kube, namespace, installed.network.number)
    yield worlds
    if worlds.names:
        kubectl(installed.kubeconfig, "delete", "namespace", *worlds.names, "--wait=false")


def dying(at: int) -> Any:
    """Dies once the `at`-th write is done, and never hears of it."""

    async def after(kube: MortalKube, number: int) -> None:
        if number == at:
            kube.kill()

    return after


async def objects(kube: Kube, namespace: str) -> list[Object]:
    """All children that there are."""
    found = []
    for kind in KINDS:
        found += (await kube.list(kind, namespace, label_selector=LABEL_SELECTOR))[0]
    return found


async def picture(kube: Kube, namespace: str) -> dict[str, Any]:
    """The children by kind and name, less what differs from one namespace and uid to the next."""
    cluster = await kube.get(CLUSTERS, namespace, "tables")
    uid = cluster["metadata"]["uid"]
    assert cluster["status"]["observedGeneration"] == cluster["metadata"]["generation"]

    def neutral(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                neutral(name): neutral(item)
                for name, item in value.items()
                # A hash is of names that differ; that it follows what it is of is seen elsewhere.
                if name not in _THE_SERVERS and not name.endswith(("-hash", "-hashes"))
            }
        if isinstance(value, list):
            return [neutral(item) for item in value]
        if isinstance(value, str):
            text = value.replace(namespace, "NAMESPACE").replace(uid, "UID").replace(uid[:8], "UID8")
            return re.sub(r"(-fleet-UID8-|-config-)[0-9a-f]{8}\b", r"\1GENERATION", text)
        return value

    found = {}
    everything = await objects(kube, namespace)
    named = named_by(obj for obj in everything if obj["kind"] == "Deployment")
    for obj in everything:
        if obj["metadata"]["name"].startswith(ENVIRONMENT) and obj["metadata"]["name"] not in named:
            # Of earlier: it is there as long as a ReplicaSet is, which who dies early never made.
            continue
        annotations = obj["metadata"].setdefault("annotations", {})
        annotations.pop("deployment.kubernetes.io/revision", None)
        if obj["kind"] == "Secret":
            obj["data"] = sorted(obj["data"])
        assert {owner["uid"] for owner in obj["metadata"]["ownerReferences"]} == {uid}
        entries = [
            sorted(entry.get("manager", "") for entry in obj["metadata"]["managedFields"] if _is_ours(entry))
        ]
        found[f"{obj['kind']} {neutral(obj['metadata']['name'])}"] = [neutral(obj), entries]
    return found


_THE_SERVERS = frozenset(
    {
        "clusterIP",
        "clusterIPs",
        "creationTimestamp",
        "generation",
        "managedFields",
        "resourceVersion",
        "status",
        "tableforge.io/replaces",
        "uid",
    }
)


def _is_ours(entry: dict[str, Any]) -> bool:
    return bool(entry["manager"].startswith("tableforge"))


async def made(kube: Kube, namespace: str) -> None:
    await kube.apply(manifest(namespace), field_manager="user", force=True)


async def change(kube: Kube, namespace: str) -> None:
    await kube.merge(CLUSTERS, namespace, "tables", {"spec": CHANGE}, field_manager="user")


async def again(worlds: Worlds, namespace: str) -> dict[str, Any]:
    """A new operator starts, finds what there is, and has nothing more to do in the end."""
    async with life(worlds.kubeconfig, namespace) as operator:
        await operator.idle()
        return await picture(worlds.kube, namespace)


class Run(NamedTuple):
    """What is there in the end, how many writes the first operator made, and whether it died."""

    found: dict[str, Any]
    writes: int
    died: bool


async def creation(worlds: Worlds, namespace: str, point: int) -> Run:
    """Dies at a point of the creation; at none where it is 0, or where it needs fewer writes."""
    await made(worlds.kube, namespace)
    async with life(worlds.kubeconfig, namespace, after_write=dying(point)) as operator:
        lives = await operator.idle()
        writes = len(operator.kube.writes)
    return Run(await again(worlds, namespace), writes, not lives)


async def update(worlds: Worlds, namespace: str, point: int) -> Run:
    """The same, of a change to a cluster that stands."""
    await made(worlds.kube, namespace)
    async with life(worlds.kubeconfig, namespace) as operator:
        await operator.idle()
        before = len(operator.kube.writes)
        if point:
            hook = dying(before + point)
            operator.kube.after_write = lambda number: hook(operator.kube, number)
        await change(worlds.kube, namespace)
        operator.reconciler.notice((namespace, "tables"))
        lives = await operator.idle()
        writes = len(operator.kube.writes) - before
    return Run(await again(worlds, namespace), writes, not lives)


async def rollout(worlds: Worlds, namespace: str, point: int) -> Run:
    """The same, of a change that brings another track, which clients go over to once its pods are ready."""
    spec = {"rollout": {"strategy": "BlueGreen"}}
    kube, address = worlds.kube, worlds.address(point)
    await kube.apply(external(namespace, image="some/image:1", **spec), field_manager="user", force=True)

    async def over() -> bool:
        old = await find(kube, "apps/v1", "Deployment", namespace, "tables-a")
        return old is None and (await condition(kube, namespace, "Ready"))["status"] == "True"

    async with Instance(address).serving() as instance, pods_become_ready(kube, namespace, address):
        instance.fleet = fleet()
        async with life(worlds.kubeconfig, namespace) as operator:
            await until_condition(kube, namespace, "Ready", "True")
            await operator.idle()
            before = len(operator.kube.writes)
            if point:
                hook = dying(before + point)
                operator.kube.after_write = lambda number: hook(operator.kube, number)
            await kube.apply(
                external(namespace, image="some/image:2", **spec), field_manager="user", force=True
            )
            operator.reconciler.notice((namespace, "tables"))

            async def done() -> bool:
                return operator.kube.dead or await over()

            await until(done, what="the rollout's end, or the operator's")
            lives = await operator.idle()
            writes = len(operator.kube.writes) - before
        async with life(worlds.kubeconfig, namespace) as operator:
            await until(over, what="the rollout's end")
            await operator.idle()
            return Run(await picture(kube, namespace), writes, not lives)


@contextlib.asynccontextmanager
async def pods_become_ready(kube: Kube, namespace: str, address: str) -> AsyncIterator[None]:
    """While the block runs, as a kubelet would have them."""

    async def run() -> None:
        known: set[str] = set()
        while True:
            for pod in await pods_of(kube, namespace, "dataplane"):
                if pod["metadata"]["uid"] not in known:
                    with contextlib.suppress(ConflictError, NotFoundError):  # it has gone meanwhile
                        await set_pod(kube, pod, address=address, ready=True)
                    known.add(pod["metadata"]["uid"])
            await asyncio.sleep(0.2)

    kubelet = asyncio.create_task(run())
    try:
        yield
    finally:
        kubelet.cancel()
        await asyncio.wait([kubelet])
    if not kubelet.cancelled():
        kubelet.result()


@pytest.mark.parametrize(
    ("what", "at_least"),
    [(creation, 14), (update, 4), (rollout, 6)],
    ids=["creation", "update", "rollout"],
)
async def test_whatever_write_was_its_last_the_next_one_makes_the_same_objects(
    what: Any, at_least: int, worlds: Worlds
) -> None:
    (undisturbed,) = await worlds.each(what, [0])
    assert undisturbed.writes >= at_least, "every write is a point to die at"
    runs = await worlds.each(what, range(1, undisturbed.writes + 1))
    # Two runs may differ by a write: what happens in between decides whether one status or two are written.
    assert all(run.died for run in runs[:at_least])
    for point, run in enumerate(runs, start=1):
        found_wrong = list(differences(undisturbed.found, run.found))
        assert not found_wrong, f"after a death at write {point} of {undisturbed.writes}"


async def deletion(worlds: Worlds, namespace: str, point: int) -> None:
    """The cluster is deleted at a point of its creation; the operator dies with it where the point is odd."""
    await made(worlds.kube, namespace)
    uid = (await worlds.kube.get(CLUSTERS, namespace, "tables"))["metadata"]["uid"]

    deleted = asyncio.Event()

    async def after(kube: MortalKube, number: int) -> None:
        if number == point:
            deleted.set()
            await worlds.kube.delete(CLUSTERS, namespace, "tables", uid=uid)
            if point % 2:
                kube.kill()

    async with life(worlds.kubeconfig, namespace, after_write=after) as operator:
        if point % 2:
            await operator.over()
        else:
            async with asyncio.timeout(120):
                await deleted.wait()
            await _forgotten(operator, (namespace, "tables"))
    async with life(worlds.kubeconfig, namespace) as operator:
        # What a dead cluster has left behind wakes the operator, or there is nothing left.
        if await objects(worlds.kube, namespace):
            operator.reconciler.notice((namespace, "tables"))
            await operator.idle()
        assert operator.kube.writes == []


async def _forgotten(operator: Life, key: tuple[str, str]) -> None:
    """Tell it, as the watch would, and wait until it knows the cluster no more."""
    operator.reconciler.notice(key)

    async def look() -> bool:
        return not operator.reconciler._clusters

    await until(look, what="the cluster is forgotten")


async def test_a_cluster_deleted_at_any_point_of_its_creation_leaves_nothing(worlds: Worlds) -> None:
    await worlds.each(deletion, range(1, 15))

    async def look() -> bool:
        for name in worlds.names:
            if await objects(worlds.kube, name):
                return False
        return True

    # The garbage collector learns of a new CRD within 30 seconds, and deletes nothing of its before.
    await until(look, what="all children are gone", seconds=300)
