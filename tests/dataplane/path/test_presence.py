"""Who is in a room: told once for each user, over instances, through reconnects and deaths."""

import asyncio
import time
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import Any

import pytest
import redis.asyncio

from tableforge_dataplane.broker.addresses import RoomAddress
from tableforge_dataplane.broker.entries import Entry
from tableforge_dataplane.broker.presence import MOST_MEMBERS, PresenceStore, RoomPresence
from tableforge_dataplane.contract.settings import Secret
from tableforge_dataplane.security.tokens import mint
from tableforge_dataplane.server import Server
from tests.dataplane.path.instances import Frame, HeldClock, Instances, Peer, Peers, until
from tests.support.processes import DataplaneFleet
from tests.support.redis import RedisServer
from tests.support.redis_cluster import ask, eventually
from tests.support.versions import every_redis

KEY = "0123456789abcdef0123456789abcdef"
QUICK: dict[str, Any] = {"presence_grace_seconds": 0.0}
AUTH: dict[str, Any] = {"required": True, "jwt_secret": Secret(value=KEY)}
HASH = "tf:tableforge:{lobby}:presence"


async def user(peers: Peers, server: Server, name: str, *, rights: Any = None) -> Peer:
    """A connection of this user."""
    token = mint(KEY, user=name, lifetime_seconds=60, rights=rights)
    return await peers(server, additional_headers={"Authorization": f"Bearer {token}"})


async def enter(peer: Peer, room: str = "lobby", *, watches: bool = True) -> None:
    await peer.say({"type": "join", "room": room, "presence": watches})
    await peer.until("joined")


async def present(peer: Peer, room: str = "lobby") -> Frame:
    await peer.say({"type": "presence", "id": "who", "room": room})
    return await peer.until("presence")


def users(presence: Frame) -> dict[str, int]:
    return {member["user"]: member["sockets"] for member in presence["members"]}


async def settled(peer: Peer, expected: dict[str, int], room: str = "lobby") -> None:
    """Ask until the answer is this; where anything else is told meanwhile, it fails."""
    async with asyncio.timeout(30):
        while True:
            await peer.say({"type": "presence", "id": "who", "room": room})
            if users(await peer.hear_type("presence")) == expected:
                return
            await asyncio.sleep(0.1)  # well below the rate limit


async def heard(
    peer: Peer, *, joined: AbstractSet[str] = frozenset(), left: AbstractSet[str] = frozenset()
) -> list[Frame]:
    """The `members` events until exactly these have joined and left."""
    events = []
    came: set[str] = set()
    went: set[str] = set()
    while came != joined or went != left:
        # who died is told after 15 seconds at most, as the documentation says, and a slow machine's share
        event = await peer.until("members", within=30)
        events.append(event)
        came |= set(event["joined"])
        went |= set(event["left"])
        assert came <= joined, event
        assert went <= left, event
    return events


