"""A kind of somebody else's CRD that is not installed: no error, seldom asked for, noticed when it comes."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio import client as k8s

from tableforge_operator import metrics
from tableforge_operator.kube import Kube, resource_of
from tableforge_operator.observe import reflector as reflecting
from tableforge_operator.observe.reflector import Reflector
from tableforge_operator.observe.store import Store
from tests.operator.engine.operators import until
from tests.operator.engine.test_store import child

MONITORS = resource_of("monitoring.coreos.com/v1", "PodMonitor")


class Server:
    """PodMonitors to list, while the kind is there."""

    def __init__(self) -> None:
        self.installed = False
        self.lists = 0
        self._watches: list[asyncio.Event] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if not self.installed:
            self.lists += 1
            return web.json_response({"kind": "Status", "code": 404, "reason": "NotFound"}, status=404)
        if "watch" in request.query:
            response = web.StreamResponse()
            await response.prepare(request)
            ended = asyncio.Event()
            self._watches.append(ended)
            await ended.wait()
            return response
        self.lists += 1
        monitor = {**child("a", 3), "kind": "PodMonitor"}
        return web.json_response({"metadata": {"resourceVersion": "5"}, "items": [monitor]})

    def remove(self) -> None:
        """The CRD goes: the API server ends the watches."""
        self.installed = False
        for ended in self._watches:
            ended.set()


@pytest.fixture
async def server() -> AsyncIterator[tuple[Server, Kube]]:
    server = Server()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    kube = Kube(k8s.Configuration(host=f"http://127.0.0.1:{runner.addresses[0][1]}"))
    try:
        yield server, kube
    finally:
        server.remove()
        await kube.close()
        await runner.cleanup()


def watch_up() -> dict[str, float]:
    """Whether PodMonitors are watched, by namespace, as Prometheus would see it."""
    (family,) = metrics.WATCH_UP.collect()
    return {
        sample.labels["namespace"]: sample.value
        for sample in family.samples
        if sample.labels["resource"] == MONITORS.plural
    }


async def test_it_is_absent_not_blind_until_it_comes_and_again_when_it_goes(
    server: tuple[Server, Kube], monkeypatch: pytest.MonkeyPatch
) -> None:
    api, kube = server
    monkeypatch.setattr(reflecting, "ABSENT_SECONDS", 0.05)
    changed: list[Any] = []
    store = Store(lambda *change: changed.append(change))
    task = asyncio.create_task(Reflector(kube, store, [MONITORS], None, optional={"PodMonitor"}).run())
    try:

        async def asked_again() -> bool:
            return api.lists >= 3

        await until(asked_again, what="asked again and again")
        assert store.absent("ns") == {"PodMonitor"}
        assert store.blind("ns") == {}
        assert watch_up() == {}

        api.installed = True

        async def there() -> bool:
            return store.absent("ns") == frozenset() and ("ns", "tables") in store.clusters()

        await until(there, what="its objects are seen")
        assert watch_up() == {"": 1}

        changed.clear()
        api.remove()

        async def absent() -> bool:
            return store.absent("ns") == {"PodMonitor"}

        await until(absent, what="it is gone")
        assert not list(store.of_cluster(("ns", "tables"))), "its objects went with it"
        assert watch_up() == {}
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_kind_that_has_to_be_there_is_another_matter(server: tuple[Server, Kube]) -> None:
    _, kube = server
    store = Store(lambda *_: None)
    reflector = Reflector(kube, store, [MONITORS], None)
    task = asyncio.create_task(reflector.run())
    try:
        await reflector.synced()
        assert set(store.blind("ns")) == {"PodMonitor"}
        assert store.absent("ns") == frozenset()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        metrics.WATCH_UP.remove(MONITORS.plural, "")


async def test_it_is_seldom_asked_for() -> None:
    assert reflecting.ABSENT_SECONDS >= 10
