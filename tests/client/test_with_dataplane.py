"""The client on real instances and a real Redis, while these are killed, paused and restarted."""

import asyncio
import time
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tableforge_client import (
    Client,
    ClosedError,
    Message,
    RefusedError,
    Reset,
    Room,
    State,
    UnauthorizedError,
    connect,
)
from tableforge_client.__main__ import development_token
from tableforge_client.tokens import expires_at
from tests.support.processes import DataplaneFleet, DataplaneProcess
from tests.support.redis import RedisServer
from tests.support.redis_cluster import eventually
from tests.support.states import States

SECRET = "0123456789abcdef0123456789abcdef"

SMALLEST_PUBLISH_BYTES = 200
"""What an instance sends to Redis for one, at least."""


async def messages(room: Room, count: int, *, within: float = 60.0) -> list[Message]:
    """The next `count` items, which must all be messages."""
    found: list[Message] = []
    async with asyncio.timeout(within):
        while len(found) < count:
            item = await room.receive()
            assert isinstance(item, Message), item
            found.append(item)
    return found


async def on(stack: AsyncExitStack, *instances: DataplaneProcess, states: States | None = None) -> Client:
    """A client on these instances that is quick to come back."""
    urls = [instance.url for instance in instances]
    client = connect(urls, backoff_base=0.05, backoff_longest=0.5, on_state=states)
    return await stack.enter_async_context(client)


async def test_two_clients_on_two_instances_talk(
    redis_server: RedisServer, dataplane: DataplaneFleet
) -> None:
    one, two = await dataplane(redis_server, 2)
    async with AsyncExitStack() as stack:
        ada, bob = await on(stack, one), await on(stack, two)
        assert (ada.instance, bob.instance) == (one.instance, two.instance)
        here, there = await ada.join("table:1"), await bob.join("table:1")
        acks = await asyncio.gather(
            here.publish("move", {"to": "e4"}), there.publish("move", ["♞", None, 1.5])
        )
        assert sorted(ack.seq for ack in acks) == [1, 2]
        heard = [await messages(room, 2) for room in (here, there)]
        assert heard[0] == heard[1]
        assert {str(message.data) for message in heard[0]} == {"{'to': 'e4'}", "['♞', None, 1.5]"}
        assert all(abs(message.ts - time.time()) < 60 for message in heard[0])
        assert 0 <= await ada.ping() < 60


async def test_a_killed_instance_costs_no_message(
    redis_server: RedisServer, dataplane: DataplaneFleet
) -> None:
    one, two = await dataplane(redis_server, 2)
    states = States()
    async with AsyncExitStack() as stack:
        listener, speaker = await on(stack, one, two, states=states), await on(stack, two)
        victim = one if listener.instance == one.instance else two
        if victim is two:  # the speaker must live on
            speaker = await on(stack, one)
        heard, spoken = await listener.join("table:1"), await speaker.join("table:1")
        for n in range(5):
            await spoken.publish("n", n)
        await messages(heard, 3)
        await victim.kill9()
        for n in range(5, 10):
            await spoken.publish("n", n)
        await states.until(State.RECONNECTING)
        await states.until(State.CONNECTED)
        for n in range(10, 15):
            await spoken.publish("n", n)
        rest = await messages(heard, 12)
        assert [message.data for message in rest] == list(range(3, 15))
        assert [message.seq for message in rest] == list(range(4, 16))
        assert heard.gaps == 0
        assert listener.instance == speaker.instance


async def test_a_publish_whose_ack_was_lost_is_sent_again_and_stored_once(
    redis_server: RedisServer, dataplane: DataplaneFleet
) -> None:
    one, two = await dataplane(redis_server, 2)
    states = States()
    async with AsyncExitStack() as stack:
        client, witness = await on(stack, one, two, states=states), await on(stack, one, two)
        room, seen = await client.join("table:1"), await witness.join("table:1")
        await room.publish("n", 0)
        victim = one if client.instance == one.instance else two
        redis_server.pause()  # what the instance sends now waits in Redis's socket, to be carried out later
        publishes = [asyncio.create_task(room.publish("n", n)) for n in range(1, 6)]
        await redis_server.until_unread(5 * SMALLEST_PUBLISH_BYTES)
        await victim.kill9()
        redis_server.resume()
        acks = await asyncio.gather(*publishes)
        assert [ack.seq for ack in acks] == [2, 3, 4, 5, 6]
        await room.publish("n", 6)
        for one_room in (room, seen):
            assert [message.data for message in await messages(one_room, 7)] == list(range(7))


