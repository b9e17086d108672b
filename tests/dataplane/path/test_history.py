"""What a room's log holds, for who asks: pages from the ring and from Redis, the same either way."""

import json
import time
from typing import Any

import jwt
import pytest
import redis.asyncio

from tableforge_dataplane.contract.settings import Secret
from tests.dataplane.path.instances import HeldClock, Instances, Peer, Peers
from tests.support.redis import RedisServer
from tests.support.versions import every_redis

FAST: dict[str, Any] = {
    "security": {
        "max_messages_per_second": 100_000,
        "max_messages_per_minute": 1_000_000,
        "max_bytes_per_second": 1_000_000_000,
    }
}


async def fill(peer: Peer, room: str, count: int, *, data: str = "") -> list[dict[str, Any]]:
    """`count` messages by `peer`, who is in the room, as it got them."""
    got: list[dict[str, Any]] = []
    for start in range(0, count, 50):
        for number in range(start, min(count, start + 50)):
            await peer.publish(room, data or number)
        got += await peer.own_messages(min(50, count - start))
    return got


async def history(peer: Peer, room: str, **question: Any) -> dict[str, Any]:
    await peer.say({"type": "history", "id": "h", "room": room, **question})
    answer = await peer.hear_type("history")
    assert (answer["id"], answer["room"]) == ("h", room)
    return answer


