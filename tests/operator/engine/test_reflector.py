"""The reflector against an API server that misbehaves on demand, over real HTTP."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio import client as k8s

from tableforge_operator import kube as kube_module
from tableforge_operator.kube import (
    ForbiddenError,
    GoneError,
    Kube,
    NamespaceTerminatingError,
    TooManyRequestsError,
    UnreachableError,
    resource_of,
)
from tableforge_operator.observe import reflector as reflecting
from tableforge_operator.observe.reflector import Reflector
from tableforge_operator.observe.store import Store
from tests.operator.engine.operators import until
from tests.operator.engine.test_store import KEY, child

SERVICES = resource_of("v1", "Service")
CONFIG_MAPS = resource_of("v1", "ConfigMap")


class Server:
    """Services and ConfigMaps to list and watch, and what is wrong with them."""

    def __init__(self) -> None:
        self.items: dict[str, list[dict[str, Any]]] = {"services": [], "configmaps": []}
        self.version = 10
        self.refusal: dict[str, tuple[int, dict[str, Any]]] = {}
        """What a list of a kind is answered with instead."""
        self.lists: dict[str, int] = {"services": 0, "configmaps": 0}
        self._watches: list[asyncio.Queue[dict[str, Any] | None]] = []
        self.watched = asyncio.Event()
        """Set while a watch of Services is open."""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        kind = request.path.rsplit("/", 1)[-1]
        if "watch" in request.query:
            return await self._watch(request)
        self.lists[kind] += 1
        if kind in self.refusal:
            status, body = self.refusal[kind]
            return web.json_response({"kind": "Status", **body}, status=status)
        return web.json_response(
            {"metadata": {"resourceVersion": str(self.version)}, "items": self.items[kind]}
        )

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        if request.path.endswith("services"):
            self._watches.append(queue)
            self.watched.set()
        with contextlib.suppress(ConnectionError):
            while (event := await queue.get()) is not None:
                if event["type"] == "BREAK":
                    assert request.transport is not None
                    request.transport.abort()
                    break
                await response.write(json.dumps(event).encode() + b"\n")
        return response

    @property
    def watches(self) -> int:
        """How many watches of Services there have been."""
        return len(self._watches)

    async def tell(self, kind: str, obj: dict[str, Any] | None) -> None:
        """Send an event to the watch of Services that is open; None ends it."""
        async with asyncio.timeout(30):
            await self.watched.wait()
        await self._watches[-1].put(None if obj is None else {"type": kind, "object": obj})
        if obj is None or kind in ("ERROR", "BREAK"):
            self.watched.clear()
            if kind == "ERROR":
                await self._watches[-1].put(None)


@pytest.fixture
async def server() -> AsyncIterator[tuple[Server, Kube]]:
    server = Server()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    kube = Kube(k8s.Configuration(host=f"http://127.0.0.1:{runner.addresses[0][1]}"))
    try:
        yield server, kube
    finally:
        await kube.close()
        await runner.cleanup()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflecting, "BACKOFF_SECONDS", (0.02, 0.02, 0.02, 0.02))


class Reflected:
    """A running reflector and its store."""

    def __init__(self, kube: Kube) -> None:
        self.changed = asyncio.Event()
        self.store = Store(lambda *_: self.changed.set())
        self.reflector = Reflector(kube, self.store, [SERVICES, CONFIG_MAPS], None)
        self.task = asyncio.create_task(self.reflector.run())

    async def names(self, *wanted: str) -> None:
        """Wait until exactly these Services are in the store."""
        async with asyncio.timeout(30):
            while {obj["metadata"]["name"] for obj in self.store.of_cluster(KEY)} != set(wanted):
                assert not self.task.done()
                self.changed.clear()
                await self.changed.wait()

    async def blind(self, *kinds: str) -> None:
        async def look() -> bool:
            assert not self.task.done()
            return set(self.store.blind("ns")) == set(kinds)

        await until(look, what=f"blind for {kinds}")


@pytest.fixture
async def reflected(server: tuple[Server, Kube]) -> AsyncIterator[tuple[Server, Reflected]]:
    server[0].items["services"] = [child("a", 3)]
    reflected = Reflected(server[1])
    await reflected.reflector.synced()
    yield server[0], reflected
    reflected.task.cancel()
    await asyncio.gather(reflected.task, return_exceptions=True)


async def test_lists_and_then_follows(reflected: tuple[Server, Reflected]) -> None:
    server, seen = reflected
    await seen.names("a")
    await server.tell("ADDED", child("b", 11))
    await seen.names("a", "b")
    await server.tell("DELETED", child("a", 12))
    await seen.names("b")


async def test_a_watch_that_ends_goes_on_without_a_list(reflected: tuple[Server, Reflected]) -> None:
    server, seen = reflected
    await server.tell("", None)
    await server.tell("ADDED", child("b", 11))
    await seen.names("a", "b")
    assert server.lists["services"] == 1


async def test_a_watch_with_nothing_to_say_is_taken_up_again_and_counts_as_no_failure(
    reflected: tuple[Server, Reflected], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, seen = reflected
    monkeypatch.setattr(kube_module, "WATCH_IDLE_SECONDS", 0.1)
    await server.tell("", None)

    async def taken_up() -> bool:
        return server.watches >= 4

    await until(taken_up, what="more watches")
    assert server.lists["services"] == 1
    monkeypatch.setattr(kube_module, "WATCH_IDLE_SECONDS", 60)
    server.watched.clear()
    await server.tell("", None)  # the one that is open now may have begun before
    await server.tell("ADDED", child("b", 11))
    await seen.names("a", "b")


async def test_a_watch_that_breaks_after_a_while_is_soon_taken_up_again_however_often(
    reflected: tuple[Server, Reflected], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, seen = reflected
    monkeypatch.setattr(reflecting, "STEADY_SECONDS", 0)
    monkeypatch.setattr(reflecting, "BACKOFF_SECONDS", (0.01, 60, 60))
    for number in range(3):
        await server.tell("BREAK", {})
        await server.tell("ADDED", child(f"b{number}", 11 + number))
    await seen.names("a", "b0", "b1", "b2")


async def test_a_version_too_old_makes_a_new_list_that_shows_what_went_meanwhile(
    reflected: tuple[Server, Reflected],
) -> None:
    server, seen = reflected
    server.items["services"] = [child("c", 15)]
    server.version = 20
    await server.tell("ERROR", {"code": 410, "reason": "Expired", "message": "too old resource version"})
    await seen.names("c")
    assert server.lists["services"] == 2


async def test_a_lost_right_blinds_its_kind_only_and_heals(reflected: tuple[Server, Reflected]) -> None:
    server, seen = reflected
    server.refusal["services"] = (403, {"message": "services is forbidden"})
    await server.tell("ERROR", {"code": 410, "message": "too old"})
    await seen.blind("Service")
    assert seen.store.blind("ns") == {"Service": "services is forbidden"}
    await seen.names("a")
    del server.refusal["services"]
    await seen.blind()


async def test_a_server_error_blinds_nothing(reflected: tuple[Server, Reflected]) -> None:
    server, seen = reflected
    server.refusal["services"] = (500, {"message": "etcd leader changed"})
    lists = server.lists["services"]
    await server.tell("ERROR", {"code": 410, "message": "too old"})

    async def tried() -> bool:
        return server.lists["services"] >= lists + 3

    await until(tried, what="three more lists")
    assert seen.store.blind("ns") == {}
    await seen.names("a")


async def test_an_object_that_cannot_be_understood_stops_no_other_kind(
    reflected: tuple[Server, Reflected],
) -> None:
    server, seen = reflected
    await server.tell("ADDED", {"metadata": {}})
    server.items["services"] = [child("a", 3), child("d", 30)]
    server.version = 31
    await server.tell("ERROR", {"code": 410, "message": "too old"})
    await seen.names("a", "d")
    assert not seen.task.done()


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (410, {"message": "too old"}, GoneError),
        (429, {"message": "slow down"}, TooManyRequestsError),
        (403, {"message": "no"}, ForbiddenError),
        (
            403,
            {"message": "no", "details": {"causes": [{"reason": "NamespaceTerminating"}]}},
            NamespaceTerminatingError,
        ),
    ],
)
async def test_refusals_are_types(
    server: tuple[Server, Kube], status: int, body: dict[str, Any], error: type[Exception]
) -> None:
    server[0].refusal["services"] = (status, body)
    with pytest.raises(error, match=body["message"]):
        await server[1].list(SERVICES, "ns")


async def test_an_answer_that_never_comes_is_unreachable(server: tuple[Server, Kube]) -> None:
    silent = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    async with silent, Kube(k8s.Configuration(host=f"http://127.0.0.1:{port}")) as kube:
        with pytest.raises(UnreachableError, match="Timeout"):
            await kube.replace(
                {
                    "apiVersion": "coordination.k8s.io/v1",
                    "kind": "Lease",
                    "metadata": {"name": "x", "namespace": "ns"},
                },
                timeout_seconds=0.2,
            )
