"""Who has changed a cluster does not wait for all the others that a restarted operator finds.

The API server exists only here, and takes its time by a clock that leaps: what is measured is how long calls
and turns wait for each other, the same on every machine.
"""

import asyncio
import contextlib
import copy
import itertools
import json
import random
import types
from collections.abc import AsyncIterator
from typing import Any, cast
from urllib.parse import urlsplit

import pytest
from kubernetes.aio import client as k8s

from tableforge_operator.act.commands import Reign
from tableforge_operator.decide.snapshot import FleetView
from tableforge_operator.kube import CLUSTERS, Kube, resource_of
from tableforge_operator.observe.fleet import FleetReader
from tableforge_operator.reconcile import Reconciler
from tests.operator.engine.snapshots import cluster
from tests.support.forward import leap

NUMBER = 60
CHANGES = 10
CALL_SECONDS = 0.02
"""How long the API server takes for each call."""
PROMISED_SECONDS = 1.0


class Server:
    """Keeps what is applied, by path."""

    def __init__(self) -> None:
        self.objects: dict[str, Any] = {}
        self._versions = itertools.count(1)
        self.changed = asyncio.Event()

    def put(self, path: str, obj: dict[str, Any]) -> dict[str, Any]:
        before = self.objects.get(path, {"metadata": {}})
        kept = {
            part: before["metadata"][part] for part in ("uid", "generation") if part in before["metadata"]
        }
        metadata = {
            "uid": f"uid {path}",
            **obj["metadata"],
            **kept,
            "resourceVersion": str(next(self._versions)),
        }
        self.objects[path] = {**obj, "metadata": metadata}
        self.changed.set()
        return cast("dict[str, Any]", self.objects[path])

    async def request(self, method: str, url: str, *, body: Any, **_: Any) -> Any:
        await asyncio.sleep(CALL_SECONDS)
        path = urlsplit(url).path
        status, answer = self._answer(method, path, json.loads(body) if isinstance(body, str) else body)
        text = json.dumps(answer).encode()

        async def read() -> bytes:
            return text

        response = types.SimpleNamespace(
            status=status, headers={}, reason="", read=read, release=lambda: None
        )
        return types.SimpleNamespace(response=response)

    def _answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        if method == "GET" and path.endswith(f"/{CLUSTERS.plural}"):
            items = [obj for obj in self.objects.values() if obj["kind"] == CLUSTERS.kind]
            return 200, {"metadata": {"resourceVersion": "0"}, "items": items}
        if method == "GET":
            found = self.objects.get(path)
            return (404, {}) if found is None else (200, found)
        if method == "PATCH" and path.endswith("/status"):
            path = path.removesuffix("/status")
            return 200, self.put(path, {**self.objects[path], "status": body["status"]})
        if method == "PATCH":
            return 200, self.put(path, body)
        assert method == "POST"
        path = f"{path}/{body['metadata'].get('name')}"
        if path in self.objects:
            return 409, {"kind": "Status", "reason": "AlreadyExists"}
        return 201, self.put(path, body)


class NoFleet:
    """No instance runs that could be asked."""

    async def read(self, **_: Any) -> FleetView:
        return FleetView()


def path_of(number: int) -> str:
    return CLUSTERS.path("ns", f"tables-{number}")


def deployment_of(number: int) -> str:
    return resource_of("apps/v1", "Deployment").path("ns", f"tables-{number}-a")


@contextlib.asynccontextmanager
async def operator(server: Server) -> AsyncIterator[Reconciler]:
    """An operator that has just been started, and sees what is there."""
    kube = Kube(k8s.Configuration())
    cast("Any", kube)._client.rest_client.request = server.request
    reconciler = Reconciler(
        kube=kube,
        fleets=cast("FleetReader", NoFleet()),
        reign=cast("Reign", types.SimpleNamespace(holds=True, transitions=1)),
        master_key=bytes(32),
        namespaces=None,
        reporter="operator",
        rng=random.Random(1),
    )
    for obj in server.objects.values():
        if obj["kind"] not in ("Secret", "Event", CLUSTERS.kind):
            reconciler.store.put(copy.deepcopy(obj), notify=False)
    running = asyncio.create_task(reconciler.run())
    try:
        yield reconciler
        assert not running.done()
    finally:
        running.cancel()
        await asyncio.wait([running])
        await kube.close()


async def made(server: Server) -> None:
    """Every cluster has its children and its verdict."""
    for number in range(NUMBER):
        obj = cluster(replicas=1, redis={"external": {"host": "redis.example"}})
        obj["metadata"].update(name=f"tables-{number}", uid=f"uid-{number}")
        server.put(path_of(number), obj)
    async with operator(server):
        async with asyncio.timeout(600):
            while not all(server.objects[path_of(number)].get("status") for number in range(NUMBER)):
                server.changed.clear()
                await server.changed.wait()


async def change(server: Server, reconciler: Reconciler, number: int) -> float:
    """Change a cluster; in how many seconds its Deployment is as asked for."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    obj = copy.deepcopy(server.objects[path_of(number)])
    obj["spec"]["replicas"] = 2
    obj["metadata"]["generation"] = 2
    version = server.put(path_of(number), obj)["metadata"]["resourceVersion"]
    server.objects[path_of(number)]["metadata"]["generation"] = 2
    reconciler.notice(("ns", f"tables-{number}"), version, urgent=True)
    async with asyncio.timeout(60):
        while server.objects[deployment_of(number)]["spec"].get("replicas") != 2:
            server.changed.clear()
            await server.changed.wait()
    return loop.time() - started


async def test_a_changed_cluster_is_as_asked_for_within_a_second_while_all_others_are_adopted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    leap(monkeypatch)
    server = Server()
    await made(server)
    before = {path: obj["metadata"]["resourceVersion"] for path, obj in server.objects.items()}

    def to_adopt() -> int:
        return sum(
            obj["kind"] == "Deployment" and obj["metadata"]["resourceVersion"] == before[path]
            for path, obj in server.objects.items()
        )

    async with operator(server) as reconciler:
        # What may go at once after a start has gone by then.
        await asyncio.sleep(4)
        # The first ones are found as they are being adopted, the others before it is their turn.
        took = [await change(server, reconciler, number) for number in range(NUMBER - CHANGES, NUMBER)]
        assert max(took) < PROMISED_SECONDS, took
        assert to_adopt() > NUMBER / 4, "the others are still on their way"
