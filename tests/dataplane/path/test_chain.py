"""The hub between a log and its members, without sockets and Redis.

Whatever is lost, doubled, late, trimmed or rewritten: a member gets one history's messages once and in order,
or is told where another one begins.
"""

import asyncio
import dataclasses
import random
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from tableforge_dataplane.broker.addresses import RoomAddress
from tableforge_dataplane.broker.entries import Entry, Position
from tableforge_dataplane.broker.recovery import LogPage
from tableforge_dataplane.contract.room_options import LogLimits, parse_room_options
from tableforge_dataplane.contract.settings import RoomSettings
from tableforge_dataplane.observability.metrics import Metrics
from tableforge_dataplane.rooms.hub import Hub
from tableforge_dataplane.rooms.outlet import Outlet, Turn
from tableforge_dataplane.rooms.room import Member

SETTINGS = RoomSettings()
ADDRESS = RoomAddress.of("test", "lobby", LogLimits.of_rooms(SETTINGS))


class World:
    """A room's log as Redis has it, the channel, and the readings that were not answered yet."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.head: Position | None = None
        self.channel: deque[Entry] = deque()
        self.asked: deque[tuple[Callable[[Any], None], Callable[[], Any]]] = deque()
        self._tags = 0

    connected = True

    def _tag(self) -> bytes:
        self._tags += 1
        return b"%d" % self._tags

    def publish(self, size_bytes: int = 0) -> None:
        """As the publish script does it."""
        seq, prev = (self.head.seq + 1, self.head.tag) if self.head is not None else (1, b"0")
        entry = Entry(seq, self._tag(), prev, b"1.000", b"origin", b'{"event":"e"}' + b" " * size_bytes)
        self.entries.append(entry)
        self.head = Position(seq, entry.tag)
        self.channel.append(entry)

    def trim(self, keep: int) -> None:
        del self.entries[: max(0, len(self.entries) - keep)]

    def go_back(self, count: int) -> None:
        """A replica takes over that lacks the last messages."""
        for _ in range(count):
            if len(self.entries) < 2:
                return
            self.entries.pop()
            self.head = Position(self.entries[-1].seq, self.entries[-1].tag)

    def vanish(self) -> None:
        self.entries, self.head = [], None

    # A `LogReader`, as far as the hub needs it

    def join(self, _address: RoomAddress, callback: Callable[[Any], None]) -> None:
        def answer() -> Position:
            if self.head is None:
                self.entries, self.head = [], Position(0, self._tag())
            return self.head

        self.asked.append((callback, answer))

    def read(
        self,
        _address: RoomAddress,
        *,
        first_seq: int,
        count: int,
        callback: Callable[[Any], None],
        last_seq: int | None = None,
    ) -> None:
        def answer() -> LogPage:
            found = [
                entry
                for entry in self.entries
                if entry.seq >= first_seq and (last_seq is None or entry.seq <= last_seq)
            ]
            return LogPage(head=self.head, entries=found[:count])

        self.asked.append((callback, answer))

    def head_of(self, _address: RoomAddress, callback: Callable[[Any], None]) -> None:
        self.asked.append((callback, lambda: self.head or False))

    def keep(self, _address: RoomAddress) -> None:
        """Nothing expires here."""

    def decide(self) -> None:
        """What was asked is answered as things are now, whenever the answer arrives."""
        for _ in range(len(self.asked)):
            callback, answer = self.asked.popleft()
            self.asked.append((callback, partial(_as_it_is, answer())))

    def answer(self, *, lost: bool = False) -> None:
        """The next answer; where the connection is lost, none of them comes."""
        if lost:
            waiting, self.asked = self.asked, deque()
            for callback, _ in waiting:
                callback(None)
        elif self.asked:
            callback, answer = self.asked.popleft()
            callback(answer())


def _as_it_is(answer: Any) -> Any:
    return answer


class Reader:
    """`World.head` is the position, a reader's is a method."""

    def __init__(self, world: World) -> None:
        self.join, self.read, self.keep = world.join, world.read, world.keep
        self.head = world.head_of
        self.connected = True


