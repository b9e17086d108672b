"""`/i/<instance>/ws` reaches that instance and no other."""

import json

import aiohttp
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tableforge_dataplane.contract.fleet import InstanceOrder, Orders
from tableforge_dataplane.server import Server
from tests.dataplane.homes.fleets import command, fleet
from tests.dataplane.path.instances import Instances, Peers, until
from tests.support.redis import RedisServer


async def welcomed_by(server: Server, path: str) -> str:
    async with connect(f"ws://127.0.0.1:{server.port}{path}") as socket:
        welcome = json.loads(await socket.recv())
        assert welcome["type"] == "welcome"
        return str(welcome["instance"])


async def refused(server: Server, path: str) -> tuple[int, str]:
    with pytest.raises(InvalidStatus) as caught:
        await welcomed_by(server, path)
    response = caught.value.response
    return response.status_code, (response.body or b"").decode()


async def get(server: Server, path: str) -> tuple[int, str]:
    async with (
        aiohttp.ClientSession() as client,
        client.get(f"http://127.0.0.1:{server.port}{path}") as answer,
    ):
        return answer.status, await answer.text()


@pytest.mark.parametrize("query", ["", "?", "?a=b"])
async def test_its_own_path_is_as_good_as_the_one_of_all(
    instances: Instances, redis_server: RedisServer, query: str
) -> None:
    (one,) = await fleet(instances, redis_server, 1)
    assert await welcomed_by(one, f"/i/instance-1/ws{query}") == "instance-1"
    assert await welcomed_by(one, f"/ws{query}") == "instance-1"


async def test_it_is_there_in_every_mode(instances: Instances, redis_server: RedisServer) -> None:
    (one,) = await instances(redis_server)
    assert await welcomed_by(one, "/i/instance-1/ws") == "instance-1"


async def test_another_instances_is_not_here_and_the_answer_says_so(
    instances: Instances, redis_server: RedisServer
) -> None:
    (one,) = await fleet(instances, redis_server, 1)
    for path in ("/i/instance-2/ws", "/i/instance-1x/ws", "/i/instance-/ws", "/i//ws", "/i/instance%2D1/ws"):
        status, text = await refused(one, path)
        assert (status, "connect to /ws" in text) == (404, True), path
    for path in ("/i/instance-1", "/i/instance-1/", "/i/instance-1/nowhere", "/i/instance-1/i/instance-1/ws"):
        status, text = await refused(one, path)
        assert (status, "connect to /ws" in text) == (404, True), path


async def test_health_is_there_as_well(instances: Instances, redis_server: RedisServer) -> None:
    (one,) = await fleet(instances, redis_server, 1)
    assert await get(one, "/i/instance-1/live") == (200, "alive\n")
    assert await get(one, "/i/instance-1/ready") == (200, "ready\n")
    status, text = await get(one, "/i/instance-1/health")
    assert (status, json.loads(text)["instance"]) == (200, "instance-1")
    assert (await get(one, "/i/instance-2/health"))[0] == 404


async def test_a_cordoned_instance_takes_nobody_there_and_serves_who_is_in_and_who_has_nowhere_else(
    instances: Instances, redis_server: RedisServer, peers: Peers
) -> None:
    (one,) = await fleet(instances, redis_server, 1)
    ada = await peers(one)
    await command(
        one, Orders(fence=1, id="a", instances=[InstanceOrder(instance="instance-1", cordoned=True)])
    )
    await until(lambda: one.homes.cordoned)
    status, text = await refused(one, "/i/instance-1/ws")
    assert status == 503
    assert "takes no more clients" in text
    assert await welcomed_by(one, "/ws") == "instance-1"
    await ada.join("r")
    await command(one, Orders(fence=1, id="b", instances=[InstanceOrder(instance="instance-1")]))
    await until(lambda: not one.homes.cordoned)
    assert await welcomed_by(one, "/i/instance-1/ws") == "instance-1"
