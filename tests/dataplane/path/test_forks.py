"""What a failover takes back, step by step: whoever was given it hears so, and gets what took its place.

The hub with a log and a channel that the test moves by hand (`test_chain.py` does so at random), and no
clock: what is overlooked here is found by the next message, or by the comparison every ten seconds.
"""

from collections.abc import Callable, Coroutine
from typing import Any

from tableforge_dataplane.broker.entries import Position
from tableforge_dataplane.rooms.outlet import Turn
from tableforge_dataplane.rooms.room import TAKEN_BACK_KEPT, Member
from tests.dataplane.path.instances import Instances, Peers, until
from tests.dataplane.path.test_chain import ADDRESS, Scene, Witness, payload, run, scene, turns
from tests.support.redis import RedisServer

Play = Callable[[], Coroutine[Any, Any, None]]


class Teller(Witness):
    """Writes down what it is told."""

    def __init__(self, turn: Turn, asked: Position | None) -> None:
        super().__init__(turn, asked)
        self.told: list[str] = []

    def _on_data(self, data: bytes) -> None:
        super()._on_data(data)
        self.told += [b"-".join(line.split(b" ")[1:3]).decode() for line in data.splitlines()]

    def on_joined(
        self, member: Member, position: Position, *, recovered: bool | None, reason: str | None
    ) -> None:
        self.told.append(f"joined {reason}" if reason else "joined")
        super().on_joined(member, position, recovered=recovered, reason=reason)

    def on_reset(self, member: Member, position: Position, reason: str) -> None:
        self.told.append(f"reset {reason}")
        super().on_reset(member, position, reason)


async def join(on: Scene, asked: Position | None = None) -> Teller:
    """A member; what it waits for is answered."""
    teller = Teller(on.turn, asked)
    first = not on.hub._rooms
    on.here.append((on.hub.join(teller, "lobby", asked=asked, request=None), teller))
    if first:
        on.hub.on_subscribed(ADDRESS.channel)
    await answer_all(on)
    return teller


async def answer_all(on: Scene) -> None:
    """Everything that is asked, and what is asked then; no timer and no message brings anything more."""
    await turns(3)
    while on.world.asked:
        on.world.answer()
        await turns(3)


async def deliver(on: Scene) -> None:
    """What is in the channel."""
    while on.world.channel:
        on.hub.on_message(ADDRESS.channel, payload(on.world.channel.popleft()))
    on.hub.on_messages_end()
    await turns(3)


async def publish(on: Scene, count: int, *, size_bytes: int = 0) -> None:
    """So many messages, delivered."""
    for _ in range(count):
        on.world.publish(size_bytes)
    await deliver(on)
    await answer_all(on)


def publish_unheard(on: Scene, count: int, *, size_bytes: int = 0) -> None:
    """So many messages that the channel loses."""
    for _ in range(count):
        on.world.publish(size_bytes)
    on.world.channel.clear()


def position(on: Scene, seq: int) -> Position:
    return next(Position(entry.seq, entry.tag) for entry in on.world.entries if entry.seq == seq)


def places(on: Scene, first: int) -> list[str]:
    """Of the log's messages, from `first` on."""
    return [str(Position(entry.seq, entry.tag)) for entry in on.world.entries if entry.seq >= first]


def test_another_history_that_shows_while_the_log_is_read_is_not_overlooked() -> None:
    async def play() -> None:
        on = scene()
        ada = await join(on)
        await publish(on, 8)
        on.hub.on_subscribed(ADDRESS.channel)
        on.world.decide()  # read before the failover, and heard of after it
        on.world.go_back(3)
        on.world.publish()
        ada.told.clear()
        await deliver(on)
        await answer_all(on)
        assert ada.told == ["reset log_lost", str(position(on, 5)), *places(on, 6)]

    run(play)


def test_what_is_published_between_a_reading_and_a_subscription_is_not_overlooked() -> None:
    async def play() -> None:
        on = scene()
        ada = await join(on)
        await publish(on, 2)
        on.hub.on_subscribed(ADDRESS.channel)
        on.world.decide()
        publish_unheard(on, 1)
        on.hub.on_subscribed(ADDRESS.channel)  # another connection; from here on nothing is missed
        await answer_all(on)
        assert ada.told[-1] == str(on.world.head)

    run(play)


def test_nor_what_is_published_between_a_new_rooms_position_and_a_subscription() -> None:
    async def play() -> None:
        on = scene()
        publish_unheard(on, 2)
        ada = Teller(on.turn, None)
        on.hub.join(ada, "lobby", asked=None, request=None)
        on.hub.on_subscribed(ADDRESS.channel)
        on.world.decide()
        publish_unheard(on, 1)
        on.hub.on_subscribed(ADDRESS.channel)
        await answer_all(on)
        assert ada.told[-1] == str(on.world.head)

    run(play)


