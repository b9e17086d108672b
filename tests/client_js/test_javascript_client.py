"""The JavaScript client in a real Node and a real Chromium, on real instances that are killed and drained."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tableforge_client.__main__ import development_token
from tests.client_js.javascript import JavaScript, JsError, Node, Page
from tests.support.processes import DataplaneFleet, DataplaneProcess
from tests.support.redis import RedisServer
from tests.support.redis_cluster import until_received

pytestmark = pytest.mark.timeout(900)  # in a fresh checkout the first one installs the browser

SECRET = "0123456789abcdef0123456789abcdef"
QUICK = {"backoffBase": 0.05, "backoffLongest": 0.5}


@pytest.fixture(params=[Node, Page])
async def js(request: pytest.FixtureRequest) -> AsyncIterator[JavaScript]:
    made: JavaScript = request.param()
    async with made:
        yield made


async def connected(js: JavaScript, client: str, *instances: DataplaneProcess, **options: Any) -> str:
    """Connect to these instances; gives the one that it is on."""
    urls = [instance.url for instance in instances]
    found = await js.do("connect", client, url=urls, options={**QUICK, **options})
    return str(found["instance"])


async def test_two_clients_on_two_instances_talk(
    js: JavaScript, redis_server: RedisServer, dataplane: DataplaneFleet
) -> None:
    one, two = await dataplane(redis_server, 2)
    assert await connected(js, "ada", one) == one.instance
    assert await connected(js, "bob", two) == two.instance
    for client in ("ada", "bob"):
        await js.do("join", client, room="table:1")
    first = await js.do("publish", "ada", room="table:1", event="move", data={"to": "♞e4"})
    second = await js.do("publish", "bob", room="table:1", event="move", data=[None, 1.5])
    assert [first["seq"], second["seq"]] == [1, 2]
    await js.until(lambda: all(len(js.datas(client, "table:1")) == 2 for client in ("ada", "bob")))
    assert js.datas("ada", "table:1") == js.datas("bob", "table:1") == [{"to": "♞e4"}, [None, 1.5]]
    assert 0 <= await js.do("ping", "ada") < 5
    await js.do("leave", "ada", room="table:1")
    await js.do("close", "bob")
    await js.until(lambda: len(js.over) == 2)
    assert js.over == {("ada", "table:1"): None, ("bob", "table:1"): None}


async def test_killed_instances_cost_no_message(
    js: JavaScript, redis_server: RedisServer, dataplane: DataplaneFleet
) -> None:
    instances = await dataplane(redis_server, 2)
    for client in ("ada", "bob"):
        await connected(js, client, *instances)
        await js.do("join", client, room="r")
    publishes = []
    for number in range(400):
        publishes.append(js.begin("publish", "ada", room="r", event="n", data=number))
        if number in (100, 250):
            at = (await js.do("look", "ada"))["instance"]
            victim = next((each for each in instances if each.instance == at), instances[0])
            await victim.kill9()
            await victim.start()
        await asyncio.sleep(0.002)  # a pace
    async with asyncio.timeout(60):
        acks = await asyncio.gather(*publishes)
    assert [ack["seq"] for ack in acks] == list(range(1, 401))
    await js.until(lambda: all(len(js.datas(client, "r")) >= 400 for client in ("ada", "bob")))
    for client in ("ada", "bob"):
        assert js.datas(client, "r") == list(range(400))
        assert not [item for item in js.items[client, "r"] if item["type"] == "reset"]
    assert "reconnecting" in js.states["ada"]


async def test_a_drained_instance_hands_its_clients_over_without_a_gap(
    js: JavaScript, redis_server: RedisServer, dataplane: DataplaneFleet
) -> None:
    one, two = await dataplane(redis_server, 2, TABLEFORGE_SCALING_DRAIN_TIMEOUT="1000")
    await connected(js, "ada", one, two)
    await js.do("join", "ada", room="r")
    leaving = one if (await js.do("look", "ada"))["instance"] == one.instance else two
    drained = asyncio.create_task(leaving.sigterm())
    publishes = []
    while not drained.done():
        publishes.append(js.begin("publish", "ada", room="r", event="n", data=len(publishes)))
        await asyncio.sleep(0.01)  # a pace
    assert await drained == 0
    async with asyncio.timeout(60):
        await asyncio.gather(*publishes)
    await js.until(lambda: len(js.datas("ada", "r")) >= len(publishes))
    assert js.datas("ada", "r") == list(range(len(publishes)))


async def test_a_slow_application_gets_everything_from_the_log(
    js: JavaScript, redis_server: RedisServer, dataplane: DataplaneFleet
) -> None:
    (one,) = await dataplane(redis_server, 1)
    await connected(js, "slow", one, roomBuffer=16)
    await connected(js, "ada", one)
    await js.do("join", "slow", room="r", listen=False)
    await js.do("join", "ada", room="r", listen=False)
    async with asyncio.timeout(60):
        for start in range(0, 300, 50):
            await asyncio.gather(
                *(js.begin("publish", "ada", room="r", event="n", data=start + n) for n in range(50))
            )
    await js.do("listen", "slow", room="r")
    await js.until(lambda: len(js.datas("slow", "r")) >= 300)
    assert js.datas("slow", "r") == list(range(300))


async def test_the_sender_gets_no_copy_and_still_recovers_from_its_own_place(
    js: JavaScript, redis_server: RedisServer, dataplane: DataplaneFleet
) -> None:
    (one,) = await dataplane(redis_server, 1)
    await connected(js, "ada", one)
    await connected(js, "bob", one)
    for client in ("ada", "bob"):
        await js.do("join", client, room="r")
    for number in range(3):
        await js.do("publish", "ada", room="r", event="n", data=number, options={"echo": False})
    await js.do("publish", "ada", room="r", event="typing", data="v", options={"volatile": True})
    await js.until(lambda: "v" in js.datas("bob", "r"))
    await one.kill9()
    await one.start()
    await js.do("publish", "bob", room="r", event="n", data=3)
    await js.until(lambda: 3 in js.datas("ada", "r") and 3 in js.datas("bob", "r"))
    assert [each for each in js.datas("ada", "r") if each != "v"] == [3]
    assert js.datas("bob", "r") == [0, 1, 2, "v", 3]


async def test_tokens_are_asked_for_again_and_refusals_have_names(
    js: JavaScript, redis_server: RedisServer, dataplane: DataplaneFleet
) -> None:
    (one,) = await dataplane(redis_server, 1, AUTH_REQUIRED="true", JWT_SECRET=SECRET)
    good = development_token("ada", SECRET)
    found = await js.do("connect", "ada", url=one.url, tokens=["stale", good], options=QUICK)
    assert found["user"] == "ada"
    with pytest.raises(JsError) as refused:
        await js.do("join", "ada", room="no room")
    assert (refused.value.name, refused.value.code) == ("RefusedError", "bad_room")
    with pytest.raises(JsError) as refused:
        await js.do("connect", "eve", url=one.url, tokens=["stale"], options=QUICK)
    assert (refused.value.name, refused.value.code) == ("UnauthorizedError", "4401")
    with pytest.raises(JsError) as refused:
        await js.do("connect", "nobody", url=one.url, options=QUICK)
    assert refused.value.name == "UnauthorizedError"
    await js.do("join", "ada", room="r")
    with pytest.raises(JsError) as refused:
        await js.do("publish", "ada", room="r", event="big", data="x" * 110_000)
    assert refused.value.code == "too_large"
    assert (await js.do("publish", "ada", room="r", event="small", data=1))["seq"] == 1


async def test_the_first_connection_has_a_limit_and_says_what_went_wrong(js: JavaScript) -> None:
    with pytest.raises(JsError, match=r"not connected within 2 s; the last attempt: 1006") as refused:
        await js.do("connect", "ada", url="ws://127.0.0.1:9/ws", options={**QUICK, "connectTimeout": 2})
    assert (refused.value.name, refused.value.code) == ("ClosedError", "unreachable")


async def test_directs_reach_who_is_away_and_are_marked_as_handled(
    js: JavaScript, redis_server: RedisServer, dataplane: DataplaneFleet
) -> None:
    one, two = await dataplane(
        redis_server,
        2,
        AUTH_REQUIRED="true",
        JWT_SECRET=SECRET,
        TABLEFORGE_AUTH_DEFAULT_RIGHTS='{"join":["**"],"publish":["**"],"presence":["**"],"direct":["*"]}',
    )
    for client, user, at in (("ada", "ada", one), ("phone", "bob", two)):
        token = development_token(user, SECRET)
        await js.do("connect", client, url=at.url, tokens=[token], options=QUICK)
    first = await js.do("direct", "ada", to="bob", event="hello", data=1)
    assert first["pos"]
    await js.do("join", "phone", room="@")
    await js.do("direct", "ada", to="bob", event="hello", data=2)
    await js.until(lambda: js.datas("phone", "@") == [1, 2])
    assert {item["type"] for item in js.items["phone", "@"]} == {"direct"}
    assert [item["from"] for item in js.items["phone", "@"]] == ["ada", "ada"]
    await js.do("received", "phone", pos=first["pos"])
    await until_received(redis_server, "bob", first["pos"])
    token = development_token("bob", SECRET)
    await js.do("connect", "laptop", url=one.url, tokens=[token], options=QUICK)
    await js.do("join", "laptop", room="@")
    await js.until(lambda: js.datas("laptop", "@") == [2])


async def test_who_is_in_a_room_and_what_was_said_there(
    js: JavaScript, redis_server: RedisServer, dataplane: DataplaneFleet
) -> None:
    one, two = await dataplane(redis_server, 2, AUTH_REQUIRED="true", JWT_SECRET=SECRET)
    for client, at in (("ada", one), ("bob", two)):
        token = development_token(client, SECRET)
        await js.do("connect", client, url=at.url, tokens=[token], options=QUICK)
    await js.do("join", "ada", room="r", options={"presence": True})
    await js.do("join", "bob", room="r")

    def came_and_went(field: str) -> set[str]:
        items = [item for item in js.items.get(("ada", "r"), []) if item["type"] == "members"]
        return {user for item in items for user in item.get(field, [])}

    await js.until(lambda: "bob" in came_and_went("joined"))
    found = await js.do("presence", "bob", room="r")
    assert {member["user"] for member in found["members"]} == {"ada", "bob"}
    assert found["count"] == 2
    for number in range(5):
        await js.do("publish", "ada", room="r", event="n", data=number)
    await js.until(lambda: js.datas("bob", "r") == [0, 1, 2, 3, 4])
    last = await js.do("history", "bob", room="r", query={"last": 2})
    assert [message["data"] for message in last["messages"]] == [3, 4]
    after = await js.do("history", "bob", room="r", query={"after": last["messages"][0]["pos"]})
    assert [message["data"] for message in after["messages"]] == [4]
    assert after["complete"]
    await js.do("close", "bob")
    await js.until(lambda: "bob" in came_and_went("left"))
