"""The order of things in a reconciler: what happens while it waits for somebody's answer."""

import asyncio
import contextlib
import dataclasses
import re
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
from prometheus_client import generate_latest

from tableforge_operator import metrics, reconcile
from tableforge_operator.decide import balance
from tableforge_operator.decide.rebalancing.state import Result
from tableforge_operator.decide.snapshot import FleetView
from tableforge_operator.kube import CLUSTERS, ForbiddenError, NotFoundError
from tableforge_operator.reconcile import WORKERS, Reconciler
from tests.operator.engine.mortal import FirstReign
from tests.operator.engine.operators import until
from tests.operator.engine.pods import health
from tests.operator.engine.snapshots import cluster


class Api:
    """Stands for the API server where the moment matters at which it answers: takes everything."""

    def __init__(self) -> None:
        self.clusters: dict[str, dict[str, Any]] = {}
        self.before_answer: Callable[[], None] = lambda: None
        """Called once a read has seen what there is, before its answer arrives."""
        self.judged: set[str] = set()
        """Clusters whose status was written."""
        self._change = asyncio.Condition()

    def add(self, name: str, namespace: str = "ns") -> None:
        found = cluster(redis={"external": {"host": "redis.example"}})
        found["metadata"] |= {
            "name": name,
            "namespace": namespace,
            "uid": f"uid-{name}",
            "resourceVersion": "1",
        }
        self.clusters[name] = found

    async def get(self, resource: Any, namespace: str, name: str) -> Any:
        found = self.clusters.get(name) if resource is CLUSTERS else None
        self.before_answer()
        if found is None:
            raise NotFoundError("not found", status=404)
        return found

    async def list(self, *_: Any, **__: Any) -> tuple[list[Any], str]:
        return list(self.clusters.values()), "1"

    async def create(self, obj: dict[str, Any]) -> dict[str, Any]:
        return obj

    async def apply(self, obj: dict[str, Any], *, subresource: str | None = None, **_: Any) -> Any:
        metadata = {"uid": f"uid of {obj['metadata']['name']}", "resourceVersion": "1", **obj["metadata"]}
        if subresource == "status":
            async with self._change:
                self.judged.add(metadata["name"])
                self._change.notify_all()
            return {**self.clusters[metadata["name"]], "status": obj["status"]}
        return {**obj, "metadata": metadata}

    async def has_judged(self, name: str) -> None:
        async with self._change:
            await self._change.wait_for(lambda: name in self.judged)


class Fleets:
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.answer = asyncio.Event()
        self.asked = 0

    async def read(self, *_: Any, **__: Any) -> FleetView:
        self.asked += 1
        await self.answer.wait()
        return FleetView(healths=(health(),))


@pytest.fixture
def api() -> Api:
    return Api()


@pytest.fixture
def fleets() -> Fleets:
    return Fleets()


@contextlib.asynccontextmanager
async def working(
    api: Api, fleets: Fleets, *, namespaces: Sequence[str] | None = None
) -> AsyncIterator[Reconciler]:
    reconciler = Reconciler(
        kube=api,  # type: ignore[arg-type]
        fleets=fleets,  # type: ignore[arg-type]
        reign=FirstReign(),
        master_key=bytes(32),
        namespaces=namespaces,
        reporter="test",
    )
    task = asyncio.create_task(reconciler.run())
    try:
        yield reconciler
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_a_cluster_made_while_its_forerunner_is_being_missed_gets_its_turn(
    api: Api, fleets: Fleets
) -> None:
    fleets.answer.set()
    async with working(api, fleets) as reconciler:

        def made_again() -> None:
            api.before_answer = lambda: None
            api.add("tables")
            reconciler.notice(("ns", "tables"), "1")

        api.before_answer = made_again
        reconciler.notice(("ns", "tables"))
        async with asyncio.timeout(30):
            await api.has_judged("tables")


async def test_fleets_that_do_not_answer_keep_no_other_cluster_waiting(api: Api, fleets: Fleets) -> None:
    slow = [f"slow-{number}" for number in range(2 * WORKERS)]
    for name in slow:
        api.add(name)
    async with working(api, fleets) as reconciler:
        for name in slow:
            reconciler.notice(("ns", name), "1")
        async with asyncio.timeout(30):
            for name in slow:
                await api.has_judged(name)
        assert fleets.asked == len(slow), "a question that is under way is not asked again"
        api.add("quick")
        reconciler.notice(("ns", "quick"), "1")
        async with asyncio.timeout(30):
            await api.has_judged("quick")
        api.judged.clear()
        fleets.answer.set()
        async with asyncio.timeout(30):
            for name in (*slow, "quick"):
                await api.has_judged(name)


