"""Where a server sends the client, and how it comes back: paths, gone addresses, moves that overlap."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tableforge_client import Client, Message, Reset, Room, State, connect, engine
from tableforge_client.routes import destination
from tests.support.children import free_port
from tests.support.forward import forward
from tests.support.scripted_peer import PeerConnection, ScriptedPeer
from tests.support.states import States

STABLE_AFTER = 60.0


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No instance of its own is given up because this machine stands still for three seconds."""
    monkeypatch.setattr(engine, "_LONGEST_OPEN_ELSEWHERE_SECONDS", 30.0)


HERE = "ws://127.0.0.1:4000/ws?tenant=7"


def leads(
    asked: str, *, present: str = HERE, urls: tuple[str, ...] = (HERE,), hosts: tuple[str, ...] = ()
) -> str | None:
    return destination(asked, present=present, urls=urls, allowed_hosts=hosts)


def test_a_path_is_one_on_the_host_in_use_and_its_query_goes_along() -> None:
    assert leads("/i/one/ws") == "ws://127.0.0.1:4000/i/one/ws?tenant=7"
    assert leads("/i/one/ws?tenant=8") == "ws://127.0.0.1:4000/i/one/ws?tenant=8"
    elsewhere = "wss://b.example/i/two/ws"
    assert leads("/i/one/ws", present=elsewhere, urls=("wss://a.example/ws",)) == "wss://b.example/i/one/ws"


def test_an_address_on_the_same_host_is_followed_whatever_its_port() -> None:
    assert leads("ws://127.0.0.1:4001/ws") == "ws://127.0.0.1:4001/ws?tenant=7"
    assert leads("wss://127.0.0.1/ws#x") == "wss://127.0.0.1/ws?tenant=7"
    assert leads("ws://localhost:4001/ws") == "ws://localhost:4001/ws?tenant=7"


@pytest.mark.parametrize(
    "asked",
    [
        "ws://elsewhere.example/ws",
        "//elsewhere.example/ws",
        "http://127.0.0.1:4000/ws",
        "ws://[oops/ws",
    ],
)
def test_other_hosts_and_nonsense_are_not_followed(asked: str) -> None:
    assert leads(asked) is None


def test_another_host_is_followed_where_the_application_named_it() -> None:
    there = "wss://b.example:8443/ws"
    assert leads(there) is None
    assert leads(there, hosts=("b.example",)) == leads(there, hosts=("b.example:8443",)) == there
    assert leads(there, urls=(HERE, "wss://b.example/ws")) == there


def test_nothing_leads_from_encrypted_to_plain() -> None:
    assert (
        leads("ws://a.example/i/one/ws", present="wss://a.example/ws", urls=("wss://a.example/ws",)) is None
    )


class Moving:
    """A client in one room, connected to a peer that sends it about."""

    def __init__(self, client: Client, room: Room, connection: PeerConnection, states: States) -> None:
        self.client = client
        self.room = room
        self.connection = connection
        self.states = states

    @classmethod
    async def enter(cls, stack: AsyncExitStack, peer: ScriptedPeer, *more: str, **options: Any) -> "Moving":
        states = States()
        client = connect([peer.url, *more], backoff_base=0.05, on_state=states, **options)
        entering = asyncio.create_task(stack.enter_async_context(client))
        connection = await peer.connection()
        await connection.welcome("first")
        await entering
        joining = asyncio.create_task(client.join("t"))
        await connection.join("t", at="1-t")
        return cls(client, await joining, connection, states)

    async def told(self, url: str | None, *, after: float = 0.0, reason: str = "home") -> None:
        fields: dict[str, Any] = {} if url is None else {"url": url}
        await self.connection.send(type="migrate", after=after, reason=reason, **fields)

    async def arrives(self, peer: ScriptedPeer, path: str, *, pos: str = "1-t") -> PeerConnection:
        """The next connection, on this path, which goes on in the room."""
        connection = await peer.connection()
        assert connection.path == path
        await connection.welcome(path)
        self.connection = connection
        await connection.join("t", pos=pos, at=pos, recovered=True)
        return connection

    async def still_served(self, seq: int) -> None:
        """The connection is the one in use: what comes on it reaches the application."""
        await self.connection.message("t", seq)
        got = await self.room.receive()
        assert isinstance(got, Message)
        assert got.seq == seq

    @property
    def undisturbed(self) -> bool:
        """Whether the application was told of nothing but connections."""
        return {change.state for change in self.states.seen} <= {State.CONNECTING, State.CONNECTED}