async def test_while_redis_is_away_acks_are_late_and_nothing_is_lost(
    redis_server: RedisServer, dataplane: DataplaneFleet
) -> None:
    (instance,) = await dataplane(redis_server, 1, TABLEFORGE_REDIS_DURABILITY="Disk")
    states = States()
    async with AsyncExitStack() as stack:
        client = await on(stack, instance, states=states)
        room = await client.join("table:1")
        await room.publish("n", 0)
        await redis_server.kill9()
        publishes = [asyncio.create_task(room.publish("n", n)) for n in range(1, 50)]
        done, _ = await asyncio.wait(publishes, timeout=0.5)
        assert not done
        assert client.state is State.CONNECTED  # sockets stay open
        await redis_server.start()
        async with asyncio.timeout(60):
            acks = await asyncio.gather(*publishes)
        assert [ack.seq for ack in acks] == list(range(2, 51))
        assert [message.data for message in await messages(room, 50)] == list(range(50))
        assert [change.state for change in states.seen] == [State.CONNECTING, State.CONNECTED]


async def test_a_queue_that_is_full_means_later_not_never(
    redis_server: RedisServer, dataplane: DataplaneFleet
) -> None:
    (instance,) = await dataplane(redis_server, 1, TABLEFORGE_SCALING_MESSAGE_QUEUE_SIZE="10")
    async with AsyncExitStack() as stack:
        client = await on(stack, instance)
        room = await client.join("table:1")
        await redis_server.kill9()
        publishes = [asyncio.create_task(room.publish("n", n)) for n in range(30)]

        async def refused() -> bool:
            _, page = await instance.get("/metrics", port=instance.http_port)
            return any(
                line.startswith(b"tableforge_websocket_publishes_refused_total{")
                and b'reason="unavailable"' in line
                for line in page.splitlines()
            )

        await eventually(refused)
        await redis_server.start()
        async with asyncio.timeout(60):
            await asyncio.gather(*publishes)
        heard = await messages(room, 30)
        assert sorted(message.data for message in heard) == list(range(30))


async def test_a_redis_that_lost_everything_is_told_as_reset(
    tmp_path: Path, dataplane: DataplaneFleet
) -> None:
    async with RedisServer(tmp_path / "forgetful", appendfsync=None) as redis, AsyncExitStack() as stack:
        (instance,) = await dataplane(redis, 1)
        client = await on(stack, instance)
        room = await client.join("table:1")
        await room.publish("n", 0)
        await messages(room, 1)
        await redis.kill9()
        await redis.start()
        async with asyncio.timeout(60):
            item = await room.receive()
            assert isinstance(item, Reset)
            assert (item.reason, item.told_by) == ("log_lost", "reset")
            assert (await room.publish("n", 1)).seq == 1
        assert (await messages(room, 1))[0].data == 1


async def test_a_drained_instance_sends_its_clients_away_and_ends(
    redis_server: RedisServer, dataplane: DataplaneFleet
) -> None:
    one, two = await dataplane(redis_server, 2, TABLEFORGE_SCALING_DRAIN_TIMEOUT="300")
    states = States()
    async with AsyncExitStack() as stack:
        client = await on(stack, one, two, states=states)
        leaving = one if client.instance == one.instance else two
        room = await client.join("table:1")
        await room.publish("n", 0)
        assert await leaving.sigterm() == 0
        await states.until(State.CONNECTED)
        await states.until(State.CONNECTED)  # it was told to move, and did so before it was closed
        assert client.instance != leaving.instance
        await room.publish("n", 1)
        assert [message.data for message in await messages(room, 2)] == [0, 1]


async def test_a_slow_application_gets_everything_from_the_log(
    redis_server: RedisServer, dataplane: DataplaneFleet
) -> None:
    (instance,) = await dataplane(
        redis_server,
        1,
        TABLEFORGE_SECURITY_MAX_MESSAGES_PER_SECOND="1000",
        TABLEFORGE_SECURITY_MAX_MESSAGES_PER_MINUTE="10000",
    )
    async with AsyncExitStack() as stack:
        speaker = await on(stack, instance)
        slow = await stack.enter_async_context(connect(instance.url, room_buffer=16))
        spoken, heard = await speaker.join("table:1"), await slow.join("table:1")
        await asyncio.gather(*[spoken.publish("n", n) for n in range(400)])
        # its own ack comes, although nothing was taken and far more came than fits
        own = await heard.publish("n", 400)
        assert own.seq == 401
        taken = await messages(heard, 401)
        assert [message.data for message in taken] == list(range(401))
        assert heard.gaps == 0


async def test_rooms_rejoined_with_a_stored_pos_go_on_there(
    redis_server: RedisServer, dataplane: DataplaneFleet
) -> None:
    (instance,) = await dataplane(redis_server, 1)
    async with AsyncExitStack() as stack:
        speaker = await on(stack, instance)
        spoken = await speaker.join("table:1")
        for n in range(3):
            await spoken.publish("n", n)
        await messages(spoken, 2)
        later = await on(stack, instance)
        room = await later.join("table:1", pos=spoken.pos)
        assert [message.data for message in await messages(room, 1)] == [2]
        with pytest.raises(RefusedError) as refusal:
            await later.join("table:2", pos="not a pos")
        assert refusal.value.code == "bad_pos"


