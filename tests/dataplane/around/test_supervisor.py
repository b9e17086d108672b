"""`serve --instances`: names and ports, who is started again, and how all of them end."""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from websockets.asyncio.client import connect

from tableforge_client import connect as client
from tableforge_dataplane.contract.settings import RoutingMode, RoutingSettings
from tableforge_dataplane.launch.supervisor import address_problem, ports_problem
from tests.support.children import Child, free_ports, logged
from tests.support.redis import RedisServer

COMMAND = str(Path(sys.executable).parent / "tableforge-dataplane")
COUNT = 3


class Supervised:
    """`serve --instances 3` on ports of its own."""

    def __init__(
        self,
        directory: Path,
        redis: RedisServer,
        *,
        host: str = "127.0.0.1",
        first: int | None = None,
        **environ: str,
    ) -> None:
        self.first = free_ports(2 * COUNT, host) if first is None else first
        self.child = Child(
            [
                COMMAND,
                "serve",
                "--instances",
                str(COUNT),
                "--host",
                host,
                "--port",
                str(self.first),
            ],
            log=directory / "log",
            environ={
                "PATH": os.environ["PATH"],
                "INSTANCE_ID": "ws-instance",
                "TABLEFORGE_SCALING_DRAIN_TIMEOUT": "300",
                # three of them without an answer, and an instance counts as hung
                "TABLEFORGE_MONITORING_HEALTH_CHECK_INTERVAL": "2000",
                **redis.environ,
                **environ,
            },
        )

    def events(self, event_name: str, /, **fields: Any) -> list[dict[str, Any]]:
        return [
            event
            for event in logged(self.child.log)
            if event["event"] == event_name and fields.items() <= event.items()
        ]

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(90):
            while not condition():
                assert self.child.returncode is None, self.child.output()
                await asyncio.sleep(0.05)

    async def all_healthy(self) -> None:
        await self.until(
            lambda: (
                {event["name"] for event in self.events("instance_health", status="healthy")} == set(NAMES)
            )
        )

    def pid(self, name: str) -> int:
        return int(self.events("instance_started", name=name)[-1]["pid"])


NAMES = [f"ws-instance-{number + 1}" for number in range(COUNT)]


@asynccontextmanager
async def supervised(directory: Path, redis: RedisServer, **more: Any) -> AsyncIterator[Supervised]:
    found = Supervised(directory, redis, **more)
    try:
        yield found
    finally:
        if found.child.returncode is None:
            await found.child.stop(timeout_seconds=60)


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def welcome(port: int, host: str = "127.0.0.1") -> dict[str, Any]:
    async with connect(f"ws://{host}:{port}/ws") as client:
        found: dict[str, Any] = json.loads(await client.recv())
        return found


