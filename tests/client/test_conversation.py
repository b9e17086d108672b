"""What client and server say to each other on one connection: joins, publishes, messages, refusals."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tableforge_client import (
    Ack,
    Client,
    ClosedError,
    Message,
    RefusedError,
    Reset,
    Room,
    RoomLeftError,
    UnknownOutcomeError,
    connect,
)
from tests.support.forward import forward
from tests.support.scripted_peer import PeerConnection, ScriptedPeer


@asynccontextmanager
async def conversation(peer: ScriptedPeer, **options: Any) -> AsyncIterator[tuple[Client, PeerConnection]]:
    """A client and the peer's side of its connection."""
    async with asyncio.TaskGroup() as group:
        entering = group.create_task(connect(peer.url, backoff_base=0.05, **options).__aenter__())
        connection = await peer.connection()
        await connection.welcome()
        client = await entering
        try:
            yield client, connection
        finally:
            await client.close(flush_timeout=0)


async def joined(client: Client, connection: PeerConnection, name: str = "table:1", at: str = "0-t") -> Room:
    joining = asyncio.create_task(client.join(name))
    await connection.join(name, at=at)
    return await joining


async def test_welcome_says_where_the_client_is(peer: ScriptedPeer) -> None:
    async with asyncio.TaskGroup() as group:
        entering = group.create_task(connect(peer.url).__aenter__())
        connection = await peer.connection()
        assert connection.headers["Sec-WebSocket-Protocol"] == "tableforge.v1"
        await connection.welcome("tables-a-7d9f-x2", user="ada")
        client = await entering
    assert (client.instance, client.user, client.url) == ("tables-a-7d9f-x2", "ada", peer.url)
    await client.close()
    assert client.instance is None


async def test_a_message_is_what_was_sent(peer: ScriptedPeer) -> None:
    async with conversation(peer) as (client, connection):
        room = await joined(client, connection)
        await connection.message("table:1", 1, {"from": "e2", "to": "e4"})
        assert await room.receive() == Message(
            room="table:1",
            event="chat",
            sender="ada",
            seq=1,
            pos="1-t",
            ts=1764000000.5,
            data={"from": "e2", "to": "e4"},
        )
        assert room.pos == "1-t"


async def test_publish_waits_for_its_ack(peer: ScriptedPeer) -> None:
    async with conversation(peer) as (client, connection):
        room = await joined(client, connection)
        first = asyncio.create_task(room.publish("move", {"to": "e4"}))
        second = asyncio.create_task(room.publish("move", key="mine"))
        sent = await connection.expect("publish", room="table:1", event="move", data={"to": "e4"}, since=None)
        assert 1 <= len(sent["key"]) <= 64
        also_sent = await connection.expect("publish", key="mine", data=None)
        await connection.ack(also_sent, 2)
        assert await second == Ack(pos="2-t", seq=2)
        assert not first.done()
        await connection.ack(sent, 1)
        assert await first == Ack(pos="1-t", seq=1)


async def test_two_clients_of_one_user_never_make_the_same_key(
    peer: ScriptedPeer, other_peer: ScriptedPeer
) -> None:
    keys = set()
    for one in (peer, other_peer):
        async with conversation(one) as (client, connection):
            room = await joined(client, connection)
            publishing = asyncio.create_task(room.publish("move"))
            keys.add((await connection.expect("publish"))["key"])
            publishing.cancel()
    assert len(keys) == 2


async def test_data_is_taken_as_it_was_at_the_call(peer: ScriptedPeer) -> None:
    async with conversation(peer) as (client, connection):
        room = await joined(client, connection)
        data = {"n": 1}
        publishing = asyncio.create_task(room.publish("move", data))
        await asyncio.sleep(0)
        data["n"] = 2
        await connection.ack(await connection.expect("publish", data={"n": 1}), 1)
        await publishing
        with pytest.raises(TypeError):
            await room.publish("move", object())


