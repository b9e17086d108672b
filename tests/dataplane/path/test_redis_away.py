"""Redis goes away, comes back, refuses, or isn't what was asked for."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import redis.asyncio
from websockets.exceptions import InvalidStatus

from tableforge_dataplane.broker import shard
from tableforge_dataplane.broker.publisher import Publisher
from tableforge_dataplane.broker.shard import Shard
from tableforge_dataplane.contract.settings import Secret
from tableforge_dataplane.rooms import hub
from tableforge_dataplane.session.membership import Membership
from tests.dataplane.path.instances import Instances, Peers, until
from tests.support.proxy import FaultProxy
from tests.support.redis import Binary, RedisServer
from tests.support.versions import every_redis

FAST: dict[str, Any] = {
    "security": {
        "max_messages_per_second": 100_000,
        "max_messages_per_minute": 1_000_000,
        "max_bytes_per_second": 1_000_000_000,
    }
}


async def test_publishes_wait_for_a_killed_redis_and_are_stored_once(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    one, two = await instances(redis_server, 2, **FAST)
    ada, bob = await peers(one), await peers(two)
    await ada.join("lobby")
    await bob.join("lobby")

    said = 0

    async def talk() -> None:
        nonlocal said
        for said in range(600):
            await ada.publish("lobby", said)
            await asyncio.sleep(0.001)  # a pace

    talking = asyncio.create_task(talk())
    for number in (100, 300):
        await until(lambda number=number: said >= number)  # type: ignore[misc]
        await redis_server.kill9()
        await until(lambda number=number: said >= number + 40)  # type: ignore[misc]
        await redis_server.start()
    await talking
    acknowledged: dict[int, str] = {}
    own: list[tuple[str, int]] = []
    while len(acknowledged) < 600 or len(own) < 600:
        frame = await ada.hear()
        if frame["type"] == "ack":
            acknowledged[frame["id"]] = frame["pos"]
        else:
            assert frame["type"] == "message", frame
            own.append((frame["pos"], frame["data"]))
    others = [(message["pos"], message["data"]) for message in await bob.messages(600)]
    assert own == others
    assert [data for _, data in own] == list(range(600))
    assert [acknowledged[number + 1] for number in range(600)] == [pos for pos, _ in own]
    await bob.silent()


async def test_a_full_queue_refuses_with_a_delay_and_sockets_stay_open(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server, scaling={"message_queue_size": 10})
    ada = await peers(one)
    await ada.join("lobby")
    await redis_server.kill9()
    await until(lambda: not one.broker.redis_state().connected)
    for number in range(13):
        await ada.publish("lobby", number)
    for _ in range(3):
        error = await ada.hear_type("error")
        assert (error["code"], error["command"], error["room"]) == ("unavailable", "publish", "lobby")
        assert error["retryAfter"] > 0
    await ada.publish("lobby", "typing", volatile=True)
    assert (await ada.hear_type("error"))["code"] == "unavailable"
    with pytest.raises(InvalidStatus) as refused:
        await peers(one)
    assert refused.value.response.status_code == 503
    assert "Retry-After" in refused.value.response.headers
    await redis_server.start()
    acks = []
    data = []
    while len(acks) < 10 or len(data) < 10:
        frame = await ada.hear(within=30)
        (acks if frame["type"] == "ack" else data).append(frame.get("id", frame.get("data")))
    assert acks == list(range(1, 11))
    assert data == list(range(10))


async def test_a_paused_redis_is_noticed_and_nothing_is_doubled(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    """A connection that stays open and says nothing; what was sent over it is carried out in the end."""
    (one,) = await instances(redis_server, redis={"connect_timeout_seconds": 0.5})
    ada = await peers(one)
    await ada.join("lobby")
    redis_server.pause()
    try:
        for number in range(5):
            await ada.publish("lobby", number)
        await until(lambda: one.broker.redis_state().reason == "Unreachable")
    finally:
        redis_server.resume()
    await ada.publish("lobby", 5)
    assert [message["data"] for message in await ada.messages(6)] == list(range(6))
    bob = await peers(one)
    assert (await bob.join("lobby"))["pos"].startswith("6-")


async def test_an_instance_that_stood_still_takes_no_redis_for_silent_whose_answer_it_has_yet_to_read(
    redis_server: RedisServer, instances: Instances, peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard, "WATCH_INTERVAL_SECONDS", 0.2)
    async with FaultProxy(redis_server.port) as proxy:
        (one,) = await instances(redis_server, redis={"port": proxy.port, "connect_timeout_seconds": 1.0})
        ada = await peers(one)
        await ada.join("lobby")
        node = one.broker.shards[0]
        connections = {name: link.connection for name, link in node.links.items()}
        for number in range(1, 4):
            proxy.silence("to client")
            await ada.publish("lobby", number, echo=False)
            await until(lambda: one.broker.publisher.depth == 1 and bool(node.commands._expected))
            proxy.heal()
            time.sleep(3)  # noqa: ASYNC251  # longer than it waits for an answer, which comes right after
            assert (await ada.until("ack"))["seq"] == number
        assert {name: link.connection for name, link in node.links.items()} == connections


async def test_a_join_while_redis_is_away_is_refused_after_a_while_or_waits_for_it(
    redis_server: RedisServer, instances: Instances, peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    (one,) = await instances(redis_server)
    ada, bob = await peers(one), await peers(one)
    await redis_server.kill9()
    await until(lambda: not one.broker.redis_state().connected)
    await ada.say({"type": "join", "id": 1, "room": "lobby"})
    error = await ada.hear_type("error", within=30)
    assert (error["code"], error["id"], error["retryAfter"] > 0) == ("unavailable", 1, True)
    monkeypatch.setattr(hub, "JOIN_TIMEOUT_SECONDS", 60.0)  # however long Redis takes to start
    await bob.say({"type": "join", "id": 2, "room": "lobby"})
    await redis_server.start()
    assert (await bob.hear_type("joined", within=30))["id"] == 2
    await ada.join("lobby")


async def test_what_waits_for_joined_is_bounded_in_bytes_over_all_rooms(
    redis_server: RedisServer, instances: Instances, peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "JOIN_TIMEOUT_SECONDS", 60.0)  # however long Redis takes to start
    (one,) = await instances(redis_server, **FAST)
    ada = await peers(one)
    await redis_server.kill9()
    await until(lambda: not one.broker.redis_state().connected)
    rooms = ("a", "b")
    for room in rooms:
        await ada.say({"type": "join", "room": room})
    large = "x" * 90_000
    for number in range(6):
        await ada.say(
            {"type": "publish", "id": number, "room": rooms[number % 2], "event": "e", "data": large}
        )
    refused = [await ada.hear_type("error") for _ in range(4)]
    assert [(error["id"], error["code"]) for error in refused] == [
        (number, "rate_limited") for number in range(2, 6)
    ]
    # what waited is let go with the join, and there is room for others again
    await redis_server.start()
    acks = [await ada.until("ack") for _ in range(2)]
    assert sorted(ack["id"] for ack in acks) == [0, 1]
    await ada.published("a", large)


async def test_a_resend_over_another_instance_is_answered_with_the_first_position(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    one, two = await instances(redis_server, 2)
    key = Secret(value="0123456789abcdef0123456789abcdef")
    assert key.configured
    ada, again = await peers(one), await peers(two)
    since = (await ada.join("lobby"))["pos"]
    await again.join("lobby")
    first = await ada.published("lobby", "once", key="k1")
    second = await again.published("lobby", "once", key="k1", since=since)
    assert second["pos"] == first["pos"]
    third = await ada.published("lobby", "another", key="k2")
    assert third["seq"] == 2


@every_redis
async def test_a_resend_that_nobody_can_judge_is_unknown_key(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server, rooms={"log_max_messages": 32}, **FAST)
    ada, bob = await peers(one), await peers(one)
    await bob.join("lobby")
    since = (await ada.join("lobby"))["pos"]
    for number in range(100):
        await ada.publish("lobby", number)
    newest = (await ada.messages(100))[-1]["pos"]
    await bob.messages(100)
    await ada.publish("lobby", "again", key="old", since=since)
    error = await ada.until("error")
    assert (error["code"], error["command"]) == ("unknown_key", "publish")
    assert "retryAfter" not in error
    await ada.silent()
    assert (await ada.published("lobby", "again", key="new", since=newest))["seq"] == 101
    (heard,) = await bob.messages(1)  # and nothing of what was refused
    assert (heard["seq"], heard["data"]) == (101, "again")
    await bob.silent()


async def test_keys_are_each_users_own(redis_server: RedisServer, instances: Instances, peers: Peers) -> None:
    from tableforge_dataplane.security.tokens import mint

    text = "0123456789abcdef0123456789abcdef"
    (one,) = await instances(redis_server, auth={"required": True, "jwt_secret": Secret(value=text)})
    for number, user in enumerate(("ada", "bob", "ada:", "1")):
        token = mint(text, user=user, lifetime_seconds=60, rights=None)
        peer = await peers(one, additional_headers={"Authorization": f"Bearer {token}"})
        await peer.join("lobby")
        assert (await peer.published("lobby", user, key="k"))["seq"] == number + 1
        assert (await peer.published("lobby", user, key="k"))["seq"] == number + 1


@every_redis
async def test_the_memory_guard_refuses_before_redis_has_to(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    client = redis.asyncio.Redis(host=redis_server.host, port=redis_server.port)
    (one,) = await instances(redis_server, redis={"memory_guard_percent": 50})
    ada, bob = await peers(one), await peers(one)
    await ada.join("lobby")
    await bob.join("lobby")
    used = int((await client.info("memory"))["used_memory"])
    await client.config_set("maxmemory", int(used * 1.5))
    await until(lambda: one.broker.redis_state().reason == "OutOfMemory")
    assert one.broker.redis_state().connected
    await ada.publish("lobby", 1)
    error = await ada.hear_type("error")
    assert error["code"] == "unavailable"
    assert "maxmemory" in error["message"]
    assert error["retryAfter"] > 0
    await client.config_set("maxmemory", 0)
    await until(lambda: one.broker.redis_state().reason == "Connected")
    assert (await ada.published("lobby", 1))["seq"] == 1
    await client.aclose()


@every_redis
async def test_what_redis_itself_refuses_is_unavailable_and_passes(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    client = redis.asyncio.Redis(host=redis_server.host, port=redis_server.port)
    (one,) = await instances(
        redis_server,
        redis={"memory_guard_percent": 100},
        scaling={"retry_attempts": 1, "retry_delay_seconds": 0.2},
    )
    ada = await peers(one)
    await ada.join("lobby")
    await client.config_set("maxmemory", 1)
    await ada.publish("lobby", 1)
    error = await ada.hear_type("error")
    assert error["code"] == "unavailable"
    await client.config_set("maxmemory", 0)
    await until(lambda: one.broker.redis_state().reason == "Connected")
    assert (await ada.published("lobby", 2))["seq"] == 1
    await client.aclose()


@every_redis
async def test_forgotten_scripts_are_loaded_again_in_order(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    client = redis.asyncio.Redis(host=redis_server.host, port=redis_server.port)
    (one,) = await instances(redis_server, **FAST)
    ada = await peers(one)
    await ada.join("lobby")
    for number in range(300):
        await ada.publish("lobby", number)
        if number % 60 == 0:
            await client.script_flush()
    assert [message["data"] for message in await ada.messages(300)] == list(range(300))
    await client.script_flush()
    await ada.join("another")
    await client.aclose()


@pytest.mark.parametrize("binary", get_args(Binary))
async def test_a_primary_that_became_a_replica_is_left_and_its_publishes_wait(
    make_redis: Callable[..., RedisServer], instances: Instances, peers: Peers, binary: Binary
) -> None:
    primary, other = make_redis(binary=binary), make_redis(binary=binary)
    await primary.start()
    await other.start()
    (one,) = await instances(primary)
    ada = await peers(one)
    await ada.join("lobby")
    client = redis.asyncio.Redis(host=primary.host, port=primary.port)
    await client.execute_command("REPLICAOF", other.host, other.port)
    await ada.publish("lobby", 1)
    await until(lambda: not one.broker.redis_state().connected)
    await client.execute_command("REPLICAOF", "NO", "ONE")
    while (frame := await ada.hear(within=30))["type"] != "ack":
        assert frame["type"] in ("message", "reset")
    await client.aclose()


@pytest.mark.parametrize("options", [{"appendfsync": "everysec", "binary": "redis62"}, {"appendfsync": None}])
async def test_disk_is_not_promised_where_redis_does_not_sync(
    make_redis: Callable[..., RedisServer], instances: Instances, peers: Peers, options: dict[str, Any]
) -> None:
    server = make_redis(**options)
    await server.start()
    (one,) = await instances(server, wait_until_ready=False, redis={"durability": "Disk"})
    await until(lambda: one.broker.redis_state().reason == "DurabilityNotMet")
    state = one.broker.redis_state()
    assert not state.connected
    assert not one.ready
    assert "append" in state.message
    client = redis.asyncio.Redis(host=server.host, port=server.port)
    await client.config_set("appendonly", "yes")
    await client.config_set("appendfsync", "always")
    await until(lambda: one.ready)
    ada = await peers(one)
    await ada.join("lobby")
    await ada.published("lobby", 1)
    await client.aclose()


async def test_disk_that_stops_syncing_later_is_found(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server, redis={"durability": "Disk"})
    ada = await peers(one)
    await ada.join("lobby")
    await ada.published("lobby", 1)
    client = redis.asyncio.Redis(host=redis_server.host, port=redis_server.port)
    await client.config_set("appendonly", "no")
    await until(lambda: one.broker.redis_state().reason == "DurabilityNotMet")
    await ada.publish("lobby", 2)
    assert (await ada.until("error"))["code"] == "unavailable"
    await client.config_set("appendonly", "yes")
    await until(lambda: one.broker.redis_state().reason == "Connected")
    await ada.published("lobby", 3)
    await client.aclose()


async def test_a_password_that_comes_late_or_changes_is_read_again(
    make_redis: Callable[..., RedisServer], instances: Instances, peers: Peers, tmp_path: Path
) -> None:
    server = make_redis(password="first-password")
    await server.start()
    file = tmp_path / "password"
    (one,) = await instances(server, wait_until_ready=False, redis={"password": Secret(file=file)})
    await until(lambda: one.broker.redis_state().reason == "PasswordMissing")
    await asyncio.to_thread(file.write_text, "wrong-password")
    await until(lambda: one.broker.redis_state().reason == "AuthenticationFailed")
    assert "wrong-password" not in one.broker.redis_state().message
    await asyncio.to_thread(file.write_text, "first-password\n")
    await until(lambda: one.ready)
    ada = await peers(one)
    await ada.join("lobby")
    await ada.published("lobby", 1)


async def test_the_oldest_redis_supported_does_it_all(
    make_redis: Callable[..., RedisServer], instances: Instances, peers: Peers
) -> None:
    server = make_redis(binary="redis62")
    await server.start()
    one, two = await instances(server, 2, **FAST)
    ada, bob = await peers(one), await peers(two)
    position = (await ada.join("lobby"))["pos"]
    await bob.join("lobby")
    for number in range(200):
        await ada.publish("lobby", number)
    assert [message["data"] for message in await bob.messages(200)] == list(range(200))
    carl = await peers(two)
    assert (await carl.join("lobby", position))["recovered"] is True
    assert [message["data"] for message in await carl.messages(200)] == list(range(200))
    assert one.broker.redis_state().version.startswith("Redis 6.2")


async def test_a_user_that_may_not_do_everything_is_told_and_does_not_hammer(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    client = redis.asyncio.Redis(host=redis_server.host, port=redis_server.port)
    await client.execute_command("ACL", "SETUSER", "default", "-script")
    (one,) = await instances(redis_server, wait_until_ready=False)
    await until(lambda: one.broker.redis_state().reason == "AuthenticationFailed")
    assert "script" in one.broker.redis_state().message
    loop = asyncio.get_running_loop()
    began, before = loop.time(), (await client.info("stats"))["total_connections_received"]
    await asyncio.sleep(1)  # how often it comes in a second is the question
    came = (await client.info("stats"))["total_connections_received"] - before
    assert came < 20 * (loop.time() - began)
    await client.execute_command("ACL", "SETUSER", "default", "+script")
    await until(lambda: one.ready)
    await client.aclose()


async def test_a_mistake_over_one_client_or_answer_ends_nothing_that_goes_on_for_the_others(
    redis_server: RedisServer, instances: Instances, peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    (one,) = await instances(redis_server)
    ada, bob = await peers(one), await peers(one)
    failed: list[str] = []

    def fail_once(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def failing(*arguments: Any) -> Any:
            if name not in failed:
                failed.append(name)
                raise ValueError(name)
            return real(*arguments)

        return failing

    monkeypatch.setattr(hub, "JOIN_TIMEOUT_SECONDS", 1.0)
    for owner, name in ((Membership, "on_join_failed"), (Publisher, "on_down"), (Shard, "_judge_memory")):
        monkeypatch.setattr(owner, name, fail_once(name, getattr(owner, name)))
    await until(lambda: "_judge_memory" in failed)
    await redis_server.kill9()
    await until(lambda: not one.broker.redis_state().connected)
    await ada.say({"type": "join", "id": 1, "room": "lobby"})
    await bob.say({"type": "join", "id": 2, "room": "other"})
    assert (await bob.hear_type("error", within=30))["id"] == 2
    assert sorted(failed) == ["_judge_memory", "on_down", "on_join_failed"]
    # Redis is found again, by every connection to it, and its memory is watched
    monkeypatch.setattr(hub, "JOIN_TIMEOUT_SECONDS", 60.0)
    await redis_server.start()
    await bob.join("other")
    await bob.published("other", 1)
    checked: list[bool] = []
    monkeypatch.setattr(Shard, "_judge_memory", lambda *_: checked.append(True))
    await until(lambda: bool(checked))


async def test_a_room_whose_keys_are_somebody_elses_is_internal_and_costs_no_other_room(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    client = redis.asyncio.Redis(host=redis_server.host, port=redis_server.port)
    (one,) = await instances(redis_server)
    ada, bob = await peers(one), await peers(one)
    await ada.join("lobby")
    await ada.join("spoilt")
    await bob.join("lobby")
    await client.set(one.broker.address("spoilt").log, "no stream")
    await ada.publish("spoilt", 1)
    error = await ada.until("error")
    assert (error["code"], error["room"]) == ("internal", "spoilt")
    assert "WRONGTYPE" not in error["message"], "what Redis said is for the log"
    await ada.published("lobby", 2)
    assert (await bob.hear_type("message"))["data"] == 2
    await client.aclose()
