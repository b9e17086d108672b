"""How often and how soon Redis is tried again: `maxRetriesPerRequest` and `retryDelayOnFailover`."""

import asyncio
from typing import Any

import pytest

from tableforge_dataplane.contract.settings import RedisSettings
from tableforge_dataplane.registry.connection import REDIS_FAILURES, connect
from tableforge_dataplane.topology.slots import slot_of
from tests.dataplane.path.instances import Instances, Peers
from tests.support.proxy import FaultProxy
from tests.support.redis import RedisServer
from tests.support.redis_cluster import RedisCluster, ask


async def redirections(cluster: RedisCluster) -> int:
    """How often the cluster's nodes have said MOVED."""
    count = 0
    for node in cluster.primaries:
        errors: dict[str, Any] = await ask(node, "INFO", "errorstats")
        count += int(errors.get("errorstat_MOVED", {}).get("count", 0))
    return count


@pytest.mark.parametrize("retries", [0, 4])
async def test_a_read_that_is_sent_from_node_to_node_is_given_up_after_so_many_retries(
    instances: Instances, peers: Peers, retries: int
) -> None:
    async with RedisCluster() as cluster:
        [one] = await instances(
            cluster.primaries[0],
            redis={
                "mode": "Cluster",
                "addresses": cluster.addresses,
                "max_retries_per_request": retries,
                "connect_timeout_seconds": 10.0,
            },
        )
        ada = await peers(one)
        slot = slot_of(b"nowhere")
        here = await cluster.owner(slot)
        there = next(node for node in cluster.primaries if node is not here)
        # each of the two says from now on that the other one has the slot
        await ask(here, "CLUSTER", "SETSLOT", slot, "NODE", (await ask(there, "CLUSTER", "MYID")).decode())
        before = await redirections(cluster)
        await ada.say({"type": "history", "id": 1, "room": "nowhere", "last": 1})
        assert (await ada.until("error"))["code"] == "unavailable"
        # a page is read by two commands: where the log stands, and what is in it
        assert await redirections(cluster) - before == 2 * (retries + 1)


@pytest.mark.parametrize("retries", [0, 2])
async def test_a_call_whose_connection_is_lost_is_sent_again_so_often(
    retries: int,
) -> None:
    """The registry's."""
    calls = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal calls
        while data := await reader.read(65_536):
            if b"PING" in data:
                calls += 1
                break
            writer.write(b"+OK\r\n" * data.count(b"*"))
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    settings = RedisSettings(
        host="127.0.0.1",
        port=server.sockets[0].getsockname()[1],
        max_retries_per_request=retries,
        retry_delay_on_failover_seconds=0.01,
    )
    client = connect(settings, timeout_seconds=10, on_connect=lambda: None)
    with pytest.raises(REDIS_FAILURES):
        await client.ping()
    assert calls == retries + 1
    await client.aclose()
    server.close()
    await server.wait_closed()


async def test_a_lost_redis_is_left_alone_for_half_the_delay_at_least(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    async with FaultProxy(redis_server.port) as proxy:
        [one] = await instances(
            redis_server, redis={"port": proxy.port, "retry_delay_on_failover_seconds": 2.0}
        )
        ada = await peers(one)
        await ada.join("room")
        loop = asyncio.get_running_loop()
        began = loop.time()
        proxy.cut()
        await ada.published("room", 1)  # Redis was there all the time
        assert loop.time() - began >= 1.0
