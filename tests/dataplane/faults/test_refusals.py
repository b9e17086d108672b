"""Redis answers and refuses: full, without a disk, without replicas, read-only. And the circuit breakers."""

import asyncio
import itertools
import json
import time
import urllib.request
from collections.abc import Awaitable, Callable
from typing import Any, get_args

import pytest
import redis.asyncio

from tableforge_dataplane.broker.addresses import RoomAddress
from tableforge_dataplane.broker.publications import Publication, RefusalCode, new_tag
from tableforge_dataplane.broker.publisher import Publisher
from tableforge_dataplane.broker.state import ServerFacts
from tableforge_dataplane.broker.subscriber import Subscriber
from tableforge_dataplane.contract.room_options import LogLimits
from tableforge_dataplane.contract.settings import PerformanceSettings
from tableforge_dataplane.observability.breaker import CircuitBreaker
from tableforge_dataplane.server import Server
from tests.dataplane.homes.fleets import agreed, enter, fleet
from tests.dataplane.path.instances import Instances, Peers, until
from tests.support.redis import Binary, RedisServer
from tests.support.redis_cluster import eventually, until_called
from tests.support.versions import every_redis

QUICK: dict[str, Any] = {"scaling": {"retry_attempts": 2, "retry_delay_seconds": 0.1, "drain_seconds": 0.1}}
PATIENT: dict[str, Any] = {"scaling": {"retry_attempts": 8, "retry_delay_seconds": 0.2, "drain_seconds": 0.1}}


def admin_of(server: RedisServer) -> "redis.asyncio.Redis":
    return redis.asyncio.Redis(host=server.host, port=server.port)


async def health_of(one: Server) -> dict[str, Any]:
    def read() -> dict[str, Any]:
        request = urllib.request.Request(f"http://127.0.0.1:{one.port}/health")
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            text = error.read()
        found = json.loads(text)
        assert isinstance(found, dict)
        return found

    return await asyncio.to_thread(read)


async def without_a_disk(server: RedisServer, admin: "redis.asyncio.Redis") -> None:
    """Its snapshots fail: where the file should go there is a directory. It says MISCONF to writes then."""
    (server.directory / "data" / "dump.rdb" / "in-the-way").mkdir(parents=True)
    await admin.config_set("save", "3600 1")
    await admin.bgsave()
    await until_status(admin, "err")


async def until_status(admin: "redis.asyncio.Redis", status: str) -> None:
    async with asyncio.timeout(30):
        while (await admin.info("persistence"))["rdb_last_bgsave_status"] != status:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def with_a_disk_again(server: RedisServer, admin: "redis.asyncio.Redis") -> None:
    (server.directory / "data" / "dump.rdb" / "in-the-way").rmdir()
    (server.directory / "data" / "dump.rdb").rmdir()
    await admin.bgsave()
    await until_status(admin, "ok")


