"""The server API over real sockets: what one instance is asked holds for the whole cluster."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tableforge_dataplane.broker import control
from tableforge_dataplane.contract.settings import Secret
from tableforge_dataplane.security.tokens import mint
from tableforge_dataplane.server import Server
from tests.dataplane.path.instances import Instances, Peers, until
from tests.support.redis import Binary, RedisServer
from tests.support.redis_cluster import RedisCluster

KEY = "an-application-key"
JWT_KEY = "0123456789abcdef0123456789abcdef"
KEYED = {"api_key": Secret(value=KEY), "port": 0}


class Caller:
    """An application's backend."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def __call__(
        self,
        server: Server,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str | None = KEY,
        **options: Any,
    ) -> tuple[int, Any]:
        """Status and JSON of the answer."""
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        if body is not None:
            options["json"] = body
        url = f"http://127.0.0.1:{server.http_port}{path}"
        async with self._session.request(method, url, headers=headers, **options) as response:
            return response.status, await response.json()


@pytest.fixture
async def call() -> AsyncIterator[Caller]:
    async with aiohttp.ClientSession() as session:
        yield Caller(session)


async def test_a_backend_publishes_through_any_instance(
    redis_server: RedisServer, instances: Instances, peers: Peers, call: Caller
) -> None:
    one, two = await instances(redis_server, 2, http=KEYED)
    ada = await peers(one)
    await ada.join("lobby")
    status, stored = await call(two, "POST", "/api/publish", {"room": "lobby", "event": "news", "data": [1]})
    assert status == 200, stored
    (message,) = await ada.messages(1)
    assert message["pos"] == stored["pos"]
    assert (message["seq"], stored["seq"]) == (1, 1)
    assert (message["event"], message["from"], message["data"]) == ("news", "server", [1])
    post = {"room": "lobby", "event": "news", "data": 2, "from": "the bank", "key": "once"}
    first = await call(two, "POST", "/api/publish", post)
    assert first == await call(one, "POST", "/api/publish", post)
    (message,) = await ada.messages(1)
    assert (message["from"], message["pos"]) == ("the bank", first[1]["pos"])
    await ada.silent()


async def test_a_batch_is_answered_in_order_and_one_bad_one_costs_no_other(
    redis_server: RedisServer, instances: Instances, peers: Peers, call: Caller
) -> None:
    (one,) = await instances(redis_server, http=KEYED)
    ada = await peers(one)
    await ada.join("a")
    publishes: list[Any] = [{"room": "a", "event": "n", "data": number} for number in range(1000)]
    publishes[3] = {"room": "no good", "event": "n", "data": 3}
    publishes[7] = {"room": "a", "data": 7}
    publishes[8] = 8
    status, answer = await call(one, "POST", "/api/batch", {"publishes": publishes})
    results = answer["results"]
    assert (status, len(results)) == (200, 1000)
    assert [number for number, result in enumerate(results) if "error" in result] == [3, 7, 8]
    assert [results[number]["error"]["code"] for number in (3, 7, 8)] == [
        "bad_room",
        "bad_event",
        "bad_frame",
    ]
    assert [result["seq"] for result in results if "seq" in result] == list(range(1, 998))
    messages = await ada.messages(997)
    assert [message["data"] for message in messages] == [n for n in range(1000) if n not in (3, 7, 8)]


