"""Direct messages and the personal log: for devices that are here, for who is away, and for nobody else."""

import asyncio
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
import redis.asyncio

from tableforge_dataplane.contract.settings import Secret
from tests.dataplane.path.instances import HeldClock, Instances, Peer, Peers, until
from tests.support.redis import RedisServer
from tests.support.versions import every_redis

KEY = "0123456789abcdef0123456789abcdef"
AUTH: dict[str, Any] = {"auth": {"required": True, "jwt_secret": Secret(value=KEY)}}
MANY: dict[str, Any] = {"security": {"max_messages_per_second": 10_000, "max_messages_per_minute": 100_000}}


def bearer(user: str, **rights: list[str]) -> dict[str, Any]:
    """Options of a connection as `user`, who may write to everybody where `rights` don't say otherwise."""
    claims = {"sub": user, "exp": time.time() + 60, "tableforge": rights or {"direct": ["**"]}}
    return {"additional_headers": {"Authorization": f"Bearer {jwt.encode(claims, KEY, algorithm='HS256')}"}}


async def write(peer: Peer, to: str, *data: Any, **more: Any) -> list[str]:
    """Direct messages from `peer`; the positions they were acknowledged with."""
    for number, each in enumerate(data):
        await peer.say(
            {"type": "direct", "id": f"d{number}", "to": to, "event": "note", "data": each, **more}
        )
    acks = [await peer.until("ack") for _ in data]
    assert [ack["id"] for ack in acks] == [f"d{number}" for number in range(len(data))]
    assert all(set(ack) == {"type", "id", "pos"} for ack in acks)
    return [ack["pos"] for ack in acks]


async def inbox(peer: Peer, count: int) -> list[dict[str, Any]]:
    return [await peer.hear_type("direct") for _ in range(count)]