async def test_rate_limits_slow_a_client_down_and_lose_nothing(
    redis_server: RedisServer, dataplane: DataplaneFleet
) -> None:
    (instance,) = await dataplane(
        redis_server,
        1,
        TABLEFORGE_SECURITY_MAX_MESSAGES_PER_SECOND="20",
        TABLEFORGE_SECURITY_MAX_MESSAGES_PER_MINUTE="1000",
    )
    async with AsyncExitStack() as stack:
        client = await on(stack, instance)
        room = await client.join("table:1")
        async with asyncio.timeout(90):
            acks = await asyncio.gather(*[room.publish("n", n) for n in range(60)])
        assert sorted(ack.seq for ack in acks) == list(range(1, 61))
        assert sorted(message.data for message in await messages(room, 60)) == list(range(60))


async def test_a_full_instance_is_left_for_another(
    redis_server: RedisServer, dataplane: DataplaneFleet
) -> None:
    one, two = await dataplane(redis_server, 2, WS_MAX_CONNECTIONS="1")
    async with AsyncExitStack() as stack:
        first = await on(stack, one, two)
        second = await on(stack, one, two)
        assert {first.instance, second.instance} == {one.instance, two.instance}
        with pytest.raises(ClosedError, match="http-503"):
            await connect([one.url, two.url], connect_timeout=3.0).__aenter__()


@pytest.mark.parametrize("auth", ["header", "frame"])
async def test_tokens(redis_server: RedisServer, dataplane: DataplaneFleet, auth: str) -> None:
    (instance,) = await dataplane(redis_server, 1, AUTH_REQUIRED="true", JWT_SECRET=SECRET)
    how = "frame" if auth == "frame" else "header"
    async with connect(instance.url, token=development_token("ada", SECRET), auth=how) as client:  # type: ignore[arg-type]
        assert client.user == "ada"
        room = await client.join("table:1")
        await room.publish("hello")
        assert (await messages(room, 1))[0].sender == "ada"
    for token in (development_token("ada", SECRET[::-1]), "nonsense", None):
        with pytest.raises(UnauthorizedError):
            await connect(instance.url, token=token, auth=how).__aenter__()  # type: ignore[arg-type]


async def test_an_expired_token_is_renewed_without_losing_anything(
    redis_server: RedisServer, dataplane: DataplaneFleet
) -> None:
    (instance,) = await dataplane(redis_server, 1, AUTH_REQUIRED="true", JWT_SECRET=SECRET)
    tokens: list[str] = []

    def token() -> str:
        tokens.append(development_token("ada", SECRET, seconds=3600 if tokens else 15))
        return tokens[-1]

    async def outlived() -> bool:
        """Whether there is another one, and the first is good no more. (Time does that, and tells nobody.)"""
        return len(tokens) > 1 and time.time() > (expires_at(tokens[0]) or 0.0)

    states = States()
    async with connect(instance.url, token=token, on_state=states, backoff_base=0.05) as client:
        room = await client.join("table:1")
        await eventually(outlived)
        await room.publish("still here")
        assert len(tokens) == 2
        assert [change.state for change in states.seen] == [State.CONNECTING, State.CONNECTED]


async def test_an_oversized_message_is_refused_here_and_costs_nothing(
    redis_server: RedisServer, dataplane: DataplaneFleet
) -> None:
    (instance,) = await dataplane(redis_server, 1)
    states = States()
    async with AsyncExitStack() as stack:
        client = await on(stack, instance, states=states)
        room = await client.join("table:1")
        with pytest.raises(RefusedError) as refusal:
            await room.publish("big", "x" * 200_000)
        assert refusal.value.code == "too_large"
        with pytest.raises(RefusedError) as refusal:
            await room.publish("x" * 51)
        assert refusal.value.code == "bad_event"
        with pytest.raises(RefusedError) as refusal:
            await client.join("no such room!")
        assert refusal.value.code == "bad_room"
        await room.publish("big", "x" * 100_000)
        assert len(states.seen) == 2


async def test_cancelling_anything_leaves_the_client_whole(
    redis_server: RedisServer, dataplane: DataplaneFleet
) -> None:
    (instance,) = await dataplane(
        redis_server,
        1,
        TABLEFORGE_SECURITY_MAX_MESSAGES_PER_SECOND="10000",  # it is over within a second or two
        TABLEFORGE_SECURITY_MAX_MESSAGES_PER_MINUTE="100000",
    )
    async with AsyncExitStack() as stack:
        client = await on(stack, instance)
        room = await client.join("table:1")
        for turn in range(60):
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(room.publish("maybe", turn)),
                    group.create_task(room.receive()),
                    group.create_task(client.join(f"table:{turn + 2}")),
                    group.create_task(client.ping()),
                ]
                for _ in range(turn % 6):
                    await asyncio.sleep(0)
                for task in tasks:
                    task.cancel()
            if turn % 3 == 0:
                again = await client.join(f"table:{turn + 2}")
                await again.leave()
        ack = await room.publish("surely", "last")
        async with asyncio.timeout(60):
            while True:
                item = await room.receive()
                assert isinstance(item, Message)
                if item.data == "last":
                    break
        assert item.seq == ack.seq
        assert room.gaps == 0
