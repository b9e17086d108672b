"""Reading fleets over real HTTP: what a pod answers, however hostile, harms nobody."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import pytest
from aiohttp import web

from tableforge_dataplane.contract.fleet import (
    Fleet,
    FleetAnswer,
    FleetCommand,
    InstanceOrder,
    Orders,
    RoomLoad,
    Totals,
)
from tableforge_operator.decide.snapshot import FleetView
from tableforge_operator.observe import fleet as reading
from tableforge_operator.observe.fleet import Addressees, CommandNotTakenError, FleetReader, addressees
from tests.operator.engine.pods import CONNECTED, FLEET_PORT, Instance, fleet, health

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_number = 0


def loopback() -> str:
    """An address of 127.0.0.0/8 that nothing else in this process uses."""
    global _number
    _number += 1
    return f"127.{random.randint(1, 15)}.{random.randint(1, 250)}.{_number}"


@pytest.fixture
async def reader() -> AsyncIterator[FleetReader]:
    reader = FleetReader(rng=random.Random(3))
    yield reader
    await reader.close()


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """An instance that is to answer has the time for it on a busy machine, too."""
    for limit in ("FLEET", "HEALTH", "COMMAND"):
        monkeypatch.setattr(reading, f"{limit}_TIMEOUT_SECONDS", 60.0)


@contextlib.asynccontextmanager
async def answering(handler: Handler, address: str) -> AsyncIterator[None]:
    """A pod that answers `/fleet` its own way."""
    app = web.Application()
    app.router.add_get("/fleet", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, address, FLEET_PORT).start()
    try:
        yield
    finally:
        await runner.cleanup()


async def read(
    reader: FleetReader, *ready: str, waiting: tuple[str, ...] = (), managed_redis: bool = True
) -> FleetView:
    return await reader.read(
        addressees=Addressees(
            ready=tuple((f"pod-{address}", address) for address in ready),
            waiting=tuple((f"pod-{address}", address) for address in waiting),
        ),
        fleet_key="key",
        managed_redis=managed_redis,
        previous=FleetView(),
    )


async def test_one_ready_instance_tells_of_all(reader: FleetReader) -> None:
    async with Instance(loopback()).serving() as one, Instance(loopback()).serving() as two:
        one.fleet = two.fleet = fleet(instances=2, connections=9)
        view = await read(reader, one.address, two.address)
        assert view.fleet == one.fleet
        assert one.fleet_keys + two.fleet_keys == ["key"], "one of them was asked, with the key"


async def test_the_next_one_is_asked_where_one_does_not_answer(reader: FleetReader) -> None:
    async with Instance(loopback()).serving() as instance:
        instance.fleet = fleet()
        for _ in range(5):
            view = await read(reader, loopback(), instance.address)
            assert view.fleet == instance.fleet


async def endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):
        while True:
            await response.write(b" " * 65536)
    return response


async def slow(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):
        while True:
            await response.write(b" ")
            await asyncio.sleep(0.1)
    return response


async def garbage(_: web.Request) -> web.StreamResponse:
    return web.Response(body=b"\xff{" * 100)


async def deep(_: web.Request) -> web.StreamResponse:
    return web.Response(body=b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}")


async def of_another_shape(_: web.Request) -> web.StreamResponse:
    return web.json_response({"instance": "one", "totals": "many"})


async def out_of_bounds(_: web.Request) -> web.StreamResponse:
    totals = Totals(instances=1, connections=10**30, rooms=-1)
    return web.Response(body=msgspec.json.encode(msgspec.structs.replace(fleet(), totals=totals)))


async def record_out_of_bounds(_: web.Request) -> web.StreamResponse:
    whole = fleet()
    records = [msgspec.structs.replace(record, connections=2**63) for record in whole.instances]
    return web.Response(body=msgspec.json.encode(msgspec.structs.replace(whole, instances=records)))


async def record_without_bounds(_: web.Request) -> web.StreamResponse:
    whole = fleet()
    records = [msgspec.structs.replace(record, rooms=-1) for record in whole.instances]
    return web.Response(body=msgspec.json.encode(msgspec.structs.replace(whole, instances=records)))


async def bomb(_: web.Request) -> web.StreamResponse:
    response = web.Response(body=b" " * 50_000_000)
    response.enable_compression(web.ContentCoding.gzip)
    return response


@pytest.mark.parametrize(
    "handler",
    [
        endless,
        slow,
        garbage,
        deep,
        of_another_shape,
        out_of_bounds,
        record_out_of_bounds,
        record_without_bounds,
        bomb,
    ],
    ids=lambda h: h.__name__,
)
async def test_a_hostile_answer_is_no_answer(
    reader: FleetReader, handler: Handler, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, get = loopback(), reader._get

    async def impatient(url: str, *given: Any, timeout_seconds: float, **more: Any) -> Any:
        # Who is honest has all the time that a busy machine takes.
        seconds = 1.0 if f"//{address}:" in url else timeout_seconds
        return await get(url, *given, timeout_seconds=seconds, **more)

    monkeypatch.setattr(reader, "_get", impatient)
    async with answering(handler, address), Instance(loopback()).serving() as honest:
        honest.fleet = fleet(connections=5)
        alone = await read(reader, address)
        assert alone.fleet is None
        (failure,) = alone.failures
        assert failure.startswith(f"pod pod-{address}: ")
        assert len(failure) < 1200
        for _ in range(2):
            assert (await read(reader, address, honest.address)).fleet == honest.fleet


async def test_texts_are_kept_as_far_as_anybody_reads_them(reader: FleetReader) -> None:
    async with Instance(loopback()).serving() as chatty, Instance(loopback()).serving() as waiting:
        long = "x" * 500_000
        told = msgspec.structs.replace(fleet().redis, message=long, version=long)
        chatty.fleet = fleet(redis=told)
        waiting.health = health(long[:30_000], redis=msgspec.structs.replace(told, message="", version=""))
        view = await read(reader, chatty.address, waiting=(waiting.address,))
        assert view.fleet is not None
        assert len(view.fleet.redis.message) == len(view.fleet.redis.version) == reading.TEXT_LIMIT
        assert [len(text) for text in view.healths[0].waiting_for] == [reading.TEXT_LIMIT]


async def test_a_redirect_is_not_followed(reader: FleetReader) -> None:
    hits: list[str] = []

    async def target(_: web.Request) -> web.StreamResponse:
        hits.append("hit")
        return web.Response(body=msgspec.json.encode(fleet()))

    there, here = loopback(), loopback()

    async def away(_: web.Request) -> web.StreamResponse:
        raise web.HTTPFound(f"http://{there}:{FLEET_PORT}/fleet")

    async with answering(target, there), answering(away, here):
        view = await read(reader, here)
    assert view.fleet is None
    assert hits == []


async def test_what_was_heard_last_stays_when_nobody_answers(reader: FleetReader) -> None:
    known = FleetView(fleet=fleet(connections=3), fleet_at=12.0)
    view = await reader.read(
        addressees=Addressees(ready=(("pod", loopback()),), waiting=()),
        fleet_key="key",
        managed_redis=True,
        previous=known,
    )
    assert (view.fleet, view.fleet_at) == (known.fleet, 12.0)
    assert len(view.failures) == 1


async def test_instances_that_are_not_ready_say_what_they_wait_for(reader: FleetReader) -> None:
    async with Instance(loopback()).serving() as instance:
        instance.health = health("Secret x is missing.")
        view = await read(reader, waiting=(instance.address, loopback()))
        assert view.fleet is None
        assert [said.waiting_for for said in view.healths] == [["Secret x is missing."]]
        assert not view.secrets_doubted
        missing = msgspec.structs.replace(instance.health.redis, connected=False, reason="PasswordMissing")
        instance.health = msgspec.structs.replace(instance.health, redis=missing)
        assert (await read(reader, waiting=(instance.address,))).secrets_doubted


async def test_a_fleet_that_is_off_hints_at_a_missing_key(reader: FleetReader) -> None:
    async with Instance(loopback()).serving() as instance:
        instance.fleet = None
        assert (await read(reader, instance.address)).secrets_doubted


@pytest.mark.parametrize(
    ("reason", "while_ready", "while_not"),
    [
        ("Connected", False, False),
        ("OutOfMemory", False, False),
        ("PasswordMissing", True, True),
        ("AuthenticationFailed", True, True),
        ("Unreachable", True, False),
    ],
)
async def test_the_secret_with_a_managed_redis_password_is_doubted_where_its_absence_would_look_so(
    reader: FleetReader, reason: Any, while_ready: bool, while_not: bool
) -> None:
    async with Instance(loopback()).serving() as ready, Instance(loopback()).serving() as waiting:
        state = msgspec.structs.replace(CONNECTED, connected=reason == "Connected", reason=reason)
        ready.fleet, waiting.health = fleet(redis=state), health(redis=state)
        assert (await read(reader, ready.address)).secrets_doubted == while_ready
        assert (await read(reader, waiting=(waiting.address,))).secrets_doubted == while_not
        both = await read(reader, ready.address, waiting=(waiting.address,), managed_redis=False)
        assert not both.secrets_doubted


async def test_a_thousand_instances_with_all_their_rooms_are_read(reader: FleetReader) -> None:
    def big() -> Fleet:
        found = fleet(instances=1000, connections=1000)
        rooms = [RoomLoad(room=f"some:room:with:a:name:{number:06}", members=number) for number in range(200)]
        return msgspec.structs.replace(
            found,
            instances=[msgspec.structs.replace(record, heaviest_rooms=rooms) for record in found.instances],
        )

    async with Instance(loopback()).serving() as instance:
        instance.fleet = big()
        view = await read(reader, instance.address, waiting=(loopback(),) * 999)
        assert view.fleet is not None
        assert len(view.fleet.instances) == 1000
        alone = await read(reader, instance.address)
        assert alone.fleet is None, "one pod must not fill the operator's memory"
        assert "longer than" in alone.failures[0]


def pod(name: str, **changes: object) -> dict[str, object]:
    metadata: dict[str, object] = {
        "name": name,
        "namespace": "ns",
        "labels": {"app.kubernetes.io/component": "dataplane", "pod-template-hash": "abc"},
        "ownerReferences": [{"kind": "ReplicaSet", "name": "tables-a-abc", "controller": True}],
    }
    status: dict[str, object] = {
        "phase": "Running",
        "podIP": "10.0.0.1",
        "conditions": [{"type": "Ready", "status": "True"}],
    }
    metadata.update(
        {key: value for key, value in changes.items() if key in metadata or key == "deletionTimestamp"}
    )
    status.update({key: value for key, value in changes.items() if key in status})
    return {"kind": "Pod", "metadata": metadata, "spec": {}, "status": status}


def test_only_running_pods_of_the_clusters_own_deployments_are_asked() -> None:
    deployments = [{"kind": "Deployment", "metadata": {"name": "tables-a"}}]
    pods = [
        pod("ready"),
        pod("six", podIP="fd00::1"),
        pod("waiting", conditions=[{"type": "Ready", "status": "False"}]),
        pod("other", ownerReferences=[{"kind": "ReplicaSet", "name": "other-abc", "controller": True}]),
        pod("nobodys", ownerReferences=[]),
        pod("redis", labels={"app.kubernetes.io/component": "redis", "pod-template-hash": "abc"}),
        pod("leaving", deletionTimestamp="2026-01-01T00:00:00Z"),
        pod("over", phase="Failed"),
        pod("young", podIP=""),
    ]
    found = addressees(pods, deployments)
    assert found.ready == (("ready", "10.0.0.1"), ("six", "[fd00::1]"))
    assert found.waiting == (("waiting", "10.0.0.1"),)
    assert addressees(pods, []) == Addressees(ready=(), waiting=())


ORDER = Orders(fence=3, id="one", instances=[InstanceOrder(instance="pod-1", cordoned=True)])


async def give(reader: FleetReader, *ready: str, command: FleetCommand = ORDER) -> FleetAnswer:
    whom = Addressees(ready=tuple((f"pod-{address}", address) for address in ready), waiting=())
    return await reader.command(addressees=whom, fleet_key="key", command=command)


@contextlib.asynccontextmanager
async def commanded(handler: Handler, address: str) -> AsyncIterator[None]:
    """A pod that answers `/fleet/commands` its own way."""
    app = web.Application()
    app.router.add_post("/fleet/commands", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, address, FLEET_PORT).start()
    try:
        yield
    finally:
        await runner.cleanup()


async def test_a_command_goes_to_one_instance_for_all(reader: FleetReader) -> None:
    async with Instance(loopback()).serving() as one, Instance(loopback()).serving() as two:
        for instance in (one, two):
            instance.fleet_keys.append("key")
        assert await give(reader, one.address, two.address) == FleetAnswer(fence=3)
        assert one.commands + two.commands == [ORDER]


async def test_the_next_one_is_told_where_one_does_not_take_it(reader: FleetReader) -> None:
    async with Instance(loopback()).serving() as instance:
        instance.fleet_keys.append("key")
        for _ in range(5):
            assert not (await give(reader, loopback(), instance.address)).stale
        assert len(instance.commands) == 5


async def test_that_a_later_operator_has_spoken_is_an_answer(reader: FleetReader) -> None:
    async with Instance(loopback()).serving() as instance:
        instance.fleet_keys.append("key")
        instance.fence = 9
        assert await give(reader, instance.address) == FleetAnswer(stale=True, fence=9)
        assert instance.commands == []


async def test_where_nobody_is_ready_nobody_takes_it(reader: FleetReader) -> None:
    with pytest.raises(CommandNotTakenError, match="no instance is ready"):
        await give(reader)


async def away(_: web.Request) -> web.Response:
    return web.Response(status=503, text="Redis is away: try again.")


async def of_an_older_version(_: web.Request) -> web.Response:
    return web.Response(status=404)


async def contradictory(_: web.Request) -> web.Response:
    return web.Response(body=msgspec.json.encode(FleetAnswer(stale=True, fence=5)))


async def elsewhere(_: web.Request) -> web.Response:
    return web.Response(status=307, headers={"Location": "http://example.invalid/"})


@pytest.mark.parametrize(
    ("handler", "why"),
    [
        (away, "/fleet/commands answered 503: Redis is away: try again."),
        (of_an_older_version, "takes no commands"),
        (garbage, "not what it should be"),
        (deep, "not what it should be"),
        (endless, "longer than"),
        (contradictory, "contradicts itself"),
        (elsewhere, "answered 307"),
    ],
)
async def test_what_is_no_answer_to_a_command(reader: FleetReader, handler: Handler, why: str) -> None:
    address = loopback()
    async with commanded(handler, address):
        with pytest.raises(CommandNotTakenError, match=why):
            await give(reader, address)


async def test_a_slow_answer_to_a_command_is_given_up(
    reader: FleetReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "COMMAND_TIMEOUT_SECONDS", 0.3)
    address = loopback()
    async with commanded(slow, address):
        with pytest.raises(CommandNotTakenError, match="no answer in"):
            await give(reader, address)