async def test_a_direct_message_reaches_every_device_of_its_user_and_nobody_else(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    one, two = await instances(redis_server, 2, **AUTH)
    ada, carl = await peers(one, **bearer("ada")), await peers(one, **bearer("carl"))
    phone, desk = await peers(one, **bearer("bob")), await peers(two, **bearer("bob"))
    for peer in (phone, desk, carl):
        joined = await peer.join("@")
        assert joined["room"] == "@"
        assert "recovered" not in joined
    positions = await write(ada, "bob", {"hello": 1}, "again")
    for device in (phone, desk):
        first, second = await inbox(device, 2)
        assert set(first) == {"type", "event", "from", "pos", "ts", "data"}
        assert (first["from"], first["event"], first["data"]) == ("ada", "note", {"hello": 1})
        assert [first["pos"], second["pos"]] == positions
    await carl.silent()
    await ada.silent()


@every_redis
async def test_who_is_away_gets_it_on_coming_back_and_a_new_device_goes_on_where_received_left_off(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    one, two = await instances(redis_server, 2, **AUTH)
    ada = await peers(one, **bearer("ada"))
    positions = await write(ada, "bob", 0, 1, 2, 3)
    bob = await peers(two, **bearer("bob"))
    assert "recovered" not in await bob.join("@")  # nothing was received yet: from the beginning
    assert [message["data"] for message in await inbox(bob, 4)] == [0, 1, 2, 3]
    await bob.say({"type": "received", "pos": positions[2]}, {"type": "received", "pos": positions[0]})
    await bob.silent()
    other = await peers(one, **bearer("bob"))
    joined = await rejoin(other, until_pos=positions[2])
    assert joined["recovered"] is True
    assert (await other.hear_type("direct"))["data"] == 3
    # a device with a position of its own goes on from there, whatever was received
    third = await peers(one, **bearer("bob"))
    joined = await third.join("@", positions[0])
    assert (joined["recovered"], joined["pos"]) == (True, positions[0])
    assert [message["data"] for message in await inbox(third, 3)] == [1, 2, 3]


async def rejoin(peer: Peer, *, until_pos: str) -> dict[str, Any]:
    """Join the personal log until `received` has got so far: it has no answer of its own."""
    async with asyncio.timeout(30):
        while True:
            joined = await peer.join("@")
            if joined["pos"] == until_pos:
                return joined
            await peer.say({"type": "leave", "room": "@"})
            await peer.until("left")
            await asyncio.sleep(0.05)  # well below the rate limit


async def test_what_was_not_in_the_log_is_not_received(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server, **AUTH)
    ada, bob = await peers(one, **bearer("ada")), await peers(one, **bearer("bob"))
    positions = await write(ada, "bob", 0, 1)
    seq, tag = positions[1].split("-")
    await bob.say(
        {"type": "received", "pos": f"{int(seq) + 7}-{tag}"},
        {"type": "received", "pos": f"{seq}-{int(tag) + 1}"},
        {"type": "received", "pos": f"1-{tag}"},
    )
    await bob.silent()
    joined = await bob.join("@")
    assert "recovered" not in joined
    assert [message["data"] for message in await inbox(bob, 2)] == [0, 1]


@every_redis
async def test_a_log_trimmed_past_received_says_so_and_goes_on_with_the_oldest_it_has(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server, rooms={"personal_max_messages": 32}, **AUTH, **MANY)
    ada, bob = await peers(one, **bearer("ada")), await peers(one, **bearer("bob"))
    first = (await write(ada, "bob", *range(3)))[0]
    await bob.say({"type": "received", "pos": first})
    assert (await rejoin(bob, until_pos=first))["recovered"] is True
    await bob.socket.close()
    await write(ada, "bob", *range(3, 100))
    bob = await peers(one, **bearer("bob"))
    joined = await bob.join("@")
    assert (joined["recovered"], joined["reason"]) == (False, "trimmed")
    got = [await bob.hear_type("direct")]
    assert int(got[0]["pos"].split("-")[0]) == int(joined["pos"].split("-")[0]) + 1
    while got[-1]["data"] < 99:
        got.append(await bob.hear_type("direct"))
    assert [message["data"] for message in got] == list(range(got[0]["data"], 100))
    assert 32 <= len(got) < 97
    # and so does a device that nothing is known of
    late = await peers(one, **bearer("bob"))
    assert (await late.join("@", first))["reason"] == "trimmed"
    await late.silent()


async def test_a_personal_log_that_was_lost_is_a_reset(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server, rooms={"check_interval_seconds": 0.2}, **AUTH)
    ada, bob = await peers(one, **bearer("ada")), await peers(one, **bearer("bob"))
    await bob.join("@")
    await write(ada, "bob", 1)
    await bob.hear_type("direct")
    client = redis.asyncio.Redis(host=redis_server.host, port=redis_server.port)
    await client.flushall()
    await client.aclose()
    reset = await bob.hear_type("reset")
    assert (reset["room"], reset["reason"]) == ("@", "log_lost")
    await write(ada, "bob", 2)
    assert (await bob.hear_type("direct"))["data"] == 2


@every_redis
async def test_a_key_is_stored_once_and_since_decides_where_it_is_unknown(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    one, two = await instances(redis_server, 2, rooms={"personal_max_messages": 32}, **AUTH, **MANY)
    ada, bob = await peers(one, **bearer("ada")), await peers(two, **bearer("bob"))
    await bob.join("@")
    elsewhere = await peers(two, **bearer("ada"))
    [first] = await write(ada, "bob", "once", key="k1")
    assert await write(elsewhere, "bob", "once", key="k1", since=first) == [first]
    # another user's key of the same name is another key
    assert await write(await peers(one, **bearer("carl")), "bob", "mine", key="k1") != [first]
    assert [message["data"] for message in await inbox(bob, 2)] == ["once", "mine"]
    await write(ada, "bob", *range(100))
    command = {
        "type": "direct",
        "id": 7,
        "to": "bob",
        "event": "note",
        "data": 0,
        "key": "k2",
        "since": first,
    }
    await ada.say(command)
    assert (await ada.hear_type("error"))["code"] == "unknown_key"
    assert [message["data"] for message in await inbox(bob, 100)] == list(range(100))
    await bob.silent()


async def test_the_right_to_write_is_one_of_its_own(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server, **AUTH)
    ada = await peers(one, **bearer("ada", join=["**"], publish=["**"], direct=["bob", "team:*"]))
    await write(ada, "bob", 1)
    await write(ada, "team:red", 1)
    await ada.say({"type": "direct", "id": 1, "to": "carl", "event": "note", "data": 1})
    error = await ada.hear_type("error")
    assert (error["code"], error["id"], error["command"]) == ("forbidden", 1, "direct")
    await ada.join("@")
    await ada.publish("@", 1)
    error = await ada.hear_type("error")
    assert (error["code"], error["room"]) == ("forbidden", "@")
    # everything else that can't be said about a personal log is refused by name
    await ada.say({"type": "received", "id": 2, "pos": "one"})
    assert (await ada.hear_type("error"))["code"] == "bad_pos"
    await ada.say({"type": "direct", "id": 3, "to": "b\nob", "event": "note", "data": 1})
    assert (await ada.hear_type("error"))["code"] == "bad_frame"
    await ada.say({"type": "direct", "id": 3, "to": "bob", "event": "note", "data": 1, "since": "1-1"})
    assert (await ada.hear_type("error"))["code"] == "bad_frame"
    await ada.say({"type": "direct", "to": "bob", "event": "note", "data": 1, "since": "x", "key": "k"})
    assert (await ada.hear_type("error"))["code"] == "bad_pos"


@pytest.mark.parametrize("user", ["a{b}:c", "ünïcode 雪", "%41", "A", "x" * 128], ids=str)
async def test_any_users_name_is_a_log_of_its_own(
    redis_server: RedisServer, instances: Instances, peers: Peers, user: str
) -> None:
    (one,) = await instances(redis_server, **AUTH)
    ada, bob = await peers(one, **bearer("ada")), await peers(one, **bearer(user))
    await bob.join("@")
    await write(ada, user, user)
    assert (await bob.hear_type("direct"))["data"] == user


async def test_direct_messages_count_in_their_senders_bytes(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server, security={"max_bytes_per_second": 50_000}, **AUTH)
    HeldClock(one)
    ada, bob = await peers(one, **bearer("ada")), await peers(one, **bearer("bob"))
    await bob.join("@")
    await write(ada, "bob", "x" * 40_000)
    await ada.say({"type": "direct", "id": 1, "to": "carl", "event": "note", "data": "x" * 40_000})
    error = await ada.hear_type("error")
    assert (error["code"], error["command"]) == ("rate_limited", "direct")
    assert error["retryAfter"] > 0
    assert len((await bob.hear_type("direct"))["data"]) == 40_000


async def test_received_waits_for_a_redis_that_is_away(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server, **AUTH)
    ada, bob = await peers(one, **bearer("ada")), await peers(one, **bearer("bob"))
    positions = await write(ada, "bob", 0, 1)
    await redis_server.kill9()
    await bob.say({"type": "received", "pos": positions[1]})
    await bob.silent()
    await redis_server.start()
    await until(lambda: one.broker.redis_state().connected)
    other = await peers(one, **bearer("bob"))
    async with asyncio.timeout(30):
        while True:
            await other.say({"type": "join", "room": "@"})
            answer = await other.hear()
            if answer["type"] == "joined" and answer["pos"] == positions[1]:
                break
            if answer["type"] == "joined":
                await other.say({"type": "leave", "room": "@"})
                await other.until("left")
            await asyncio.sleep(0.2)
    assert answer["recovered"] is True


@pytest.mark.parametrize("binary", ["redis62", "redis7"])
async def test_the_oldest_and_other_redises_keep_a_personal_log_too(
    tmp_path: Path, instances: Instances, peers: Peers, binary: Any
) -> None:
    async with RedisServer(tmp_path / "redis", binary=binary) as server:
        (one,) = await instances(server, **AUTH)
        ada, bob = await peers(one, **bearer("ada")), await peers(one, **bearer("bob"))
        positions = await write(ada, "bob", 0, 1, 2)
        await bob.say({"type": "received", "pos": positions[1]})
        assert (await rejoin(bob, until_pos=positions[1]))["recovered"] is True
        assert (await bob.hear_type("direct"))["data"] == 2
        await bob.say({"type": "history", "room": "@", "after": positions[0]})
        assert [each["data"] for each in (await bob.hear_type("history"))["messages"]] == [1, 2]
