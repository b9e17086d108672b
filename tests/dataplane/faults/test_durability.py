"""What an acknowledgement waits for: a sync to disk, a replica, or both; what follows where none comes."""

import asyncio
from collections.abc import Callable
from typing import Any, get_args

import pytest
import redis.asyncio

from tableforge_dataplane.broker import fence
from tableforge_dataplane.broker.fence import Fence, Needs
from tests.dataplane.path.instances import Instances, Peer, Peers, until
from tests.support.redis import Binary, RedisServer

FAST: dict[str, Any] = {
    "security": {
        "max_messages_per_second": 100_000,
        "max_messages_per_minute": 1_000_000,
        "max_bytes_per_second": 1_000_000_000,
    }
}


QUICK = ("--repl-diskless-sync-delay", "0")
"""A primary that doesn't wait five seconds for further replicas."""


def admin_of(server: RedisServer) -> "redis.asyncio.Redis":
    return redis.asyncio.Redis(host=server.host, port=server.port)


async def acknowledged(peer: Peer, count: int) -> list[int]:
    """The ids of the next `count` acknowledgements; messages are skipped."""
    ids: list[int] = []
    while len(ids) < count:
        frame = await peer.hear()
        assert frame["type"] in ("ack", "message"), frame
        if frame["type"] == "ack":
            ids.append(frame["id"])
    return ids


async def test_on_a_redis_that_syncs_each_second_an_acknowledgement_waits_and_delivery_does_not(
    make_redis: Callable[..., RedisServer],
    instances: Instances,
    peers: Peers,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fence, "WAIT_SECONDS", 60.0)  # however long the messages take
    server = make_redis(binary="redis8", appendfsync="everysec")
    await server.start()
    (one,) = await instances(server, redis={"durability": "Disk"}, **FAST)
    ada, bob = await peers(one), await peers(one)
    await ada.join("lobby")
    await bob.join("lobby")
    admin = admin_of(server)
    await admin.config_set("appendfsync", "no")  # for as long as nothing is to be synced
    for number in range(200):
        await ada.publish("lobby", number, echo=number % 2 == 0)
    assert [message["data"] for message in await bob.messages(200)] == list(range(200))
    own = [await ada.hear_type("message") for _ in range(100)]
    assert [message["data"] for message in own] == list(range(0, 200, 2))
    await ada.silent()
    began = asyncio.get_running_loop().time()
    await admin.config_set("appendfsync", "everysec")
    assert await acknowledged(ada, 200) == list(range(1, 201))
    await ada.publish("lobby", "last", echo=False)
    assert await acknowledged(ada, 1) == [201]
    # two syncs, a second apart at least
    assert asyncio.get_running_loop().time() - began > 0.9
    assert one.broker.publisher.depth == 0
    await admin.aclose()


async def test_no_sync_no_acknowledgement(
    make_redis: Callable[..., RedisServer], instances: Instances, peers: Peers
) -> None:
    """`appendfsync no`: the system syncs some time, so that only WAITAOF's patience ends the wait."""
    server = make_redis(binary="redis8", appendfsync="everysec")
    await server.start()
    (one,) = await instances(server, redis={"durability": "Disk"})
    admin = admin_of(server)
    await admin.config_set("appendfsync", "no")
    ada, bob = await peers(one), await peers(one)
    await ada.join("lobby")
    await bob.join("lobby")
    await ada.publish("lobby", "unsafe", key="k", echo=False)
    assert (await bob.hear_type("message"))["data"] == "unsafe"
    refused = await ada.hear_type("error")
    assert (refused["code"], refused["command"], refused["retryAfter"] > 0) == (
        "unavailable",
        "publish",
        True,
    )
    assert "on disk" in refused["message"]
    # a repeat finds it stored, which is no reason to say that it is safe
    await ada.publish("lobby", "unsafe", key="k")
    waiting = one.broker.publisher._fence
    await until(lambda: waiting is not None and waiting.busy and one.broker.publisher.depth == 1)
    await ada.silent()
    await admin.config_set("appendfsync", "always")
    ack = await ada.hear_type("ack")
    assert ack["seq"] == 1
    await bob.silent()
    await admin.aclose()


@pytest.mark.parametrize("binary", ["redis62", "redis7", "valkey"])
async def test_an_everysec_redis_whose_word_is_not_good_cannot_promise_disk(
    make_redis: Callable[..., RedisServer], instances: Instances, binary: Binary
) -> None:
    server = make_redis(binary=binary, appendfsync="everysec")
    await server.start()
    (one,) = await instances(server, wait_until_ready=False, redis={"durability": "Disk"})
    await until(lambda: one.broker.redis_state().reason == "DurabilityNotMet")
    message = one.broker.redis_state().message
    assert "always" in message
    assert "Redis 8" in message


