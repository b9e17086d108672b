"""Plain HTTP on real sockets: checks on the clients' port, metrics and the fleet on the internal one."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import InvalidStatus
from websockets.http11 import Request, Response

from tableforge_dataplane.contract import environment
from tableforge_dataplane.contract.fleet import Fleet, Health, RedisState, Totals
from tableforge_dataplane.contract.settings import Secret
from tableforge_dataplane.http.internal import InternalHttp
from tableforge_dataplane.http.public import PublicHttp
from tableforge_dataplane.http.readiness import InstanceHealth, Readiness, redis_condition
from tableforge_dataplane.observability.metrics import Exposition, Metrics
from tableforge_dataplane.registry.registry import ThisInstance

UP = RedisState(connected=True, reason="Connected", message="Redis answers.", version="9.0")
DOWN = RedisState(connected=False, reason="Unreachable", message="Redis at redis:6379 does not answer.")


class World:
    """What an instance's health is made of, for the test to turn."""

    def __init__(self) -> None:
        self.redis = UP
        self.missing: str | None = None
        self._looks = 0
        self._looked = asyncio.Event()
        self.metrics = Metrics()
        self.readiness = Readiness([self._look, redis_condition(lambda: self.redis)])
        self.health = InstanceHealth(
            this=ThisInstance(instance="one", boot="b", version="1.2", started_at=0.0),
            readiness=self.readiness,
            metrics=self.metrics,
            redis_state=lambda: self.redis,
        )

    async def looked_at(self, *, times: int) -> None:
        """Wait until somebody has looked so often whether everything is there."""
        goal = self._looks + times
        async with asyncio.timeout(30):
            while self._looks < goal:
                self._looked.clear()
                await self._looked.wait()

    def _look(self) -> str | None:
        self._looks += 1
        self._looked.set()
        return self.missing


@asynccontextmanager
async def public(world: World) -> AsyncIterator[int]:
    public_http = PublicHttp(world.health, instance="instance-1")

    def process_request(_connection: ServerConnection, request: Request) -> Response | None:
        return public_http.answer(request)

    async def handler(connection: ServerConnection) -> None:
        await connection.send("welcome")

    async with serve(handler, "127.0.0.1", 0, process_request=process_request) as server:
        yield next(iter(server.sockets)).getsockname()[1]