@every_redis
async def test_without_a_disk_publishes_are_refused_with_the_reason_and_taken_once_it_is_mended(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    admin = admin_of(redis_server)
    one, two = await instances(redis_server, 2, **QUICK)
    ada, bob = await peers(one), await peers(two)
    await ada.join("lobby")
    await bob.join("lobby")
    await without_a_disk(redis_server, admin)
    for number in range(3):
        await ada.publish("lobby", number)
    for _ in range(3):
        error = await ada.hear_type("error")
        assert (error["code"], error["command"]) == ("unavailable", "publish")
        assert "disk" in error["message"]
        assert error["retryAfter"] > 0
    state = one.broker.redis_state()
    assert (state.connected, state.reason) == (True, "ReadOnly")
    assert "MISCONF" in state.message
    assert (await health_of(one))["circuitBreakers"]["publish"] in ("open", "half-open")
    # while it is open nobody waits for an answer, which Redis could not give now
    await until(lambda: one.broker.publisher.depth == 0)
    redis_server.pause()
    await ada.publish("lobby", "at once")
    assert (await ada.hear_type("error"))["code"] == "unavailable"
    await ada.silent()
    redis_server.resume()
    await with_a_disk_again(redis_server, admin)
    await until(lambda: one.broker.redis_state().reason == "Connected")
    assert (await ada.published("lobby", "mended"))["seq"] == 1
    assert [message["data"] for message in await bob.messages(1)] == ["mended"]
    assert (await health_of(one))["circuitBreakers"] == {"publish": "closed", "registry": "closed"}
    await admin.aclose()


async def too_few_replicas(_server: RedisServer, admin: "redis.asyncio.Redis") -> None:
    await admin.config_set("min-replicas-to-write", 1)


async def enough_replicas_again(_server: RedisServer, admin: "redis.asyncio.Redis") -> None:
    await admin.config_set("min-replicas-to-write", 0)


LEASES: dict[str, Any] = {
    **QUICK["scaling"],
    "failover_timeout_seconds": 1.2,
    "heartbeat_interval_seconds": 0.3,
    "cleanup_interval_seconds": 0.2,
}


async def without_leases(servers: list[Server], admin: "redis.asyncio.Redis") -> None:
    """Wait until all leases have run out, and then for a whole timeout more."""

    async def gone() -> bool:
        return not [key async for key in admin.scan_iter("*lease*")]

    await eventually(gone)
    # a renewal is tried six times in a failover timeout, or more often
    failed = [server.metrics.heartbeats_failed + 18 for server in servers]
    await until(lambda: all(s.metrics.heartbeats_failed >= n for s, n in zip(servers, failed, strict=True)))


async def judging(servers: list[Server]) -> None:
    """Wait until nothing keeps them from declaring somebody dead, and they have looked."""
    for server in servers:
        await until(lambda server=server: server._registry._liveness.answering(monotonic=time.monotonic()))
        await server._registry.others.clean_up()


async def alive_as_seen_by(server: Server) -> dict[str, bool]:
    """What the operator reads at `/fleet`."""
    fleet = await server._registry.fleet()
    assert fleet.totals.instances == sum(record.alive for record in fleet.instances)
    return {record.instance: record.alive for record in fleet.instances}


# 6.2 lets scripts write without replicas
@pytest.mark.parametrize(
    ("redis_server", "refuse", "take_again", "code"),
    [
        *((binary, without_a_disk, with_a_disk_again, "MISCONF") for binary in get_args(Binary)),
        *((binary, too_few_replicas, enough_replicas_again, "NOREPLICAS") for binary in ("valkey", "redis7")),
    ],
    indirect=["redis_server"],
)
async def test_while_nobody_publishes_a_redis_that_takes_no_writes_is_told_and_nobody_is_dropped_or_dead(
    redis_server: RedisServer,
    instances: Instances,
    peers: Peers,
    caplog: pytest.LogCaptureFixture,
    refuse: Callable[..., Awaitable[None]],
    take_again: Callable[..., Awaitable[None]],
    code: str,
) -> None:
    admin = admin_of(redis_server)
    servers = [one, two] = await instances(redis_server, 2, scaling=LEASES)
    ada, bob = await peers(one), await peers(two)
    await ada.join("lobby")
    await ada.join("table")
    await bob.join("lobby")
    await ada.publish("lobby", "before")
    await ada.own_messages(1)
    await bob.messages(1)

    async def both_are_written() -> bool:
        return int(await admin.hlen(one.broker.address("lobby").presence)) == 1 + 2

    await eventually(both_are_written)
    subscribed = [one.broker.shards[0].links["subscriber"].connection for one in servers]
    await refuse(redis_server, admin)

    # it is told, though nobody has published
    for server in servers:
        await until(lambda server=server: server.broker.redis_state().reason == "ReadOnly")
        health = await health_of(server)
        assert (health["status"], health["redis"]["connected"]) == ("degraded", True)
        assert code in health["redis"]["message"]
        assert health["circuitBreakers"] == {"publish": "closed", "registry": "closed"}
    # a room that is there can be joined at an instance where nobody is in it; a new one cannot
    assert (await bob.join("table"))["pos"].startswith("0-")
    await bob.say({"type": "join", "id": 1, "room": "new"})

    # leases run out, and nobody is dead for it; nor does who comes only now think so
    await without_leases(servers, admin)
    [late] = await instances(redis_server, scaling=LEASES)
    for server in (*servers, late):
        assert await alive_as_seen_by(server) == {"instance-1": True, "instance-2": True}
        assert await server._registry.others.lost(frozenset({"instance-1", "instance-2"})) == frozenset()
    error = await bob.until("error")
    assert (error["code"], error["command"], error["room"]) == ("unavailable", "join", "new")
    assert code in error["message"]
    await bob.say({"type": "presence", "id": 2, "room": "lobby"})
    assert (await bob.until("presence"))["count"] == 2
    # what others publish is delivered, over the connections that there were
    payload = b'0 0 0 1.000 x {"event":"e","from":null,"data":7}'
    await admin.publish(one.broker.address("lobby").channel, payload)
    for peer in (ada, bob):
        assert (await peer.until("message"))["data"] == 7
    assert [one.broker.shards[0].links["subscriber"].connection for one in servers] == subscribed

    await take_again(redis_server, admin)
    servers = [*servers, late]
    for server in servers:
        await until(lambda server=server: server.broker.redis_state().reason == "Connected")
        await until(lambda server=server: server._registry.registered)
        await eventually(lambda server=server: _healthy(server))
    await judging(servers)
    for server in servers:
        assert all((await alive_as_seen_by(server)).values())
    assert await bob.join("new")
    assert (await ada.published("lobby", "after"))["seq"] == 2
    assert (await bob.until("message"))["data"] == "after"
    told = {record.message for record in caplog.records}
    assert not told & {"instance_died", "subscriber_unexpected_reply", "presence_of_gone_instances"}
    await admin.aclose()


async def _healthy(server: Server) -> bool:
    return (await health_of(server))["status"] == "healthy"


class _Heard:
    """A `SubscriberUser`."""

    def __init__(self) -> None:
        self.subscribed: list[bytes] = []

    def on_message(self, channel: bytes, payload: bytes) -> None:
        """Nobody sends any."""

    def on_messages_end(self) -> None:
        """Nor these."""

    def on_subscribed(self, channel: bytes) -> None:
        self.subscribed.append(channel)


@pytest.mark.parametrize("clustered", [False, True])
async def test_a_ping_that_is_refused_for_want_of_a_disk_is_no_answer_to_a_subscription(
    clustered: bool,
) -> None:
    import hiredis

    user, connection = _Heard(), _Scripted()
    subscriber = Subscriber(user, clustered=clustered)
    refusals: list[str] = []
    lost: list[bytes] = []
    subscriber.on_refusal = refusals.append
    subscriber.on_lost = lambda channel, _: lost.append(channel)
    facts = ServerFacts(product="Redis", version="8.0", compatible=(8, 0))
    await subscriber.on_up(connection, facts)  # type: ignore[arg-type]
    subscriber.subscribe(b"room")
    await asyncio.sleep(0)
    connection.receive(hiredis.ReplyError("MISCONF Errors writing to the AOF file"))
    connection.receive([b"ssubscribe" if clustered else b"subscribe", b"room", 1])
    assert (user.subscribed, refusals) == ([b"room"], ["MISCONF Errors writing to the AOF file"])
    assert not lost
    assert not connection.aborted


async def test_homes_stay_where_they_are_while_leases_cannot_be_renewed(
    redis_server: RedisServer, instances: Instances
) -> None:
    admin = admin_of(redis_server)
    rooms = [f"room-{number}" for number in range(20)]
    servers = await fleet(instances, redis_server, 2, scaling=LEASES)
    enter(rooms, *servers)
    await until(lambda: agreed(rooms, *servers) is not None)
    homes = agreed(rooms, *servers)
    assert homes is not None
    assert set(homes.values()) == {"instance-1", "instance-2"}
    await without_a_disk(redis_server, admin)
    await without_leases(servers, admin)
    assert agreed(rooms, *servers) == homes
    await with_a_disk_again(redis_server, admin)
    await judging(servers)
    assert agreed(rooms, *servers) == homes
    key = servers[0]._registry.link.keys.homes
    assert {room.decode(): home.decode() for room, home in (await admin.hgetall(key)).items()} == homes
    await admin.aclose()


@pytest.mark.parametrize("binary", ["valkey", "redis62"])
async def test_a_redis_that_is_made_a_replica_is_said_to_be_one_before_anybody_publishes(
    make_redis: Callable[..., RedisServer], instances: Instances, peers: Peers, binary: Binary
) -> None:
    primary = make_redis(binary=binary, args=("--repl-diskless-sync-delay", "0"))
    await primary.start()
    server = make_redis(binary=binary)
    await server.start()
    (one,) = await instances(server, scaling=LEASES)
    ada = await peers(one)
    await ada.join("lobby")
    admin = admin_of(server)
    await admin.execute_command("REPLICAOF", primary.host, primary.port)
    await until(lambda: one.broker.redis_state().reason == "ReadOnly")
    assert "replica" in (await health_of(one))["redis"]["message"]
    await until(lambda: one._registry.redis_state.reason == "ReadOnly")
    assert one.ready
    await admin.execute_command("REPLICAOF", "NO", "ONE")
    await until(lambda: one.broker.redis_state().reason == "Connected")
    assert (await health_of(one))["status"] == "healthy"
    await admin.aclose()


async def test_the_queue_is_looked_at_no_more_often_than_was_set(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    """`queueFlushInterval`: an attempt that is due waits for the next look."""
    admin = admin_of(redis_server)
    (one,) = await instances(
        redis_server,
        scaling={"retry_attempts": 3, "retry_delay_seconds": 0.01},
        performance={"queue_flush_interval_seconds": 0.4},
    )
    ada = await peers(one)
    await ada.join("lobby")
    await admin.config_set("min-replicas-to-write", 1)
    began = asyncio.get_running_loop().time()
    await ada.publish("lobby", "thrice tried")
    assert (await ada.hear_type("error"))["code"] == "unavailable"
    assert asyncio.get_running_loop().time() - began >= 1.1
    await admin.aclose()


async def test_attempts_are_as_many_as_was_set_and_each_waits_longer(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    """`retryAttempts` and `retryDelay`: doubled each time, less up to half of it by chance."""
    attempts, delay = 4, 0.1
    admin = admin_of(redis_server)
    (one,) = await instances(
        redis_server,
        scaling={"retry_attempts": attempts, "retry_delay_seconds": delay},
        performance={"queue_flush_interval_seconds": 0.01},
    )
    ada = await peers(one)
    await ada.join("lobby")
    await admin.config_set("min-replicas-to-write", 1)
    async with admin_of(redis_server).monitor() as monitor:
        await ada.publish("lobby", "again and again")
        assert (await ada.hear_type("error"))["code"] == "unavailable"
        await admin.echo("that is all")
        times = []
        async for seen in monitor.listen():
            if "that is all" in seen["command"]:
                break
            if "again and again" in seen["command"]:
                times.append(seen["time"])
    assert len(times) == attempts + 1
    for attempt, (before, after) in enumerate(itertools.pairwise(times)):
        assert after - before >= delay * 2**attempt / 2, attempt
    await admin.aclose()


# 6.2 lets scripts write without replicas
@pytest.mark.parametrize("redis_server", ["valkey", "redis7", "redis8"], indirect=True)
async def test_what_is_refused_for_a_moment_waits_and_is_stored_in_order_once(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    admin = admin_of(redis_server)
    (one,) = await instances(redis_server, **PATIENT)
    ada, bob = await peers(one), await peers(one)
    await ada.join("lobby")
    await bob.join("lobby")
    await admin.config_set("min-replicas-to-write", 1)
    for number in range(50):
        await ada.publish("lobby", number, echo=False)
        await asyncio.sleep(0.002)  # a pace: not all in one batch
    await ada.publish("lobby", "typing", volatile=True)
    assert (await ada.hear_type("error"))["code"] == "unavailable"
    assert "NOREPLICAS" in one.broker.redis_state().message
    await admin.config_set("min-replicas-to-write", 0)
    acks = [(await ada.hear_type("ack"))["id"] for _ in range(50)]
    assert acks == list(range(1, 51))
    assert [message["data"] for message in await bob.messages(50)] == list(range(50))
    await bob.silent()
    await admin.aclose()


@every_redis
async def test_a_full_redis_refuses_publishes_while_leases_and_delivery_go_on(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    admin = admin_of(redis_server)
    # a lease that has run out all the same cannot be had again without memory
    short = {**QUICK["scaling"], "failover_timeout_seconds": 3.0, "heartbeat_interval_seconds": 0.3}
    (one,) = await instances(redis_server, redis={"memory_guard_percent": 100}, scaling=short)
    ada, bob = await peers(one), await peers(one)
    position = (await ada.join("lobby"))["pos"]
    await bob.join("lobby")
    await ada.published("lobby", "before")
    await admin.config_set("maxmemory", 1)
    await ada.publish("lobby", "too much")
    error = await ada.until("error")
    assert error["code"] == "unavailable"
    assert "memory" in error["message"]
    # longer than a lease lasts without being renewed, six times in that
    await until_called(redis_server, "pexpire", more=8)
    assert [key async for key in admin.scan_iter("*lease*")]
    # what others publish is delivered, and what is there can be read
    await admin.publish(
        one.broker.address("lobby").channel, b'0 0 0 1.000 x {"event":"e","from":null,"data":7}'
    )
    await bob.until("message")
    assert (await bob.until("message"))["data"] == 7
    carl = await peers(one)
    joined = await carl.join("lobby", position)
    assert joined["recovered"] is True
    assert [message["data"] for message in await carl.messages(1)] == ["before"]
    await admin.config_set("maxmemory", 0)
    await until(lambda: one.broker.redis_state().reason == "Connected")
    assert (await ada.published("lobby", "after"))["seq"] == 2
    await admin.aclose()


async def test_a_replica_is_not_written_to_and_said_to_be_one(
    make_redis: Callable[..., RedisServer], instances: Instances, peers: Peers
) -> None:
    primary = make_redis(args=("--repl-diskless-sync-delay", "0"))
    await primary.start()
    replica = make_redis(args=("--replicaof", primary.host, str(primary.port)))
    await replica.start()
    (one,) = await instances(replica, wait_until_ready=False, **QUICK)
    await until(lambda: one.broker.redis_state().reason == "ReadOnly")
    assert "replica" in one.broker.redis_state().message
    assert not one.ready
    admin = admin_of(replica)
    await admin.execute_command("REPLICAOF", "NO", "ONE")
    await until(lambda: one.ready)
    ada = await peers(one)
    await ada.join("lobby")
    assert (await ada.published("lobby", 1))["seq"] == 1
    # and one that becomes a replica while it is used: who waits is told, sockets stay open
    await admin.execute_command("REPLICAOF", primary.host, primary.port)
    await ada.publish("lobby", 2)
    error = await ada.until("error")
    assert (error["code"], error["retryAfter"] > 0) == ("unavailable", True)
    assert "replica" in error["message"]
    await admin.execute_command("REPLICAOF", "NO", "ONE")
    await until(lambda: one.broker.redis_state().reason == "Connected")
    bob = await peers(one)
    await bob.join("another")
    assert (await bob.published("another", 1))["seq"] == 1
    await admin.aclose()


async def test_without_a_queue_publishes_are_refused_at_once_while_redis_is_away(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    quick = {**QUICK["scaling"], "failover_timeout_seconds": 1.2}
    (one,) = await instances(redis_server, performance={"enable_message_queuing": False}, scaling=quick)
    ada = await peers(one)
    await ada.join("lobby")
    await redis_server.kill9()
    await until(lambda: not one.broker.redis_state().connected)
    await ada.publish("lobby", 1)
    error = await ada.until("error")
    assert (error["code"], error["retryAfter"] > 0) == ("unavailable", True)
    assert one.broker.publisher.depth == 0
    await until(lambda: one.metrics.breakers["publish"] == "open")
    await until(lambda: one.metrics.breakers["registry"] == "open")
    await redis_server.start()
    await until(lambda: one.broker.redis_state().connected)
    await ada.published("lobby", 2)
    await until(lambda: one.metrics.breakers == {"publish": "closed", "registry": "closed"})


class _Owner:
    abandoned = False

    def __init__(self) -> None:
        self.stored: list[bytes] = []
        self.refusals: list[tuple[bytes, str]] = []

    def published(self, publication: Publication, seq: int, tag: bytes, duplicate: bool) -> None:
        self.stored.append(publication.body)

    def refused(
        self,
        publication: Publication,
        code: RefusalCode,
        message: str,
        retry_after: float | None,
    ) -> None:
        self.refusals.append((publication.body, code))


class _Scripted:
    """A connection whose replies are the test's."""

    receive: Callable[[Any], None]
    after_replies: Callable[[], None]

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.aborted = False

    async def ask(self, *parts: bytes | int) -> None:
        """Granted."""

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def abort(self) -> None:
        self.aborted = True


async def test_a_publish_that_was_refused_never_follows_a_later_one_of_its_room() -> None:
    import hiredis

    publisher = Publisher(performance=PerformanceSettings(), queue_size=100)
    connection, owner = _Scripted(), _Owner()
    facts = ServerFacts(product="Redis", version="8.0", compatible=(8, 0))
    await publisher.on_up(connection, facts)  # type: ignore[arg-type]
    limits = LogLimits(max_messages=100, max_bytes=1_000_000, max_age_ms=60_000)
    heads = {room: publisher.head(RoomAddress.of("t", room, limits)) for room in ("a", "b")}
    for room, body in (("a", b"<a1>"), ("b", b"<b1>"), ("a", b"<a2>")):
        publisher.publish(
            Publication(head=heads[room], tag=new_tag(), origin=b"o", key=body, body=body, owner=owner)
        )
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    for reply in (
        hiredis.ReplyError("LOADING Redis is loading"),
        hiredis.ReplyError("LOADING Redis is loading"),
        [1, b"7", 0],  # in between it was there: the later one of room a is stored
    ):
        connection.receive(reply)
    connection.after_replies()
    assert owner.stored == [b"<a2>"]
    assert owner.refusals == [(b"<a1>", "unavailable")]
    assert connection.aborted
    publisher.on_down()
    again = _Scripted()
    await publisher.on_up(again, facts)  # type: ignore[arg-type]
    assert [b"<b1>" in written for written in again.written] == [True]
    assert b"<a1>" not in again.written[0]
    again.receive([1, b"8", 0])
    again.after_replies()
    assert owner.stored == [b"<a2>", b"<b1>"]
    assert publisher.depth == 0


def test_a_breaker_opens_after_failures_in_a_row_tries_once_and_closes() -> None:
    now = 0.0
    breaker = CircuitBreaker(threshold=3, open_seconds=1.0, longest_seconds=4.0, clock=lambda: now)
    for _ in range(2):
        breaker.failed()
    breaker.succeeded()
    for _ in range(2):
        breaker.failed()
    assert (breaker.state, breaker.may_try(), breaker.retry_after_seconds) == ("closed", True, 0.0)
    breaker.failed()
    assert breaker.state == "open"
    assert 0.5 <= breaker.retry_after_seconds <= 1.0
    assert not breaker.may_try()
    waits = []
    for _ in range(5):
        now += breaker.retry_after_seconds
        assert breaker.may_try()
        assert breaker.state == "half-open"
        assert not breaker.may_try(), "one tries, nobody else"
        breaker.failed()
        assert breaker.state == "open"
        waits.append(breaker.retry_after_seconds)
    assert all(2.0 - 1e-9 <= wait <= 4.0 + 1e-9 for wait in waits[2:])
    now += 10
    assert breaker.may_try()
    breaker.succeeded()
    assert (breaker.state, breaker.may_try()) == ("closed", True)