async def test_where_the_configuration_is_secret_the_fence_is_what_counts(
    make_redis: Callable[..., RedisServer], instances: Instances, peers: Peers
) -> None:
    server = make_redis(binary="redis8", appendfsync="everysec")
    await server.start()
    admin = admin_of(server)
    await admin.execute_command("ACL", "SETUSER", "default", "-config")
    (one,) = await instances(server, redis={"durability": "Disk"})
    ada = await peers(one)
    await ada.join("lobby")
    assert (await ada.published("lobby", 1))["seq"] == 1
    assert one.broker.publisher.needs == Needs(disk=True, replica=False)
    await admin.aclose()


async def test_a_fence_that_is_cut_lets_the_publishes_go_again_and_stores_none_twice(
    make_redis: Callable[..., RedisServer], instances: Instances, peers: Peers
) -> None:
    server = make_redis(binary="redis8", appendfsync="everysec")
    await server.start()
    (one,) = await instances(server, redis={"durability": "Disk"}, **FAST)
    ada, bob = await peers(one), await peers(one)
    await ada.join("lobby")
    await bob.join("lobby")
    admin = admin_of(server)
    await admin.config_set("appendfsync", "no")
    voided = 0
    passed_before = one.broker.publisher._on_fence_void
    waiting = one.broker.publisher._fence
    assert waiting is not None

    def counted() -> None:
        nonlocal voided
        voided += 1
        passed_before()

    waiting.on_void = counted
    for number in range(200):
        await ada.publish("lobby", number)
        if number % 40 == 39:
            await until(lambda: waiting.busy)
            for client in await admin.client_list():
                if client["name"] == "tableforge-fence":
                    await admin.client_kill_filter(_id=client["id"])
    await admin.config_set("appendfsync", "always")
    assert await acknowledged(ada, 200) == list(range(1, 201))
    assert [message["data"] for message in await bob.messages(200)] == list(range(200))
    await bob.silent()
    assert voided >= 3
    await admin.aclose()


@pytest.mark.parametrize("binary", get_args(Binary))
async def test_a_replica_must_have_it_and_without_one_publishes_are_refused(
    make_redis: Callable[..., RedisServer], instances: Instances, peers: Peers, binary: Binary
) -> None:
    primary = make_redis(appendfsync="everysec", args=QUICK, binary=binary)
    await primary.start()
    (one,) = await instances(primary, wait_until_ready=False, redis={"durability": "Replica"})
    await until(lambda: one.broker.redis_state().reason == "DurabilityNotMet")
    assert "replica" in one.broker.redis_state().message
    replica = make_redis(args=("--replicaof", primary.host, str(primary.port)), binary=binary)
    await replica.start()
    await until(lambda: one.ready)
    ada, bob = await peers(one), await peers(one)
    await ada.join("lobby")
    await bob.join("lobby")
    ack = await ada.published("lobby", "safe", echo=False)
    copied = admin_of(replica)
    assert await copied.hget(one.broker.address("lobby").meta, "s") == str(ack["seq"]).encode()
    replica.pause()
    await ada.publish("lobby", "waiting", key="w")
    assert [message["data"] for message in await bob.messages(2)] == ["safe", "waiting"]
    await ada.until("message")
    with pytest.raises(TimeoutError):
        await ada.hear(within=0.5)
    replica.resume()
    assert (await ada.hear_type("ack"))["seq"] == 2
    await replica.kill9()
    await until(lambda: one.broker.redis_state().reason == "DurabilityNotMet")
    await ada.publish("lobby", "refused")
    error = await ada.until("error")
    assert (error["code"], error["retryAfter"] > 0) == ("unavailable", True)
    assert "replica" in error["message"]
    await replica.start()
    await until(lambda: one.broker.redis_state().reason == "Connected")
    await ada.published("lobby", "safe again")
    await copied.aclose()


async def test_disk_and_replica_together_wait_for_both(
    make_redis: Callable[..., RedisServer], instances: Instances, peers: Peers
) -> None:
    primary = make_redis(appendfsync="everysec", binary="redis8", args=QUICK)
    await primary.start()
    replica = make_redis(binary="redis8", args=("--replicaof", primary.host, str(primary.port)))
    await replica.start()
    (one,) = await instances(primary, redis={"durability": "Disk+Replica"})
    ada = await peers(one)
    await ada.join("lobby")
    assert (await ada.published("lobby", 1, echo=False))["seq"] == 1
    assert one.broker.publisher.needs == Needs(disk=True, replica=True)
    admin = admin_of(primary)
    await admin.config_set("appendfsync", "no")
    await ada.publish("lobby", 2)
    await ada.until("message")
    with pytest.raises(TimeoutError):
        await ada.hear(within=1.0)  # the replica has it, the disk doesn't
    await admin.config_set("appendfsync", "always")
    assert (await ada.hear_type("ack"))["seq"] == 2
    await admin.aclose()


def test_a_fence_takes_one_round_at_a_time_and_needs_a_connection() -> None:
    one = Fence(b"key")
    assert not one.connected
    with pytest.raises(RuntimeError):
        one.begin(Needs(disk=True, replica=False))
