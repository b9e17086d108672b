"""What the operator counts about itself has the values that its page says."""

import asyncio
import collections
from typing import Any

import kubernetes.aio.client as k8s
import pytest
from aiohttp import web
from prometheus_client import Counter

from tableforge_operator import metrics
from tableforge_operator.kube import (
    CLUSTERS,
    ConflictError,
    ForbiddenError,
    Kube,
    UnreachableError,
    resource_of,
)
from tableforge_operator.reconcile import WORKERS
from tests.operator.engine.operators import until
from tests.operator.engine.test_turns import Api, Fleets, working

SERVICES = resource_of("v1", "Service")
SERVICE: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "tables", "namespace": "ns", "uid": "u"},
}

Counted = collections.Counter[tuple[str, str, str]]


def counted(calls: Counter) -> Counted:
    """Calls by verb, resource and code."""
    return collections.Counter(
        {
            (sample.labels["verb"], sample.labels["resource"], sample.labels["code"]): int(sample.value)
            for family in calls.collect()
            for sample in family.samples
            if sample.name.endswith("_total")
        }
    )


async def answer(request: web.Request) -> web.StreamResponse:
    """As an API server: somebody was faster to replace the object, and to delete it is not allowed."""
    status = {"PUT": 409, "DELETE": 403, "POST": 201}.get(request.method, 200)
    if request.query.get("watch"):
        return web.Response(text="")
    return web.json_response({"metadata": {}, "message": "no"}, status=status)


async def test_calls_and_writes_are_counted_by_verb_resource_and_code() -> None:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    calls = counted(metrics.API_CALLS)
    writes = counted(metrics.API_WRITES)
    port = runner.addresses[0][1]
    async with Kube(k8s.Configuration(host=f"http://127.0.0.1:{port}")) as kube:
        await kube.get(CLUSTERS, "ns", "tables")
        await kube.list(CLUSTERS, None)
        assert [event async for event in kube.watch(SERVICES, "ns", resource_version="1")] == []
        await kube.create(SERVICE)
        await kube.apply(SERVICE, force=True)
        await kube.apply(SERVICE, force=True, subresource="status")
        await kube.merge(SERVICES, "ns", "tables", {}, field_manager="tests")
        with pytest.raises(ConflictError):
            await kube.replace(SERVICE)
        with pytest.raises(ForbiddenError):
            await kube.delete(SERVICES, "ns", "tables", uid="u")
        await runner.cleanup()
        with pytest.raises(UnreachableError):
            await kube.apply(SERVICE, force=True)
    written = {
        ("create", "services", "201"): 1,
        ("apply", "services", "200"): 2,
        ("patch", "services", "200"): 1,
        ("update", "services", "409"): 1,
        ("delete", "services", "403"): 1,
        ("apply", "services", "0"): 1,
    }
    read = {
        ("get", "websocketclusters", "200"): 1,
        ("list", "websocketclusters", "200"): 1,
        ("watch", "services", "200"): 1,
    }
    assert counted(metrics.API_WRITES) - writes == written
    assert counted(metrics.API_CALLS) - calls == written | read


class SlowApi(Api):
    """Answers no question for a cluster before it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = asyncio.Semaphore(0)
        """One for each that waits."""
        self.answering = asyncio.Event()

    async def get(self, resource: Any, namespace: str, name: str) -> Any:
        self.reads.release()
        await self.answering.wait()
        return await super().get(resource, namespace, name)


async def test_the_depth_of_the_queue_is_of_clusters_that_no_worker_has_taken() -> None:
    api, fleets = SlowApi(), Fleets()
    fleets.answer.set()
    names = [f"cluster-{number}" for number in range(WORKERS + 3)]
    for name in names:
        api.add(name)
    # All are listed at the start, and nobody has judged any yet: they are urgent, and every worker takes one.
    async with asyncio.timeout(60), working(api, fleets):
        for _ in range(WORKERS):
            await api.reads.acquire()
        assert metrics.REGISTRY.get_sample_value("tableforge_operator_queue_depth") == 3
        api.answering.set()
        for name in names:
            await api.has_judged(name)

        async def all_taken() -> bool:
            return metrics.REGISTRY.get_sample_value("tableforge_operator_queue_depth") == 0

        await until(all_taken, what="no cluster waits for a worker")
