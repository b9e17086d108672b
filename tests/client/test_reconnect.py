"""What the client does when a connection ends or is refused, by the code it ends with."""

import asyncio
import base64
import json
import time
from typing import Any

import pytest

from tableforge_client import (
    Client,
    ClosedError,
    Message,
    Reset,
    State,
    StateChange,
    UnauthorizedError,
    connect,
)
from tests.support.forward import forward
from tests.support.scripted_peer import PeerConnection, ScriptedPeer
from tests.support.states import States


async def enter(client: Client, peer: ScriptedPeer, instance: str = "peer-1") -> PeerConnection:
    """Enter the client, and give the peer's side."""
    entering = asyncio.create_task(client.__aenter__())
    connection = await peer.connection()
    await connection.welcome(instance)
    await entering
    return connection


async def in_room(client: Client, connection: PeerConnection) -> Any:
    joining = asyncio.create_task(client.join("table:1"))
    await connection.join("table:1")
    return await joining


def jwt(**claims: Any) -> str:
    """A token as a client sees it; nobody here checks the signature."""
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"e30.{body}.c2ln"


@pytest.mark.parametrize("code", [None, 1001, 1011, 1012, 4408])
async def test_a_lost_connection_is_made_again_and_the_room_goes_on(
    peer: ScriptedPeer, code: int | None
) -> None:
    client = connect(peer.url, backoff_base=0.05)
    first = await enter(client, peer)
    room = await in_room(client, first)
    await first.message("table:1", 1)
    assert (await room.receive()).pos == "1-t"
    if code is None:
        first.cut()
    else:
        await first.close(code)
    second = await peer.connection()
    await second.welcome("peer-2")
    await second.join("table:1", pos="1-t", at="3-t", recovered=True)
    await second.message("table:1", 2)
    await second.message("table:1", 3)
    assert [(await room.receive()).pos for _ in range(2)] == ["2-t", "3-t"]
    assert client.instance == "peer-2"
    await client.close(flush_timeout=0)


async def test_recovery_goes_on_after_what_arrived_taken_or_not(peer: ScriptedPeer) -> None:
    client = connect(peer.url, backoff_base=0.05)
    first = await enter(client, peer)
    room = await in_room(client, first)
    await first.message("table:1", 1)
    await first.message("table:1", 2)
    assert await room.receive()
    pinging = asyncio.create_task(client.ping())
    await first.reply(await first.expect("ping"), type="pong", time=1.0)
    await pinging  # so both messages have been read
    first.cut()
    second = await peer.connection()
    await second.welcome()
    await second.join("table:1", pos="2-t", at="3-t", recovered=True)
    await second.message("table:1", 2)
    await second.message("table:1", 3)
    assert [(await room.receive()).pos for _ in range(2)] == ["2-t", "3-t"]
    await client.close(flush_timeout=0)


async def test_a_room_that_cannot_be_recovered_is_told(peer: ScriptedPeer) -> None:
    client = connect(peer.url, backoff_base=0.05)
    first = await enter(client, peer)
    room = await in_room(client, first)
    await first.message("table:1", 5)
    assert await room.receive()
    first.cut()
    second = await peer.connection()
    await second.welcome()
    await second.join("table:1", pos="5-t", at="2-u", recovered=False, reason="log_lost")
    await second.message("table:1", 3, tag="u")
    assert await room.receive() == Reset(room="table:1", reason="log_lost", pos="2-u", told_by="join")
    assert isinstance(await room.receive(), Message)
    await client.close(flush_timeout=0)