async def test_a_client_that_moves_twice_keeps_every_message_and_comes_back_by_its_own_address(
    peer: ScriptedPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with AsyncExitStack() as stack:
        moving = await Moving.enter(stack, peer, stable_after=STABLE_AFTER)
        first = moving.connection
        await moving.told("/i/one/ws")
        await moving.arrives(peer, "/i/one/ws")
        assert await first.closed() == 1000
        await moving.still_served(2)
        second = moving.connection
        await moving.told("/i/two/ws")
        await moving.arrives(peer, "/i/two/ws", pos="2-t")
        assert await second.closed() == 1000
        await moving.still_served(3)
        assert moving.undisturbed
        forward(monkeypatch, STABLE_AFTER)  # that address lasted, and is none of the application's
        await moving.connection.close(1012, "this instance is leaving")
        await moving.arrives(peer, "/ws", pos="3-t")
        await moving.still_served(4)


@pytest.mark.parametrize("status", [403, 404, 500, 503])
async def test_an_instance_that_is_gone_costs_one_attempt_and_no_backoff(
    peer: ScriptedPeer, status: int
) -> None:
    async with AsyncExitStack() as stack:
        moving = await Moving.enter(stack, peer)
        await moving.told("/i/one/ws")
        connection = await moving.arrives(peer, "/i/one/ws")
        peer.refused["/i/one/ws"] = status
        before = peer.handshakes
        connection.cut()
        await moving.arrives(peer, "/ws")
        await moving.still_served(2)
        assert peer.handshakes == before + 2


async def test_a_connection_that_breaks_is_made_again_where_it_was(peer: ScriptedPeer) -> None:
    async with AsyncExitStack() as stack:
        moving = await Moving.enter(stack, peer)
        await moving.told("/i/one/ws")
        connection = await moving.arrives(peer, "/i/one/ws")
        connection.cut()
        await moving.arrives(peer, "/i/one/ws")
        await moving.still_served(2)


async def test_the_own_address_is_not_blamed_for_what_an_instance_did(peer: ScriptedPeer) -> None:
    async with AsyncExitStack() as stack:
        moving = await Moving.enter(stack, peer, rng=_Longest())
        for seq in range(2, 8):
            # each loss of an address of one's own would double the wait: the sixth would last over a second
            await moving.told("/i/one/ws")
            connection = await moving.arrives(peer, "/i/one/ws", pos=f"{seq - 1}-t")
            await connection.close(1012, "this instance is leaving")
            await moving.arrives(peer, "/ws", pos=f"{seq - 1}-t")
            waited = [change.retry_in_seconds for change in moving.states.seen if change.retry_in_seconds]
            assert max(waited) <= 0.05
            await moving.still_served(seq)


async def test_the_newest_wish_counts(peer: ScriptedPeer) -> None:
    async with AsyncExitStack() as stack:
        moving = await Moving.enter(stack, peer)
        await moving.told("/i/one/ws", after=30)
        await moving.told("/i/two/ws")
        await moving.arrives(peer, "/i/two/ws")
        await moving.still_served(2)
        assert peer.handshakes == 2


async def test_a_move_under_way_is_given_up_for_a_newer_one(peer: ScriptedPeer) -> None:
    async with AsyncExitStack() as stack:
        moving = await Moving.enter(stack, peer)
        await moving.told("/i/one/ws")
        unwelcomed = await peer.connection()
        assert unwelcomed.path == "/i/one/ws"
        await moving.told("/i/two/ws")
        await moving.arrives(peer, "/i/two/ws")
        assert await unwelcomed.closed() == 1000
        await moving.still_served(2)
        assert moving.undisturbed


async def test_to_be_told_to_stay_ends_a_move_that_was_to_come(
    peer: ScriptedPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with AsyncExitStack() as stack:
        moving = await Moving.enter(stack, peer)
        await moving.told("/i/one/ws", after=30)
        await moving.told("/ws")
        await moving.still_served(2)
        forward(monkeypatch, 31)
        assert await moving.connection.silent(0.3)
        await moving.still_served(3)
        assert peer.handshakes == 1


@pytest.mark.parametrize("status", [404, 503])
async def test_where_the_target_refuses_the_client_stays_and_is_served(
    peer: ScriptedPeer, status: int
) -> None:
    async with AsyncExitStack() as stack:
        moving = await Moving.enter(stack, peer)
        peer.refused["/i/one/ws"] = status
        await moving.told("/i/one/ws")
        tried = 1 if status == 503 else 5
        await peer.until_asked(1 + tried)
        assert await moving.connection.silent(0.3)
        assert peer.handshakes == 1 + tried
        await moving.still_served(2)
        del peer.refused["/i/one/ws"]
        await moving.told("/i/one/ws")
        await moving.arrives(peer, "/i/one/ws", pos="2-t")
        assert moving.undisturbed


async def test_a_target_without_anybody_behind_it_leaves_the_client_where_it_is(peer: ScriptedPeer) -> None:
    async with AsyncExitStack() as stack:
        moving = await Moving.enter(stack, peer)
        await moving.told(f"ws://127.0.0.1:{free_port()}/ws")
        assert await moving.connection.silent(0.5)
        await moving.still_served(2)
        assert moving.undisturbed


async def test_another_host_is_not_followed_home(peer: ScriptedPeer) -> None:
    async with AsyncExitStack() as stack:
        moving = await Moving.enter(stack, peer)
        await moving.told("ws://elsewhere.example/ws")
        assert await moving.connection.silent(0.2)
        await moving.still_served(2)
        assert peer.handshakes == 1


async def test_who_has_to_go_goes_anywhere_else_where_the_target_refuses(peer: ScriptedPeer) -> None:
    async with AsyncExitStack() as stack:
        moving = await Moving.enter(stack, peer)
        old = moving.connection
        peer.refused["/i/one/ws"] = 404
        await moving.told("/i/one/ws", reason="leaving")
        await moving.arrives(peer, "/ws")
        assert await old.closed() == 1000
        await moving.still_served(2)
        assert moving.undisturbed


async def test_who_is_closed_before_it_has_moved_goes_where_it_was_sent(peer: ScriptedPeer) -> None:
    async with AsyncExitStack() as stack:
        moving = await Moving.enter(stack, peer)
        await moving.told("/i/one/ws", after=30, reason="leaving")
        await moving.still_served(2)
        await moving.connection.close(1012, "this instance is leaving")
        await moving.arrives(peer, "/i/one/ws", pos="2-t")


async def test_what_is_under_way_in_both_directions_comes_once_and_in_order(peer: ScriptedPeer) -> None:
    async with AsyncExitStack() as stack:
        moving = await Moving.enter(stack, peer)
        old = moving.connection
        publishing = [asyncio.create_task(moving.room.publish("n", number)) for number in range(3)]
        sent = [await old.expect("publish") for _ in range(3)]
        await old.ack(sent[0], 2)
        await old.message("t", 2)
        await moving.told("/i/one/ws")
        new = await peer.connection()
        await old.message("t", 3)
        await new.welcome("one")
        asked = await new.expect("join")
        pos = asked["pos"]
        await new.reply(asked, type="joined", room="t", pos=pos, recovered=True)
        # what the old one did not answer goes again with the same keys, in the old order
        again = [await new.expect("publish") for _ in range(2)]
        assert [one["key"] for one in again] == [one["key"] for one in sent[1:]]
        for seq in range(int(pos.split("-")[0]) + 1, 5):
            await new.message("t", seq)
        for seq, one in enumerate(again, 3):
            await new.ack(one, seq)
        assert [ack.seq for ack in await asyncio.gather(*publishing)] == [2, 3, 4]
        got = [await moving.room.receive() for _ in range(3)]
        assert not any(isinstance(item, Reset) for item in got)
        assert [item.seq for item in got if isinstance(item, Message)] == [2, 3, 4]


class _Longest:
    """Draws the longest wait each time, and the first of several."""

    def uniform(self, _low: float, high: float) -> float:
        return high

    def choice(self, several: list[str]) -> str:
        return several[0]
