"""What can come between two steps: other connections' commands, other instances, slow sockets."""

import asyncio
import gc
import json
import socket
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import redis.asyncio

from tableforge_dataplane.broker.addresses import RoomAddress
from tableforge_dataplane.broker.connection import RedisConnection, connect
from tableforge_dataplane.broker.publications import Publication, RefusalCode, new_tag
from tableforge_dataplane.broker.publisher import WAITING_BYTES, Publisher
from tableforge_dataplane.broker.scripts import publish_script
from tableforge_dataplane.broker.state import ServerFacts
from tableforge_dataplane.broker.subscriber import Subscriber
from tableforge_dataplane.contract.room_options import LogLimits
from tableforge_dataplane.contract.settings import PerformanceSettings, RedisSettings
from tableforge_dataplane.server import Server
from tests.dataplane.path.instances import Instances, Peer, Peers, until
from tests.support.redis import RedisServer

FAST: dict[str, Any] = {
    "max_messages_per_second": 100_000,
    "max_messages_per_minute": 1_000_000,
    "max_bytes_per_second": 1_000_000_000,
}


@pytest.fixture
async def admin(redis_server: RedisServer) -> "AsyncIterator[redis.asyncio.Redis]":
    """A connection of the test's own."""
    client = redis.asyncio.Redis(host=redis_server.host, port=redis_server.port)
    try:
        yield client
    finally:
        await client.aclose()


class Owner:
    """Counts what becomes of its publications."""

    abandoned = False

    def __init__(self) -> None:
        self.stored: list[bytes] = []
        self.refusals: list[str] = []

    def published(self, publication: Publication, seq: int, tag: bytes, duplicate: bool) -> None:
        self.stored.append(publication.body)

    def refused(
        self,
        publication: Publication,
        code: RefusalCode,
        message: str,
        retry_after: float | None,
    ) -> None:
        self.refusals.append(code)


LIMITS = LogLimits(max_messages=10_000, max_bytes=16_000_000, max_age_ms=3_600_000)


def publisher(variant: int) -> Publisher:
    """One whose script is this variant."""
    return Publisher(
        performance=PerformanceSettings(),
        queue_size=10_000,
        script=publish_script(variant),
    )


async def connected(server: RedisServer, one: Publisher) -> RedisConnection:
    """Its connection, as a link makes it."""
    connection, facts = await connect(RedisSettings(host=server.host, port=server.port), name="test")
    await one.on_up(connection, facts)
    return connection


async def test_scripts_that_another_instance_loads_again_do_not_let_later_messages_pass_earlier_ones(
    redis_server: RedisServer, admin: "redis.asyncio.Redis"
) -> None:
    """Redis reads 16 KB of a connection in one turn: what others say comes between parts of a pipeline."""
    one, other, owner = publisher(1), publisher(2), Owner()
    address = RoomAddress.of("test", "lobby", LIMITS)
    connection = await connected(redis_server, one)
    second, facts = await connect(RedisSettings(host=redis_server.host, port=redis_server.port), name="test")
    await admin.script_flush()
    redis_server.pause()
    bodies = [b"%d " % number + b"x" * 300 for number in range(900)]
    head = one.head(address)
    for number, body in enumerate(bodies):
        one.publish(
            Publication(head=head, tag=new_tag(), origin=b"o", key=b"k:%d" % number, body=body, owner=owner)
        )
        if number % 100 == 99:
            await until(lambda: not one._pending)  # a batch of its own
    loading = asyncio.create_task(other.on_up(second, facts))
    await redis_server.until_unread(1_000, clients=2)
    redis_server.resume()
    await loading
    await until(lambda: len(owner.stored) == len(bodies))
    entries = await admin.xrange(address.log)
    assert [fields[b"m"] for _, fields in entries] == bodies
    for each in (connection, second):
        each.abort()


async def test_settled_means_what_was_there_and_not_what_came_since(redis_server: RedisServer) -> None:
    one = publisher(1)
    head = one.head(RoomAddress.of("test", "lobby", LIMITS))

    class Restless(Owner):
        def published(self, publication: Publication, seq: int, tag: bytes, duplicate: bool) -> None:
            super().published(publication, seq, tag, duplicate)
            self.more()

        def more(self) -> None:
            key = b"k:" + new_tag()
            one.publish(Publication(head=head, tag=new_tag(), origin=b"o", key=key, body=b"{}", owner=self))

    owner = Restless()
    connection = await connected(redis_server, one)
    for _ in range(20):
        owner.more()
    async with asyncio.timeout(30):
        await one.settled()
    assert len(owner.stored) >= 20
    connection.abort()