async def test_unacknowledged_publishes_are_sent_again_in_order_with_key_and_since(
    peer: ScriptedPeer,
) -> None:
    states = States()
    client = connect(peer.url, backoff_base=0.05, on_state=states)
    first = await enter(client, peer)
    room = await in_room(client, first)
    publishes = [asyncio.create_task(room.publish("move", n)) for n in range(3)]
    sent = [await first.expect("publish", data=n, since=None) for n in range(3)]
    await first.ack(sent[0], 1)
    await publishes[0]
    first.cut()
    await states.until(State.RECONNECTING)
    publishes.append(asyncio.create_task(room.publish("move", 3)))
    second = await peer.connection()
    await second.welcome()
    join = await second.expect("join", pos="0-t")
    assert await second.silent(0.05), "published before the room was joined again"
    await second.reply(join, type="joined", room="table:1", pos="1-t", recovered=True)
    again = [await second.expect("publish", data=n, key=sent[n]["key"], since="0-t") for n in (1, 2)]
    again.append(await second.expect("publish", data=3, since=None))
    for seq, command in enumerate(again, 2):
        await second.ack(command, seq)
    assert [ack.seq for ack in await asyncio.gather(*publishes)] == [1, 2, 3, 4]
    await client.close(flush_timeout=0)


@pytest.mark.parametrize("code", [1002, 1003, 1007, 1009, 4400, 4403])
async def test_some_codes_are_the_end(peer: ScriptedPeer, code: int) -> None:
    client = connect(peer.url, backoff_base=0.01)
    connection = await enter(client, peer)
    room = await in_room(client, connection)
    publishing = asyncio.create_task(room.publish("move"))
    await connection.expect("publish")
    await connection.close(code, "because")
    with pytest.raises(ClosedError, match="because") as end:
        await room.receive()
    assert end.value.code == str(code)
    with pytest.raises(ClosedError):
        await publishing
    with pytest.raises(TimeoutError):
        await peer.connection(within=0.1)
    assert client.state is State.CLOSED
    await client.close()


async def test_a_normal_close_by_the_server_ends_iterators_quietly(peer: ScriptedPeer) -> None:
    client = connect(peer.url)
    connection = await enter(client, peer)
    room = await in_room(client, connection)
    await connection.message("table:1", 1)
    await connection.close(1000)
    assert [item.pos async for item in room] == ["1-t"]
    await client.close()


async def test_4429_is_left_alone_for_a_minute(peer: ScriptedPeer) -> None:
    states = States()
    client = connect(peer.url, backoff_base=0.01, on_state=states)
    connection = await enter(client, peer)
    await connection.close(4429)
    change = await states.until(State.RECONNECTING)
    assert change.retry_in_seconds is not None
    assert 59 < change.retry_in_seconds < 61
    await client.close(flush_timeout=0)


@pytest.mark.parametrize("auth", ["header", "frame"])
async def test_the_token_travels_as_asked(peer: ScriptedPeer, auth: Any) -> None:
    client = connect(peer.url, token="secret", auth=auth)
    entering = asyncio.create_task(client.__aenter__())
    connection = await peer.connection()
    if auth == "header":
        assert connection.headers["Authorization"] == "Bearer secret"
    else:
        assert "Authorization" not in connection.headers
        await connection.expect("auth", token="secret")
    await connection.welcome(user="ada")
    await entering
    await client.close()


async def test_a_refused_token_is_replaced_by_the_callable(peer: ScriptedPeer) -> None:
    tokens = iter(["old", "new"])

    async def next_token() -> str:
        return next(tokens)

    client = connect(peer.url, token=next_token, backoff_base=5.0)
    peer.refuse_next(401)
    entering = asyncio.create_task(client.__aenter__())
    connection = await peer.connection()
    assert connection.headers["Authorization"] == "Bearer new"
    await connection.welcome()
    await entering
    await client.close()


async def test_4401_later_means_a_new_token_and_the_rooms_go_on(peer: ScriptedPeer) -> None:
    tokens = iter(["old", "new"])
    client = connect(peer.url, token=lambda: next(tokens), backoff_base=0.05)
    first = await enter(client, peer)
    await in_room(client, first)
    await first.close(4401, "expired")
    second = await peer.connection()
    assert second.headers["Authorization"] == "Bearer new"
    await second.welcome()
    await second.join("table:1", pos="0-t", recovered=True)
    await client.close(flush_timeout=0)


async def test_a_fixed_token_refused_is_the_end(peer: ScriptedPeer) -> None:
    peer.refuse_next(401)
    with pytest.raises(UnauthorizedError):
        await connect(peer.url, token="old").__aenter__()
    assert peer.handshakes == 1


