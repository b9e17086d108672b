"""The hub: gives every member every message of its rooms, in order and once, or says plainly that it can't.

Messages arrive from the subscriber. What fits a room's chain is delivered; what doesn't makes the room read
its log: a gap is filled before anything later is delivered, a duplicate dropped, and a fork, where the log
holds another history than the one that was delivered, told to the members as `reset`.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Final, Protocol

from tableforge_dataplane.broker.addresses import RoomAddress
from tableforge_dataplane.broker.entries import Entry, MalformedEntryError, Position, from_channel
from tableforge_dataplane.broker.recovery import LogReader
from tableforge_dataplane.contract.room_options import RoomOptions, RoomRules
from tableforge_dataplane.contract.settings import RoomSettings
from tableforge_dataplane.observability.lasting import keep_going
from tableforge_dataplane.observability.logging import EventLog
from tableforge_dataplane.observability.metrics import MAX_MESSAGE_TYPES, OTHER, SAMPLED_EVERY, Metrics
from tableforge_dataplane.rooms.catching_up import CatchingUp
from tableforge_dataplane.rooms.following import EVERYTHING, Following
from tableforge_dataplane.rooms.history import HistoryReader
from tableforge_dataplane.rooms.outlet import Outlet, Turn
from tableforge_dataplane.rooms.room import Member, Occupant, Room

JOIN_TIMEOUT_SECONDS: Final = 5.0

TICK_SECONDS: Final = 1.0

ROOMS_PER_SLICE: Final = 200
"""The check of all rooms gives way to other work after so many."""

TIMED: Final = SAMPLED_EVERY - 1
"""One burst in so many is timed, from its last message's `ts` on."""

_log = EventLog("hub")


class Channels(Protocol):
    """The subscriber, as far as the hub needs it."""

    def subscribe(self, channel: bytes) -> None: ...

    def unsubscribe(self, channel: bytes) -> None: ...


