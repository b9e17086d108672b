"""Members get every message once and in order, or are told plainly that they can't."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis.asyncio

from tableforge_dataplane.broker.recovery import LogReader
from tests.dataplane.path.instances import Instances, Peer, Peers, until
from tests.support.redis import RedisServer
from tests.support.redis_cluster import until_called
from tests.support.versions import every_redis


@pytest.fixture
async def admin(redis_server: RedisServer) -> "AsyncIterator[redis.asyncio.Redis]":
    """A connection of the test's own."""
    client = redis.asyncio.Redis(host=redis_server.host, port=redis_server.port)
    try:
        yield client
    finally:
        await client.aclose()


async def fill(peer: Peer, room: str, count: int, *, data: str = "") -> list[str]:
    """`count` messages by `peer`, who is in the room; their positions."""
    positions = []
    for start in range(0, count, 50):
        for number in range(start, min(count, start + 50)):
            await peer.publish(room, data or number)
        positions += [message["pos"] for message in await peer.own_messages(min(50, count - start))]
    return positions


FAST: dict[str, Any] = {
    "security": {
        "max_messages_per_second": 100_000,
        "max_messages_per_minute": 1_000_000,
        "max_bytes_per_second": 1_000_000_000,
    }
}


async def test_three_instances_have_one_order(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    servers = await instances(redis_server, 3, **FAST)
    members = [await peers(server) for server in servers]
    for member in members:
        await member.join("lobby")

    async def talk(member: Peer, name: str) -> None:
        for number in range(100):
            await member.publish("lobby", f"{name}{number}")
            if number % 10 == 0:
                await asyncio.sleep(0.002)  # a pace: they take turns

    await asyncio.gather(*(talk(member, name) for member, name in zip(members, "abc", strict=True)))
    heard = [await member.messages(300) for member in members]
    orders = [[(message["seq"], message["pos"], message["data"]) for message in each] for each in heard]
    assert orders[0] == orders[1] == orders[2]
    assert [seq for seq, _, _ in orders[0]] == list(range(1, 301))
    for name in "abc":
        own = [data for _, _, data in orders[0] if data.startswith(name)]
        assert own == [f"{name}{number}" for number in range(100)]


@pytest.mark.parametrize("missed", [0, 1, 30, 64, 65, 128, 500], ids=lambda missed: f"{missed} missed")
@every_redis
async def test_a_join_with_a_position_gets_what_was_missed_before_what_is_new(
    redis_server: RedisServer, instances: Instances, peers: Peers, missed: int
) -> None:
    one, two = await instances(redis_server, 2, **FAST)
    ada = await peers(one)
    await ada.join("lobby")
    positions = await fill(ada, "lobby", 520)
    for server in (one, two):  # one has the room and its ring, two has nothing of it
        bob = await peers(server)
        joined = await bob.join("lobby", positions[520 - missed - 1])
        assert (joined["recovered"], joined["pos"]) == (True, positions[520 - missed - 1])
        got = await bob.messages(missed)
        assert [message["pos"] for message in got] == positions[520 - missed :]
        await bob.silent()
        positions += await fill(ada, "lobby", 1)
        assert (await bob.hear_type("message"))["pos"] == positions[-1]
        positions.pop(0)


async def test_the_beginning_of_a_room_is_a_position_too(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    one, two = await instances(redis_server, 2)
    ada, bob = await peers(one), await peers(two)
    beginning = (await bob.join("lobby"))["pos"]
    await bob.socket.close()
    await ada.join("lobby")
    positions = await fill(ada, "lobby", 3)
    carl = await peers(two)
    assert (await carl.join("lobby", beginning))["recovered"] is True
    assert [message["pos"] for message in await carl.messages(3)] == positions


async def test_messages_during_a_recovery_come_after_it(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    one, two = await instances(redis_server, 2, **FAST)
    ada = await peers(one)
    await ada.join("lobby")
    positions = await fill(ada, "lobby", 400)
    stop = asyncio.Event()

    async def talk() -> None:
        while not stop.is_set():
            positions.extend(await fill(ada, "lobby", 5))

    talking = asyncio.create_task(talk())
    for _ in range(10):
        bob = await peers(two)
        asked = positions[7]
        expected = positions[8:]
        assert (await bob.join("lobby", asked))["recovered"] is True
        got = [message["pos"] for message in await bob.messages(len(expected) + 20)]
        assert got[: len(expected)] == expected
        assert [int(pos.split("-")[0]) for pos in got] == list(range(9, 9 + len(got)))
        await bob.socket.close()
    stop.set()
    await talking


async def test_a_hundred_members_who_recover_at_once_share_the_reads(
    redis_server: RedisServer, instances: Instances, peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = await instances(redis_server, 2, **FAST)
    ada = await peers(one)
    await ada.join("lobby")
    positions = await fill(ada, "lobby", 600)
    reads = 0
    original = LogReader.read

    def counted(self: LogReader, *args: Any, **more: Any) -> None:
        nonlocal reads
        reads += 1
        original(self, *args, **more)

    monkeypatch.setattr(LogReader, "read", counted)
    others = [await peers(two) for _ in range(100)]

    async def recover(number: int, peer: Peer) -> None:
        await peer.join("lobby", positions[number])
        got = [message["pos"] for message in await peer.messages(599 - number)]
        assert got == positions[number + 1 :]

    await asyncio.gather(*(recover(number, peer) for number, peer in enumerate(others)))
    assert reads <= 40, "ten pages, some of them read again after they were dropped"


@every_redis
async def test_what_the_log_no_longer_holds_is_trimmed(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    one, two = await instances(redis_server, 2, rooms={"log_max_messages": 32}, **FAST)
    ada = await peers(one)
    await ada.join("lobby")
    positions = await fill(ada, "lobby", 300)
    for server in (one, two):
        bob = await peers(server)
        joined = await bob.join("lobby", positions[100])
        assert (joined["recovered"], joined["reason"], joined["pos"]) == (False, "trimmed", positions[-1])
        await bob.silent()


async def test_positions_of_other_histories_are_told_apart(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    one, two = await instances(redis_server, 2, **FAST)
    ada = await peers(one)
    await ada.join("lobby")
    positions = await fill(ada, "lobby", 200)
    for server in (one, two):
        for pos, reason in (
            ("200-17", "forked"),
            ("199-17", "forked"),
            ("10-17", "forked"),
            ("0-17", "forked"),
            ("201-17", "log_lost"),
            ("999999999999999-17", "log_lost"),
        ):
            bob = await peers(server)
            joined = await bob.join("lobby", pos)
            assert (joined["recovered"], joined["reason"]) == (False, reason), pos
            assert joined["pos"] == positions[-1]
            await bob.silent()
            await bob.socket.close()


async def test_a_client_ahead_of_its_instance_is_not_called_lost(
    redis_server: RedisServer, instances: Instances, peers: Peers, admin: "redis.asyncio.Redis"
) -> None:
    """Another instance was quicker: this one reads the log before it judges."""
    one, two = await instances(redis_server, 2)
    ada, bob = await peers(one), await peers(two)
    await ada.join("lobby")
    await bob.join("lobby")
    await fill(ada, "lobby", 1)
    await bob.messages(1)
    channel = two.broker.address("lobby").channel
    two.broker.subscriber.unsubscribe(channel)
    await until_subscribers(admin, channel, 1)
    newest = (await fill(ada, "lobby", 3))[-1]
    carl = await peers(two)
    assert (await carl.join("lobby", newest))["recovered"] is True
    assert [message["pos"] for message in await bob.messages(3)][-1] == newest


async def test_a_lost_notification_is_found_by_the_next_message(
    redis_server: RedisServer, instances: Instances, peers: Peers, admin: "redis.asyncio.Redis"
) -> None:
    one, two = await instances(redis_server, 2)
    ada, bob = await peers(one), await peers(two)
    await ada.join("lobby")
    await bob.join("lobby")
    channel = two.broker.address("lobby").channel
    two.broker.subscriber.unsubscribe(channel)
    await until_subscribers(admin, channel, 1)
    await fill(ada, "lobby", 3)
    # not through the hub, which would look at the log at once
    two.broker.subscriber._channels.add(channel)
    two.broker.subscriber._connection.write(b"SUBSCRIBE " + channel + b"\r\n")  # type: ignore[union-attr]
    two.broker.subscriber._open.append((True, b"nobody's"))
    original, two.broker.subscriber._on_confirmed = two.broker.subscriber._on_confirmed, _ignore  # type: ignore[method-assign]
    await until_subscribers(admin, channel, 2)
    two.broker.subscriber._open.clear()
    two.broker.subscriber._on_confirmed = original  # type: ignore[method-assign]
    await fill(ada, "lobby", 1)
    assert [message["seq"] for message in await bob.messages(4)] == [1, 2, 3, 4]


def _ignore(_subscribed: bool, _channel: bytes) -> None:
    return None


async def until_subscribers(admin: "redis.asyncio.Redis", channel: bytes, count: int) -> None:
    async with asyncio.timeout(30):
        while dict(await admin.pubsub_numsub(channel))[channel] != count:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_lost_notification_without_a_next_message_is_found_by_the_check(
    redis_server: RedisServer, instances: Instances, peers: Peers, admin: "redis.asyncio.Redis"
) -> None:
    one, two = await instances(redis_server, 2, rooms={"check_interval_seconds": 0.3})
    ada, bob = await peers(one), await peers(two)
    await ada.join("lobby")
    await bob.join("lobby")
    channel = two.broker.address("lobby").channel
    two.broker.subscriber.unsubscribe(channel)
    await until_subscribers(admin, channel, 1)
    await fill(ada, "lobby", 3)
    assert [message["seq"] for message in await bob.messages(3)] == [1, 2, 3]


@every_redis
async def test_a_cut_subscription_is_taken_up_again_and_the_log_read_at_once(
    redis_server: RedisServer, instances: Instances, peers: Peers, admin: "redis.asyncio.Redis"
) -> None:
    (one,) = await instances(redis_server, rooms={"check_interval_seconds": 600.0}, **FAST)
    ada, bob = await peers(one), await peers(one)
    await ada.join("lobby")
    await bob.join("lobby")

    async def cut() -> None:
        for _ in range(5):
            await admin.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            await asyncio.sleep(0.1)  # a pace: it subscribes anew meanwhile

    cutting = asyncio.create_task(cut())
    for number in range(500):
        await ada.publish("lobby", number)
        if number % 10 == 0:
            await asyncio.sleep(0.01)  # a pace: for as long as cuts go on
    await cutting
    assert [message["data"] for message in await bob.messages(500)] == list(range(500))
    await bob.silent()


async def test_an_unsubscription_that_nobody_asked_for_is_healed(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server)
    ada = await peers(one)
    await ada.join("lobby")
    connection = one.broker.subscriber._connection
    assert connection is not None
    connection.write(b"UNSUBSCRIBE\r\n")
    await until(lambda: one.broker.subscriber._connection not in (None, connection))
    await ada.published("lobby", "still here")


@every_redis
async def test_a_flushed_redis_is_a_reset_and_the_new_history_comes_whole(
    redis_server: RedisServer, instances: Instances, peers: Peers, admin: "redis.asyncio.Redis"
) -> None:
    one, two = await instances(redis_server, 2, rooms={"check_interval_seconds": 600.0})
    ada, bob = await peers(one), await peers(two)
    await ada.join("lobby")
    await bob.join("lobby")
    old = await fill(ada, "lobby", 5)
    await bob.messages(5)
    await admin.flushall()
    await ada.publish("lobby", "anew")
    for peer in (ada, bob):
        reset = await peer.until("reset")
        assert reset["reason"] == "log_lost"
        message = await peer.until("message")
        assert (message["seq"], message["data"]) == (1, "anew")
        assert reset["pos"].startswith("0-")
        assert message["pos"] not in old
    carl = await peers(one)
    joined = await carl.join("lobby", old[-1])
    assert (joined["recovered"], joined["reason"]) == (False, "log_lost")


async def test_a_room_that_vanished_quietly_is_a_reset_found_by_the_check(
    redis_server: RedisServer, instances: Instances, peers: Peers, admin: "redis.asyncio.Redis"
) -> None:
    (one,) = await instances(redis_server, rooms={"check_interval_seconds": 0.2})
    ada = await peers(one)
    await ada.join("lobby")
    await fill(ada, "lobby", 2)
    await admin.flushall()
    reset = await ada.hear_type("reset")
    assert (reset["reason"], reset["pos"][:2]) == ("log_lost", "0-")
    assert (await ada.published("lobby", "anew"))["seq"] == 1


async def test_a_redis_set_back_in_time_hands_numbers_out_again_and_members_hear_it(
    redis_server: RedisServer, instances: Instances, peers: Peers, tmp_path: Any
) -> None:
    """As after a failover to a replica that was behind."""
    one, two = await instances(redis_server, 2)
    ada, bob = await peers(one), await peers(two)
    await ada.join("lobby")
    await bob.join("lobby")
    shared = await fill(ada, "lobby", 10)
    await bob.messages(10)
    data = redis_server.directory / "data"
    await asyncio.to_thread(shutil.copytree, data, tmp_path / "then")
    lost = await fill(ada, "lobby", 5)
    await bob.messages(5)
    await redis_server.kill9()
    await asyncio.to_thread(shutil.rmtree, data)
    await asyncio.to_thread(shutil.copytree, tmp_path / "then", data)
    await redis_server.start()
    for peer in (ada, bob):
        reset = await peer.until("reset")
        assert reset["reason"] == "log_lost"
        assert reset["pos"] == shared[-1], "the newest message that both histories have"
    again = await fill(ada, "lobby", 7)
    assert [message["pos"] for message in await bob.messages(7)] == again
    assert again[:5] != lost
    carl = await peers(two)
    joined = await carl.join("lobby", lost[-1])
    assert (joined["recovered"], joined["reason"]) == (False, "forked")
    dora = await peers(two)
    assert (await dora.join("lobby", shared[-1]))["recovered"] is True
    assert [message["pos"] for message in await dora.messages(7)] == again


async def test_a_fork_further_back_than_the_ring_is_a_reset_and_then_the_whole_log(
    redis_server: RedisServer, instances: Instances, peers: Peers, tmp_path: Any
) -> None:
    (one,) = await instances(redis_server, **FAST)
    ada = await peers(one)
    beginning = (await ada.join("lobby"))["pos"]
    shared = await fill(ada, "lobby", 3, data="x" * 20_000)
    data = redis_server.directory / "data"
    await asyncio.to_thread(shutil.copytree, data, tmp_path / "then")
    await fill(ada, "lobby", 5, data="x" * 20_000)  # the ring keeps no more than the last of them
    await redis_server.kill9()
    await asyncio.to_thread(shutil.rmtree, data)
    await asyncio.to_thread(shutil.copytree, tmp_path / "then", data)
    await redis_server.start()
    reset = await ada.until("reset")
    assert (reset["reason"], reset["pos"]) == ("log_lost", beginning)
    assert [message["pos"] for message in await ada.messages(3)] == shared
    again = await ada.published("lobby", "anew")
    assert again["seq"] == 4


async def test_a_fork_that_goes_unnoticed_by_number_is_noticed_by_tag(
    redis_server: RedisServer, instances: Instances, peers: Peers, tmp_path: Any
) -> None:
    """Two instances, one of which does not notice until the other history has grown past its own."""
    one, two = await instances(redis_server, 2, rooms={"check_interval_seconds": 600.0})
    ada = await peers(one)
    bob = await peers(two)
    await bob.join("lobby")
    await ada.join("lobby")
    shared = await fill(ada, "lobby", 4)
    data = redis_server.directory / "data"
    await asyncio.to_thread(shutil.copytree, data, tmp_path / "then")
    await fill(ada, "lobby", 3)
    await ada.say({"type": "leave", "room": "lobby"})
    await ada.until("left")
    await bob.messages(7)
    await redis_server.kill9()
    await asyncio.to_thread(shutil.rmtree, data)
    await asyncio.to_thread(shutil.copytree, tmp_path / "then", data)
    # the second instance finds the other history only once it is longer than its own
    two.broker.shards[0].links["subscriber"]._task.cancel()  # type: ignore[union-attr]
    await redis_server.start()
    await until(lambda: one.broker.redis_state().connected)
    await ada.join("lobby")
    fresh = await fill(ada, "lobby", 10)
    two.broker.shards[0].links["subscriber"].start()
    reset = await bob.until("reset")
    assert (reset["reason"], reset["pos"]) == ("forked", shared[-1])
    assert [message["pos"] for message in await bob.messages(10)] == fresh


@every_redis
async def test_a_hole_in_the_log_is_a_reset_and_not_a_loop(
    redis_server: RedisServer, instances: Instances, peers: Peers, admin: "redis.asyncio.Redis"
) -> None:
    one, two = await instances(redis_server, 2)
    ada, bob = await peers(one), await peers(two)
    await ada.join("lobby")
    await bob.join("lobby")
    await fill(ada, "lobby", 2)
    await bob.messages(2)
    channel = two.broker.address("lobby").channel
    two.broker.subscriber.unsubscribe(channel)
    await until_subscribers(admin, channel, 1)
    positions = await fill(ada, "lobby", 4)
    await admin.xdel(two.broker.address("lobby").log, positions[1])
    two.broker.subscriber.subscribe(channel)
    assert (await bob.hear_type("message"))["pos"] == positions[0]
    reset = await bob.hear_type("reset")
    assert (reset["reason"], reset["pos"]) == ("log_lost", positions[1])
    assert [message["pos"] for message in await bob.messages(2)] == positions[2:]
    await bob.silent()


async def test_a_quiet_room_with_members_does_not_expire(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server, rooms={"log_max_age_seconds": 3.0})
    ada = await peers(one)
    await ada.join("lobby")
    await fill(ada, "lobby", 1)
    # both keys, once a second; for longer than they live without that
    await until_called(redis_server, "pexpire", more=10)
    await ada.silent()
    assert (await ada.published("lobby", "still here"))["seq"] == 2


async def test_a_room_left_and_joined_in_one_breath_misses_nothing(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    one, two = await instances(redis_server, 2, **FAST)
    ada, bob = await peers(one), await peers(two)
    await ada.join("lobby")
    position = (await bob.join("lobby"))["pos"]
    for number in range(1, 41):
        await fill(ada, "lobby", 1)
        await bob.say({"type": "leave", "room": "lobby"}, {"type": "join", "room": "lobby", "pos": position})
        # it may have come before `left` too: the position that bob names is from before it
        assert (await bob.until("joined"))["recovered"] is True
        (message,) = await bob.messages(1)
        assert message["seq"] == number
        position = message["pos"]