async def test_what_waited_for_redis_is_not_stored_again_where_it_was_resent_meanwhile(
    redis_server: RedisServer, instances: Instances, peers: Peers, admin: "redis.asyncio.Redis"
) -> None:
    """The room has gone on so far that the key is forgotten with its message."""
    one, two = await instances(redis_server, 2, rooms={"log_max_messages": 32}, security=FAST)
    ada, again = await peers(one), await peers(two)
    position = (await ada.join("lobby"))["pos"]
    await again.join("lobby")
    await one.broker.shards[0].links["publisher"].stop()
    await ada.publish("lobby", "once", key="k")
    await until(lambda: one.broker.publisher.depth == 1)
    await again.published("lobby", "once", key="k", since=position)
    for number in range(100):
        await again.published("lobby", number)
    one.broker.shards[0].links["publisher"].start()
    assert (await ada.until("error"))["code"] == "unknown_key"
    newest = await again.published("lobby", "last")
    assert newest["seq"] == 102


async def test_what_waited_over_a_connection_that_has_ended_does_not_follow_what_its_client_sent_later(
    redis_server: RedisServer, instances: Instances, peers: Peers, admin: "redis.asyncio.Redis"
) -> None:
    """The client knows less of the room than its instance did, so that only the other one can't judge it."""
    one, two = await instances(redis_server, 2, rooms={"log_max_messages": 32}, security=FAST)
    ada, bob, again = await peers(one), await peers(one), await peers(two)
    since = (await ada.join("lobby"))["pos"]
    await bob.join("lobby")
    await again.join("lobby")
    for number in range(100):
        await bob.published("lobby", number)
    await one.broker.shards[0].links["publisher"].stop()
    await ada.publish("lobby", "with a key", key="k")
    await ada.publish("lobby", "once, without one")
    await bob.publish("lobby", "of one who stays", key="k2")
    await until(lambda: one.broker.publisher.depth == 3)
    await ada.socket.close()
    await until(lambda: one.metrics.connections == 1)
    await again.publish("lobby", "with a key", key="k", since=since)
    assert (await again.until("error"))["code"] == "unknown_key"
    await again.published("lobby", "later")
    one.broker.shards[0].links["publisher"].start()
    assert (await bob.until("ack"))["id"] == 101
    assert one.broker.publisher.depth == 0
    entries = await admin.xrevrange(one.broker.address("lobby").log, count=4)
    assert [json.loads(fields[b"m"])["data"] for _, fields in reversed(entries)] == [
        99,
        "later",
        "once, without one",
        "of one who stays",
    ]


async def test_what_was_published_just_before_the_connection_ends_is_stored_where_redis_is_there(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    """Whether it has a key or not, and whether it was sent when the end was noticed or not."""
    (one,) = await instances(redis_server, security=FAST)
    bob = await peers(one)
    await bob.join("lobby")
    for number in range(20):
        ada = await peers(one)
        await ada.join("lobby")
        redis_server.pause()  # the first ones are under way, and the others wait behind them
        await ada.publish("lobby", [number, 0], key=f"k-{number}")
        await until(lambda: one.broker.publisher.depth == 1)
        await ada.publish("lobby", [number, 1], key=f"l-{number}")
        await ada.publish("lobby", [number, 2])
        await ada.socket.close()
        await until(lambda: one.metrics.connections == 1)
        redis_server.resume()
        assert [message["data"] for message in await bob.messages(3)] == [[number, n] for n in range(3)]


async def test_what_waits_is_refused_where_redis_no_longer_gives_what_was_asked(
    redis_server: RedisServer, instances: Instances, peers: Peers, admin: "redis.asyncio.Redis"
) -> None:
    (one,) = await instances(redis_server, redis={"durability": "Disk"})
    ada = await peers(one)
    await ada.join("lobby")
    await one.broker.shards[0].links["publisher"].stop()
    await ada.publish("lobby", 1)
    await until(lambda: one.broker.publisher.depth == 1)
    await admin.config_set("appendonly", "no")
    one.broker.shards[0].links["publisher"].start()
    assert (await ada.until("error"))["code"] == "unavailable"
    assert one.broker.publisher.depth == 0


class Listener:
    """Notes the confirmed channels."""

    def __init__(self) -> None:
        self.subscribed: list[bytes] = []

    def on_message(self, channel: bytes, payload: bytes) -> None:
        """Nothing is published."""

    def on_messages_end(self) -> None:
        """Nor does it end."""

    def on_subscribed(self, channel: bytes) -> None:
        self.subscribed.append(channel)


class Silent:
    """Takes what is written; answers are the test's."""

    receive: Callable[[Any], None]

    def __init__(self) -> None:
        self.written: list[bytes] = []

    async def ask(self, *parts: bytes | int) -> None:
        """Granted."""

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def abort(self) -> None:
        raise AssertionError("nothing unexpected was said")


async def test_a_redis_that_is_there_and_slow_does_not_fill_the_memory() -> None:
    one, silent, owner = publisher(1), Silent(), Owner()
    facts = ServerFacts(product="Redis", version="7.2.4", compatible=(7, 2))
    await one.on_up(silent, facts)  # type: ignore[arg-type]
    head = one.head(RoomAddress.of("test", "lobby", LIMITS))

    def send(count: int) -> None:
        for _ in range(count):
            one.publish(
                Publication(head=head, tag=new_tag(), origin=b"o", key=b"k", body=b"x" * 100_000, owner=owner)
            )

    send(1000)
    taken = WAITING_BYTES // 100_000
    assert len(owner.refusals) == 1000 - taken
    for _ in range(taken):
        await asyncio.sleep(0)
        silent.receive([1, b"1", 0])
        one._after_replies()
    assert len(owner.stored) == taken
    send(taken)
    assert len(owner.refusals) == 1000 - taken


async def test_a_confirmation_from_before_a_leave_is_not_taken_for_the_next_join() -> None:
    listener = Listener()
    subscriber = Subscriber(listener)
    await subscriber.on_up(Silent(), None)  # type: ignore[arg-type]
    subscriber.subscribe(b"lobby")
    await asyncio.sleep(0)
    # in one turn of the loop: left and joined again, and only then the first confirmation is read
    subscriber.unsubscribe(b"lobby")
    subscriber.subscribe(b"lobby")
    subscriber._on_reply([b"subscribe", b"lobby", 1])
    assert not listener.subscribed
    await asyncio.sleep(0)
    subscriber._on_reply([b"unsubscribe", b"lobby", 0])
    assert not listener.subscribed
    subscriber._on_reply([b"subscribe", b"lobby", 1])
    assert listener.subscribed == [b"lobby"]


def keep_little(server: Server) -> None:
    """The systems of both ends keep little of what is written to connections that stand now."""
    for connection in server._connections:
        connection.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)