async def test_a_refused_publish_raises_the_servers_words(peer: ScriptedPeer) -> None:
    async with conversation(peer) as (client, connection):
        room = await joined(client, connection)
        publishing = asyncio.create_task(room.publish("x" * 51))
        command = await connection.expect("publish")
        await connection.reply(command, type="error", code="bad_event", message="event: 1 to 50 characters")
        with pytest.raises(RefusedError, match="1 to 50 characters") as refusal:
            await publishing
        assert refusal.value.code == "bad_event"


@pytest.mark.parametrize("code", ["rate_limited", "unavailable"])
async def test_refusals_that_pass_are_tried_again_in_order(peer: ScriptedPeer, code: str) -> None:
    async with conversation(peer) as (client, connection):
        room = await joined(client, connection, at="41-t")
        publishes = [asyncio.create_task(room.publish("move", n)) for n in range(3)]
        sent = [await connection.expect("publish", data=n, since=None) for n in range(3)]
        for command in (sent[1], sent[0], sent[2]):
            await connection.reply(command, type="error", code=code, message="later", retryAfter=0.1)
        pinging = asyncio.create_task(client.ping())
        await connection.reply(await connection.expect("ping"), type="pong", time=1.0)
        await pinging  # so the refusals have been read
        late = asyncio.create_task(room.publish("move", 3))
        again = [await connection.expect("publish", data=n, since="41-t") for n in range(3)]
        assert [command["key"] for command in again] == [command["key"] for command in sent]
        again.append(await connection.expect("publish", data=3, since=None))
        for seq, command in enumerate(again, 42):
            await connection.ack(command, seq)
        assert [ack.seq for ack in await asyncio.gather(*publishes, late)] == [42, 43, 44, 45]


async def test_the_server_is_left_alone_for_as_long_as_it_asked(peer: ScriptedPeer) -> None:
    async with conversation(peer) as (client, connection):
        room = await joined(client, connection)
        publishing = asyncio.create_task(room.publish("move"))
        command = await connection.expect("publish")
        began = asyncio.get_running_loop().time()
        await connection.reply(command, type="error", code="rate_limited", message="later", retryAfter=0.5)
        await connection.ack(await connection.expect("publish"), 1)
        assert asyncio.get_running_loop().time() - began >= 0.45
        await publishing


async def test_an_internal_error_is_tried_again_but_not_for_ever(peer: ScriptedPeer) -> None:
    async with conversation(peer) as (client, connection):
        room = await joined(client, connection)
        publishing = asyncio.create_task(room.publish("move"))
        for _ in range(3):
            command = await connection.expect("publish")
            await connection.reply(command, type="error", code="internal", message="broken", retryAfter=0.05)
        with pytest.raises(RefusedError, match="broken"):
            await publishing


async def test_not_joined_makes_the_client_join_again_before_it_publishes(peer: ScriptedPeer) -> None:
    async with conversation(peer) as (client, connection):
        room = await joined(client, connection, at="7-t")
        publishing = asyncio.create_task(room.publish("move"))
        command = await connection.expect("publish")
        await connection.reply(command, type="error", code="not_joined", message="join first")
        await connection.join("table:1", pos="7-t", at="7-t", recovered=True)
        await connection.ack(await connection.expect("publish", key=command["key"], since="7-t"), 8)
        assert (await publishing).seq == 8


async def test_an_unknown_outcome_is_an_error_of_its_own(peer: ScriptedPeer) -> None:
    async with conversation(peer) as (client, connection):
        room = await joined(client, connection)
        publishing = asyncio.create_task(room.publish("move"))
        command = await connection.expect("publish")
        await connection.reply(command, type="error", code="unknown_key", message="the log begins later")
        with pytest.raises(UnknownOutcomeError):
            await publishing