async def test_three_instances_serve_one_room_on_ports_that_follow_one_another_and_end_in_order(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    async with supervised(tmp_path, redis_server) as running:
        await running.all_healthy()
        for place, name in enumerate(NAMES):
            assert (await welcome(running.first + place))["instance"] == name
            async with (
                aiohttp.ClientSession() as http,
                http.get(f"http://127.0.0.1:{running.first + COUNT + place}/metrics") as response,
            ):
                assert f'instance_id="{name}"' in await response.text()
        async with (
            connect(f"ws://127.0.0.1:{running.first}/ws") as one,
            connect(f"ws://127.0.0.1:{running.first + 2}/ws") as two,
        ):
            for client in (one, two):
                await client.recv()
                await client.send('{"type":"join","room":"table:1"}')
                await client.recv()
            await two.send('{"type":"publish","room":"table:1","event":"move","data":7}')
            message = json.loads(await one.recv())
            assert (message["event"], message["data"]) == ("move", 7)
            pids = [running.pid(name) for name in NAMES]
            running.child.send(signal.SIGTERM)
            await one.wait_closed()
            assert one.close_code == 1012
        assert await running.child.ended(60) == 0
        assert not any(alive(pid) for pid in pids)
        assert {event["instance"] for event in running.events("drained")} == set(NAMES)


async def test_who_listens_on_an_ipv6_address_is_found_there(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    except OSError:
        pytest.skip("this machine has no IPv6")
    async with supervised(tmp_path, redis_server, host="::1") as running:
        await running.all_healthy()
        assert (await welcome(running.first, "[::1]"))["instance"] == NAMES[0]


async def test_in_gateway_mode_each_has_its_own_port_as_its_address_and_a_rooms_members_meet_on_one(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    async with supervised(tmp_path, redis_server, TABLEFORGE_ROUTING_MODE="Gateway") as running:
        await running.all_healthy()
        urls = [f"ws://127.0.0.1:{running.first + place}/ws" for place in range(COUNT)]
        async with AsyncExitStack() as stack:
            # (the name differs, the machine doesn't)
            clients = [
                await stack.enter_async_context(client(url.replace("127.0.0.1", "localhost"))) for url in urls
            ]
            for one in clients:
                await one.join("table:1")
            async with asyncio.timeout(60):
                while len({one.instance for one in clients}) > 1:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            assert clients[0].instance in NAMES


@pytest.mark.parametrize(
    ("mode", "address", "problem"),
    [
        ("Service", "/i/one/ws", None),
        ("Gateway", "", None),
        (
            "Gateway",
            "/i/one/ws",
            (
                "--instances 3: all would have TABLEFORGE_ROUTING_ADDRESS=/i/one/ws: leave it out, and each "
                "has one of its own."
            ),
        ),
    ],
)
def test_one_address_cannot_be_several_instances(
    mode: RoutingMode, address: str, problem: str | None
) -> None:
    assert address_problem(RoutingSettings(mode=mode, address=address), 3) == problem


async def test_who_crashes_or_hangs_is_started_again_and_the_others_notice_nothing(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    async with supervised(tmp_path, redis_server) as running:
        await running.all_healthy()
        async with connect(f"ws://127.0.0.1:{running.first + 1}/ws") as bystander:
            crashed, hung, other = (running.pid(name) for name in (NAMES[0], NAMES[2], NAMES[1]))
            os.kill(crashed, signal.SIGKILL)
            os.kill(hung, signal.SIGSTOP)
            await running.until(lambda: running.events("instance_hangs", name=NAMES[2]))
            for name in (NAMES[0], NAMES[2]):
                await running.until(lambda name=name: len(running.events("instance_started", name=name)) == 2)
                await running.until(lambda name=name: running.events("started", instance=name)[1:])
            assert running.events("instance_ended", name=NAMES[0])[0]["code"] == -signal.SIGKILL
            assert {running.pid(NAMES[0]), running.pid(NAMES[2])}.isdisjoint({crashed, hung})
            assert running.pid(NAMES[1]) == other
            await bystander.send('{"type":"ping"}')
            assert json.loads(await bystander.recv())["type"] == "welcome"
            assert json.loads(await bystander.recv())["type"] == "pong"
        assert (await welcome(running.first))["instance"] == NAMES[0]


async def test_who_crashes_again_and_again_is_started_less_and_less_often(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    async with supervised(tmp_path, redis_server) as running:
        await running.all_healthy()
        for count in range(1, 4):
            os.kill(running.pid(NAMES[1]), signal.SIGKILL)
            await running.until(
                lambda count=count: len(running.events("instance_started", name=NAMES[1])) > count
            )
        delays = [event["again_in_seconds"] for event in running.events("instance_ended", name=NAMES[1])]
        assert delays == [0.5, 1.0, 2.0]


async def test_a_taken_port_ends_them_all_with_1(redis_server: RedisServer, tmp_path: Path) -> None:
    first = free_ports(2 * COUNT)
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", first + 1)
    async with server, supervised(tmp_path, redis_server, first=first) as running:
        assert await running.child.ended(60) == 1
        [event] = running.events("instance_does_not_start")
        assert (event["name"], event["port"]) == (NAMES[1], first + 1)


async def test_they_end_with_a_supervisor_that_is_killed(redis_server: RedisServer, tmp_path: Path) -> None:
    async with supervised(tmp_path, redis_server) as running:
        await running.all_healthy()
        pids = [running.pid(name) for name in NAMES]
        await running.child.kill9()
        async with asyncio.timeout(60):
            while any(alive(pid) for pid in pids):  # noqa: ASYNC110 (other processes)
                await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("port", "http_port", "said"),
    [
        (3001, 3004, None),
        (3004, 3001, None),
        (3001, 3003, "overlap"),
        (3003, 3001, "overlap"),
        (0, 3001, "is 0"),
        (3001, 0, "is 0"),
        (65534, 3001, "65535"),
    ],
)
def test_ports_must_have_room_to_follow_one_another(port: int, http_port: int, said: str | None) -> None:
    problem = ports_problem(port, http_port, 3)
    assert problem is None if said is None else said in str(problem)
