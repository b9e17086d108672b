"""A Redis Cluster: rooms at their shards, slots that move and nodes that die under traffic."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tableforge_dataplane.broker.addresses import RoomAddress
from tableforge_dataplane.server import Server
from tableforge_dataplane.topology.slots import slot_of
from tests.dataplane.path.instances import Instances, Peers, until
from tests.support.ledger import Ledger
from tests.support.redis import Binary
from tests.support.redis_cluster import RedisCluster, ask, eventually, is_primary

SECURITY: dict[str, Any] = {
    "max_messages_per_second": 100_000,
    "max_messages_per_minute": 1_000_000,
    "max_bytes_per_second": 1_000_000_000,
}

MANY = 400
"""Publishes that may be under way at once."""


def settings(cluster: RedisCluster, **redis: Any) -> dict[str, dict[str, Any]]:
    return {
        "redis": {
            "mode": "Cluster",
            "addresses": cluster.addresses,
            "connect_timeout_seconds": 1.0,
            **redis,
        },
        "security": SECURITY,
        "rooms": {"check_interval_seconds": 1.0},
    }


async def started(instances: Instances, cluster: RedisCluster, count: int, **redis: Any) -> list[Server]:
    return await instances(cluster.primaries[0], count, **settings(cluster, **redis))


def urls(servers: list[Server]) -> list[str]:
    return [f"ws://127.0.0.1:{server.port}/ws" for server in servers]


def address(server: Server, room: str) -> RoomAddress:
    return server.broker.address(room)


def unbroken(ledger: Ledger, *, resets: bool = False) -> None:
    verdict = ledger.check()
    assert not verdict.broken, verdict.describe()
    assert resets or not verdict.resets, verdict.describe()


@pytest.fixture
async def cluster() -> AsyncIterator[RedisCluster]:
    async with RedisCluster() as made:
        yield made


@pytest.mark.parametrize("binary", ["valkey", "redis62", "redis7"])
async def test_every_room_lives_at_the_shard_that_serves_its_slot(
    instances: Instances, peers: Peers, binary: Binary
) -> None:
    async with RedisCluster(binary=binary) as cluster:
        one, two = await started(instances, cluster, 2)
        ada, bob = await peers(one), await peers(two)
        rooms = [f"room-{number}" for number in range(12)]
        for room in rooms:
            await ada.join(room)
            await bob.join(room)
        for number in range(10):
            for room in rooms:
                await ada.publish(room, number)
        for room in rooms:
            await ada.publish(room, "cursor", volatile=True)
        heard: dict[str, list[Any]] = {room: [] for room in rooms}
        for message in await bob.messages(11 * len(rooms)):
            heard[message["room"]].append(message["data"])
        assert all(data == [*range(10), "cursor"] for data in heard.values()), heard
        for room in rooms:
            owner = await cluster.owner(slot_of(room.encode()))
            where = address(one, room)
            assert await ask(owner, "EXISTS", where.log) == 1
            # where Pub/Sub can be sharded it is, so that no message goes over the cluster's bus
            sharded = binary != "redis62" and where.channel in await ask(owner, "PUBSUB", "SHARDCHANNELS")
            plain = where.channel in await ask(owner, "PUBSUB", "CHANNELS")
            assert (sharded, plain) == (binary != "redis62", binary == "redis62"), room
        assert all([await ask(node, "DBSIZE") for node in cluster.primaries])
        # a room that was left and joined anew is read back from its shard
        await bob.say({"type": "history", "id": 1, "room": rooms[0], "last": 3})
        history = await bob.until("history")
        assert [message["data"] for message in history["messages"]] == [7, 8, 9]
        fleet = await one._registry.fleet()
        assert {record.instance for record in fleet.instances} == {"instance-1", "instance-2"}


async def test_a_slot_moves_under_traffic_to_a_node_that_had_none(
    instances: Instances, cluster: RedisCluster
) -> None:
    servers = await started(instances, cluster, 2)
    async with Ledger(urls(servers), members=3, rooms=6, seed=1) as ledger:
        over = asyncio.Event()
        talking = asyncio.create_task(ledger.talk(per_second=500, until=over))
        newcomer = await cluster.add()
        room = "ledger:1"
        slot = slot_of(room.encode())
        source = await cluster.owner(slot)
        where = address(servers[0], room)
        await ledger.busy(1)
        await cluster.begin_move(slot, source=source, target=newcomer)
        await ledger.more(150)
        # one key here and one there: nobody can use both for now
        await cluster.move_keys(slot, source=source, target=newcomer, keys=(where.meta,))
        # who waits for it takes a place, so that hardly anybody says anything in the end
        await ledger.busy(16)
        await cluster.move_keys(slot, source=source, target=newcomer)
        # from now on everything is asked for at the newcomer, which does not have the slot yet
        await ledger.more(200)
        await cluster.end_move(slot, source=source, target=newcomer)
        await ledger.more(200)
        back = cluster.primaries[0] if cluster.primaries[0] is not source else cluster.primaries[1]
        await cluster.begin_move(slot, source=newcomer, target=back)
        await cluster.move_keys(slot, source=newcomer, target=back)
        await cluster.end_move(slot, source=newcomer, target=back)
        await ledger.more(200)
        over.set()
        await talking
        await ledger.settle(timeout_seconds=60)
        assert await ask(back, "XLEN", where.log) > 100
    unbroken(ledger)
    assert not ledger.book.unknown
    assert ledger.reconnects == 0


async def test_one_senders_messages_keep_their_order_while_their_slot_moves(
    instances: Instances, peers: Peers, cluster: RedisCluster
) -> None:
    """Hundreds are under way at once, each time the slot begins to move, is half moved, and has moved."""
    one, two = await started(instances, cluster, 2)
    ada, bob = await peers(one), await peers(two)
    room = "dense"
    slot = slot_of(room.encode())
    await ada.join(room)
    await bob.join(room)
    where = address(one, room)
    sent = 0
    moving = True

    async def send() -> None:
        nonlocal sent
        while moving:
            numbers = range(sent, sent + 50)
            sent += 50
            publish = {"type": "publish", "room": room, "event": "said"}
            await ada.say(*({**publish, "id": number, "data": number} for number in numbers))
            await asyncio.sleep(0.02)  # a pace
            await until(lambda: one.broker.publisher.depth < MANY)

    async def hundreds() -> None:
        """Wait until so many more were sent, or wait."""
        wanted = sent + 250
        await until(lambda: sent >= wanted or one.broker.publisher.depth >= MANY)

    sending = asyncio.create_task(send())
    for turn in range(4):
        source = await cluster.owner(slot)
        target = cluster.primaries[(cluster.primaries.index(source) + 1) % 3]
        await cluster.begin_move(slot, source=source, target=target)
        await cluster.move_keys(slot, source=source, target=target, keys=(where.log, where.meta)[: turn % 3])
        await hundreds()
        await cluster.move_keys(slot, source=source, target=target)
        await hundreds()
        await cluster.end_move(slot, source=source, target=target)
        await hundreds()
    moving = False
    await sending
    heard = [message["data"] for message in await bob.messages(sent)]
    assert heard == list(range(sent))
    assert sent > 1000


async def test_the_fence_of_each_shard_keeps_a_key_that_the_shard_has(
    instances: Instances, peers: Peers
) -> None:
    """`appendfsync everysec`: acknowledgements on disk wait for one write to the shard itself."""
    async with RedisCluster(binary="redis8") as cluster:
        [one] = await started(instances, cluster, 1, durability="Disk")
        ada = await peers(one)
        rooms = [f"room-{number}" for number in range(6)]
        assert len({slot_of(room.encode()) // 5462 for room in rooms}) == 3, "one for each shard at least"
        for room in rooms:
            await ada.join(room)
            await ada.publish(room, "before")
        for _ in rooms:
            assert (await ada.until("ack"))["seq"] == 1
        # the lowest slot of each shard has its fence's key
        slot = 5462
        source, target = await cluster.owner(slot), cluster.primaries[0]
        assert source is not target
        await cluster.begin_move(slot, source=source, target=target)
        await cluster.move_keys(slot, source=source, target=target)
        await cluster.end_move(slot, source=source, target=target)
        for room in rooms:
            await ada.publish(room, "after")
        for _ in rooms:
            assert (await ada.until("ack"))["seq"] == 2


# 6.2 has no sharded channels
@pytest.mark.parametrize("binary", ["redis62", "redis7"])
async def test_a_slot_moves_on_an_older_redis(instances: Instances, binary: Binary) -> None:
    async with RedisCluster(binary=binary) as cluster:
        servers = await started(instances, cluster, 2)
        async with Ledger(urls(servers), members=2, rooms=4, seed=2) as ledger:
            over = asyncio.Event()
            talking = asyncio.create_task(ledger.talk(per_second=500, until=over))
            slot = slot_of(b"ledger:2")
            source = await cluster.owner(slot)
            target = next(node for node in cluster.primaries if node is not source)
            await ledger.busy(1)
            await cluster.begin_move(slot, source=source, target=target)
            await cluster.move_keys(slot, source=source, target=target)
            await ledger.more(150)
            await cluster.end_move(slot, source=source, target=target)
            await ledger.more(150)
            over.set()
            await talking
            await ledger.settle(timeout_seconds=60)
        unbroken(ledger)
        assert not ledger.book.unknown


@pytest.mark.parametrize("binary", ["redis62", "redis7"])
async def test_a_killed_node_of_an_older_redis_is_followed_to_its_replica(
    instances: Instances, binary: Binary
) -> None:
    async with RedisCluster(binary=binary, replicas=1) as cluster:
        servers = await started(instances, cluster, 2, durability="Replica")
        async with Ledger(urls(servers), members=2, rooms=6, seed=4) as ledger:
            publishing = asyncio.create_task(ledger.publish(600, over_seconds=3))
            await ledger.busy(1)
            await cluster.primaries[0].kill9()
            await eventually(lambda: is_primary(cluster.replicas[0][0]))
            await cluster.primaries[0].start()
            await publishing
            await ledger.settle(timeout_seconds=60)
        verdict = ledger.check()
        assert not any((verdict.lost, verdict.doubled, verdict.out_of_order)), verdict.describe()
        assert verdict.acknowledged > 400
        await until(lambda: all(server.broker.redis_state().connected for server in servers))


async def test_a_killed_node_is_followed_to_its_replica_and_a_planned_failover_too(
    instances: Instances,
) -> None:
    async with RedisCluster(replicas=1) as cluster:
        servers = await started(instances, cluster, 2, durability="Replica")
        async with Ledger(urls(servers), members=3, rooms=9, seed=3) as ledger:
            over = asyncio.Event()
            talking = asyncio.create_task(ledger.talk(per_second=300, until=over))
            await ledger.busy(1)
            # the replica of the second primary takes over in order: everything there moves at once
            replica = cluster.replicas[1][0]
            await ask(replica, "CLUSTER", "FAILOVER")
            await eventually(lambda: is_primary(replica))
            await ledger.more(200)
            await cluster.primaries[0].kill9()
            await eventually(lambda: is_primary(cluster.replicas[0][0]))
            # it comes back as the replica of its former replica: then `Replica` can be had again there
            await cluster.primaries[0].start()
            await ledger.more(200)
            over.set()
            await talking
            await ledger.settle(timeout_seconds=60)
        # what no replica had was not acknowledged; who had seen it was told `reset`
        verdict = ledger.check()
        assert not verdict.lost, verdict.describe()
        assert not verdict.doubled, verdict.describe()
        assert not verdict.out_of_order, verdict.describe()
        assert verdict.acknowledged > 4 * len(verdict.unknown)
        await until(lambda: all(server.broker.redis_state().connected for server in servers))