async def test_no_token_where_one_is_required_is_said_so(peer: ScriptedPeer) -> None:
    peer.refuse_next(401)
    with pytest.raises(UnauthorizedError, match="a token is required, and none was given"):
        await connect(peer.url).__aenter__()


async def test_fresh_tokens_refused_again_are_the_end(peer: ScriptedPeer) -> None:
    peer.refuse_next(401)
    peer.refuse_next(401)
    with pytest.raises(UnauthorizedError):
        await connect(peer.url, token=lambda: "new").__aenter__()
    assert peer.handshakes == 2


async def test_a_token_service_that_fails_is_asked_again(peer: ScriptedPeer) -> None:
    answers = iter(["", "good"])

    def token() -> str:
        answer = next(answers)
        if not answer:
            raise RuntimeError("token service down")
        return answer

    client = connect(peer.url, token=token, backoff_base=0.05)
    connection = await enter(client, peer)
    assert connection.headers["Authorization"] == "Bearer good"
    await client.close()


async def test_a_token_is_renewed_before_it_expires(peer: ScriptedPeer) -> None:
    tokens = iter([jwt(exp=time.time() + 1.5), jwt(exp=time.time() + 3600)])
    client = connect(peer.url, token=lambda: next(tokens))
    connection = await enter(client, peer)
    renewal = await connection.expect("auth")
    assert (
        json.loads(base64.urlsafe_b64decode(renewal["token"].split(".")[1] + "=="))["exp"] > time.time() + 60
    )
    await connection.reply(renewal, type="authenticated", user="ada", expiresAt=1)
    await client.close()


@pytest.mark.parametrize("status", [403, 404, 400])
async def test_some_statuses_are_the_end(peer: ScriptedPeer, status: int) -> None:
    peer.refuse_next(status)
    with pytest.raises(ClosedError, match="refused by the script") as end:
        await connect(peer.url).__aenter__()
    assert end.value.code == f"http-{status}"


@pytest.mark.parametrize("status", [503, 429])
async def test_retry_after_is_kept(peer: ScriptedPeer, status: int) -> None:
    peer.refuse_next(status, retry_after="1")
    began = time.monotonic()
    client = connect(peer.url, backoff_base=0.01)
    await enter(client, peer)
    assert time.monotonic() - began >= 1
    await client.close()


async def test_a_full_instance_sends_the_client_to_another(
    peer: ScriptedPeer, other_peer: ScriptedPeer
) -> None:
    states = States()
    client = connect([peer.url, other_peer.url], backoff_base=0.05, on_state=states)
    for one in (peer, other_peer):
        one.refuse_next(503, retry_after="300")
    entering = asyncio.create_task(client.__aenter__())
    for _ in range(3):  # the third says how long it will wait
        told = await states.until(State.CONNECTING)
    assert told.retry_in_seconds is not None
    assert told.retry_in_seconds > 290
    assert (peer.handshakes, other_peer.handshakes) == (1, 1)
    entering.cancel()
    await asyncio.wait({entering})


async def test_a_dead_instance_sends_the_client_to_another(
    peer: ScriptedPeer, other_peer: ScriptedPeer
) -> None:
    states = States()
    client = connect([peer.url, other_peer.url], backoff_base=0.05, on_state=states)
    entering = asyncio.create_task(client.__aenter__())
    peers = {
        peer: asyncio.create_task(peer.connection()),
        other_peer: asyncio.create_task(other_peer.connection()),
    }
    await asyncio.wait(peers.values(), return_when=asyncio.FIRST_COMPLETED)
    for one, arrival in peers.items():
        if arrival.done():
            arrived, connection = one, arrival.result()
        else:
            other, second_arrival = one, arrival
    await connection.welcome()
    await entering
    assert client.url == arrived.url
    arrived.refuse_next(503, retry_after="300")
    connection.cut()
    await (await second_arrival).welcome("the-other")
    await states.until(State.RECONNECTING)
    await states.until(State.CONNECTED)
    assert (client.url, client.instance) == (other.url, "the-other")
    await client.close(flush_timeout=0)