def as_parts(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages less what is the same for all of a room's history."""
    return [
        {name: value for name, value in each.items() if name not in ("type", "room")} for each in messages
    ]


@pytest.mark.parametrize("count", [0, 1, 5, 64, 65, 250])
@every_redis
async def test_who_has_the_room_and_who_has_not_read_the_same(
    redis_server: RedisServer, instances: Instances, peers: Peers, count: int
) -> None:
    one, two = await instances(redis_server, 2, **FAST)
    ada, bob = await peers(one), await peers(two)
    beginning = (await ada.join("lobby"))["pos"]
    sent = as_parts(await fill(ada, "lobby", count))
    for reader in (ada, bob):  # one has the room and its ring, two has nothing of it
        for last in (1, 10, 64, 100):
            answer = await history(reader, "lobby", last=last)
            assert answer["messages"] == sent[-last:]
            assert answer["complete"] is True
            assert answer["pos"] == (sent[-1]["pos"] if sent else beginning)
        for start in {0, count // 2, max(0, count - 3)}:
            after = sent[start - 1]["pos"] if start else beginning
            got: list[dict[str, Any]] = []
            while True:
                answer = await history(reader, "lobby", after=after)
                assert "reason" not in answer
                assert len(answer["messages"]) <= 100
                got += answer["messages"]
                after = answer["pos"]
                if answer["complete"]:
                    break
                assert answer["messages"]
            assert got == sent[start:]
            assert after == (sent[-1]["pos"] if sent else beginning)


async def test_a_room_that_never_was_has_none(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server)
    ada = await peers(one)
    answer = await history(ada, "empty", last=10)
    assert answer == {
        "type": "history",
        "id": "h",
        "room": "empty",
        "messages": [],
        "complete": True,
    }
    assert (await history(ada, "empty", after="1-1"))["reason"] == "log_lost"


async def test_a_page_is_bounded_in_bytes_and_says_that_more_follows(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    one, two = await instances(redis_server, 2, **FAST)
    ada, bob = await peers(one), await peers(two)
    beginning = (await ada.join("lobby"))["pos"]
    sent = as_parts(await fill(ada, "lobby", 20, data="x" * 20_000))
    for reader in (ada, bob):
        newest = await history(reader, "lobby", last=20)
        assert newest["messages"] == sent[-3:]
        assert newest["complete"] is False
        oldest = await history(reader, "lobby", after=beginning)
        assert oldest["messages"] == sent[:3]
        assert (oldest["complete"], oldest["pos"]) == (False, sent[2]["pos"])
    await fill(ada, "lobby", 1, data="y" * 90_000)
    assert len((await history(bob, "lobby", last=5))["messages"]) == 1


@every_redis
async def test_where_the_log_does_not_go_on_it_says_why_and_begins_with_the_oldest(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    one, two = await instances(redis_server, 2, rooms={"log_max_messages": 32}, **FAST)
    ada, bob = await peers(one), await peers(two)
    await ada.join("lobby")
    sent = as_parts(await fill(ada, "lobby", 200))
    client = redis.asyncio.Redis(host=redis_server.host, port=redis_server.port)
    kept = await client.xlen("tf:tableforge:{lobby}:log")
    await client.aclose()
    for reader in (ada, bob):
        trimmed = await history(reader, "lobby", after=sent[10]["pos"])
        assert trimmed["reason"] == "trimmed"
        assert trimmed["messages"] == sent[-kept:]
        assert trimmed["complete"] is True
        seq, tag = sent[190]["pos"].split("-")
        forked = await history(reader, "lobby", after=f"{seq}-{int(tag) ^ 1}")
        assert forked["reason"] == "forked"
        assert forked["messages"] == sent[-kept:]
        assert (await history(reader, "lobby", after=f"9{seq}-{tag}"))["reason"] == "log_lost"


async def test_it_takes_the_right_to_join_and_shows_only_ones_own_personal_log(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    key = "0123456789abcdef0123456789abcdef"

    def bearer(user: str) -> dict[str, Any]:
        rights = {"join": ["game:*"], "publish": ["game:*"], "direct": ["**"]}
        claims = {"sub": user, "exp": time.time() + 60, "tableforge": rights}
        return {"additional_headers": {"Authorization": f"Bearer {jwt.encode(claims, key, 'HS256')}"}}

    (one,) = await instances(redis_server, auth={"required": True, "jwt_secret": Secret(value=key)})
    ada, bob = await peers(one, **bearer("ada")), await peers(one, **bearer("bob"))
    await ada.say({"type": "history", "id": 1, "room": "secret", "last": 5})
    error = await ada.hear_type("error")
    assert (error["code"], error["command"], error["room"]) == ("forbidden", "history", "secret")
    await ada.join("game:1")
    await ada.published("game:1", "hello")
    assert [each["data"] for each in (await history(bob, "game:1", last=5))["messages"]] == ["hello"]
    await ada.say({"type": "direct", "id": 1, "to": "bob", "event": "note", "data": "psst"})
    pos = (await ada.until("ack"))["pos"]
    answer = await history(bob, "@", last=5)
    assert [(each["from"], each["data"], each["pos"]) for each in answer["messages"]] == [
        ("ada", "psst", pos)
    ]
    assert "seq" not in answer["messages"][0]
    assert (await history(ada, "@", last=5))["messages"] == []


async def test_questions_are_answered_in_order_and_so_many_may_wait(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server, **FAST)
    ada, bob = await peers(one), await peers(one)
    for room in ("a", "b"):
        await ada.join(room)
        await ada.published(room, room)
    questions = [
        {"type": "history", "id": number, "room": "ab"[number % 2] if number else "elsewhere", "last": 1}
        for number in range(40)
    ]
    await bob.say(*questions)
    answers = [await bob.hear() for _ in questions]
    given = [answer["id"] for answer in answers if answer["type"] == "history"]
    assert given == sorted(given)
    assert len(given) >= 17
    assert all(answer["code"] == "rate_limited" for answer in answers if answer["type"] == "error")
    assert {answer["id"] for answer in answers} == set(range(40))


async def test_what_was_read_is_paid_for_in_bytes(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server, security={"max_bytes_per_second": 60_000})
    HeldClock(one)
    ada, bob = await peers(one), await peers(one)
    await ada.join("lobby")
    await ada.publish("lobby", "x" * 50_000)
    await ada.messages(1)
    assert len((await history(bob, "lobby", last=1))["messages"]) == 1
    await bob.say(*({"type": "history", "id": number, "room": "lobby", "last": 1} for number in range(4)))
    answers = [await bob.hear() for _ in range(4)]
    kinds = [answer["type"] for answer in answers]
    assert "error" in kinds
    error = answers[kinds.index("error")]
    assert (error["code"], error["command"]) == ("rate_limited", "history")
    await ada.say({"type": "ping"})
    await ada.until("pong")
    assert len((await history(ada, "lobby", last=1))["messages"]) == 1  # it was nobody else's budget


async def test_redis_away_is_unavailable(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server)
    ada = await peers(one)
    await redis_server.kill9()
    await ada.say({"type": "history", "id": 1, "room": "lobby", "last": 5})
    error = await ada.hear_type("error")
    assert (error["code"], error["retryAfter"]) == ("unavailable", 2.0)


async def test_many_who_ask_the_same_at_once_cost_one_reading(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    one, two = await instances(redis_server, 2, **FAST)
    ada = await peers(one)
    await ada.join("lobby")
    sent = as_parts(await fill(ada, "lobby", 10))
    readers = [await peers(two) for _ in range(30)]
    client = redis.asyncio.Redis(host=redis_server.host, port=redis_server.port)
    before = (await client.info("commandstats")).get("cmdstat_xrevrange", {"calls": 0})["calls"]
    redis_server.pause()
    try:
        for reader in readers:
            await reader.socket.send(json.dumps({"type": "history", "room": "lobby", "last": 10}))
        for reader in readers:
            await reader.say({"type": "ping"})
            await reader.hear_type("pong")
    finally:
        redis_server.resume()
    for reader in readers:
        assert (await reader.hear_type("history"))["messages"] == sent
    after = (await client.info("commandstats"))["cmdstat_xrevrange"]["calls"]
    await client.aclose()
    assert after - before == 1