class Hub:
    """All rooms with members here. A `SubscriberUser`."""

    def __init__(self, *, settings: RoomSettings, metrics: Metrics, turn: Turn) -> None:
        self._settings = settings
        self._metrics = metrics
        self._turn = turn
        self._loop = asyncio.get_running_loop()
        self._rooms: dict[str, Room] = {}
        self._by_channel: dict[bytes, Room] = {}
        self._bursting: list[Room] = []
        self._bursts = 0
        self._doubtful = asyncio.Event()
        """Set where the rooms are to be compared with their logs before it is time."""
        self._tasks: list[asyncio.Task[None]] = []
        self._channels: Channels
        self.reader: LogReader
        self.history: HistoryReader
        self.address: Callable[[str], RoomAddress]
        self._publish_head: Callable[[RoomAddress], bytes]
        self._rules: Callable[[], RoomRules]
        self.quiet: dict[bytes, Occupant] = {}
        """Publications under way from here whose sender wants no copy, by origin."""
        self.others: dict[bytes, Callable[[bytes], None]] = {}
        """Who gets what comes in channels that are no room's."""
        self.on_presence: Callable[[str, Entry], None] = _nobody_cares
        """Called with what a room's channel says of who is there."""
        self.on_entered: Callable[[str], None] = _whatever
        """Called with a room that has its first member here. (Not a personal log, as the next.)"""
        self.on_emptied: Callable[[str], None] = _whatever
        """Called with a room that has no member here any more."""
        self._following = Following(metrics=metrics)
        self._following.deliver = self._deliver
        self._following.end_burst = self.on_messages_end
        self._catching_up = CatchingUp(metrics=metrics, quiet=self.quiet)
        self._catching_up.sync = self._following.sync
        self._catching_up.count = self._count
        self._following.in_step = self._catching_up.look_at_waiting

    def attach(
        self,
        *,
        channels: Channels,
        reader: LogReader,
        address: Callable[[str], RoomAddress],
        publish_head: Callable[[RoomAddress], bytes],
        rules: Callable[[], RoomRules],
    ) -> None:
        """Tell it about the broker, which in turn was told about the hub."""
        self._channels = channels
        self.reader = self._following.reader = self._catching_up.reader = reader
        self.address = address
        self._publish_head = publish_head
        self._rules = rules
        self.history = HistoryReader(rooms=self._rooms, reader=reader, address=address, options=self.options)

    def options(self, room_name: str) -> RoomOptions:
        """What holds for a room of this name, whether it has members here or not."""
        return self._rules().of(room_name)

    def start(self) -> None:
        """Begin to compare rooms with their logs from time to time."""
        self._tasks = [
            asyncio.create_task(keep_going(self._check_rooms, log=_log), name="hub-check"),
            asyncio.create_task(keep_going(self._tick_forever, log=_log), name="hub-tick"),
        ]

    async def stop(self) -> None:
        """End the checks."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def loads(self) -> list[tuple[str, int]]:
        """Every room with members here, and how many. Personal logs are nobody else's business."""
        return [(room.name, len(room.members)) for room in self._rooms.values() if not room.personal]

    def occupants(self, room_name: str) -> list[Occupant]:
        """Who is in the room, or on the way into it."""
        room = self._rooms.get(room_name)
        return list(room.members) if room is not None else []

    # Members

    def join(self, occupant: Occupant, room_name: str, *, asked: Position | None, request: object) -> Member:
        """Make `occupant` a member.

        It hears `on_joined` as soon as the room's position is known: at once where others here are in it.
        """
        room = self._rooms.get(room_name)
        if room is None:
            room = self._open(room_name)
            if not room.personal:
                self.on_entered(room_name)
        member = Member(occupant=occupant, room=room, asked=asked, request=request)
        room.members[occupant] = member
        if room.known and not room.syncing and not room.sync_wanted:
            self._catching_up.step(member)
        else:
            self._catching_up.wait(member)
        return member

    def leave(self, member: Member) -> None:
        """The member is out from now on."""
        room = member.room
        member.gone = True
        room.dismiss(member)
        if room.members.get(member.occupant) is member:
            del room.members[member.occupant]
        if not room.members and self._rooms.get(room.name) is room:
            del self._rooms[room.name]
            del self._by_channel[room.address.channel]
            room.closed = True
            self._channels.unsubscribe(room.address.channel)
            self._metrics.rooms = len(self._rooms)
            if not room.personal:
                self.on_emptied(room.name)

    def _open(self, name: str) -> Room:
        room = self._new(name)
        self._metrics.rooms = len(self._rooms)
        self._channels.subscribe(room.address.channel)
        return room

    def _new(self, name: str) -> Room:
        address = self.address(name)
        room = Room(address, publish_head=self._publish_head(address), options=self.options(name))
        room.kept_at = self._loop.time()
        self._rooms[name] = room
        self._by_channel[address.channel] = room
        return room

    def renew(self, settings: RoomSettings) -> None:
        """Compare rooms with their logs as often as these settings say, from the next time on."""
        self._settings = settings

    def renew_options(self) -> None:
        """Rooms' options may have changed: see which, and tell the members."""
        for room in list(self._rooms.values()):
            options = self.options(room.name)
            if options == room.options:
                continue
            if options.volatile != room.options.volatile:
                self._begin_anew(room)
            else:
                room.options = options
                room.address = self.address(room.name)
                room.publish_head = self._publish_head(room.address)
            for member in list(self._rooms[room.name].members.values()):
                member.occupant.on_options(member)

    def _begin_anew(self, old: Room) -> None:
        """A room gets a log, or loses it: what follows does not continue what came before."""
        old.closed = True
        room = self._new(old.name)
        room.subscribed = old.subscribed
        for member in list(old.members.values()):
            member.room = room
            room.members[member.occupant] = member
            if not member.joined:
                self._catching_up.wait(member)
            elif room.options.volatile:
                room.admit(member)
                member.occupant.on_reset(member, room.position, "log_lost")
        if room.subscribed:
            self.on_subscribed(room.address.channel)

    # What arrives

    def on_message(self, channel: bytes, payload: bytes) -> None:
        """From the subscriber. (1.4 µs a message beside its recipients: `benchmarks/steps.py`.)"""
        room = self._by_channel.get(channel)
        if room is None:
            other = self.others.get(channel)
            if other is not None:
                other(payload)
            return  # or a room that was left a moment ago
        try:
            entry = from_channel(payload)
        except MalformedEntryError as error:
            _log.error("channel_malformed", error, room=room.name)
            self._metrics.messages_dropped.add("malformed")
            return
        if entry.seq == room.seq + 1 and entry.prev == room.tag:
            self._deliver(room, entry)
        elif entry.seq == 0:
            self._deliver_volatile(room, entry)
        else:
            self._on_misfit(room, entry)

    def on_messages_end(self) -> None:
        """From the subscriber: what came in one read goes out together."""
        bursting, self._bursting = self._bursting, []
        for room in bursting:
            if room.burst:
                self._spread(room)

    def on_subscribed(self, channel: bytes) -> None:
        """From the subscriber: nothing is missed from now on; what was missed before is in the log."""
        room = self._by_channel.get(channel)
        if room is None:
            return
        room.subscribed = True
        if room.options.volatile:
            room.seq = 0
            self._catching_up.look_at_waiting(room)
        elif room.known:
            self._following.sync(room)
        else:
            self._following.learn(room)

    def _deliver(self, room: Room, entry: Entry) -> None:
        room.seq = entry.seq
        room.tag = entry.tag
        room.ring.append(entry)
        if entry.origin[:1] == b"!" and entry.origin in self.quiet:
            self._deliver_quiet(room, entry)
            return
        burst = room.burst
        if not burst:
            self._bursting.append(room)
        burst.append(entry)

    def _deliver_quiet(self, room: Room, entry: Entry) -> None:
        """To everybody but its sender, whose `ack` takes this place."""
        if room.burst:
            self._spread(room)
        sender = self.quiet[entry.origin]
        self._spread_but(room, [entry], sender.outlet)
        member = room.members.get(sender)
        if member is None or room.is_live(member):
            sender.on_quiet_copy(entry.origin, entry)

    def _deliver_volatile(self, room: Room, entry: Entry) -> None:
        if not room.known:
            return
        if room.burst:
            self._spread(room)
        sender = self.quiet.get(entry.origin) if entry.origin[:1] == b"!" else None
        self._spread_but(room, [entry], sender.outlet if sender is not None else None)
        if sender is not None:
            sender.on_quiet_copy(entry.origin, entry)

    def _spread(self, room: Room) -> None:
        """Encode the burst once for each kind of client and give it to all outlets of that kind."""
        entries = room.burst
        room.burst = []
        self._bursts += 1
        if self._bursts & TIMED == 1:
            self._time(entries[-1])
        turn = self._turn
        for encoder, outlets in room.groups.items():
            data = encoder.messages(room.name, entries)
            dirty = turn.dirty
            if not dirty:
                turn.begin()
            # `Outlet.send`, written out: this loop is what a delivery costs beside its write
            for outlet in outlets:
                if outlet.first:
                    outlet.send(data)
                else:
                    outlet.first = data
                    dirty.append(outlet)
            self._count(entries, len(outlets))

    def _time(self, entry: Entry) -> None:
        try:
            self._metrics.delivery_seconds.observe(time.time() - float(entry.ts))
        except ValueError:
            _log.error("time_malformed", ts=entry.ts[:32])

    def _spread_but(self, room: Room, entries: list[Entry], but: Outlet | None) -> None:
        self._bursts += 1
        if self._bursts & TIMED == 1:
            self._time(entries[-1])
        for encoder, outlets in room.groups.items():
            data = encoder.messages(room.name, entries)
            for outlet in outlets:
                if outlet is not but:
                    outlet.send(data)
            self._count(entries, len(outlets) - (but in outlets))

    def _count(self, entries: list[Entry], recipients: int) -> None:
        if recipients:
            sent = self._metrics.messages_sent
            for entry in entries:
                body = entry.body
                # a short way to names that were looked at before
                name = _names.get(body[10 : body.find(b'"', 10)]) or _event_of(body)
                sent.add(name, recipients)

    def _on_misfit(self, room: Room, entry: Entry) -> None:
        if entry.seq < 0:
            self.on_presence(room.name, entry)
            return
        if room.options.volatile:
            # from an instance that has not heard yet that this room has no log
            self._deliver_volatile(room, entry)
            return
        if not room.known:
            room.seen = max(room.seen, entry.seq)
            return
        if entry.seq <= room.seq and room.ring.tag_at(entry.seq) == entry.tag:
            self._metrics.messages_dropped.add("duplicate")
            return
        # what is further ahead is in the log by now; anything else tells of another history
        ahead = entry.seq > room.seq + 1
        self._following.sync(room, up_to=entry.seq if ahead else EVERYTHING)

    # From time to time

    def retry(self) -> None:
        """Redis answers again: do now what failed meanwhile."""
        for room in list(self._rooms.values()):
            if not room.subscribed or room.options.volatile:
                continue
            if not room.known:
                self._following.learn(room)
            elif room.sync_wanted and not room.syncing:
                self._following.sync(room)

    def compare(self) -> None:
        """Redis was away, and readings since then may have been another server's: compare all rooms soon."""
        self._doubtful.set()

    async def _tick_forever(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            if self.reader.connected:
                self.retry()
            now = self._loop.time()
            for room in list(self._rooms.values()):
                if room.waiting:
                    self._give_up_waiting(room, now)

    def _give_up_waiting(self, room: Room, now: float) -> None:
        waiting, room.waiting = room.waiting, []
        late: list[Member] = []
        for member in waiting:
            if member.gone:
                continue
            if member.joined or now - member.since <= JOIN_TIMEOUT_SECONDS:
                room.waiting.append(member)
            else:
                late.append(member)
        for member in late:
            self.leave(member)
            member.occupant.on_join_failed(member)

    async def _check_rooms(self) -> None:
        """A missed message shows only when a later one comes: so every room is compared with its log."""
        while True:
            # a log's keys must not expire under its members
            most = min(self._settings.check_interval_seconds, self._rules().shortest_age_ms / 3000)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(most):
                    await self._doubtful.wait()
            self._doubtful.clear()
            rooms = [room for room in self._rooms.values() if room.known and not room.options.volatile]
            for start in range(0, len(rooms), ROOMS_PER_SLICE):
                if not self.reader.connected:
                    break
                now = self._loop.time()
                for room in rooms[start : start + ROOMS_PER_SLICE]:
                    self._following.check(room)
                    if now - room.kept_at > room.address.limits.max_age_ms / 4000:
                        room.kept_at = now
                        self.reader.keep(room.address)
                await asyncio.sleep(0)


def _nobody_cares(_room: str, _entry: Entry) -> None:
    return None


def _whatever(_room: str) -> None:
    return None


_names: Final[dict[bytes, str]] = {}
"""Of events, by how they stand in a body; as many as are counted by name."""


def _event_of(body: bytes) -> str:
    """The event's name out of a body, which begins with it."""
    end = body.find(b'"', 10)
    if end < 0 or body[end - 1 : end] == b"\\":
        return OTHER
    name = body[10:end].decode("utf-8", "replace")
    if len(_names) < MAX_MESSAGE_TYPES:
        _names[body[10:end]] = name
    return name