async def narrow(peers: Peers, server: Server) -> Peer:
    """A peer that takes nothing until it resumes reading."""
    plug = socket.socket()
    plug.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    plug.setblocking(False)
    await asyncio.get_running_loop().sock_connect(plug, ("127.0.0.1", server.port))
    peer = await peers(server, sock=plug)
    keep_little(server)
    return peer


def waiting_for(server: Server, peer: Peer) -> int:
    """How many of its rooms go on once it has taken what was written to it."""
    [connection] = [
        one
        for one in server._connections
        if one.session is not None and one.session.name == peer.welcome["session"]
    ]
    return len(connection._drained)


async def test_who_recovers_many_rooms_at_once_is_fed_as_the_socket_drains(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server, websocket={"write_limit_bytes": 262_144}, security=FAST)
    ada = await peers(one)
    names = [f"room-{number}" for number in range(20)]
    begins = {}
    for name in names:
        begins[name] = (await ada.join(name))["pos"]
        for _ in range(4):
            await ada.published(name, "x" * 30_000)
    slow = await narrow(peers, one)
    slow.socket.transport.pause_reading()
    for name in names:
        await slow.say({"type": "join", "room": name, "pos": begins[name]})
    await until(lambda: waiting_for(one, slow) >= 10)
    slow.socket.transport.resume_reading()
    seen: dict[str, int] = dict.fromkeys(names, 0)
    while sum(seen.values()) < 4 * len(names):
        frame = await slow.hear()
        if frame["type"] == "message":
            seen[frame["room"]] += 1
            assert frame["seq"] == seen[frame["room"]]
        else:
            assert frame["type"] == "joined"
            assert frame["recovered"] is True
    assert one.metrics.slow_consumers == 0


async def test_a_page_that_was_read_before_it_was_full_is_read_again(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    one, two = await instances(redis_server, 2, rooms={"log_max_bytes": 16_777_216}, security=FAST)
    ada = await peers(one)
    await ada.join("lobby")
    positions = [(await ada.published("lobby", "x" * 40_000))["pos"] for _ in range(90)]
    slow = await narrow(peers, two)
    await slow.say({"type": "join", "room": "lobby", "pos": positions[65]})
    slow.socket.transport.pause_reading()
    await until(lambda: waiting_for(two, slow) > 0)
    positions += [(await ada.published("lobby", "x" * 2000))["pos"] for _ in range(200)]
    slow.socket.transport.resume_reading()
    assert (await slow.hear_type("joined"))["recovered"] is True
    got = await slow.messages(290 - 66)
    assert [message["pos"] for message in got] == positions[66:]


async def test_connections_that_are_gone_are_not_kept(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server)
    for _ in range(20):
        await peers(one)
    kept = [weakref.ref(connection) for connection in one._connections]
    assert len(kept) == 20
    await peers.close()
    await until(lambda: one.metrics.connections == 0)

    def gone() -> bool:
        gc.collect()
        return not any(each() is not None for each in kept)

    await until(gone, within=30)