@pytest.fixture
def everybody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long that takes."""
    monkeypatch.setattr(control, "ANSWER_WITHIN_SECONDS", 60.0)


@pytest.mark.usefixtures("everybody_answers")
async def test_a_user_is_disconnected_and_removed_everywhere(
    redis_server: RedisServer, instances: Instances, peers: Peers, call: Caller
) -> None:
    one, two = await instances(redis_server, 2, http=KEYED)
    await until_registered(call, one, 2)
    eve, bob = await peers(one), await peers(two)
    for peer in (eve, bob):
        for room in ("lobby", "hall"):
            await peer.join(room)
    order = {"room": "lobby", "user": bob.welcome["user"]}
    assert await call(one, "POST", "/api/remove", order) == (
        200,
        {"removed": 1, "instances": 2, "missing": []},
    )
    left = await bob.hear_type("left")
    assert (left["room"], left["reason"]) == ("lobby", "removed")
    assert (await call(one, "POST", "/api/remove", order))[1]["removed"] == 0
    await eve.publish("lobby", 1)
    assert {(await eve.hear())["type"] for _ in range(2)} == {"ack", "message"}
    await bob.silent()
    order = {"user": bob.welcome["user"], "code": 4000, "reason": "enough"}
    assert await call(one, "POST", "/api/disconnect", order) == (
        200,
        {"closed": 1, "instances": 2, "missing": []},
    )
    assert await bob.closed() == 4000
    assert bob.socket.close_reason == "enough"
    assert two.metrics.connections_closed == {"other": 1}
    assert (await call(one, "POST", "/api/disconnect", order))[1]["closed"] == 0
    await eve.silent()


async def until_registered(call: Caller, server: Server, count: int) -> None:
    async with asyncio.timeout(30):
        while True:
            _, page = await call(server, "GET", "/api/instances")
            if sum(record["alive"] for record in page["instances"]) == count:
                return
            await asyncio.sleep(0.1)


async def test_an_instance_that_does_not_answer_is_named(
    redis_server: RedisServer, instances: Instances, call: Caller
) -> None:
    one, two = await instances(redis_server, 2, http=KEYED)
    await until_registered(call, one, 2)
    two.broker.subscriber.unsubscribe(two.control.everybody)
    async with asyncio.timeout(30):
        while (answer := (await call(one, "POST", "/api/disconnect", {"user": "nobody"}))[1])[
            "instances"
        ] == 2:
            pass
    assert answer == {"closed": 0, "instances": 1, "missing": ["instance-2"]}


async def test_rooms_their_presence_and_their_history(
    redis_server: RedisServer, instances: Instances, peers: Peers, call: Caller
) -> None:
    one, two = await instances(redis_server, 2, http=KEYED)
    ada = await peers(one)
    await ada.join("lobby")
    for number in range(3):
        await ada.published("lobby", number)
    for room in range(40):
        await call(one, "POST", "/api/publish", {"room": f"room:{room}", "event": "n", "data": None})
    found: dict[str, Any] = {}
    cursor: str | None = ""
    pages = 0
    while cursor is not None:
        status, page = await call(two, "GET", "/api/rooms", params={"limit": "10", "cursor": cursor})
        assert status == 200, page
        found |= {entry["room"]: entry for entry in page["rooms"]}
        cursor, pages = page["cursor"], pages + 1
    assert set(found) == {"lobby", *(f"room:{room}" for room in range(40))}
    assert pages > 1
    async with asyncio.timeout(30):
        while (presence := (await call(two, "GET", "/api/rooms/lobby/presence"))[1])["count"] != 1:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert [member["user"] for member in presence["members"]] == [ada.welcome["user"]]
    status, history = await call(two, "GET", "/api/rooms/lobby/history", params={"last": "2"})
    assert [message["data"] for message in history["messages"]] == [1, 2]
    first = history["messages"][0]["pos"]
    status, history = await call(two, "GET", "/api/rooms/lobby/history", params={"after": first})
    assert [(message["data"], message["seq"]) for message in history["messages"]] == [(2, 3)]
    assert history["complete"] is True


async def test_a_direct_message_waits_for_its_user(
    redis_server: RedisServer, instances: Instances, peers: Peers, call: Caller
) -> None:
    auth = {"required": True, "jwt_secret": Secret(value=JWT_KEY)}
    (one,) = await instances(redis_server, http=KEYED, auth=auth)
    order = {"to": "ada", "event": "bill", "data": 12, "from": "shop", "key": "bill-1"}
    status, answer = await call(one, "POST", "/api/direct", order)
    assert (status, list(answer)) == (200, ["pos"])
    assert await call(one, "POST", "/api/direct", order) == (status, answer)
    token = mint(JWT_KEY, user="ada", lifetime_seconds=60, rights=None)
    ada = await peers(one, additional_headers={"Authorization": f"Bearer {token}"})
    await ada.say({"type": "join", "room": "@"})
    direct = await ada.until("direct")
    assert (direct["from"], direct["event"], direct["data"], direct["pos"]) == (
        "shop",
        "bill",
        12,
        answer["pos"],
    )


async def test_stats_and_distribution(
    redis_server: RedisServer, instances: Instances, peers: Peers, call: Caller
) -> None:
    one, two = await instances(redis_server, 2, http=KEYED, scaling={"heartbeat_interval_seconds": 0.2})
    for server, rooms in ((one, ("a", "b")), (two, ("b", "c"))):
        peer = await peers(server)
        for room in rooms:
            await peer.join(room)
    status, stats = await call(one, "GET", "/stats")
    assert status == 200
    assert (stats["instance"], stats["connections"], stats["rooms"]) == ("instance-1", 1, 2)
    assert stats["status"] == "healthy"
    assert stats["redis"]["connected"] is True
    assert stats["memory"]["used"] > 1_000_000
    assert stats["cpu"]["userSeconds"] > 0
    expected = [
        {"room": "a", "members": 1, "instances": {"instance-1": 1}},
        {"room": "b", "members": 2, "instances": {"instance-1": 1, "instance-2": 1}},
    ]
    async with asyncio.timeout(30):
        while True:
            status, page = await call(one, "GET", "/rooms", params={"limit": "2"})
            if page["rooms"] == expected:
                break
            await asyncio.sleep(0.1)
    assert page["cursor"] == "b"
    _, page = await call(one, "GET", "/rooms", params={"cursor": "b"})
    assert [entry["room"] for entry in page["rooms"]] == ["c"]
    assert page["cursor"] is None


LOBBY = {"room": "lobby", "event": "n", "data": 1}


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "says"),
    [
        ("publish", {**LOBBY, "room": "no good"}, 400, "bad_room", "characters"),
        ("publish", {**LOBBY, "room": 7}, 400, "bad_room", "room"),
        ("publish", {**LOBBY, "event": ""}, 400, "bad_event", "event"),
        ("publish", {"room": "lobby", "event": "n"}, 400, "bad_data", "data"),
        ("publish", {**LOBBY, "key": ""}, 400, "bad_frame", "key"),
        ("publish", {**LOBBY, "from": "a\nb"}, 400, "bad_frame", "printable"),
        ("publish", {**LOBBY, "data": 10**400}, 400, "bad_data", "double"),
        ("publish", {**LOBBY, "data": "x" * 104_000}, 413, "too_large", "102400"),
        ("publish", {**LOBBY, "data": "x" * 200_000}, 413, "too_large", "body"),
        ("publish", [], 400, "bad_frame", "object"),
        ("batch", {"publishes": []}, 400, "bad_frame", "1 to 1000"),
        ("batch", {"publishes": [LOBBY] * 1001}, 400, "bad_frame", "1 to 1000"),
        ("direct", {"to": "", "event": "n", "data": 1}, 400, "bad_frame", "`to`"),
        ("disconnect", {}, 400, "bad_frame", "user"),
        ("disconnect", {"user": "a", "code": 1006}, 400, "bad_frame", "code"),
        ("disconnect", {"user": "a", "reason": "ä" * 100}, 400, "bad_frame", "reason"),
        ("remove", {"user": "a", "room": "no good"}, 400, "bad_room", "characters"),
        ("nothing", {}, 404, "not_found", "server-api"),
    ],
)
async def test_a_bad_call_is_told_what_is_wrong(
    bad_calls: Server, call: Caller, path: str, body: Any, status: int, code: str, says: str
) -> None:
    found, answer = await call(bad_calls, "POST", f"/api/{path}", body)
    assert (found, answer["error"]["code"]) == (status, code), answer
    assert says in answer["error"]["message"]


@pytest.fixture
async def bad_calls(redis_server: RedisServer, instances: Instances) -> Server:
    (one,) = await instances(redis_server, http=KEYED)
    return one


async def test_who_has_no_key_gets_nothing(
    redis_server: RedisServer, instances: Instances, call: Caller, tmp_path: Path
) -> None:
    file = tmp_path / "key"
    http = {"api_key": Secret(file=file), "port": 0}
    (one,) = await instances(redis_server, http=http)
    for path in ("/api/rooms", "/stats", "/rooms", "/api/instances"):
        status, answer = await call(one, "GET", path)
        assert (status, answer["error"]["code"]) == (404, "not_found")
        assert "TABLEFORGE_HTTP_API_KEY_FILE" in answer["error"]["message"]
    file.write_text("first")
    await until_status(call, one, "first", 200)
    assert (await call(one, "GET", "/stats", key="second"))[0] == 401
    assert (await call(one, "GET", "/stats", key=None))[0] == 401
    file.write_text("second-key")
    await until_status(call, one, "second-key", 200)
    assert (await call(one, "POST", "/api/publish", LOBBY, key="first"))[0] == 401


async def until_status(call: Caller, server: Server, key: str, status: int) -> None:
    async with asyncio.timeout(30):
        while (await call(server, "GET", "/stats", key=key))[0] != status:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_bad_callers_cost_nobody_else(
    redis_server: RedisServer, instances: Instances, call: Caller
) -> None:
    (one,) = await instances(redis_server, http=KEYED)
    head = f"POST /api/batch HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n".encode()
    slow = []
    for _ in range(8):
        reader, writer = await asyncio.open_connection("127.0.0.1", one.http_port)
        # announces 4 MB and never sends them
        writer.write(head + b"Content-Length: 4194304\r\n\r\n{")
        slow.append((reader, writer))
    try:
        async with asyncio.timeout(30):
            while (answer := await call(one, "POST", "/api/batch", {"publishes": [LOBBY]}))[0] != 503:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert answer[1]["error"]["code"] == "unavailable"
        assert answer[1]["error"]["retryAfter"] == 1.0
        assert (await call(one, "GET", "/stats"))[0] == 200
    finally:
        for _, writer in slow:
            writer.close()
    async with asyncio.timeout(30):
        while (await call(one, "POST", "/api/batch", {"publishes": [LOBBY]}))[0] != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_without_redis_calls_are_told_to_come_back(
    redis_server: RedisServer, instances: Instances, call: Caller
) -> None:
    (one,) = await instances(redis_server, http=KEYED)
    await redis_server.kill9()
    await until(lambda: not one.broker.redis_state().connected)
    for method, path, body in (
        ("POST", "/api/publish", LOBBY),
        ("POST", "/api/disconnect", {"user": "ada"}),
        ("GET", "/api/rooms/lobby/presence", None),
        ("GET", "/api/rooms/lobby/history?last=1", None),
        ("GET", "/api/rooms", None),
    ):
        status, answer = await call(one, method, path, body)
        assert (status, answer["error"]["code"]) == (503, "unavailable"), (path, answer)
        assert answer["error"]["retryAfter"] > 0
    assert (await call(one, "GET", "/stats"))[1]["redis"]["connected"] is False


async def test_options_of_rooms_hold_for_backends(
    redis_server: RedisServer, instances: Instances, peers: Peers, call: Caller
) -> None:
    options = (
        '[{"pattern":"cursor","volatile":true},{"pattern":"news","publish":"server"},'
        '{"pattern":"old","publish":"nobody"}]'
    )
    (one,) = await instances(redis_server, http=KEYED, rooms={"options": options})
    ada = await peers(one)
    await ada.join("cursor")
    await ada.join("news")
    assert await call(one, "POST", "/api/publish", {**LOBBY, "room": "cursor"}) == (200, {})
    (message,) = await ada.messages(1)
    assert ("seq" in message, message["data"]) == (False, 1)
    status, stored = await call(one, "POST", "/api/publish", {**LOBBY, "room": "news"})
    assert (status, stored["seq"]) == (200, 1)
    await ada.messages(1)
    status, answer = await call(one, "POST", "/api/publish", {**LOBBY, "room": "old"})
    assert (status, answer["error"]["code"]) == (403, "forbidden")


@pytest.mark.usefixtures("everybody_answers")
@pytest.mark.parametrize("binary", ["valkey", "redis62"])
async def test_a_redis_cluster_is_one_to_a_backend(
    binary: Binary, instances: Instances, peers: Peers, call: Caller
) -> None:
    async with RedisCluster(binary=binary) as cluster:
        where = {"mode": "Cluster", "addresses": cluster.addresses}
        one, two = await instances(cluster.primaries[0], 2, http=KEYED, redis=where)
        await until_registered(call, one, 2)
        ada, bob = await peers(one), await peers(two)
        rooms = {f"room:{number}" for number in range(30)}
        posts = [{"room": room, "event": "n", "data": 1} for room in sorted(rooms)]
        _, answer = await call(one, "POST", "/api/batch", {"publishes": posts})
        assert [result["seq"] for result in answer["results"]] == [1] * 30
        found: set[str] = set()
        cursor: str | None = ""
        while cursor is not None:
            status, page = await call(two, "GET", "/api/rooms", params={"limit": "10", "cursor": cursor})
            assert status == 200, page
            found |= {entry["room"] for entry in page["rooms"]}
            cursor = page["cursor"]
        assert found == rooms
        for room in ("room:1", "room:2", "room:3"):
            await ada.say({"type": "join", "room": room, "presence": True})
            await ada.until("joined")
            await bob.join(room)
            assert (await ada.until("members"))["joined"] == [bob.welcome["user"]]
        order = {"user": bob.welcome["user"]}
        assert await call(one, "POST", "/api/disconnect", order) == (
            200,
            {"closed": 1, "instances": 2, "missing": []},
        )
        assert await bob.closed() == 4403
