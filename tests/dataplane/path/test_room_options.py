"""Rooms by pattern have logs, members and publishers of their own; a changed file holds without a restart."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
import redis.asyncio

from tableforge_dataplane.contract import environment
from tableforge_dataplane.contract.room_options import RoomOptionsError, parse_room_options
from tableforge_dataplane.contract.settings import RoomSettings, Secret
from tests.dataplane.path.instances import Instances, Peer, Peers, until
from tests.support.redis import RedisServer

KEY = "0123456789abcdef0123456789abcdef"
FAST: dict[str, Any] = {"security": {"max_messages_per_second": 10_000, "max_messages_per_minute": 100_000}}


def options(*rules: dict[str, Any]) -> dict[str, Any]:
    return {"rooms": {"options": json.dumps(rules)}}


@pytest.mark.parametrize(
    ("room", "wins"),
    [
        ("a", "**"),
        ("a:b", "a:*"),
        ("a:b:c", "a:b:*"),
        ("a:x:c", "a:*:c"),
        ("a:x:d", "a:**"),
        ("a:b:c:d", "a:**"),
        ("x:b", "*:b"),
        ("x:c", "**"),
        ("news", "news"),
    ],
)
def test_the_longest_pattern_wins_alone(room: str, wins: str) -> None:
    patterns = ["**", "a:**", "a:*", "*:b", "a:b:*", "a:*:c", "news"]
    text = json.dumps(
        [{"pattern": pattern, "logMaxAge": 1000 + number} for number, pattern in enumerate(patterns)]
    )
    rules = parse_room_options(text, RoomSettings(), max_payload_bytes=1024)
    found = rules.of(room)
    assert found.log.max_age_ms == 1000 + patterns.index(wins)
    assert found.log.max_messages == RoomSettings().log_max_messages
    assert not rules.of("@ada").presence  # personal logs are nobody's to change
    assert rules.of("@ada").log.max_age_ms == 86_400_000


WRONG: list[tuple[str, str]] = [
    ("{}", "must be a JSON list"),
    ("[", "must be a JSON list"),
    ("[3]", "[0]: expected `object`"),
    ('[{"volatile":true}]', "[0]: object missing required field `pattern`"),
    ('[{"pattern":"a","volatil":true}]', "[0]: object contains unknown field `volatil`"),
    ('[{"pattern":"a"},{"pattern":"b","volatile":1}]', "[1].volatile: expected `bool"),
    ('[{"pattern":"a-*"}]', "[0].pattern: 'a-*': a `*` stands for a whole segment"),
    ('[{"pattern":"**:a"}]', "[0].pattern: '**:a': `**` may only be the last"),
    ('[{"pattern":""}]', "[0].pattern: must be 1 to"),
    ('[{"pattern":"a"},{"pattern":"a"}]', "[1].pattern: [0] has the same"),
    ('[{"pattern":"a","logMaxMessages":1}]', "[0].logMaxMessages: must be a whole number from 32"),
    ('[{"pattern":"a","logMaxBytes":20000}]', "[0].logMaxBytes: must be a whole number of bytes from 102400"),
    ('[{"pattern":"a","logMaxAge":1}]', "[0].logMaxAge: must be a whole number of milliseconds from 1000"),
    ('[{"pattern":"a","volatile":true,"logMaxAge":5000}]', "[0].logMaxAge: a volatile room has no log"),
    ('[{"pattern":"a","join":"server"}]', "[0].join: invalid enum value 'server'"),
    ('[{"pattern":"a","publish":"me"}]', "[0].publish: invalid enum value 'me'"),
    ('[{"pattern":"a","presence":false,"seePresence":"all"}]', "[0].seePresence: there is no presence"),
]


@pytest.mark.parametrize(("text", "says"), WRONG, ids=[text for text, _ in WRONG])
def test_what_is_wrong_is_named_at_the_start_with_the_fields_path(text: str, says: str) -> None:
    with pytest.raises(environment.SettingsError) as caught:
        environment.read({"TABLEFORGE_ROOMS_OPTIONS": text})
    [problem] = caught.value.problems
    assert problem.startswith(f"TABLEFORGE_ROOMS_OPTIONS: {says}"), problem


def test_every_problem_is_named_and_a_file_by_its_path(tmp_path: Path) -> None:
    file = tmp_path / "rooms.json"
    with pytest.raises(environment.SettingsError, match="cannot be read"):
        environment.read({"TABLEFORGE_ROOMS_OPTIONS_FILE": str(file)})
    file.write_text('[{"pattern":"a*"},{"pattern":"b","logMaxAge":0}]')
    with pytest.raises(environment.SettingsError) as caught:
        environment.read({"TABLEFORGE_ROOMS_OPTIONS_FILE": str(file)})
    assert len(caught.value.problems) == 2
    assert all(
        problem.startswith(f"TABLEFORGE_ROOMS_OPTIONS_FILE={file}:") for problem in caught.value.problems
    )
    many = json.dumps([{"pattern": f"r{number}"} for number in range(1001)])
    with pytest.raises(RoomOptionsError, match="1001 entries"):
        parse_room_options(many, RoomSettings(), max_payload_bytes=1024)


async def test_each_rooms_log_reaches_as_far_as_its_options_say(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    rules = options({"pattern": "short:*", "logMaxMessages": 32}, {"pattern": "brief", "logMaxAge": 60_000})
    (one,) = await instances(redis_server, **rules, **FAST)
    ada = await peers(one)
    client = redis.asyncio.Redis(host=redis_server.host, port=redis_server.port)
    for room in ("short:1", "long", "brief"):
        await ada.join(room)
        for number in range(200):
            await ada.publish(room, number)
        await ada.messages(200)
    assert await client.xlen("tf:tableforge:{short:1}:log") < 70
    assert await client.xlen("tf:tableforge:{long}:log") == 200
    assert await client.pttl("tf:tableforge:{brief}:log") <= 67_500
    assert await client.pttl("tf:tableforge:{long}:log") > 3_600_000
    await client.aclose()


async def test_a_rooms_log_takes_no_more_bytes_than_its_options_say(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server, **options({"pattern": "small", "logMaxBytes": 102_400}), **FAST)
    ada = await peers(one)
    client = redis.asyncio.Redis(host=redis_server.host, port=redis_server.port)
    for room in ("small", "large"):
        await ada.join(room)
        for number in range(60):
            await ada.publish(room, f"{number}".ljust(4000))
        await ada.own_messages(60)
    assert 20 <= await client.xlen("tf:tableforge:{small}:log") <= 30
    assert await client.xlen("tf:tableforge:{large}:log") == 60
    await client.aclose()


async def test_who_may_see_presence_is_decided_by_room_beside_the_token(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    rules = options(
        {"pattern": "club", "seePresence": "authenticated"}, {"pattern": "masked", "seePresence": "nobody"}
    )
    (one,) = await instances(redis_server, auth={"jwt_secret": Secret(value=KEY)}, **rules)
    guest, ada = await peers(one), await peers(one, **bearer("ada"))
    for room in ("club", "masked", "open"):
        await ada.join(room)

    async def seen(peer: Peer, room: str) -> list[str]:
        await peer.say({"type": "presence", "id": 1, "room": room})
        return [member["user"] for member in (await peer.hear_type("presence"))["members"]]

    assert await seen(guest, "open") == await seen(ada, "open") == ["ada"]
    assert await seen(ada, "club") == ["ada"]
    assert "kept from you" in await refusal(guest, type="presence", room="club")
    for peer in (guest, ada):
        assert "kept from you" in await refusal(peer, type="presence", room="masked")


async def test_a_volatile_room_has_no_log_no_positions_and_no_recovery(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    one, two = await instances(redis_server, 2, **options({"pattern": "cursor:**", "volatile": True}))
    ada, bob = await peers(one), await peers(two)
    joined = await ada.join("cursor:1")
    assert (joined["pos"], joined.get("recovered")) == ("0-0", None)
    await bob.join("cursor:1")
    assert await ada.published("cursor:1", 1) == {"type": "ack", "id": 1, "room": "cursor:1"}
    message = await bob.hear_type("message")
    assert message["data"] == 1
    assert not {"seq", "pos"} & set(message)
    ack = await bob.published("cursor:1", 2, echo=False)
    assert "pos" not in ack
    await bob.silent()
    late = await peers(one)
    joined = await late.join("cursor:1", "0-0")
    assert (joined["recovered"], joined["reason"], joined["pos"]) == (False, "trimmed", "0-0")
    await late.say({"type": "history", "room": "cursor:1", "last": 5})
    history = await late.hear_type("history")
    assert (history["messages"], history["complete"]) == ([], True)
    client = redis.asyncio.Redis(host=redis_server.host, port=redis_server.port)
    keys = [key async for key in client.scan_iter("tf:tableforge:{cursor:1}:*")]
    await client.aclose()
    assert not [key for key in keys if key.endswith((b":meta", b":log"))]


def bearer(user: str) -> dict[str, Any]:
    claims = {"sub": user, "exp": time.time() + 60}
    return {"additional_headers": {"Authorization": f"Bearer {jwt.encode(claims, KEY, algorithm='HS256')}"}}


async def refusal(peer: Peer, **command: Any) -> str:
    await peer.say({"id": 1, **command})
    error = await peer.until("error")
    assert (error["code"], error["room"]) == ("forbidden", command["room"])
    return str(error["message"])


async def test_who_may_join_and_publish_is_decided_by_room_beside_the_token(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    rules = options(
        {"pattern": "news", "publish": "server"},
        {"pattern": "club", "join": "authenticated"},
        {"pattern": "talk", "publish": "authenticated"},
        {"pattern": "closed", "join": "nobody"},
    )
    (one,) = await instances(redis_server, auth={"jwt_secret": Secret(value=KEY)}, **rules)
    guest, ada = await peers(one), await peers(one, **bearer("ada"))
    for peer in (guest, ada):
        await peer.join("news")
        assert "takes no messages" in await refusal(peer, type="publish", room="news", event="e", data=1)
        assert "as a member" in await refusal(peer, type="join", room="closed")
        assert "as a member" in await refusal(peer, type="history", room="closed", last=1)
        await peer.join("talk")
    assert "as a member" in await refusal(guest, type="join", room="club")
    await ada.join("club")
    await ada.published("club", 1)
    assert "takes no messages" in await refusal(guest, type="publish", room="talk", event="e", data=1)
    await ada.published("talk", 1)
    # who brings a token later is no guest any more
    guest = await peers(one)
    await guest.say(
        {"type": "auth", "token": jwt.encode({"sub": "bob", "exp": time.time() + 60}, KEY, "HS256")}
    )
    await guest.hear_type("authenticated")
    await guest.join("club")
    await guest.published("club", 2)


async def test_a_changed_file_holds_at_once_and_a_bad_one_never_does(
    redis_server: RedisServer, instances: Instances, peers: Peers, tmp_path: Path
) -> None:
    file = tmp_path / "rooms.json"
    file.write_text("[]")
    one, two = await instances(redis_server, 2, rooms={"options_file": str(file)})
    ada, bob = await peers(one), await peers(two)
    for room in ("lobby", "news", "closed"):
        for peer in (ada, bob):
            await peer.join(room)
    assert (await ada.published("lobby", 1, echo=False))["seq"] == 1
    await bob.messages(1)

    def written(*rules: dict[str, Any]) -> None:
        replacement = tmp_path / "new.json"
        replacement.write_text(json.dumps(rules))
        replacement.replace(file)

    written(
        {"pattern": "lobby", "volatile": True},
        {"pattern": "news", "publish": "server"},
        {"pattern": "closed", "join": "nobody"},
    )
    for peer in (ada, bob):
        frames = sorted([await peer.hear() for _ in range(3)], key=lambda frame: str(frame["type"]))
        assert [frame["type"] for frame in frames] == ["error", "left", "reset"]
        assert (frames[0]["code"], frames[0]["room"], frames[1]["room"]) == ("forbidden", "closed", "closed")
        assert (frames[2]["room"], frames[2]["pos"]) == ("lobby", "0-0")
    assert "seq" not in await ada.published("lobby", 2, echo=False)
    assert "pos" not in (await bob.messages(1))[0]
    assert "takes no messages" in await refusal(bob, type="publish", room="news", event="e", data=1)

    file.write_text('[{"pattern":"lobby","volatile":"perhaps"}]')
    await until(lambda: all(server.room_options.problem is not None for server in (one, two)))
    assert "seq" not in await ada.published("lobby", 3, echo=False)
    assert "pos" not in (await bob.messages(1))[0]

    written()
    for peer in (ada, bob):
        reset = await peer.until("reset")
        assert (reset["room"], reset["pos"].split("-")[0]) == ("lobby", "1")
    ack = await ada.published("lobby", 4)
    assert ack["seq"] == 2
    message = (await bob.messages(1))[0]
    assert (message["data"], message["pos"]) == (4, ack["pos"])
    assert (await bob.published("news", 1))["seq"] == 1


async def test_presence_that_is_kept_from_now_on_counts_who_is_in_the_room_already(
    redis_server: RedisServer, instances: Instances, peers: Peers, tmp_path: Path
) -> None:
    file = tmp_path / "rooms.json"

    def written(*rules: dict[str, Any]) -> None:
        replacement = tmp_path / "new.json"
        replacement.write_text(json.dumps(rules))
        replacement.replace(file)

    async def applied(*, presence: bool) -> None:
        written({"pattern": "lobby", "presence": presence})
        await until(lambda: one.broker.options("lobby").presence is presence)

    async def counted(sockets: int | None) -> None:
        """Ask until the answer is this: what a write takes to reach Redis."""
        async with asyncio.timeout(30):
            while True:
                await watcher.say({"type": "presence", "id": 1, "room": "lobby"})
                members = (await watcher.hear_type("presence"))["members"]
                if (members[0]["sockets"] if members else None) == sockets:
                    return
                await asyncio.sleep(0.1)  # well below the rate limit

    written({"pattern": "lobby", "presence": False})
    token = jwt.encode({"sub": "ada", "exp": time.time() + 600}, KEY, algorithm="HS256")
    (one,) = await instances(
        redis_server,
        rooms={"options_file": str(file), "presence_grace_seconds": 0.0},
        auth={"required": False, "jwt_secret": Secret(value=KEY)},
        **FAST,
    )
    watcher = await peers(one)
    first, second = [
        await peers(one, additional_headers={"Authorization": f"Bearer {token}"}) for _ in range(2)
    ]
    await first.join("lobby")
    await applied(presence=True)
    await counted(1)
    await second.join("lobby")
    await counted(2)
    # the one that came while nobody counted goes; the other one is still there
    await first.say({"type": "leave", "room": "lobby"})
    await first.until("left")
    await counted(1)
    # and back again: nobody who was counted stays behind
    await applied(presence=False)
    await second.say({"type": "leave", "room": "lobby"})
    await second.until("left")
    await applied(presence=True)
    await counted(None)
