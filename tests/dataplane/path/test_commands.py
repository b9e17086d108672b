"""Every command's answers, every error and close code, on one instance."""

import asyncio
import json
import time
from typing import Any

import jwt
import pytest
from websockets.exceptions import InvalidStatus

from tableforge_dataplane.contract.settings import Secret
from tableforge_dataplane.protocol import native
from tableforge_dataplane.protocol.commands import Refused
from tableforge_dataplane.security.tokens import mint
from tests.dataplane.path.instances import HeldClock, Instances, Peers, until
from tests.dataplane.path.parsers import client_frame
from tests.support.redis import RedisServer

KEY = "0123456789abcdef0123456789abcdef"
AUTH: dict[str, Any] = {"auth": {"required": True, "jwt_secret": Secret(value=KEY)}}


def token(user: str = "ada", *, seconds: float = 60, rights: dict[str, list[str]] | None = None) -> str:
    return mint(KEY, user=user, lifetime_seconds=seconds, rights=rights)


async def test_a_member_gets_its_own_message_and_its_acknowledgement_with_one_position(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server, websocket={"ping_interval_seconds": 45.0})
    ada = await peers(one)
    assert ada.welcome["instance"] == "instance-1"
    assert ada.welcome["maxPayloadBytes"] == 102_400
    assert ada.welcome["pingInterval"] == 45
    joined = await ada.join("lobby")
    assert joined["id"] == "join"
    assert "recovered" not in joined
    await ada.publish("lobby", {"höhe": [1, None, "\U0001f600"]})
    frames = {frame["type"]: frame for frame in (await ada.hear(), await ada.hear())}
    message, ack = frames["message"], frames["ack"]
    assert message["data"] == {"höhe": [1, None, "\U0001f600"]}
    assert (message["event"], message["from"], message["room"]) == ("said", ada.welcome["user"], "lobby")
    assert (ack["id"], ack["pos"], ack["seq"]) == (1, message["pos"], 1)
    assert message["seq"] == 1
    await ada.say({"type": "leave", "id": "x", "room": "lobby"})
    assert await ada.hear() == {"type": "left", "id": "x", "room": "lobby"}


async def test_commands_of_an_array_run_in_order_even_behind_a_join(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server)
    ada = await peers(one)
    publish = {"type": "publish", "room": "lobby", "event": "said"}
    await ada.say(
        {"type": "join", "id": 1, "room": "lobby"},
        *({**publish, "id": 2 + number, "data": number} for number in range(5)),
        {"type": "leave", "id": 7, "room": "lobby"},
        {"type": "join", "id": 8, "room": "lobby"},
    )
    heard = []
    while not heard or heard[-1].get("id") != 8:
        heard.append(await ada.hear())
    assert [frame["id"] for frame in heard if "id" in frame and frame["type"] != "ack"] == [1, 7, 8]
    assert [frame["type"] for frame in heard[:1]] == ["joined"]
    await ada.silent()


