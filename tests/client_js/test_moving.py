"""Where a server sends the JavaScript client, in Node and in Chromium, and how it comes back."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Self

import aiohttp
import msgspec
import pytest

from tableforge_dataplane.contract.endpoints import FLEET_COMMANDS_PATH
from tableforge_dataplane.contract.fleet import Move, RoomMove
from tableforge_dataplane.contract.settings import Settings
from tableforge_dataplane.registry.keys import RegistryKeys
from tests.client_js.javascript import JavaScript, Node, Page
from tests.support.children import free_port
from tests.support.processes import DataplaneFleet, DataplaneProcess
from tests.support.redis import RedisServer
from tests.support.redis_cluster import ask, eventually
from tests.support.scripted_peer import PeerConnection, ScriptedPeer

pytestmark = pytest.mark.timeout(900)  # in a fresh checkout the first one installs the browser


@pytest.fixture(params=[Node, Page])
async def js(request: pytest.FixtureRequest) -> AsyncIterator[JavaScript]:
    made: JavaScript = request.param()
    async with made:
        yield made


@pytest.fixture
async def peer() -> AsyncIterator[ScriptedPeer]:
    async with ScriptedPeer() as peer:
        yield peer


class Moving:
    """A client in one room, connected to a peer that sends it about."""

    def __init__(self, js: JavaScript, peer: ScriptedPeer) -> None:
        self.js = js
        self.peer = peer
        self.connection: PeerConnection

    @classmethod
    async def enter(cls, js: JavaScript, peer: ScriptedPeer, **options: Any) -> Self:
        made = cls(js, peer)
        options = {"backoffBase": 0.05, **options}
        entering = js.begin("connect", "ada", url=[peer.url], options=options)
        made.connection = await peer.connection(within=60)
        await made.connection.welcome("first")
        await entering
        joining = js.begin("join", "ada", room="t")
        await made.connection.join("t", at="1-t")
        await joining
        return made

    async def told(self, url: str | None, *, after: float = 0.0, reason: str = "home") -> None:
        fields: dict[str, Any] = {} if url is None else {"url": url}
        await self.connection.send(type="migrate", after=after, reason=reason, **fields)

    async def arrives(self, path: str, *, pos: str = "1-t") -> PeerConnection:
        """The next connection, on this path, which goes on in the room."""
        connection = await self.peer.connection()
        assert connection.path == path
        await connection.welcome(path)
        await connection.join("t", pos=pos, at=pos, recovered=True)
        self.connection = connection
        return connection

    async def still_served(self, seq: int) -> None:
        """The connection is the one in use: what comes on it reaches the application, and nothing else."""
        await self.connection.message("t", seq, seq)
        await self.js.until(lambda: self.js.datas("ada", "t")[-1:] == [seq])
        assert self.js.datas("ada", "t") == list(range(2, seq + 1))

    @property
    def undisturbed(self) -> bool:
        """Whether the application was told of nothing but connections."""
        return set(self.js.states["ada"]) <= {"connecting", "connected"}


async def test_a_client_that_moves_twice_keeps_every_message_and_comes_back_by_its_own_address(
    js: JavaScript, peer: ScriptedPeer
) -> None:
    moving = await Moving.enter(js, peer)
    first = moving.connection
    await moving.told("/i/one/ws")
    await moving.arrives("/i/one/ws")
    assert await first.closed() in (1000, 1005)
    await moving.still_served(2)
    second = moving.connection
    await moving.told("/i/two/ws")
    await moving.arrives("/i/two/ws", pos="2-t")
    assert await second.closed() in (1000, 1005)
    await moving.still_served(3)
    assert moving.undisturbed
    await moving.connection.close(1012, "this instance is leaving")
    await moving.arrives("/ws", pos="3-t")
    await moving.still_served(4)


@pytest.mark.parametrize("status", [404, 503])
async def test_an_instance_that_is_gone_costs_one_attempt_and_no_backoff(
    js: JavaScript, peer: ScriptedPeer, status: int
) -> None:
    moving = await Moving.enter(js, peer)
    await moving.told("/i/one/ws")
    await moving.arrives("/i/one/ws")
    await moving.still_served(2)
    peer.refused["/i/one/ws"] = status
    before = peer.handshakes
    moving.connection.cut()
    await moving.arrives("/ws", pos="2-t")
    await moving.still_served(3)
    assert peer.handshakes == before + 2


async def test_the_newest_wish_counts(js: JavaScript, peer: ScriptedPeer) -> None:
    moving = await Moving.enter(js, peer)
    await moving.told("/i/one/ws", after=30)
    await moving.told("/i/two/ws")
    await moving.arrives("/i/two/ws")
    await moving.still_served(2)
    assert peer.handshakes == 2


async def test_a_move_under_way_is_given_up_for_a_newer_one(js: JavaScript, peer: ScriptedPeer) -> None:
    moving = await Moving.enter(js, peer)
    old = moving.connection
    await moving.told("/i/one/ws")
    unwelcomed = await peer.connection()
    assert unwelcomed.path == "/i/one/ws"
    await moving.told("/i/two/ws")
    await moving.arrives("/i/two/ws")
    assert await unwelcomed.closed() in (1000, 1001, 1005, 1006)
    assert await old.closed() in (1000, 1005)
    await moving.still_served(2)
    assert moving.undisturbed


async def test_a_room_that_had_moved_already_goes_on_where_it_was_when_the_move_is_given_up(
    js: JavaScript, peer: ScriptedPeer
) -> None:
    moving = await Moving.enter(js, peer)
    old = moving.connection
    joining = js.begin("join", "ada", room="u")
    await old.join("u", at="5-u")
    await joining
    await moving.told("/i/one/ws")
    half = await peer.connection()
    await half.welcome("/i/one/ws")
    await half.join("t", pos="1-t", at="1-t", recovered=True)
    assert (await half.expect("join", room="u"))["pos"] == "5-u"  # and gets no answer
    publishing = js.begin("publish", "ada", room="t", event="n", data="on the way")
    first = await half.expect("publish", room="t")
    await moving.told("/ws")
    await old.join("t", pos="1-t", at="1-t", recovered=True)
    again = await old.expect("publish", room="t", key=first["key"])
    await old.message("t", 2, 2)
    await old.ack(again, 2)
    assert (await publishing)["seq"] == 2
    await moving.still_served(3)
    assert await half.closed() in (1000, 1005)
    assert moving.undisturbed


@pytest.mark.parametrize("status", [404, 503])
async def test_where_the_target_refuses_the_client_stays_and_is_served(
    js: JavaScript, peer: ScriptedPeer, status: int
) -> None:
    moving = await Moving.enter(js, peer)
    peer.refused["/i/one/ws"] = status
    await moving.told("/i/one/ws")
    await moving.told(f"ws://127.0.0.1:{free_port()}/ws")
    assert await moving.connection.silent(0.5)
    await moving.still_served(2)
    del peer.refused["/i/one/ws"]
    await moving.told("/i/one/ws")
    await moving.arrives("/i/one/ws", pos="2-t")
    assert moving.undisturbed


async def test_neither_the_address_in_use_nor_another_host_is_gone_to(
    js: JavaScript, peer: ScriptedPeer
) -> None:
    moving = await Moving.enter(js, peer)
    for url in (
        "/ws",
        "ws://elsewhere.example/ws",
        "//elsewhere.example/ws",
        "http://127.0.0.1/",
        "ws://[oops",
    ):
        await moving.told(url)
        assert await moving.connection.silent(0.1)
    await moving.still_served(2)
    assert peer.handshakes == 1


async def test_a_host_that_the_application_named_is_gone_to_on_any_port(
    js: JavaScript, peer: ScriptedPeer
) -> None:
    moving = await Moving.enter(js, peer)
    async with ScriptedPeer() as other:
        moving.peer = other
        await moving.told(other.url.replace("127.0.0.1", "localhost"), reason="leaving")
        await moving.arrives("/ws")
        await moving.still_served(2)


@pytest.mark.parametrize("url", [None, "/i/one/ws"])
async def test_who_has_to_go_and_is_sent_nowhere_or_refused_there_comes_by_its_own_address(
    js: JavaScript, peer: ScriptedPeer, url: str | None
) -> None:
    moving = await Moving.enter(js, peer)
    old = moving.connection
    peer.refused["/i/one/ws"] = 404
    await moving.told(url, reason="leaving")
    await moving.arrives("/ws")
    assert await old.closed() in (1000, 1005)
    await moving.still_served(2)
    assert moving.undisturbed


async def test_who_is_closed_before_it_has_moved_goes_where_it_was_sent(
    js: JavaScript, peer: ScriptedPeer
) -> None:
    moving = await Moving.enter(js, peer)
    await moving.told("/i/one/ws", after=30, reason="leaving")
    await moving.still_served(2)
    await moving.connection.close(1012, "this instance is leaving")
    await moving.arrives("/i/one/ws", pos="2-t")


async def test_what_is_under_way_in_both_directions_comes_once_and_in_order(
    js: JavaScript, peer: ScriptedPeer
) -> None:
    moving = await Moving.enter(js, peer)
    old = moving.connection
    publishing = [js.begin("publish", "ada", room="t", event="n", data=number) for number in range(3)]
    sent = [await old.expect("publish") for _ in range(3)]
    await old.ack(sent[0], 2)
    await old.message("t", 2, 2)
    await moving.told("/i/one/ws")
    new = await peer.connection()
    await new.welcome("one")
    asked = await new.expect("join")
    await old.message("t", 3, 3)
    await js.until(lambda: js.datas("ada", "t") == [2, 3])
    await new.reply(asked, type="joined", room="t", pos=asked["pos"], recovered=True)
    again = [await new.expect("publish") for _ in range(2)]
    assert [one["key"] for one in again] == [one["key"] for one in sent[1:]]
    for seq in range(int(asked["pos"].split("-")[0]) + 1, 5):
        await new.message("t", seq, seq)
    for seq, one in enumerate(again, 3):
        await new.ack(one, seq)
    assert [ack["seq"] for ack in await asyncio.gather(*publishing)] == [2, 3, 4]
    await js.until(lambda: len(js.datas("ada", "t")) >= 3)
    assert js.datas("ada", "t") == [2, 3, 4]
    assert moving.undisturbed


KEY = "the-key-of-this-cluster"


async def home_of(room: str, server: RedisServer) -> str:
    """Waits until it has one."""
    key = RegistryKeys(Settings().redis.key_prefix).homes

    async def housed() -> bool:
        return bool(await ask(server, "HEXISTS", key, room))

    await eventually(housed)
    found: bytes = await ask(server, "HGET", key, room)
    return found.decode()


async def move(room: str, source: DataplaneProcess, target: DataplaneProcess) -> None:
    body = Move(fence=1, id="m", moves=[RoomMove(room=room, source=source.instance, target=target.instance)])
    async with (
        aiohttp.ClientSession() as client,
        client.post(
            f"http://127.0.0.1:{target.http_port}{FLEET_COMMANDS_PATH}",
            data=msgspec.json.encode(body),
            headers={"Authorization": f"Bearer {KEY}"},
        ) as answer,
    ):
        assert (await answer.json())["moves"] == [{"room": room, "outcome": "moved"}]


async def test_real_instances_send_their_clients_after_a_room_that_moves(
    js: JavaScript, redis_server: RedisServer, dataplane: DataplaneFleet
) -> None:
    one, two = await dataplane(
        redis_server,
        2,
        TABLEFORGE_ROUTING_MODE="Gateway",
        TABLEFORGE_ROUTING_ADDRESS="ws://127.0.0.1:{port}/ws",
        TABLEFORGE_HTTP_FLEET_KEY=KEY,
    )
    clients = ["ada", "bob", "carl"]
    for client in clients:
        await js.do("connect", client, url=[one.url], options={"backoffBase": 0.05})
        await js.do("join", client, room="r")

    async def all_at(instance: str) -> None:
        async def so() -> bool:
            found = [await js.do("look", client) for client in clients]
            return {each["instance"] for each in found} == {instance}

        await eventually(so)

    publishes: list[asyncio.Future[Any]] = []

    async def talk() -> None:
        while True:
            number = len(publishes)
            publishes.append(js.begin("publish", clients[number % 3], room="r", event="n", data=number))
            await asyncio.sleep(0.01)  # a pace

    talking = asyncio.create_task(talk())
    # most likely where they came in; but that had a client more when it was decided
    first, second = (one, two) if await home_of("r", redis_server) == one.instance else (two, one)
    for source, target in ((first, second), (second, first)):
        await all_at(source.instance)
        await move("r", source, target)
        await all_at(target.instance)
    talking.cancel()
    async with asyncio.timeout(30):
        acks = await asyncio.gather(*publishes)
    assert sorted(ack["seq"] for ack in acks) == list(range(1, len(publishes) + 1))
    await js.until(lambda: all(len(js.datas(client, "r")) >= len(publishes) for client in clients))
    for client in clients:
        got = js.datas(client, "r")
        assert sorted(got) == list(range(len(publishes)))
        assert got == js.datas("ada", "r")
        for nth in range(3):
            own = [number for number in got if number % 3 == nth]
            assert own == sorted(own)
        assert set(js.states[client]) == {"connected"}
