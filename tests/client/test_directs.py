"""Direct messages, history, presence and moves, with the client on real instances."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tableforge_client import (
    Client,
    Direct,
    Inbox,
    Members,
    Message,
    RefusedError,
    Reset,
    Room,
    State,
    connect,
)
from tableforge_dataplane.security.tokens import mint
from tests.support.processes import DataplaneFleet, DataplaneProcess
from tests.support.redis import RedisServer
from tests.support.redis_cluster import until_received
from tests.support.scripted_peer import ScriptedPeer
from tests.support.states import States

SECRET = "0123456789abcdef0123456789abcdef"
AUTH = {"JWT_SECRET": SECRET, "AUTH_REQUIRED": "true"}
RIGHTS = {"join": ["**"], "publish": ["**"], "presence": ["**"], "direct": ["**"]}


async def as_user(stack: AsyncExitStack, user: str, *instances: DataplaneProcess, **options: Any) -> Client:
    token = mint(SECRET, user=user, lifetime_seconds=600, rights=RIGHTS)
    urls = [instance.url for instance in instances]
    client = connect(urls, token=token, backoff_base=0.05, backoff_longest=0.5, **options)
    return await stack.enter_async_context(client)


async def take(inbox: Inbox, count: int) -> list[Any]:
    """What an application that iterates gets, and handles."""
    found: list[Any] = []
    async with asyncio.timeout(30):
        async for item in inbox:
            assert isinstance(item, Direct), item
            found.append(item.data)
            if len(found) == count:
                break
    inbox.received()
    return found


async def test_an_inbox_goes_on_where_any_device_of_the_user_left_off(
    redis_server: RedisServer, dataplane: DataplaneFleet
) -> None:
    one, two = await dataplane(redis_server, 2, **AUTH)
    async with AsyncExitStack() as stack:
        ada = await as_user(stack, "ada", one)
        sent = [(await ada.direct("bob", "note", number)).pos for number in range(5)]
        assert all(sent)
        async with AsyncExitStack() as first:
            bob = await as_user(first, "bob", two)
            assert await take(await bob.inbox(), 3) == [0, 1, 2]
            await (await bob.inbox()).leave()  # and with it goes `received`
            await until_received(redis_server, "bob", sent[2])
        bob = await as_user(stack, "bob", one)
        inbox = await bob.inbox()
        assert await take(inbox, 2) == [3, 4]
        await ada.direct("bob", "note", 5)
        assert await take(inbox, 1) == [5]
        last = await bob.history("@", last=2)
        assert [(message.data, message.sender) for message in last.messages] == [(4, "ada"), (5, "ada")]
        again = await as_user(stack, "bob", two)
        assert await take(await again.inbox(pos=last.messages[0].pos), 1) == [5]


async def test_a_direct_message_survives_the_instances_end_and_arrives_once(
    redis_server: RedisServer, dataplane: DataplaneFleet
) -> None:
    one, two = await dataplane(redis_server, 2, **AUTH)
    async with AsyncExitStack() as stack:
        ada, bob = await as_user(stack, "ada", one, two), await as_user(stack, "bob", one, two)
        inbox = await bob.inbox()
        sending = [asyncio.create_task(ada.direct("bob", "note", number)) for number in range(50)]
        await one.kill9()
        await asyncio.gather(*sending)
        assert sorted(await take(inbox, 50)) == list(range(50))
        await ada.direct("bob", "note", "end")
        assert await take(inbox, 1) == ["end"]


async def test_what_is_not_allowed_is_raised(redis_server: RedisServer, dataplane: DataplaneFleet) -> None:
    (one,) = await dataplane(redis_server, 1)
    async with AsyncExitStack() as stack:
        guest = await stack.enter_async_context(connect(one.url))
        for attempt in (guest.inbox(), guest.direct("bob", "note"), guest.history("@", last=1)):
            with pytest.raises(RefusedError) as refused:
                await attempt
            assert refused.value.code == "forbidden"
        with pytest.raises(RefusedError, match="bad_frame"):
            await guest.history("lobby")


async def test_history_is_read_page_by_page_and_presence_tells_who_is_there(
    redis_server: RedisServer, dataplane: DataplaneFleet
) -> None:
    (one,) = await dataplane(redis_server, 1, TABLEFORGE_SECURITY_MAX_MESSAGES_PER_SECOND="1000", **AUTH)
    async with AsyncExitStack() as stack:
        ada, bob = await as_user(stack, "ada", one), await as_user(stack, "bob", one)
        room = await ada.join("table:1", presence=True)
        start = room.pos or (await ada.history("table:1", last=1)).pos
        await asyncio.gather(*[room.publish("n", number) for number in range(150)])
        got: list[Any] = []
        page = await bob.history("table:1", after=start)
        while True:
            got += [message.data for message in page.messages]
            if page.complete:
                break
            page = await bob.history("table:1", after=page.pos)
        assert got == list(range(150))
        await bob.join("table:1")
        async with asyncio.timeout(30):
            heard: set[str] = set()
            while "bob" not in heard:
                item = await room.receive()
                if isinstance(item, Members):
                    heard |= set(item.joined)
        there = await bob.presence("table:1")
        assert {present.user for present in there.members} == {"ada", "bob"}
        assert there.count == 2


async def numbers(room: Room, count: int) -> list[int]:
    found: list[int] = []
    async with asyncio.timeout(60):
        while len(found) < count:
            item = await room.receive()
            assert isinstance(item, Message), item
            found.append(item.data)
    return found


async def test_a_move_leaves_no_gap_and_never_shows_as_a_lost_connection(
    redis_server: RedisServer, dataplane: DataplaneFleet
) -> None:
    one, two = await dataplane(
        redis_server,
        2,
        # it ends with its last client; this is for who moves to have as long as it may
        TABLEFORGE_SCALING_DRAIN_TIMEOUT="20000",
        TABLEFORGE_SECURITY_MAX_MESSAGES_PER_SECOND="1000",
        **AUTH,
    )
    states = States()
    async with AsyncExitStack() as stack:
        moving = await as_user(stack, "carl", one, two, on_state=states)
        leaving, staying = (one, two) if moving.instance == one.instance else (two, one)
        own = await moving.join("t")
        spoken = await (await as_user(stack, "ada", staying)).join("t")

        async def talk() -> None:
            for number in range(300):
                await (spoken if number % 2 else own).publish("n", number)
                await asyncio.sleep(0.005)  # a pace

        talking = asyncio.create_task(talk())
        await numbers(spoken, 50)
        assert await leaving.sigterm() == 0
        await talking
        assert await numbers(own, 300) == list(range(300))
        assert moving.instance == staying.instance
        assert State.RECONNECTING not in [change.state for change in states.seen]


async def test_a_move_opens_the_new_connection_before_it_gives_up_the_old_one(peer: ScriptedPeer) -> None:
    states = States()
    async with AsyncExitStack() as stack:
        client = connect(peer.url, backoff_base=0.05, on_state=states)
        entering = asyncio.create_task(stack.enter_async_context(client))
        old = await peer.connection()
        await old.welcome("old")
        await entering
        joining = asyncio.create_task(client.join("t"))
        command = await old.expect("join")
        await old.send(type="joined", id=command["id"], room="t", pos="1-t")
        room = await joining
        await old.message("t", 2)
        got = [await room.receive()]
        publishing = asyncio.create_task(room.publish("n", "unanswered"))
        first = await old.expect("publish")
        # another host's address is not followed, but the wish is: the same one again
        await old.send(type="migrate", url="ws://elsewhere.example/ws", after=0.0, reason="rebalancing")
        new = await peer.connection()
        await old.message("t", 3)
        await new.welcome("new")
        again = await new.expect("join")
        assert again["pos"] == "3-t"
        assert await old.closed() == 1000
        await new.send(type="joined", id=again["id"], room="t", pos="3-t", recovered=True)
        second = await new.expect("publish")
        assert (second["key"], second["since"]) == (first["key"], "2-t")
        await new.message("t", 4)
        await new.ack(second, 5)
        await publishing
        got += [await room.receive() for _ in range(2)]
        assert [item.seq for item in got if isinstance(item, Message)] == [2, 3, 4]
        assert not any(isinstance(item, Reset) for item in got)
        assert State.RECONNECTING not in [change.state for change in states.seen]