class Lines:
    """An encoder whose frames can be read again."""

    def messages(self, _room: str, entries: list[Entry]) -> bytes:
        return b"".join(b"message %d %b %b\n" % (entry.seq, entry.tag, entry.prev) for entry in entries)


class Socket:
    def buffered_bytes(self) -> int:
        return 0

    def when_drained(self, callback: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_soon(callback)


class Witness:
    """An occupant of the room that checks what it is told."""

    def __init__(self, turn: Turn, asked: Position | None) -> None:
        self.asked = asked
        self.position: Position | None = None
        self.resets = 0
        self.outlet = Outlet(turn=turn, encoder=cast("Any", LINES), write=self._on_data, socket=Socket())

    def _on_data(self, data: bytes) -> None:
        for line in data.splitlines():
            kind, seq, tag, prev = line.split(b" ")
            if kind == b"message":
                assert self.position is not None, "a message before `joined`"
                assert (int(seq) - 1, prev) == (self.position.seq, self.position.tag), "not the next one"
            self.position = Position(int(seq), tag)

    def on_joined(
        self, _member: Member, position: Position, *, recovered: bool | None, reason: str | None
    ) -> None:
        assert self.position is None, "joined twice"
        assert (recovered is None) == (self.asked is None)
        assert (recovered is False) == (reason is not None)
        if recovered:
            assert position == self.asked
        self.outlet.send(b"joined %d %b -\n" % (position.seq, position.tag))

    def on_reset(self, _member: Member, position: Position, reason: str) -> None:
        assert reason in ("log_lost", "forked")
        self.resets += 1
        self.outlet.send(b"reset %d %b -\n" % (position.seq, position.tag))

    def on_join_failed(self, _member: Member) -> None:
        raise AssertionError("nobody gave up")

    def on_options(self, _member: Member) -> None:
        raise AssertionError("nobody changed them")

    def on_quiet_copy(self, _origin: bytes, _entry: Entry) -> None:
        raise AssertionError("nobody asked for this")


LINES = Lines()


class Channels:
    """What is published is delivered by the test."""

    def subscribe(self, _channel: bytes) -> None: ...

    def unsubscribe(self, _channel: bytes) -> None: ...


@dataclasses.dataclass
class Scene:
    world: World
    hub: Hub
    turn: Turn
    here: list[tuple[Member, Witness]]
    known: list[Position]
    """Positions that clients may come back with."""


def scene() -> Scene:
    turn = Turn()
    hub = Hub(settings=SETTINGS, metrics=Metrics(), turn=turn)
    world = World()
    rules = parse_room_options("", SETTINGS, max_payload_bytes=0)
    hub.attach(
        channels=Channels(),
        reader=cast("Any", Reader(world)),
        address=lambda _room: ADDRESS,
        publish_head=lambda _address: b"",
        rules=lambda: rules,
    )
    return Scene(world, hub, turn, [], [Position(3, b"999"), Position(0, b"0")])


def payload(entry: Entry) -> bytes:
    return b"%d %b %b %b %b %b" % (entry.seq, entry.tag, entry.prev, entry.ts, entry.origin, entry.body)


def act(on: Scene, kind: str, number: int, rng: random.Random) -> None:
    """One step of somebody's."""
    world, hub = on.world, on.hub
    match kind:
        case "publish":
            for _ in range(number % 4 + 1):
                world.publish()
        case "publish many":
            for _ in range(number + 20):
                world.publish()
            # what that brings is mostly lost, so that there is something to catch up with
            while len(world.channel) > 5:
                world.channel.popleft()
        case "deliver":
            for _ in range(number % 6 + 1):
                if world.channel:
                    hub.on_message(ADDRESS.channel, payload(world.channel.popleft()))
            hub.on_messages_end()
        case "drop":
            if world.channel:
                world.channel.popleft()
        case "double":
            if world.channel:
                hub.on_message(ADDRESS.channel, payload(world.channel[0]))
                hub.on_messages_end()
        case "shuffle":
            mixed = list(world.channel)
            rng.shuffle(mixed)
            world.channel = deque(mixed)
        case "answer":
            for _ in range(number % 3 + 1):
                world.answer()
        case "lose connection":
            world.answer(lost=True)
            hub.on_subscribed(ADDRESS.channel)
        case "subscribed":
            hub.on_subscribed(ADDRESS.channel)
        case "retry":
            hub.retry()
        case "check":
            for room in hub._rooms.values():
                hub._following.check(room)
        case "trim":
            world.trim(number)
        case "decide":
            world.decide()
        case "go back":
            world.go_back(number % 90 + 1)
            if number % 3:  # else what the old one published arrives late
                world.channel.clear()
        case "vanish":
            world.vanish()
            world.channel.clear()
        case "join":
            known = on.known + [Position(entry.seq, entry.tag) for entry in world.entries]
            asked = rng.choice(known) if number % 3 else None
            witness = Witness(on.turn, asked)
            first = not hub._rooms
            member = hub.join(witness, "lobby", asked=asked, request=None)
            on.here.append((member, witness))
            if first:
                hub.on_subscribed(ADDRESS.channel)
        case "leave":
            if on.here:
                member, witness = on.here.pop(number % len(on.here))
                hub.leave(member)
                witness.outlet.close()
                if witness.position is not None:
                    on.known.append(witness.position)


def run(play: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """What fails in a callback of the loop fails the test."""
    failures: list[BaseException] = []

    async def watched() -> None:
        asyncio.get_running_loop().set_exception_handler(
            lambda _loop, context: failures.append(context.get("exception") or RuntimeError(str(context)))
        )
        await play()

    asyncio.run(watched())
    if failures:
        raise failures[0]


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def settle(on: Scene) -> None:
    """Everything that is under way arrives, and what the timers do is done."""
    for _ in range(200):
        while on.world.channel:
            act(on, "deliver", 5, random)  # type: ignore[arg-type]  # not used here
        on.hub.retry()
        for room in on.hub._rooms.values():
            on.hub._following.check(room)
        while on.world.asked:
            on.world.answer()
            await turns(2)
        await turns(3)
        if all(witness.position == on.world.head for _, witness in on.here):
            return


KINDS = (
    ["publish"] * 5
    + ["deliver"] * 5
    + ["answer"] * 6
    + ["join"] * 4
    + ["publish many", "drop", "double", "shuffle", "lose connection", "subscribed", "retry", "check"]
    + ["decide"] * 2
    + ["trim", "go back", "vanish", "leave", "leave"]
)

steps = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 200)), min_size=5, max_size=60)