async def test_a_message_too_large_for_the_server_is_not_sent(peer: ScriptedPeer) -> None:
    async with conversation(peer) as (client, connection):
        room = await joined(client, connection)
        with pytest.raises(RefusedError, match="102272 are allowed") as refusal:
            await room.publish("move", "x" * 102_300)
        assert refusal.value.code == "too_large"
        publishing = asyncio.create_task(room.publish("move", "x" * 101_000))
        await connection.ack(await connection.expect("publish"), 1)
        await publishing


async def test_more_than_max_pending_wait_their_turn(peer: ScriptedPeer) -> None:
    async with conversation(peer, max_pending=2) as (client, connection):
        room = await joined(client, connection)
        publishes = [asyncio.create_task(room.publish("move", n)) for n in range(3)]
        first = await connection.expect("publish", data=0)
        second = await connection.expect("publish", data=1)
        assert await connection.silent(0.1)
        await connection.ack(first, 1)
        await connection.ack(second, 2)
        await connection.ack(await connection.expect("publish", data=2), 3)
        await asyncio.gather(*publishes)


async def test_a_cancelled_publish_is_given_up_and_harms_no_other(peer: ScriptedPeer) -> None:
    async with conversation(peer) as (client, connection):
        room = await joined(client, connection)
        given_up = asyncio.create_task(room.publish("move", 0))
        command = await connection.expect("publish", data=0)
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        await connection.ack(command, 1)
        publishing = asyncio.create_task(room.publish("move", 1))
        await connection.ack(await connection.expect("publish", data=1), 2)
        assert (await publishing).seq == 2