@every_redis
async def test_members_hear_of_each_other_over_instances(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    one, two = await instances(redis_server, 2, rooms=QUICK)
    ada, bob = await peers(one), await peers(two)
    me, you = ada.welcome["user"], bob.welcome["user"]
    await enter(ada)
    assert users(await present(ada)) == {me: 1}
    await enter(bob)
    (event,) = await heard(ada, joined={you})
    answer = await present(ada)
    assert users(answer) == {me: 1, you: 1}
    assert answer["count"] == 2
    assert answer["rev"] == event["rev"]
    assert [member["user"] for member in answer["members"]] == [me, you]
    assert answer["members"][0]["since"] <= answer["members"][1]["since"]
    await bob.say({"type": "leave", "room": "lobby"})
    (event,) = await heard(ada, left={you})
    assert event["rev"] == answer["rev"] + 1
    assert users(await present(ada)) == {me: 1}


async def test_a_user_is_there_once_from_the_first_socket_to_the_last(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    one, two = await instances(redis_server, 2, rooms=QUICK, auth=AUTH)
    watcher = await user(peers, one, "watcher")
    await enter(watcher)
    assert users(await present(watcher)) == {"watcher": 1}
    sockets = [await user(peers, server, "ada") for server in (one, one, two)]
    for socket in sockets:
        await enter(socket, watches=False)
    await heard(watcher, joined={"ada"})
    await settled(watcher, {"watcher": 1, "ada": 3})
    for expected, socket in zip((2, 1), sockets, strict=False):
        await socket.say({"type": "leave", "room": "lobby"})
        await settled(watcher, {"watcher": 1, "ada": expected})
    await sockets[2].say({"type": "leave", "room": "lobby"})
    # had one of the others been told, `heard` would have found it here, and another rev
    (event,) = await heard(watcher, left={"ada"})
    assert event["left"] == ["ada"]


async def test_who_is_back_in_a_moment_has_neither_left_nor_joined(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    one, two = await instances(redis_server, 2, rooms={"presence_grace_seconds": 4.0}, auth=AUTH)
    watcher, ada = await user(peers, one, "watcher"), await user(peers, one, "ada")
    await enter(watcher)
    await enter(ada)
    await heard(watcher, joined={"ada"})
    for server in (one, two):
        ada.socket.transport.abort()
        ada = await user(peers, server, "ada")
        await enter(ada, watches=False)
    began = time.monotonic()
    ada.socket.transport.abort()
    (event,) = await heard(watcher, left={"ada"})
    assert event["joined"] == []
    assert time.monotonic() - began > 3.0


async def test_a_lost_change_shows_with_the_next_one(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server, rooms=QUICK, auth=AUTH)
    watcher = await user(peers, one, "watcher")
    await enter(watcher)
    await settled(watcher, {"watcher": 1})
    client = redis.asyncio.Redis(host=redis_server.host, port=redis_server.port)
    async with client:
        # as if another instance had written it and its message had not come
        await client.hset(HASH, "ueve", "1.000 other|boot=1")
        await client.hincrby(HASH, "rev", 1)
    ada = await user(peers, one, "ada")
    await enter(ada, watches=False)
    await heard(watcher, joined={"eve", "ada"})


@pytest.mark.parametrize("asked", [1, 2])
async def test_nobody_hears_of_a_change_before_an_answer_from_before_it(
    redis_server: RedisServer, instances: Instances, peers: Peers, monkeypatch: pytest.MonkeyPatch, asked: int
) -> None:
    (one,) = await instances(redis_server, rooms=QUICK, auth=AUTH)
    watcher = await user(peers, one, "watcher")
    await enter(watcher)
    await settled(watcher, {"watcher": 1})
    held: list[Callable[[], None]] = []
    read, on_change = PresenceStore.read, one.presence.on_change
    changed = asyncio.Event()

    def slowly(
        store: PresenceStore, address: RoomAddress, callback: Callable[[RoomPresence | None], None]
    ) -> None:
        read(store, address, lambda presence: held.append(lambda: callback(presence)))

    def noted(room: str, entry: Entry) -> None:
        on_change(room, entry)
        changed.set()

    monkeypatch.setattr(PresenceStore, "read", slowly)
    monkeypatch.setattr(one._hub, "on_presence", noted)
    await watcher.say({"type": "presence", "id": "first", "room": "lobby"})
    await until(lambda: len(held) == 1)
    ada = await user(peers, one, "ada")
    await enter(ada, watches=False)
    async with asyncio.timeout(30):
        await changed.wait()
    if asked == 2:  # again while the room is read: that is another reading, after this one
        await watcher.say({"type": "presence", "id": "second", "room": "lobby"}, {"type": "ping"})
        await watcher.hear_type("pong")
    held.pop(0)()
    answer = await watcher.hear_type("presence")
    assert (answer["id"], users(answer)) == ("first", {"watcher": 1})
    if asked == 2:
        await until(lambda: len(held) == 1)
        held.pop()()
    event = await watcher.hear_type("members")
    assert (event["joined"], event["left"], event["rev"]) == (["ada"], [], answer["rev"] + 1)
    if asked == 2:
        answer = await watcher.hear_type("presence")
        assert (answer["id"], users(answer)) == ("second", {"watcher": 1, "ada": 1})


@every_redis
async def test_what_redis_lost_is_said_again(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    one, two = await instances(redis_server, 2, rooms=QUICK, auth=AUTH)
    ada, bob = await user(peers, one, "ada"), await user(peers, two, "bob")
    await enter(ada)
    await enter(bob)
    await heard(ada, joined={"bob"})
    client = redis.asyncio.Redis(host=redis_server.host, port=redis_server.port)
    async with client:
        await client.delete(HASH)
        for kind in ("normal", "pubsub"):
            await client.client_kill_filter(_type=kind, skipme=True)
        await until(lambda: one.broker.redis_state().connected and two.broker.redis_state().connected)
        for peer in (ada, bob):
            await said_again(peer, {"ada": 1, "bob": 1})


async def said_again(peer: Peer, expected: dict[str, int]) -> None:
    """Ask until the answer is this, whatever it is before."""
    async with asyncio.timeout(30):
        while True:
            await peer.say({"type": "presence", "id": "who", "room": "lobby"})
            while (frame := await peer.hear())["type"] == "members":
                pass
            if frame["type"] == "presence" and users(frame) == expected:
                return
            await asyncio.sleep(0.1)


async def test_presence_is_for_who_may_see_it(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    options = '[{"pattern":"hidden","presence":false}]'
    (one,) = await instances(redis_server, rooms={**QUICK, "options": options}, auth=AUTH)
    rights = {"join": ["**"], "publish": ["**"], "presence": ["hall:*", "hidden"]}
    ada = await user(peers, one, "ada", rights=rights)
    for command in (
        {"type": "presence", "room": "lobby"},
        {"type": "join", "room": "lobby", "presence": True},
    ):
        await ada.say({**command, "id": 1})
        error = await ada.hear_type("error")
        assert (error["id"], error["code"], error["room"]) == (1, "forbidden", "lobby")
        assert error["command"] == command["type"]
    await ada.say({"type": "presence", "room": "hidden", "id": 2})
    assert (await ada.hear_type("error"))["code"] == "forbidden"
    await enter(ada, "hidden", watches=False)
    await enter(ada, "hall:1")
    await ada.say({"type": "presence", "room": "hall:2", "id": 3})
    answer = await ada.until("presence")
    assert (answer["count"], answer["members"], answer["rev"]) == (0, [], 0)
    await settled(ada, {"ada": 1}, "hall:1")
    client = redis.asyncio.Redis(host=redis_server.host, port=redis_server.port)
    async with client:
        assert await client.keys("*presence*") == [b"tf:tableforge:{hall:1}:presence"]


async def test_what_is_asked_counts_in_the_users_bytes(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server, rooms=QUICK, auth=AUTH, security={"max_bytes_per_second": 1024})
    HeldClock(one)
    members = [await user(peers, one, f"{number}" * 100) for number in range(5)]
    for member in members:
        await enter(member, watches=False)

    async def all_written() -> bool:
        return bool(await ask(redis_server, "HLEN", HASH) == len(members) + 1)

    await eventually(all_written)  # who asks pays for it
    answers = []
    for number in range(6):
        await members[0].say({"type": "presence", "id": number, "room": "lobby"})
        answers.append(await members[0].hear())
    assert answers[0]["type"] == "presence"
    assert len(answers[0]["members"]) == 5
    assert (answers[-1]["type"], answers[-1]["code"]) == ("error", "rate_limited")
    assert answers[-1]["retryAfter"] > 0
    # nobody else pays for it
    assert users(await present(members[2])) == dict.fromkeys((each.welcome["user"] for each in members), 1)


async def test_without_redis_nobody_can_say_who_is_there(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server, rooms=QUICK)
    ada = await peers(one)
    await enter(ada)
    await redis_server.kill9()
    await until(lambda: not one.broker.redis_state().connected)
    await ada.say({"type": "presence", "room": "lobby", "id": 1})
    error = await ada.until("error")
    assert (error["id"], error["code"]) == (1, "unavailable")
    assert error["retryAfter"] > 0


async def test_a_crowd_is_counted_and_not_told(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server, rooms=QUICK, auth=AUTH)
    watcher = await user(peers, one, "watcher")
    await enter(watcher)
    await settled(watcher, {"watcher": 1})
    client = redis.asyncio.Redis(host=redis_server.host, port=redis_server.port)
    async with client:
        crowd: dict[Any, Any] = {f"u{number:04}": "1.000 other|boot=1" for number in range(MOST_MEMBERS)}
        await client.hset(HASH, mapping=crowd)
        await client.hincrby(HASH, "rev", 1)
        answer = await present(watcher)
        assert answer["count"] == MOST_MEMBERS + 1
        assert len(answer["members"]) >= MOST_MEMBERS - 1
        ada = await user(peers, one, "ada")
        await enter(ada, watches=False)
        while (await present(ada))["count"] != MOST_MEMBERS + 2:  # noqa: ASYNC110
            await asyncio.sleep(0.1)  # well below the rate limit
        await watcher.silent()
        # few enough again: what differs from what was told last
        await client.hdel(HASH, *list(crowd)[10:])
        await client.hincrby(HASH, "rev", 1)
        await ada.say({"type": "leave", "room": "lobby"})
        events = await heard(watcher, joined={f"{number:04}" for number in range(10)})
    assert len(events) == 1


@every_redis
async def test_who_leaves_with_an_instance_has_left(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    one, two = await instances(redis_server, 2, rooms={"presence_grace_seconds": 600.0})
    ada, bob = await peers(one), await peers(two)
    await enter(ada)
    await enter(bob)
    await heard(ada, joined={bob.welcome["user"]})
    instances.servers.remove(two)
    await two.stop()
    await heard(ada, left={bob.welcome["user"]})


async def test_a_killed_instance_leaves_no_ghosts(
    redis_server: RedisServer, dataplane: DataplaneFleet, peers: Peers
) -> None:
    one, two = await dataplane(
        redis_server,
        2,
        HEARTBEAT_INTERVAL="200",
        TABLEFORGE_CLUSTERING_FAILOVER_TIMEOUT="3000",
    )
    ada, bob = await peers(one), await peers(two)
    await enter(ada)
    await enter(bob)
    await heard(ada, joined={bob.welcome["user"]})
    await enter(bob, "elsewhere", watches=False)
    client = redis.asyncio.Redis(host=redis_server.host, port=redis_server.port)
    async with client:
        async with asyncio.timeout(30):
            while not await client.exists("tf:tableforge:{elsewhere}:presence"):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        await two.kill9()
        await heard(ada, left={bob.welcome["user"]})
        assert users(await present(ada)) == {ada.welcome["user"]: 1}
        # a room without members on any other instance is put right by who asks
        assert (await present(ada, "elsewhere"))["count"] == 0
        assert not await client.exists("tf:tableforge:{elsewhere}:presence")


async def test_an_instance_that_starts_again_under_its_name_has_no_ghosts(
    redis_server: RedisServer, dataplane: DataplaneFleet, peers: Peers
) -> None:
    one, two = await dataplane(redis_server, 2, TABLEFORGE_CLUSTERING_FAILOVER_TIMEOUT="2000")
    ada, bob = await peers(one), await peers(two)
    await enter(ada)
    await enter(bob)
    await heard(ada, joined={bob.welcome["user"]})
    await two.kill9()
    await two.start()
    await heard(ada, left={bob.welcome["user"]})


async def test_another_token_may_end_what_one_is_told(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server, rooms=QUICK, auth=AUTH)
    ada, eve = await user(peers, one, "ada"), await user(peers, one, "eve")
    await enter(ada)
    await enter(eve)
    await heard(ada, joined={"eve"})
    token = mint(KEY, user="ada", lifetime_seconds=60, rights={"join": ["**"], "presence": ["other"]})
    await ada.say({"type": "auth", "token": token})
    await ada.hear_type("authenticated")
    bob = await user(peers, one, "bob")
    await enter(bob, watches=False)
    await heard(eve, joined={"eve", "bob"})
    await ada.silent()