@settings(max_examples=300, deadline=None)
@given(steps=steps, seed=st.integers(0, 2**32))
def test_every_member_has_one_history_at_a_time_and_ends_where_the_log_does(
    steps: list[tuple[str, int]], seed: int
) -> None:
    async def play() -> None:
        rng = random.Random(seed)
        on = scene()
        for kind, number in steps:
            act(on, kind, number, rng)
            if number % 2:
                await turns(1)
        on.world.publish()
        await settle(on)
        for _, witness in on.here:
            assert witness.position == on.world.head
        # and from here on nothing is in anybody's way
        resets = [witness.resets for _, witness in on.here]
        on.world.publish()
        act(on, "deliver", 0, rng)
        await turns(2)
        for (_, witness), before in zip(on.here, resets, strict=True):
            assert witness.position == on.world.head
            assert witness.resets == before

    run(play)


@settings(max_examples=50, deadline=None)
@given(missed=st.integers(0, 150), lost=st.lists(st.booleans(), min_size=20, max_size=20))
def test_without_forks_and_losses_nobody_ever_hears_of_a_reset(missed: int, lost: list[bool]) -> None:
    async def play() -> None:
        on = scene()
        rng = random.Random(1)
        on.world.publish()
        start = on.world.head
        for _ in range(missed):
            on.world.publish()
        on.known[:] = [start] if start is not None else []
        for drop in lost:
            witness = Witness(on.turn, start)
            first = not on.here
            on.here.append((on.hub.join(witness, "lobby", asked=start, request=None), witness))
            if first:
                on.hub.on_subscribed(ADDRESS.channel)
            on.world.publish()
            act(on, "drop" if drop else "deliver", 0, rng)
            act(on, "answer", 0, rng)
            await turns(1)
        await settle(on)
        for _, witness in on.here:
            assert (witness.position, witness.resets) == (on.world.head, 0)

    run(play)