async def test_a_large_plan_keeps_nobody_waiting(
    api: Api, fleets: Fleets, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned, plan = threading.Event(), balance.step
    fleets.answer.set()

    def slow(typed: Any, *given: Any, **more: Any) -> Any:
        if typed.name == "large":
            assert planned.wait(60)
        return plan(typed, *given, **more)

    monkeypatch.setattr(balance, "is_large", lambda snapshot: snapshot.cluster["metadata"]["name"] == "large")
    monkeypatch.setattr(balance, "step", slow)
    for name in ("large", "quick"):
        api.add(name)
    async with working(api, fleets) as reconciler:
        try:
            reconciler.notice(("ns", "large"), "1")
            reconciler.notice(("ns", "quick"), "1")
            async with asyncio.timeout(30):
                await api.has_judged("quick")
            assert "large" not in api.judged
        finally:
            planned.set()
        async with asyncio.timeout(30):
            await api.has_judged("large")


async def test_moves_of_a_plan_count_once_it_has_ended_whatever_has_begun_since(
    api: Api, fleets: Fleets, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, ended = balance.step, [Result(planned=4, done=3, failed=1)]

    def another(*given: Any, **more: Any) -> Any:
        return dataclasses.replace(plan(*given, **more), finished=ended.pop() if ended else None)

    def counted() -> dict[str, float]:
        name = "tableforge_operator_rebalance_moves_total"
        outcomes = ("done", "failed")
        return {one: metrics.REGISTRY.get_sample_value(name, {"outcome": one}) or 0.0 for one in outcomes}

    monkeypatch.setattr(balance, "step", another)
    fleets.answer.set()
    before = counted()
    async with working(api, fleets) as reconciler, asyncio.timeout(30):
        api.add("tables")
        reconciler.notice(("ns", "tables"), "1")
        await api.has_judged("tables")
    assert counted() == {"done": before["done"] + 3, "failed": before["failed"] + 1}


async def test_the_spread_is_told_of_clusters_that_are_there_and_looked_at(
    api: Api, fleets: Fleets, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = balance.step
    spreads = {"even": 0.05, "hot": 1.25, "silent": None}

    def seen(typed: Any, *given: Any, **more: Any) -> Any:
        turn = plan(typed, *given, **more)
        return dataclasses.replace(turn, report=dataclasses.replace(turn.report, spread=spreads[typed.name]))

    def told() -> dict[str, str]:
        line = r'^tableforge_operator_rebalance_spread\{name="(.*)",namespace="ns"\} (.*)$'
        return dict(re.findall(line, generate_latest(metrics.REGISTRY).decode(), re.MULTILINE))

    monkeypatch.setattr(balance, "step", seen)
    fleets.answer.set()
    async with working(api, fleets) as reconciler:
        async with asyncio.timeout(30):
            for name in spreads:
                api.add(name)
                reconciler.notice(("ns", name), "1")
                await api.has_judged(name)
        assert told() == {"even": "0.05", "hot": "1.25"}
        looked = asyncio.Event()
        api.before_answer = looked.set
        del api.clusters["hot"]
        reconciler.notice(("ns", "hot"))
        async with asyncio.timeout(30):
            await looked.wait()
        assert told() == {"even": "0.05"}


class Lists(Api):
    """Lists by namespace, and refuses to list one."""

    refused = ""

    async def list(self, resource: Any, namespace: str | None = None, **_: Any) -> tuple[list[Any], str]:
        if namespace == self.refused:
            raise ForbiddenError("no right", status=403)
        found = self.clusters.values()
        return [obj for obj in found if namespace in (None, obj["metadata"]["namespace"])], "1"


async def test_a_namespace_that_cannot_be_listed_keeps_its_clusters_and_hides_no_other_ones(
    fleets: Fleets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconcile, "RESYNC_SECONDS", 0.05)
    fleets.answer.set()
    api = Lists()
    for name in "abc":
        api.add(name, namespace=f"in-{name}")

    async def known(reconciler: Reconciler, *names: str) -> None:
        async def look() -> bool:
            return api.judged.issuperset(names) and sum(reconciler.states().values()) == len(names)

        await until(look, what=f"{names} are known")

    async with working(api, fleets, namespaces=("in-a", "in-b", "in-c")) as reconciler:
        await known(reconciler, "a", "b", "c")
        api.refused = "in-b"
        del api.clusters["c"]
        await known(reconciler, "a", "b")
        api.add("d", namespace="in-c")
        await known(reconciler, "a", "b", "d")