async def test_without_echo_the_acknowledgement_takes_the_copys_place(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    one, two = await instances(redis_server, 2)
    ada, bob = await peers(one), await peers(two)
    await ada.join("lobby")
    await bob.join("lobby")
    for number in range(30):
        await ada.publish("lobby", number, echo=number % 2 == 0)
        await bob.publish("lobby", -number)
    places = []
    while len(places) < 60:
        frame = await ada.hear()
        quiet = frame["type"] == "ack" and frame["id"] % 2 == 0
        if frame["type"] == "message" or quiet:
            places.append(frame["seq"])
    assert places == list(range(1, 61))
    heard = [message["data"] for message in await bob.messages(60)]
    assert [number for number in heard if number > 0] == list(range(1, 30))


async def test_nothing_is_kept_of_volatile_messages_whose_room_was_left(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server)
    ada = await peers(one)
    volatile = {"type": "publish", "event": "moved", "data": 1, "volatile": True, "echo": False}
    for number in range(15):
        room = f"room-{number}"
        await ada.join(room)
        await ada.say({**volatile, "id": 1, "room": room}, {"type": "leave", "room": room})
        heard = {(await ada.hear())["type"], (await ada.hear())["type"]}
        assert heard == {"ack", "left"}
    await until(lambda: not one._hub.quiet)


async def test_a_volatile_message_has_no_place_and_is_not_recovered(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    one, two = await instances(redis_server, 2)
    ada, bob = await peers(one), await peers(two)
    position = (await ada.join("lobby"))["pos"]
    await bob.join("lobby")
    ack = await ada.published("lobby", "typing", volatile=True, echo=False)
    assert ack == {"type": "ack", "id": 1, "room": "lobby"}
    message = await bob.hear_type("message")
    assert message["data"] == "typing"
    assert "seq" not in message
    assert "pos" not in message
    await ada.silent()
    carl = await peers(two)
    joined = await carl.join("lobby", position)
    assert joined["recovered"] is True
    await carl.silent()


WRONG: list[tuple[str, str, str]] = [
    ("{", "bad_frame", "not valid JSON"),
    ("17", "bad_frame", "must be a JSON object"),
    ("[]", "bad_frame", "1 to 100"),
    (json.dumps([{"type": "ping"}] * 101), "bad_frame", "101 commands"),
    ('[{"type":"ping"},NaN]', "bad_frame", "not valid JSON"),
    ('{"room":"lobby"}', "bad_type", "must be a string"),
    ('{"type":"dance"}', "bad_type", "`dance` is no type"),
    ('{"type":"direct","to":"bob","event":"x","data":1}', "forbidden", "no right to write"),
    ('{"type":"direct","event":"x","data":1}', "bad_frame", "`to`"),
    ('{"type":"direct","to":7,"event":"x","data":1}', "bad_frame", "`to`"),
    ('{"type":"direct","to":"","event":"x","data":1}', "bad_frame", "`to`"),
    ('{"type":"direct","to":"bob","event":"","data":1}', "bad_event", "1 to 50"),
    ('{"type":"direct","to":"bob","event":"x"}', "bad_data", "`data`"),
    ('{"type":"direct","to":"bob","event":"x","data":1e999}', "bad_data", "1e999"),
    ('{"type":"received","pos":"1-1"}', "forbidden", "without a token"),
    ('{"type":"received"}', "bad_pos", "`pos`"),
    ('{"type":"presence"}', "bad_room", "must be a string"),
    ('{"type":"presence","room":"a b"}', "bad_room", "characters"),
    ('{"type":"join","room":"lobby","presence":1}', "bad_frame", "true or false"),
    ('{"type":"history"}', "bad_room", "must be a string"),
    ('{"type":"history","room":"a b","last":1}', "bad_room", "1 to 128 characters"),
    ('{"type":"history","room":"lobby"}', "bad_frame", "either `after`"),
    ('{"type":"history","room":"lobby","last":1,"after":"1-1"}', "bad_frame", "either `after`"),
    ('{"type":"history","room":"lobby","last":0}', "bad_frame", "1 to 100"),
    ('{"type":"history","room":"lobby","last":101}', "bad_frame", "1 to 100"),
    ('{"type":"history","room":"lobby","after":"one"}', "bad_pos", "`after`"),
    ('{"type":"history","room":"@","last":1}', "forbidden", "without a token"),
    ('{"type":"publish","room":"@","event":"e","data":1}', "forbidden", "`direct` writes"),
    ('{"type":"leave","room":"@"}', "not_joined", "join"),
    ('{"type":"join"}', "bad_room", "must be a string"),
    ('{"type":"join","room":""}', "bad_room", "1 to 128 characters"),
    ('{"type":"join","room":"a b"}', "bad_room", "1 to 128 characters"),
    ('{"type":"join","room":"@"}', "forbidden", "without a token"),
    ('{"type":"join","room":"@bob"}', "bad_room", "1 to 128 characters"),
    (json.dumps({"type": "join", "room": "x" * 129}), "bad_room", "1 to 128 characters"),
    ('{"type":"join","room":"lobby","pos":7}', "bad_pos", "`pos`"),
    ('{"type":"join","room":"lobby","pos":"seven"}', "bad_pos", "`pos`"),
    ('{"type":"join","room":"lobby","id":[]}', "bad_frame", "`id`"),
    ('{"type":"ping","id":true}', "bad_frame", "`id`"),
    (json.dumps({"type": "ping", "id": "x" * 65}), "bad_frame", "`id`"),
    ('{"type":"leave","room":"elsewhere"}', "not_joined", "join"),
    ('{"type":"publish","room":"elsewhere","event":"e","data":1}', "not_joined", "join"),
    ('{"type":"publish","room":"lobby","event":"","data":1}', "bad_event", "1 to 50"),
    (
        json.dumps({"type": "publish", "room": "lobby", "event": "e" * 51, "data": 1}),
        "bad_event",
        "1 to 50",
    ),
    ('{"type":"publish","room":"lobby","data":1}', "bad_event", "1 to 50"),
    ('{"type":"publish","room":"lobby","event":"e"}', "bad_data", "`data`"),
    ('{"type":"publish","room":"lobby","event":"e","data":1e999}', "bad_data", "1e999"),
    ('{"type":"publish","room":"lobby","event":"e","data":[9007199254740993]}', "bad_data", "string"),
    (
        '{"type":"publish","room":"lobby","event":"e","data":' + "1" * 5000 + "}",
        "bad_data",
        "a double can't hold",
    ),
    ('{"type":"publish","room":"lobby","event":"e","data":"\\ud800"}', "bad_data", "surrogate"),
    ('{"type":"publish","room":"lobby","event":"e","data":NaN}', "bad_data", "not JSON"),
    (
        '{"type":"publish","room":"lobby","event":"e","data":' + "[" * 64 + "]" * 64 + "}",
        "bad_data",
        "64 deep",
    ),
    (
        '{"type":"publish","room":"lobby","event":"e","data":' + "[" * 9000 + "]" * 9000 + "}",
        "bad_frame",
        "64",
    ),
    ('{"type":"publish","room":"lobby","event":"e","data":1,"key":""}', "bad_frame", "`key`"),
    ('{"type":"publish","room":"lobby","event":"e","data":1,"since":"1-1"}', "bad_frame", "`key`"),
    (
        '{"type":"publish","room":"lobby","event":"e","data":1,"key":"k","since":"x"}',
        "bad_pos",
        "`since`",
    ),
    ('{"type":"publish","room":"lobby","event":"e","data":1,"echo":1}', "bad_frame", "`echo`"),
    ('{"type":"publish","room":"lobby","event":"e","data":1,"volatile":1}', "bad_frame", "`volatile`"),
    ('{"type":"auth","token":7}', "bad_frame", "`token`"),
    ('{"type":"auth"}', "bad_frame", "`token`"),
]
"""A frame, the code of its error, and what the error says among other things."""


async def test_what_is_wrong_is_named_and_costs_the_connection_nothing(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server)
    bob = await peers(one)
    await bob.join("lobby")
    for number, (frame, code, says) in enumerate(WRONG, 1):
        ada = await peers(one)
        await ada.join("lobby")
        await ada.socket.send(frame)
        error = await ada.hear_type("error")
        assert error["code"] == code, frame
        assert says in error["message"], frame
        assert (await ada.published("lobby", "still here"))["seq"] == number, frame
        heard = await bob.hear_type("message")  # and nothing else
        assert (heard["seq"], heard["data"]) == (number, "still here"), frame
        await ada.socket.close()


async def test_numbers_and_depths_that_everybody_can_read_are_taken_as_they_are(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server)
    ada = await peers(one)
    await ada.join("lobby")
    for data in (
        "9007199254740992",
        "-9007199254740992",
        "0.12345678901234567890",
        "1e308",
        "1180591620717411303424",
        '"12345678901234567890123"',
        "[" * 63 + "]" * 63,
        '{"a":"\\ud83d\\ude00"}',
        '" \\u0000 "',
    ):
        await ada.socket.send(f'{{"type":"publish","room":"lobby","event":"e","data":{data}}}')
        frame = await ada.socket.recv()
        assert f'"data":{data}}}' in str(frame)


async def test_an_answer_repeats_the_id_of_what_it_answers(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server)
    ada = await peers(one)
    for identifier in (0, 17, 1.5, "a" * 64, "ä"):
        await ada.say({"type": "ping", "id": identifier, "unknown": {"field": 1}})
        assert (await ada.hear_type("pong"))["id"] == identifier
        await ada.say({"type": "leave", "room": "nowhere", "id": identifier})
        error = await ada.hear_type("error")
        assert (error["id"], error["command"], error["room"]) == (identifier, "leave", "nowhere")


async def test_welcome_and_pong_tell_the_instances_time_in_seconds(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server)
    began = time.time()
    ada = await peers(one)
    await ada.say({"type": "ping"})
    pong = await ada.hear_type("pong")
    # they are rounded to milliseconds
    assert began - 0.001 <= ada.welcome["time"] <= pong["time"] <= time.time() + 0.001


async def test_too_many_frames_without_a_meaning_end_the_connection(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server)
    ada = await peers(one)
    for _ in range(21):
        await ada.socket.send("nonsense")
    assert await ada.closed() == 4400


async def test_an_array_costs_nothing_more_once_the_connection_is_closed(
    redis_server: RedisServer, instances: Instances, peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at = 0
    original = native._diagnose

    def counted(frame: bytes) -> Refused:
        nonlocal looked_at
        looked_at += 1
        return original(frame)

    monkeypatch.setattr(native, "_diagnose", counted)
    (one,) = await instances(redis_server)
    ada = await peers(one)
    await ada.socket.send(json.dumps([{"type": "nonsense"}] * 90))
    assert await ada.closed() == 4400
    assert looked_at <= 25


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        pytest.param(client_frame(b"\x00", opcode=2), 1003, id="binary"),
        pytest.param(client_frame(b"x" * 102_401), 1009, id="too large"),
        pytest.param(client_frame(b'{"type":"ping","id":"\xff"}'), 1007, id="not UTF-8"),
        pytest.param(client_frame("ü".encode()[:1]), 1007, id="half a character"),
        pytest.param(
            client_frame(b'"\xed\xa0', fin=False) + client_frame(b'\x80"', opcode=0),
            1007,
            id="a surrogate in two fragments",
        ),
        pytest.param(client_frame((1000).to_bytes(2) + b"\xff", opcode=8), 1007, id="a reason not UTF-8"),
        pytest.param(client_frame(b"{}", mask=None), 1002, id="unmasked"),
        pytest.param(client_frame(b"{}", rsv=2), 1002, id="reserved bit"),
        pytest.param(client_frame(b"{}", opcode=3), 1002, id="reserved opcode"),
        pytest.param(client_frame(b"{}", opcode=0), 1002, id="continues nothing"),
        pytest.param(client_frame(b"{", fin=False) + client_frame(b"}"), 1002, id="never continued"),
        pytest.param(client_frame(b"", opcode=9, fin=False), 1002, id="ping in fragments"),
        pytest.param(client_frame(b"x" * 126, opcode=9), 1002, id="large ping"),
        pytest.param(client_frame(b"x", opcode=8), 1002, id="half a close code"),
        pytest.param(client_frame((999).to_bytes(2), opcode=8), 1002, id="no close code"),
    ],
)
async def test_what_websockets_forbid_closes_as_the_rfc_says_and_nobody_else_notices(
    redis_server: RedisServer, instances: Instances, peers: Peers, frames: bytes, code: int
) -> None:
    (one,) = await instances(redis_server)
    ada, bob = await peers(one), await peers(one)
    await ada.join("room")
    await bob.join("room")
    await ada.published("room", "before")
    # in one write with what is right, which counts, and with what comes too late, which doesn't
    right = client_frame(b'{"type":"publish","room":"room","event":"said","data":"last"}')
    late = client_frame(b'{"type":"publish","room":"room","event":"said","data":"late"}')
    ada.socket.transport.write(right + frames + late)
    assert await ada.closed() == code
    await until(lambda: one.metrics.connections == 1)
    assert [message["data"] for message in await bob.messages(2)] == ["before", "last"]
    assert (await bob.published("room", "after", echo=False))["seq"] == 3
    await bob.silent()


async def test_more_rooms_than_allowed_are_refused(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server, security={"max_rooms_per_connection": 2})
    ada, bob = await peers(one), await peers(one)
    for room in ("a", "c"):
        await bob.join(room)
    await ada.join("a")
    await ada.join("b")
    await ada.join("b")
    await ada.say({"type": "join", "room": "c"})
    assert (await ada.hear_type("error"))["code"] == "too_many_rooms"
    await ada.publish("a", "still here")
    await ada.own_messages(1)
    (heard,) = await bob.messages(1)  # and nothing else
    assert (heard["seq"], heard["data"]) == (1, "still here")
    await bob.publish("c", "among ourselves")
    await bob.own_messages(1)
    await bob.silent()
    await ada.say({"type": "leave", "room": "a"})
    assert (await ada.hear_type("left"))["room"] == "a"
    await ada.join("c")


async def test_the_rate_limit_says_when_to_go_on_and_closes_who_never_does(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(
        redis_server, security={"max_messages_per_second": 5, "max_messages_per_minute": 1000}
    )
    clock = HeldClock(one)
    ada, bob = await peers(one), await peers(one)
    for number in range(6):
        await ada.say({"type": "ping", "id": number})
    for number in range(5):
        assert (await ada.hear())["id"] == number
    error = await ada.hear_type("error")
    assert (error["code"], error["id"], error["command"]) == ("rate_limited", 5, "ping")
    assert 0 < error["retryAfter"] <= 1
    clock.now += error["retryAfter"]
    await ada.silent()
    for _ in range(2):
        await ada.say(*({"type": "ping"} for _ in range(60)))
    assert await ada.closed() == 4429
    await bob.silent()


async def test_bytes_are_counted_per_user_over_all_connections(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server, security={"max_bytes_per_second": 40_000}, **AUTH)
    clock = HeldClock(one)
    headers = {"Authorization": f"Bearer {token()}"}
    first, second = await peers(one, additional_headers=headers), await peers(one, additional_headers=headers)
    await first.join("lobby")
    await second.join("lobby")
    await first.published("lobby", "x" * 30_000)
    await second.publish("lobby", "x" * 30_000)
    error = await second.until("error")
    assert error["code"] == "rate_limited"
    clock.now += error["retryAfter"] + 0.01
    await second.published("lobby", "x" * 30_000)


async def test_a_token_comes_by_header_by_subprotocol_or_in_the_first_frame(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server, **AUTH)
    by_header = await peers(one, additional_headers={"Authorization": f"Bearer {token('h')}"})
    by_protocol = await peers(one, subprotocols=["tableforge.v1", f"bearer.{token('p')}"])
    by_frame = await peers(one, welcome=False, subprotocols=["tableforge.v1"])
    await by_frame.say({"type": "auth", "token": token("f")})
    by_frame.welcome = await by_frame.hear_type("welcome")
    assert [peer.welcome["user"] for peer in (by_header, by_protocol, by_frame)] == ["h", "p", "f"]
    assert by_header.socket.subprotocol is None
    assert by_protocol.socket.subprotocol == by_frame.socket.subprotocol == "tableforge.v1"


async def test_whoever_has_no_valid_token_is_told_and_closed(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server, websocket={"auth_timeout_seconds": 0.2}, **AUTH)
    with pytest.raises(InvalidStatus) as refused:
        await peers(one, additional_headers={"Authorization": "Bearer nonsense"})
    assert refused.value.response.status_code == 401
    assert await peers_error(await peers(one, welcome=False)) == ("unauthorized", 4401)
    in_browser = await peers(
        one, welcome=False, origin="http://shop.example", subprotocols=["tableforge.v1", "bearer.nonsense"]
    )
    assert await peers_error(in_browser) == ("unauthorized", 4401)
    by_frame = await peers(one, welcome=False)
    await by_frame.say({"type": "auth", "token": "nonsense", "id": 1})
    assert await peers_error(by_frame) == ("unauthorized", 4401)
    impatient = await peers(one, welcome=False)
    await impatient.say({"type": "join", "room": "lobby"})
    assert await peers_error(impatient) == ("unauthorized", 4401)


async def peers_error(peer: Any) -> tuple[str, int]:
    error = await peer.hear_type("error")
    return error["code"], await peer.closed()


async def test_rights_decide_about_joining_and_publishing(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server, **AUTH)
    rights = {"join": ["game:*", "news"], "publish": ["game:*"]}
    ada = await peers(one, additional_headers={"Authorization": f"Bearer {token(rights=rights)}"})
    bob = await peers(one, additional_headers={"Authorization": f"Bearer {token('bob')}"})
    for room in ("news", "secret"):
        await bob.join(room)
    await ada.join("game:1")
    await ada.join("news")
    await ada.published("game:1", 1, echo=False)
    await ada.publish("news", 1)
    error = await ada.until("error")
    assert (error["code"], error["room"]) == ("forbidden", "news")
    await ada.say({"type": "join", "room": "secret"})
    assert (await ada.hear_type("error"))["code"] == "forbidden"
    await bob.silent()
    assert (await bob.published("news", "after", echo=False))["seq"] == 1
    assert (await ada.messages(1))[0]["data"] == "after"


async def test_renewing_a_token_keeps_the_user_and_checks_the_rooms_again(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server, **AUTH)
    first = {"additional_headers": {"Authorization": f"Bearer {token(seconds=5)}"}}
    ada, not_renewed = await peers(one, **first), await peers(one, **first)
    await ada.join("a")
    await ada.join("b")
    await ada.say({"type": "auth", "token": token("bob"), "id": 1})
    assert (await ada.hear_type("error"))["code"] == "forbidden"
    renewed = token(rights={"join": ["a"], "publish": ["a"]})
    await ada.say({"type": "auth", "token": renewed, "id": 2})
    authenticated = await ada.hear_type("authenticated")
    expires_at = jwt.decode(renewed, options={"verify_signature": False})["exp"]
    assert (authenticated["user"], authenticated["expiresAt"]) == ("ada", expires_at)
    assert (await ada.hear_type("error"))["room"] == "b"
    assert (await ada.hear_type("left"))["room"] == "b"
    assert await not_renewed.closed() == 4401
    await ada.published("a", "still here")


async def test_a_renewal_that_takes_a_room_away_answers_what_waited_for_it(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server, **AUTH)
    ada = await peers(one, additional_headers={"Authorization": f"Bearer {token()}"})
    redis_server.pause()
    await ada.say(
        {"type": "join", "id": 1, "room": "lobby"},
        {"type": "publish", "id": 2, "room": "lobby", "event": "said", "data": 1},
        {"type": "auth", "id": 3, "token": token(rights={"join": [], "publish": []})},
    )
    await ada.hear_type("authenticated")
    answers = [await ada.hear_type("error") for _ in range(2)]
    redis_server.resume()
    assert [(answer["id"], answer["code"]) for answer in answers] == [(1, "forbidden"), (2, "not_joined")]
    await ada.silent()


async def test_a_token_that_runs_out_ends_the_connection(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server, **AUTH)
    bob = await peers(one, additional_headers={"Authorization": f"Bearer {token('bob')}"})
    await bob.join("lobby")
    ada = await peers(one, additional_headers={"Authorization": f"Bearer {token(seconds=5)}"})
    await ada.join("lobby")
    error = await ada.hear_type("error")
    assert error["code"] == "unauthorized"
    assert await ada.closed() == 4401
    await until(lambda: one.metrics.connections == 1)
    await bob.silent()
    await bob.published("lobby", "still here")


async def test_a_full_instance_refuses_with_503_and_tells_browsers_with_1013(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server, websocket={"max_connections": 1})
    ada = await peers(one)
    with pytest.raises(InvalidStatus) as refused:
        await peers(one)
    assert refused.value.response.status_code == 503
    assert int(refused.value.response.headers["Retry-After"]) > 0
    in_browser = await peers(one, welcome=False, origin="http://127.0.0.1:8000")
    assert await peers_error(in_browser) == ("unavailable", 1013)
    await ada.silent()
    await ada.socket.close()
    await until(lambda: one.metrics.connections == 0)
    await peers(one)


async def test_a_refused_browser_that_never_finishes_its_handshake_is_not_counted_for_ever(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server, **AUTH)
    for _ in range(60):
        reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
        writer.write(
            b"GET /ws HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Origin: http://test\r\nAuthorization: Bearer nonsense\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        assert (await reader.read()).startswith(b"HTTP/1.1 4")
        writer.close()
    browser = await peers(
        one, welcome=False, origin="http://test", additional_headers={"Authorization": "Bearer nonsense"}
    )
    assert await browser.closed() == 4401


async def test_without_a_key_file_nobody_gets_in_until_it_is_there(
    redis_server: RedisServer, instances: Instances, peers: Peers, tmp_path: Any
) -> None:
    file = tmp_path / "secret"
    auth = {"required": True, "jwt_secret": Secret(file=file)}
    (one,) = await instances(redis_server, wait_until_ready=False, auth=auth)
    with pytest.raises(InvalidStatus) as refused:
        await peers(one, additional_headers={"Authorization": f"Bearer {token()}"})
    assert refused.value.response.status_code == 503
    file.write_text(KEY)
    await until(lambda: one.ready)
    await peers(one, additional_headers={"Authorization": f"Bearer {token()}"})


async def test_the_welcome_comes_in_one_write_with_the_handshakes_response(
    redis_server: RedisServer, instances: Instances
) -> None:
    (one,) = await instances(redis_server)
    reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
    writer.write(
        b"GET /ws HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    first = await reader.read(65_536)
    assert first.startswith(b"HTTP/1.1 101 ")
    assert b'"type":"welcome"' in first
    writer.close()


async def test_an_unknown_subprotocol_alone_is_refused(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server)
    with pytest.raises(InvalidStatus) as refused:
        await peers(one, subprotocols=["graphql-ws"])
    assert refused.value.response.status_code == 400


async def test_a_connection_whose_other_end_is_silent_is_closed(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(
        redis_server, websocket={"ping_interval_seconds": 0.1, "pong_timeout_seconds": 0.2}
    )
    ada, silent = await peers(one), await peers(one)
    silent.socket.transport.pause_reading()
    await until(lambda: one.metrics.connections == 1)
    await ada.silent()