async def test_nobody_there_at_first_is_an_error_in_time() -> None:
    with pytest.raises(ClosedError, match=r"not connected within 0\.3 s") as end:
        async with asyncio.timeout(60):
            await connect("ws://127.0.0.1:9/ws", connect_timeout=0.3, backoff_base=0.05).__aenter__()
    assert end.value.code == "unreachable"


async def test_a_url_of_another_kind_is_an_error_at_once() -> None:
    with pytest.raises(ClosedError, match="isn't a valid URI") as end:
        await connect("http://127.0.0.1/ws").__aenter__()
    assert end.value.code == "bad_url"
    with pytest.raises(ValueError, match="at least one URL"):
        connect([])


async def test_no_welcome_in_time_is_a_failed_attempt(
    peer: ScriptedPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = connect(
        peer.url, token="secret", auth="frame", open_timeout=60, connect_timeout=600, backoff_base=0.01
    )
    entering = asyncio.create_task(client.__aenter__())
    silent = await peer.connection()
    await silent.expect("auth")  # the handshake is over
    forward(monkeypatch, 61)
    await silent.closed()
    await (await peer.connection()).welcome()
    await entering
    await client.close()


async def test_giving_up_after_reconnect_timeout(peer: ScriptedPeer) -> None:
    client = connect(peer.url, backoff_base=0.02, reconnect_timeout=0.3)
    connection = await enter(client, peer)
    room = await in_room(client, connection)
    for _ in range(50):
        peer.refuse_next(502)
    connection.cut()
    with pytest.raises(ClosedError, match=r"not reconnected within 0\.3 s"):
        async with asyncio.timeout(30):
            await room.receive()
    await client.close()


async def test_the_application_is_told_every_state(peer: ScriptedPeer) -> None:
    states = States()
    client = connect(peer.url, backoff_base=0.05, on_state=states)
    first = await enter(client, peer, "peer-1")
    first.cut()
    await (await peer.connection()).welcome("peer-2")
    await states.until(State.RECONNECTING)
    await states.until(State.CONNECTED)
    await client.close()
    await states.until(State.CLOSED)
    assert [(change.state, change.instance) for change in states.seen] == [
        (State.CONNECTING, None),
        (State.CONNECTED, "peer-1"),
        (State.RECONNECTING, "peer-1"),
        (State.CONNECTED, "peer-2"),
        (State.CLOSED, "peer-2"),
    ]
    assert "1006" in states.seen[2].reason


async def test_what_on_state_raises_does_not_end_the_client(
    peer: ScriptedPeer, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(change: StateChange) -> None:
        raise ZeroDivisionError

    client = connect(peer.url, backoff_base=0.05, on_state=broken)
    connection = await enter(client, peer)
    assert (await in_room(client, connection)).joined
    await client.close(flush_timeout=0)
    assert "ZeroDivisionError" in caplog.text


async def test_cancelling_while_connecting_leaves_nothing_behind(peer: ScriptedPeer) -> None:
    before = asyncio.all_tasks()
    entering = asyncio.create_task(connect(peer.url).__aenter__())
    connection = await peer.connection()
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    assert await connection.closed() in (1000, 1006)
    left = {task.get_name() for task in asyncio.all_tasks() - before if "tableforge" in task.get_name()}
    assert not left


async def test_an_exception_in_the_block_closes_without_waiting(peer: ScriptedPeer) -> None:
    published = asyncio.Event()

    async def use() -> None:
        async with connect(peer.url) as client:
            room = await client.join("table:1")
            async with asyncio.TaskGroup() as group:
                group.create_task(room.publish("move"))
                await published.wait()
                raise ZeroDivisionError

    using = asyncio.create_task(use())
    connection = await peer.connection()
    await connection.welcome()
    await connection.join("table:1")
    await connection.expect("publish")
    published.set()
    assert await connection.closed() == 1000
    with pytest.raises(ExceptionGroup):
        await using
