"""Instances of one cluster in Gateway mode, in the test's own process, and what a test asks of them."""

import asyncio
from typing import Any

import aiohttp
import msgspec

from tableforge_dataplane.contract.endpoints import FLEET_COMMANDS_PATH
from tableforge_dataplane.contract.fleet import FleetAnswer, FleetCommand
from tableforge_dataplane.contract.settings import Secret
from tableforge_dataplane.server import Server
from tests.dataplane.path.instances import Instances, until
from tests.support.redis import RedisServer

KEY = "the-key-of-this-cluster"

API_KEY = "the-key-of-the-application"

QUICK: dict[str, Any] = {
    "heartbeat_interval_seconds": 0.3,
    "cleanup_interval_seconds": 0.2,
    "inactive_threshold_seconds": 0.5,
    "failover_timeout_seconds": 3.0,
    "drain_seconds": 0.5,
}
"""So that what waits for leases, heartbeats and clean-ups happens in a test's time; and leases that a busy
machine does not let run out by itself, nor calls, which may take a third of that."""


async def fleet(
    instances: Instances, redis: RedisServer, count: int, *, mode: str = "Gateway", **groups: Any
) -> list[Server]:
    """`instance-1` and so on, each with an address; quick where `scaling` says nothing else."""
    made: list[Server] = []
    groups.setdefault("scaling", QUICK)
    http = {"port": 0, "fleet_key": Secret(value=KEY), "api_key": Secret(value=API_KEY)}
    first = len(instances.servers) + 1
    for number in range(first, first + count):
        routing = {"mode": mode, "address": f"/i/instance-{number}/ws"}
        made += await instances(
            redis,
            1,
            wait_until_ready=False,
            routing=routing,
            http=http,
            redis={"key_prefix": "test"},
            **groups,
        )
    await until(
        lambda: all(
            one.ready and one._registry.registered and (one.homes.stands or not one.homes.kept)
            for one in made
        )
    )
    return made


def kill(one: Server) -> None:
    """As `kill -9` does, as far as Redis sees it: no good-bye, the lease runs out by itself."""
    for task in (*one._registry._tasks, *one.homes._tasks):
        task.cancel()
    one.control._handlers.clear()


def enter(rooms: list[str], *servers: Server) -> None:
    """Each of the rooms has members at each of these."""
    for server in servers:
        for room in rooms:
            server.homes.entered(room)


def agreed(rooms: list[str], *servers: Server) -> dict[str, str] | None:
    """Each room's home; None where some don't know it, or these don't agree."""
    found: dict[str, str] = {}
    for room in rooms:
        homes = {server.homes.home_of(room) for server in servers}
        if len(homes) != 1 or (home := homes.pop()) is None:
            return None
        found[room] = home
    return found


async def post(server: Server, body: FleetCommand | bytes, **headers: str) -> tuple[int, bytes]:
    """`POST /fleet/commands`: status and body of the answer."""
    url = f"http://127.0.0.1:{server.http_port}{FLEET_COMMANDS_PATH}"
    data = body if isinstance(body, bytes) else msgspec.json.encode(body)
    headers = {"Authorization": f"Bearer {KEY}", **headers}
    async with (
        aiohttp.ClientSession() as client,
        client.post(url, data=data, headers=headers) as answer,
    ):
        return answer.status, await answer.read()


async def command(server: Server, body: FleetCommand) -> FleetAnswer:
    """A command that is carried out; sent again where Redis did not answer in time, as the operator does."""
    async with asyncio.timeout(30):
        while (found := await post(server, body))[0] == 503:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    status, answer = found
    assert status == 200, answer
    return msgspec.json.decode(answer, type=FleetAnswer)