async def ask(port: int, text: str) -> tuple[int, dict[str, str], bytes]:
    """Everything that comes back for these bytes, until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(text.encode())
    async with asyncio.timeout(30):
        answer = await reader.read()
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *headers = head.decode().split("\r\n")
    return int(status.split()[1]), {k.lower(): v for k, v in (h.split(": ", 1) for h in headers)}, body


async def get(port: int, path: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    return await ask(port, f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n")


async def test_an_instance_starts_once_everything_is_there_and_stays_ready() -> None:
    world = World()
    world.missing, world.redis = "JWT_SECRET_FILE=/x does not exist: create it.", DOWN
    async with public(world) as port:
        starting = asyncio.create_task(world.readiness.start())
        await asyncio.sleep(0)
        status, _, body = await get(port, "/ready")
        assert status == 503
        assert world.missing in body.decode()
        assert DOWN.message in body.decode()
        status, _, body = await get(port, "/health")
        health = msgspec.json.decode(body, type=Health)
        assert (status, health.status, health.ready) == (503, "starting", False)
        assert health.waiting_for == [world.missing, DOWN.message]
        assert (await get(port, "/live"))[0] == 200

        world.missing = None
        await world.looked_at(times=3)
        assert not starting.done()
        world.redis = UP
        async with asyncio.timeout(30):
            await starting
        assert (await get(port, "/ready"))[0] == 200
        status, _, body = await get(port, "/health")
        assert (status, msgspec.json.decode(body, type=Health).status) == (200, "healthy")

        # away later: degraded, but ready
        world.redis = DOWN
        assert (await get(port, "/ready"))[0] == 200
        status, _, body = await get(port, "/health")
        health = msgspec.json.decode(body, type=Health)
        assert (status, health.status, health.redis.reason) == (503, "degraded", "Unreachable")
        assert health.waiting_for == []

        world.readiness.drain()
        assert (await get(port, "/ready"))[0] == 503
        assert msgspec.json.decode((await get(port, "/health"))[2], type=Health).status == "draining"
        assert (await get(port, "/live"))[0] == 200


async def test_health_tells_the_numbers_in_camel_case() -> None:
    world = World()
    await world.readiness.start()
    world.metrics.connections, world.metrics.rooms = 4, 2
    async with public(world) as port:
        status, headers, body = await get(port, "/health?verbose=1")
    found: dict[str, Any] = msgspec.json.decode(body)
    assert status == 200
    assert headers["content-type"] == "application/json"
    assert headers["cache-control"] == "no-store"
    assert (found["connections"], found["rooms"], found["instance"], found["version"]) == (4, 2, "one", "1.2")
    assert found["uptimeSeconds"] >= 0
    assert found["waitingFor"] == []


@pytest.mark.parametrize("path", ["/health", "/ready", "/live", "/elsewhere"])
async def test_head_has_the_headers_of_get_and_no_body(path: str) -> None:
    async with public(World()) as port:
        got, head = await get(port, path), await get(port, path, "HEAD")
    assert head[0] == got[0]
    # the uptime in the body changes its length a little
    assert abs(int(head[1]["content-length"]) - len(got[2])) <= 6
    assert head[2] == b""


@pytest.mark.parametrize("path", ["/", "/wss", "/ws/", "/metrics", "/fleet", "//live", "/%2e%2e/live"])
async def test_other_paths_are_not_found(path: str) -> None:
    async with public(World()) as port:
        status, _, body = await get(port, path)
    assert status == 404
    assert b"/ws" in body


async def test_other_methods_are_not_allowed() -> None:
    async with public(World()) as port:
        status, headers, _ = await get(port, "/health", "DELETE")
        assert (status, headers["allow"]) == (405, "GET, HEAD")
        assert (await get(port, "/ws", "HEAD"))[0] == 405


async def test_ws_goes_on_to_the_handshake_and_plain_get_is_told_to_upgrade() -> None:
    async with public(World()) as port:
        async with connect(f"ws://127.0.0.1:{port}/ws?x=1") as client:
            assert await client.recv() == "welcome"
        with pytest.raises(InvalidStatus) as caught:
            await connect(f"ws://127.0.0.1:{port}/other")
        assert caught.value.response.status_code == 404
        assert (await get(port, "/ws"))[0] == 426


NO_KEY = Secret()

FLEET = Fleet(
    instance="one",
    redis=UP,
    as_of=1.5,
    totals=Totals(instances=1, connections=2, rooms=3),
    instances=[],
)


@asynccontextmanager
async def internal(
    key: Secret = NO_KEY,
    *,
    fleet: Any = None,
    world: World | None = None,
) -> AsyncIterator[tuple[InternalHttp, aiohttp.ClientSession]]:
    async def answer() -> Fleet:
        return FLEET

    settings = environment.read({"WS_HOST": "127.0.0.1", "TABLEFORGE_HTTP_PORT": "0"})
    settings = dataclasses.replace(settings, http=dataclasses.replace(settings.http, fleet_key=key))
    server = InternalHttp(
        settings,
        exposition=Exposition(Metrics(), instance="one"),
        fleet=answer if fleet is None else fleet,
        page=(World() if world is None else world).health.page,
    )
    await server.start()
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as client:
            yield server, client
    finally:
        await server.stop()


async def test_metrics_are_open() -> None:
    async with internal() as (_, client), client.get("/metrics") as answer:
        assert answer.status == 200
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        assert "tableforge_websocket_connections_total" in await answer.text()


async def test_probes_are_answered_on_the_internal_port_as_on_the_other() -> None:
    world = World()
    async with internal(world=world) as (_, client):
        for path, wanted in (("/live", 200), ("/ready", 503), ("/health", 503)):
            async with client.get(path) as answer:
                assert answer.status == wanted
        await world.readiness.start()
        async with client.get("/ready") as answer:
            assert (answer.status, await answer.text()) == (200, "ready\n")
        async with client.get("/health") as answer:
            assert answer.status == 200
            assert msgspec.json.decode(await answer.read(), type=Health).ready
        world.readiness.drain()
        async with client.get("/ready") as answer:
            assert (answer.status, await answer.text()) == (503, "draining\n")


async def test_the_fleet_is_off_without_a_key_and_says_so() -> None:
    async with internal() as (_, client), client.get("/fleet") as answer:
        assert answer.status == 404
        assert "TABLEFORGE_HTTP_FLEET_KEY is not set" in (await answer.json())["error"]["message"]


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        "Basic the-key",
        "the-key",
        "Bearer the-key2",
        "Bearer clé",
    ],
)
async def test_the_fleet_needs_its_key(header: str | None) -> None:
    async with internal(Secret(value="the-key")) as (_, client):
        headers = {} if header is None else {"Authorization": header}
        async with client.get("/fleet", headers=headers) as answer:
            assert answer.status == 401
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")
            text = await answer.text()
            assert "the-key" not in text


async def test_with_its_key_the_fleet_is_told() -> None:
    async with internal(Secret(value="the-key")) as (_, client):
        for scheme in ("Bearer", "bearer"):
            async with client.get("/fleet", headers={"Authorization": f"{scheme} the-key"}) as answer:
                assert answer.status == 200
                assert msgspec.json.decode(await answer.read(), type=Fleet) == FLEET
                assert (await answer.json())["asOf"] == 1.5


async def test_a_key_file_may_come_late_and_change(tmp_path: Path) -> None:
    file = tmp_path / "key"

    async def status(key: str) -> int:
        async with client.get("/fleet", headers={"Authorization": f"Bearer {key}"}) as answer:
            return answer.status

    async def until(key: str, wanted: int) -> None:
        async with asyncio.timeout(30):
            while await status(key) != wanted:  # noqa: ASYNC110 (a file has no event)
                await asyncio.sleep(0.05)

    async with internal(Secret(file=file)) as (_, client):
        assert await status("first") == 404
        file.write_text("first\n")
        await until("first", 200)
        file.write_text("second!\n")
        await until("second!", 200)
        assert await status("first") == 401


async def test_a_fleet_that_does_not_come_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tableforge_dataplane.http.internal.ANSWER_WITHIN_SECONDS", 0.05)
    never = asyncio.Event()

    async def fleet() -> Fleet:
        await never.wait()
        return FLEET

    async with (
        internal(Secret(value="the-key"), fleet=fleet) as (_, client),
        client.get("/fleet", headers={"Authorization": "Bearer the-key"}) as answer,
    ):
        assert answer.status == 503
        assert (await answer.json())["error"]["code"] == "unavailable"


async def test_other_paths_and_methods_on_the_internal_port() -> None:
    async with internal() as (_, client):
        async with client.get("/secrets") as answer:
            assert answer.status == 404
            assert (await answer.json())["error"]["code"] == "not_found"
        async with client.post("/metrics", data=b"x" * 200_000) as answer:
            assert answer.status == 405


async def test_a_port_that_is_taken_is_an_error_at_start() -> None:
    async with internal() as (first, _):
        settings = environment.read({"WS_HOST": "127.0.0.1", "TABLEFORGE_HTTP_PORT": str(first.port)})
        second = InternalHttp(
            settings,
            exposition=Exposition(Metrics(), instance="two"),
            fleet=first._fleet,
            page=World().health.page,
        )
        with pytest.raises(OSError, match="address already in use"):
            await second.start()