def test_a_gap_that_the_reading_under_way_fills_costs_no_other() -> None:
    async def play() -> None:
        on = scene()
        ada = await join(on)
        await publish(on, 1)
        publish_unheard(on, 1)
        for _ in range(3):
            on.world.publish()
        await deliver(on)
        on.world.answer()
        await turns(3)
        assert ada.told[-1] == str(on.world.head)
        assert not on.world.asked

    run(play)


def test_a_log_that_another_instance_begins_meanwhile_comes_whole() -> None:
    async def play() -> None:
        on = scene()
        ada = await join(on)
        await publish(on, 3)
        on.world.vanish()
        on.hub.on_subscribed(ADDRESS.channel)
        on.world.answer()  # there is no log
        publish_unheard(on, 2)
        ada.told.clear()
        await answer_all(on)
        assert ada.told == ["reset log_lost", "0-0", *places(on, 1)]

    run(play)


def test_who_comes_back_with_what_was_taken_back_goes_on_where_the_histories_part() -> None:
    async def play() -> None:
        on = scene()
        ada = await join(on)
        await publish(on, 8)
        old = [position(on, seq) for seq in (5, 6, 8)]
        on.world.go_back(3)
        await publish(on, 2)
        assert ada.position == on.world.head
        for asked in old[1:]:
            bob = await join(on, asked)
            assert bob.told == ["joined forked", str(old[0]), *places(on, 6)]
        # and where a second failover goes back further
        on.world.go_back(4)
        await publish(on, 1)
        for asked in (*old, Position(7, old[2].tag)):
            carl = await join(on, asked)
            known = asked in old
            expected = [str(position(on, 3)), *places(on, 4)] if known else []
            assert carl.told[: len(expected) + 1] == [
                "joined forked" if known else "joined log_lost",
                *expected,
            ]
        # a history that goes on after the first one's place takes nothing back that it had not
        await publish(on, 5)
        on.world.go_back(2)
        await publish(on, 1)
        dora = await join(on, old[2])
        assert dora.told == ["joined forked", str(position(on, 3)), *places(on, 4)]

    run(play)


def test_where_the_log_does_not_reach_back_to_that_the_present_it_is() -> None:
    async def play() -> None:
        on = scene()
        await join(on)
        await publish(on, 8)
        old = position(on, 8)
        on.world.go_back(3)
        await publish(on, 200)
        parting = position(on, 5)
        on.world.trim(100)
        bob = await join(on, old)
        assert bob.told == ["joined forked", str(parting), "reset log_lost", str(on.world.head)]

    run(play)


def test_what_was_taken_back_is_remembered_within_bounds() -> None:
    async def play() -> None:
        on = scene()
        await join(on)
        await publish(on, 60)
        for _ in range(20):
            on.world.go_back(40)
            await publish(on, 45)
        (room,) = on.hub._rooms.values()
        assert len(room.taken_back) == TAKEN_BACK_KEPT
        on.world.vanish()
        await publish(on, 1)
        assert not room.taken_back

    run(play)


def test_who_reads_ahead_of_its_room_again_and_again_is_not_called_lost() -> None:
    """The room hears late, and reads the log each time a member turns out to be further."""

    async def play() -> None:
        on = scene()
        size = 25_000  # the ring keeps one of these, and three are given at once
        await join(on)
        await publish(on, 4, size_bytes=size)
        publish_unheard(on, 1, size_bytes=size)
        bob = Teller(on.turn, position(on, 2))
        on.hub.join(bob, "lobby", asked=bob.asked, request=None)
        on.world.answer()  # bob's page
        await turns(3)
        assert bob.position == position(on, 5)
        publish_unheard(on, 2, size_bytes=size)
        on.world.answer()  # the room looks
        await turns(3)
        publish_unheard(on, 2, size_bytes=size)
        await answer_all(on)
        assert bob.told == ["joined", *places(on, 2)]

    run(play)


async def test_every_room_is_compared_once_all_connections_stand_again(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    """Where the one that reads comes back last, what was read before may have been another server's."""
    one, two = await instances(redis_server, 2, rooms={"check_interval_seconds": 600.0})
    ada, bob = await peers(one), await peers(two)
    await ada.join("lobby")
    await bob.join("lobby")
    subscriber = two.broker.subscriber
    unheard: list[bytes] = []
    original = subscriber._on_message  # type: ignore[union-attr]
    subscriber._on_message = lambda _channel, payload: unheard.append(payload)  # type: ignore[union-attr]
    sent = await ada.published("lobby", "unheard")
    await until(lambda: unheard)
    subscriber._on_message = original  # type: ignore[union-attr]
    two.broker.shards[0].links["commands"].abort()
    assert (await bob.hear_type("message"))["pos"] == sent["pos"]