async def test_a_publish_cancelled_while_it_waits_to_be_sent_again_is_not_sent(
    peer: ScriptedPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with conversation(peer) as (client, connection):
        room = await joined(client, connection)
        given_up = asyncio.create_task(room.publish("move", 0))
        command = await connection.expect("publish", data=0)
        await connection.reply(command, type="error", code="unavailable", message="later", retryAfter=30)
        pinging = asyncio.create_task(client.ping())
        await connection.reply(await connection.expect("ping"), type="pong", time=1.0)
        await pinging  # so the refusal has been read
        given_up.cancel()
        publishing = asyncio.create_task(room.publish("move", 1))
        await asyncio.sleep(0)
        forward(monkeypatch, 40)  # what it was asked to wait is over
        await connection.ack(await connection.expect("publish", data=1), 1)
        await publishing


async def test_a_refused_join_raises(peer: ScriptedPeer) -> None:
    async with conversation(peer) as (client, connection):
        joining = asyncio.create_task(client.join("table:1"))
        command = await connection.expect("join")
        await connection.reply(command, type="error", code="forbidden", message="not yours")
        with pytest.raises(RefusedError, match="not yours"):
            await joining
        assert (await joined(client, connection)).joined  # a later one is a new try


async def test_a_join_refused_for_now_is_tried_again(peer: ScriptedPeer) -> None:
    async with conversation(peer) as (client, connection):
        joining = asyncio.create_task(client.join("table:1", pos="9-t"))
        command = await connection.expect("join", pos="9-t")
        await connection.reply(command, type="error", code="unavailable", message="no Redis", retryAfter=0.1)
        await connection.join("table:1", pos="9-t", at="9-t", recovered=True)
        assert (await joining).joined


async def test_a_stored_pos_that_cannot_be_continued_is_told_first(peer: ScriptedPeer) -> None:
    async with conversation(peer) as (client, connection):
        joining = asyncio.create_task(client.join("table:1", pos="9-t"))
        await connection.join("table:1", pos="9-t", at="80-t", recovered=False, reason="trimmed")
        await connection.message("table:1", 81)
        room = await joining
        assert await room.receive() == Reset(room="table:1", reason="trimmed", pos="80-t", told_by="join")
        message = await room.receive()
        assert isinstance(message, Message)
        assert message.seq == 81


async def test_a_reset_stands_in_its_place_and_numbers_may_start_anew(peer: ScriptedPeer) -> None:
    async with conversation(peer) as (client, connection):
        room = await joined(client, connection)
        await connection.message("table:1", 1)
        await connection.message("table:1", 2)
        await connection.send(type="reset", room="table:1", pos="1-t", reason="forked")
        await connection.message("table:1", 2, tag="u")
        seen = [await room.receive() for _ in range(4)]
        assert [item.pos for item in seen] == ["1-t", "2-t", "1-t", "2-u"]
        assert seen[2] == Reset(room="table:1", reason="forked", pos="1-t", told_by="reset")


async def test_what_comes_twice_is_given_once(peer: ScriptedPeer) -> None:
    async with conversation(peer) as (client, connection):
        room = await joined(client, connection)
        for seq in (1, 2, 1, 2, 3):
            await connection.message("table:1", seq)
        assert [(await room.receive()).pos for _ in range(3)] == ["1-t", "2-t", "3-t"]


async def test_a_gap_is_asked_for_and_only_then_told(peer: ScriptedPeer) -> None:
    async with conversation(peer) as (client, connection):
        room = await joined(client, connection)
        await connection.message("table:1", 1)
        await connection.message("table:1", 3)
        await connection.expect("leave", room="table:1")
        await connection.join("table:1", pos="1-t", at="3-t", recovered=True)
        await connection.message("table:1", 2)
        await connection.message("table:1", 3)
        assert [(await room.receive()).pos for _ in range(3)] == ["1-t", "2-t", "3-t"]
        assert room.gaps == 1

        await connection.message("table:1", 5)
        await connection.expect("leave", room="table:1")
        await connection.join("table:1", pos="3-t", at="5-t", recovered=True)
        await connection.message("table:1", 5)
        assert await room.receive() == Reset(room="table:1", reason="gap", pos="5-t", told_by="client")
        assert (await room.receive()).pos == "5-t"


async def test_a_slow_application_holds_the_server_back_and_misses_nothing(peer: ScriptedPeer) -> None:
    async with conversation(peer, room_buffer=8) as (client, connection):
        room = await joined(client, connection)

        async def send_all() -> None:
            for seq in range(1, 2001):
                await connection.message("table:1", seq, "x" * 10_000)

        sending = asyncio.create_task(send_all())
        done, _ = await asyncio.wait({sending}, timeout=0.5)
        assert not done, "20 MB went somewhere although the application took nothing"
        for seq in range(1, 2001):
            item = await room.receive()
            assert isinstance(item, Message)
            assert item.seq == seq
        await sending


async def test_an_ack_behind_more_messages_than_fit_arrives_all_the_same(peer: ScriptedPeer) -> None:
    async with conversation(peer, room_buffer=4) as (client, connection):
        room = await joined(client, connection)
        publishing = asyncio.create_task(room.publish("move"))
        command = await connection.expect("publish")
        for seq in range(1, 21):
            await connection.message("table:1", seq)
        await connection.ack(command, 21)
        assert (await publishing).seq == 21  # nobody has taken a message so far
        assert [(await room.receive()).pos for _ in range(4)] == ["1-t", "2-t", "3-t", "4-t"]
        await connection.expect("leave", room="table:1")  # the rest is fetched from the log
        await connection.join("table:1", pos="4-t", at="21-t", recovered=True)
        await connection.message("table:1", 5)
        assert (await room.receive()).pos == "5-t"


async def test_leaving_waits_for_acks_and_ends_the_iterator(peer: ScriptedPeer) -> None:
    async with conversation(peer) as (client, connection):
        room = await joined(client, connection)
        publishing = asyncio.create_task(room.publish("move"))
        command = await connection.expect("publish")
        leaving = asyncio.create_task(room.leave())
        assert await connection.silent(0.05)
        await connection.message("table:1", 1)
        await connection.ack(command, 1)
        await publishing
        await leaving
        left = await connection.expect("leave", room="table:1")
        assert [item.pos async for item in room] == ["1-t"]
        with pytest.raises(RoomLeftError):
            await room.publish("move")
        rejoining = asyncio.create_task(client.join("table:1"))
        await connection.reply(left, type="left", room="table:1")
        await connection.join("table:1", at="1-t")
        again = await rejoining
        await connection.message("table:1", 2)
        assert (await again.receive()).pos == "2-t"


async def test_being_removed_by_the_server_raises(peer: ScriptedPeer) -> None:
    async with conversation(peer) as (client, connection):
        room = await joined(client, connection)
        publishing = asyncio.create_task(room.publish("move"))
        await connection.expect("publish")
        await connection.message("table:1", 1)
        await connection.send(type="left", room="table:1")
        with pytest.raises(RoomLeftError, match="removed"):
            await publishing
        assert (await room.receive()).pos == "1-t"
        with pytest.raises(RoomLeftError, match="removed"):
            await room.receive()


async def test_a_cancelled_join_leaves_the_room(peer: ScriptedPeer) -> None:
    async with conversation(peer) as (client, connection):
        joining = asyncio.create_task(client.join("table:1"))
        other = asyncio.create_task(client.join("table:1"))
        command = await connection.expect("join", room="table:1")
        joining.cancel()
        await asyncio.wait({joining})
        other.cancel()
        await asyncio.wait({other})
        await connection.expect("leave", room="table:1")
        await connection.reply(command, type="joined", room="table:1", pos="0-t")
        again = await joined(client, connection)
        await connection.message("table:1", 1)
        assert (await again.receive()).pos == "1-t"


async def test_one_of_two_waiting_joins_can_be_cancelled(peer: ScriptedPeer) -> None:
    async with conversation(peer) as (client, connection):
        joining = asyncio.create_task(client.join("table:1"))
        other = asyncio.create_task(client.join("table:1"))
        command = await connection.expect("join", room="table:1")
        joining.cancel()
        await asyncio.wait({joining})
        await connection.reply(command, type="joined", room="table:1", pos="0-t")
        assert (await other).joined


async def test_closing_waits_for_outstanding_acks(peer: ScriptedPeer) -> None:
    async with conversation(peer) as (client, connection):
        room = await joined(client, connection)
        publishing = asyncio.create_task(room.publish("move"))
        command = await connection.expect("publish")
        closing = asyncio.create_task(client.close(flush_timeout=60))
        assert await connection.silent(0.05)
        assert not closing.done()
        await connection.ack(command, 1)
        assert (await publishing).seq == 1
        assert await connection.closed() == 1000
        await closing
        assert [item async for item in room] == []
        with pytest.raises(ClosedError):
            await client.join("table:2")


async def test_closing_gives_up_in_time(peer: ScriptedPeer) -> None:
    async with conversation(peer) as (client, connection):
        room = await joined(client, connection)
        publishing = asyncio.create_task(room.publish("move"))
        await connection.expect("publish")
        closing = asyncio.create_task(client.close(flush_timeout=0.1))
        assert await connection.closed() == 1000
        await closing
        with pytest.raises(ClosedError, match="closed by the application"):
            await publishing


async def test_a_frame_that_is_not_of_the_protocol_costs_the_connection_only(peer: ScriptedPeer) -> None:
    async with conversation(peer) as (client, connection):
        room = await joined(client, connection)
        await connection.message("table:1", 1)
        await connection.send(type="surprise", room="table:1")  # unknown types are ignored
        await connection.message("table:1", 2)
        await connection.send_text("[1, 2")
        second = await peer.connection()
        await second.welcome()
        await second.join("table:1", pos="2-t", at="2-t", recovered=True)
        await second.message("table:1", 3)
        assert [(await room.receive()).pos for _ in range(3)] == ["1-t", "2-t", "3-t"]
