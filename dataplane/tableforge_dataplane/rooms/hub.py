"""The hub: gives every member every message of its rooms, in order and once, or says plainly that it can't.

Messages arrive from the subscriber. What fits a room's chain is delivered; what doesn't makes the room read
its log: a gap is filled before anything later is delivered, a duplicate dropped, and a fork, where the log
holds another history than the one that was delivered, told to the members as `reset`.
"""

import asyncio
from collections.abc import Callable
from typing import Final, Literal, Protocol

from tableforge_dataplane.broker.addresses import RoomAddress
from tableforge_dataplane.broker.entries import Entry, MalformedEntryError, Position, from_channel
from tableforge_dataplane.broker.recovery import LogPage, LogReader
from tableforge_dataplane.contract.settings import RoomSettings
from tableforge_dataplane.observability.logging import EventLog
from tableforge_dataplane.observability.metrics import OTHER, Metrics
from tableforge_dataplane.rooms.outlet import Outlet, Turn
from tableforge_dataplane.rooms.room import Member, Occupant, Room

SYNC_COUNT: Final = 100
"""Entries read at once where a room catches up with its log."""

PAGE_SIZE: Final = 64
"""Members who recover read the log in pages with fixed borders, so that they share the reads."""

PAGES_KEPT: Final = 16

PAGE_BYTES: Final = 65_536
"""About how much a recovering member is given before its socket has to drain."""

SOCKET_FULL_BYTES: Final = 65_536

JOIN_TIMEOUT_SECONDS: Final = 5.0

TICK_SECONDS: Final = 1.0

ROOMS_PER_SLICE: Final = 200
"""The check of all rooms gives way to other work after so many."""

Loss = Literal["trimmed", "log_lost", "forked"]
ResetReason = Literal["log_lost", "forked"]

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
        self._tasks: list[asyncio.Task[None]] = []
        self._channels: Channels
        self._reader: LogReader
        self._address: Callable[[str], RoomAddress]
        self._publish_head: Callable[[RoomAddress], bytes]
        self.quiet: dict[bytes, Occupant] = {}
        """Publications under way from here whose sender wants no copy, by origin."""

    def attach(
        self,
        *,
        channels: Channels,
        reader: LogReader,
        address: Callable[[str], RoomAddress],
        publish_head: Callable[[RoomAddress], bytes],
    ) -> None:
        """Tell it about the broker, which in turn was told about the hub."""
        self._channels = channels
        self._reader = reader
        self._address = address
        self._publish_head = publish_head

    def start(self) -> None:
        """Begin to compare rooms with their logs from time to time."""
        self._tasks = [
            asyncio.create_task(self._check_rooms(), name="hub-check"),
            asyncio.create_task(self._tick_forever(), name="hub-tick"),
        ]

    async def stop(self) -> None:
        """End the checks."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def loads(self) -> list[tuple[str, int]]:
        """Every room with members here, and how many."""
        return [(room.name, len(room.members)) for room in self._rooms.values()]

    # Members

    def join(self, occupant: Occupant, room_name: str, *, asked: Position | None, request: object) -> Member:
        """Make `occupant` a member.

        It hears `on_joined` as soon as the room's position is known: at once where others here are in it.
        """
        room = self._rooms.get(room_name)
        if room is None:
            room = self._open(room_name)
        member = Member(occupant=occupant, room=room, asked=asked, request=request)
        room.members[occupant] = member
        if room.known and not room.syncing and not room.sync_wanted:
            self._step(member)
        else:
            self._wait(member)
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
            self._channels.unsubscribe(room.address.channel)
            self._metrics.rooms = len(self._rooms)

    def _open(self, name: str) -> Room:
        address = self._address(name)
        room = Room(address, publish_head=self._publish_head(address))
        room.kept_at = self._loop.time()
        self._rooms[name] = room
        self._by_channel[address.channel] = room
        self._metrics.rooms = len(self._rooms)
        self._channels.subscribe(address.channel)
        return room

    def _wait(self, member: Member) -> None:
        member.since = self._loop.time()
        member.room.waiting.append(member)

    # What arrives

    def on_message(self, channel: bytes, payload: bytes) -> None:
        """From the subscriber. (1.4 µs a message beside its recipients: `benchmarks/steps.py`.)"""
        room = self._by_channel.get(channel)
        if room is None:
            return  # left a moment ago
        try:
            entry = from_channel(payload)
        except MalformedEntryError as error:
            _log.error("channel_malformed", error, room=room.name)
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
        if room.known:
            self._sync(room)
        else:
            self._learn(room)

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
        turn = self._turn
        for encoder, outlets in room.groups.items():
            data = encoder.messages(room.name, entries)
            dirty = turn.dirty
            if not dirty:
                turn.begin()
            # `Outlet.send`, written out: this loop is what a delivery costs beside its write
            for outlet in outlets:
                frames = outlet.frames
                if not frames:
                    dirty.append(outlet)
                frames.append(data)
            self._count(entries, len(outlets))

    def _spread_but(self, room: Room, entries: list[Entry], but: Outlet | None) -> None:
        for encoder, outlets in room.groups.items():
            data = encoder.messages(room.name, entries)
            for outlet in outlets:
                if outlet is not but:
                    outlet.send(data)
            self._count(entries, len(outlets) - (but in outlets))

    def _count(self, entries: list[Entry], recipients: int) -> None:
        if recipients:
            for entry in entries:
                self._metrics.messages_sent.add(_event_of(entry.body), recipients)

    def _on_misfit(self, room: Room, entry: Entry) -> None:
        if not room.known:
            room.seen = max(room.seen, entry.seq)
            return
        if entry.seq <= room.seq and room.ring.tag_at(entry.seq) == entry.tag:
            return  # a duplicate
        room.seen = max(room.seen, entry.seq)
        self._sync(room)

    # In step with the log

    def _learn(self, room: Room) -> None:
        """Ask where a new room stands."""
        if room.opening:
            return
        room.opening = True

        def on_position(position: Position | None) -> None:
            room.opening = False
            if self._rooms.get(room.name) is not room:
                return
            if position is None:
                room.sync_wanted = True
                return
            room.sync_wanted = False
            room.seq, room.tag = position.seq, position.tag
            if room.seen > room.seq:
                self._sync(room)
            else:
                self._look_at_waiting(room)

        self._reader.join(room.address, on_position)

    def _sync(self, room: Room) -> None:
        """Read what follows the room's position and deliver it."""
        if room.syncing:
            room.sync_wanted = True
            return
        room.syncing, room.sync_wanted = True, False
        from_seq = room.seq

        def on_page(page: LogPage | None) -> None:
            room.syncing = False
            if self._rooms.get(room.name) is not room:
                return
            if page is None:
                room.sync_wanted = True
            else:
                self._synced(room, from_seq, page)

        self._reader.read(room.address, first_seq=from_seq + 1, count=SYNC_COUNT, callback=on_page)

    def _synced(self, room: Room, from_seq: int, page: LogPage) -> None:
        loss = self._take(room, from_seq, page)
        self.on_messages_end()
        if loss is not None:
            self._rebase(room, loss, page.head)
        elif len(page.entries) == SYNC_COUNT:
            self._sync(room)
        elif room.sync_wanted:
            # something that did not fit arrived while the log was read
            room.sync_wanted = False
            if room.seen > room.seq:
                self._sync(room)
            else:
                self._look_at_waiting(room)
        else:
            # what was announced and is not in the log belongs to a history that is gone
            room.seen = room.seq
            self._look_at_waiting(room)

    def _take(self, room: Room, from_seq: int, page: LogPage) -> ResetReason | None:
        """Deliver what continues the room's history. Says why where the log has another."""
        for entry in page.entries:
            if entry.seq <= room.seq:
                known = room.ring.tag_at(entry.seq)
                if known is not None and known != entry.tag:
                    return "forked"
            elif entry.seq != room.seq + 1:
                return "log_lost"  # trimmed before it was read
            elif entry.prev != room.tag:
                return "forked"
            else:
                self._deliver(room, entry)
        head = page.head
        if head is None or head.seq < from_seq:
            return "log_lost"
        if head.seq > room.seq and len(page.entries) < SYNC_COUNT:
            return "log_lost"
        known = room.tag if head.seq == room.seq else room.ring.tag_at(head.seq)
        if known is not None and known != head.tag and head.seq <= room.seq:
            return "forked"
        return None

    def _rebase(self, room: Room, reason: ResetReason, head: Position | None) -> None:
        """The log holds another history: find where both part, tell the members, go on from there."""
        room.syncing = True
        if head is None:
            self._reader.join(
                room.address, lambda position: self._rebased(room, reason, position, shared=False)
            )
            return
        first = room.ring.first_seq
        start = first - 1 if first is not None and head.seq >= first - 1 else 0

        def on_page(page: LogPage | None) -> None:
            if page is None:
                self._rebased(room, reason, None, shared=False)
                return
            position = _parting(room, page)
            shared = position is not None and room.ring.tag_at(position.seq) == position.tag
            self._rebased(room, reason, position, shared=shared)

        self._reader.read(room.address, first_seq=start, count=SYNC_COUNT, callback=on_page)

    def _rebased(self, room: Room, reason: ResetReason, position: Position | None, *, shared: bool) -> None:
        room.syncing = False
        if self._rooms.get(room.name) is not room:
            return
        if position is None:  # Redis is away again
            room.sync_wanted = True
            return
        _log.warning("room_reset", room=room.name, reason=reason, was=str(room.position), now=str(position))
        self._metrics.resets.add(reason)
        room.seq, room.tag = position.seq, position.tag
        room.ring.cut(position)
        room.pages.clear()
        room.encoded.clear()
        room.seen = 0
        for member in list(room.members.values()):
            if not member.joined or (shared and not room.is_live(member) and member.seq <= position.seq):
                continue  # it waits, or reads the part of the log that still holds
            room.admit(member)
            member.occupant.on_reset(member, position, reason)
        self._sync(room)

    # Recovery of members

    def _look_at_waiting(self, room: Room) -> None:
        waiting, room.waiting = room.waiting, []
        for member in waiting:
            self._step(member)

    def _step(self, member: Member) -> None:
        """Bring a member one page nearer to the present."""
        room = member.room
        if member.gone or room.is_live(member):
            return
        if not room.known or room.syncing or room.sync_wanted:
            self._wait(member)
        elif member.asked is None:
            self._tell_joined(member, room.position, recovered=None, reason=None)
            self._admit(member)
        elif member.seq == room.seq:
            if member.tag == room.tag:
                self._caught_up(member)
            else:
                self._lost(member, "forked")
        elif member.seq > room.seq:
            # Redis may be ahead of what arrived here: look before calling it lost
            if member.checked:
                self._lost(member, "log_lost")
            else:
                member.checked = True
                self._wait(member)
                self._sync(room)
        else:
            entries = room.ring.after(member.seq)
            if entries is not None:
                self._give(member, entries)
            else:
                self._turn_page(member)

    def _turn_page(self, member: Member) -> None:
        room = member.room
        number = (member.seq + 1) // PAGE_SIZE
        page = room.pages.get(number)
        if page is None:
            self._read_page(room, number, member)
        elif page and isinstance(page[0], Member):
            page.append(member)
        else:
            entries = [entry for entry in page if isinstance(entry, Entry) and entry.seq > member.seq]
            if entries:
                self._give(member, entries)
            else:
                # read before the next one was stored, or trimmed, which another reading shows
                self._read_page(room, number, member)

    def _read_page(self, room: Room, number: int, member: Member) -> None:
        waiting: list[Member] = [member]
        room.pages.pop(number, None)
        while len(room.pages) >= PAGES_KEPT:
            room.pages.pop(next(iter(room.pages)))
        room.pages[number] = waiting

        def on_page(page: LogPage | None) -> None:
            if room.pages.get(number) is waiting:
                del room.pages[number]
                if page is not None:
                    room.pages[number] = list(page.entries)
            for waiter in waiting:
                if waiter.gone:
                    continue
                if page is None:
                    room.sync_wanted = True
                    self._wait(waiter)
                else:
                    self._give(waiter, [entry for entry in page.entries if entry.seq > waiter.seq])

        self._reader.read(
            room.address,
            first_seq=number * PAGE_SIZE,
            last_seq=(number + 1) * PAGE_SIZE - 1,
            count=PAGE_SIZE,
            callback=on_page,
        )

    def _give(self, member: Member, entries: list[Entry]) -> None:
        """What follows the member's position, as much as its socket takes."""
        room = member.room
        if member.gone or room.is_live(member):
            return
        if not entries or entries[0].seq != member.seq + 1:
            self._lost(member, "trimmed")
            return
        if entries[0].prev != member.tag:
            self._lost(member, "forked")
            return
        occupant = member.occupant
        if occupant.outlet.waiting_bytes() > SOCKET_FULL_BYTES:
            # other rooms of the same client recover too: one at a time
            occupant.outlet.socket.when_drained(lambda: self._step(member))
            return
        if not member.joined:
            position = Position(member.seq, member.tag)
            if not self._tell_joined(member, position, recovered=True, reason=None):
                return
        part: list[Entry] = []
        size = 0
        for entry in entries:
            if entry.origin[:1] == b"!" and self.quiet.get(entry.origin) is occupant:
                self._hand_over(member, part)
                part = []
                occupant.on_quiet_copy(entry.origin, entry)
            else:
                part.append(entry)
            member.seq, member.tag = entry.seq, entry.tag
            size += len(entry.body) + 128
            if size >= PAGE_BYTES:
                break
        self._hand_over(member, part)
        if member.seq == room.seq and not room.syncing:
            self._caught_up(member)
        elif occupant.outlet.waiting_bytes() > SOCKET_FULL_BYTES:
            occupant.outlet.socket.when_drained(lambda: self._step(member))
        else:
            self._loop.call_soon(self._step, member)

    def _hand_over(self, member: Member, entries: list[Entry]) -> None:
        if not entries:
            return
        room = member.room
        outlet = member.occupant.outlet
        part = (outlet.encoder, entries[0].seq, entries[-1].tag)
        data = room.encoded.get(part)
        if data is None:
            data = outlet.encoder.messages(room.name, entries)
            while len(room.encoded) >= PAGES_KEPT:
                room.encoded.pop(next(iter(room.encoded)))
            room.encoded[part] = data
        outlet.send(data)
        self._count(entries, 1)

    def _caught_up(self, member: Member) -> None:
        room = member.room
        if member.tag != room.tag:
            self._lost(member, "forked")
            return
        if not member.joined:
            self._tell_joined(member, room.position, recovered=True, reason=None)
        self._admit(member)

    def _lost(self, member: Member, loss: Loss) -> None:
        """The member goes on from the present, and hears it."""
        room = member.room
        if member.joined:
            reason: ResetReason = "forked" if loss == "forked" else "log_lost"
            self._metrics.resets.add(reason)
            member.occupant.on_reset(member, room.position, reason)
        else:
            self._tell_joined(member, room.position, recovered=False, reason=loss)
        self._admit(member)

    def _tell_joined(
        self, member: Member, position: Position, *, recovered: bool | None, reason: Loss | None
    ) -> bool:
        """False where it left as soon as it heard that it was in."""
        member.joined = True
        if recovered is not None:
            self._metrics.recoveries.add("recovered" if reason is None else reason)
        member.occupant.on_joined(member, position, recovered=recovered, reason=reason)
        return not member.gone

    def _admit(self, member: Member) -> None:
        room = member.room
        if member.gone:  # it left as soon as it heard that it was in
            return
        room.admit(member)
        # pages are kept while somebody may need them next
        if (room.pages or room.encoded) and sum(len(group) for group in room.groups.values()) >= len(
            room.members
        ):
            room.pages.clear()
            room.encoded.clear()

    # From time to time

    def retry(self) -> None:
        """Redis answers again: do now what failed meanwhile."""
        for room in list(self._rooms.values()):
            if not room.subscribed:
                continue
            if not room.known:
                self._learn(room)
            elif room.sync_wanted and not room.syncing:
                self._sync(room)

    async def _tick_forever(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            if self._reader.connected:
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
        lifetime = self._settings.log_max_age_seconds
        interval = min(self._settings.check_interval_seconds, lifetime / 3)
        while True:
            await asyncio.sleep(interval)
            rooms = [room for room in self._rooms.values() if room.known]
            for start in range(0, len(rooms), ROOMS_PER_SLICE):
                if not self._reader.connected:
                    break
                now = self._loop.time()
                for room in rooms[start : start + ROOMS_PER_SLICE]:
                    self._check(room)
                    if now - room.kept_at > lifetime / 4:
                        room.kept_at = now
                        self._reader.keep(room.address)
                await asyncio.sleep(0)

    def _check(self, room: Room) -> None:
        sent_at = room.seq

        def on_head(head: Position | bool | None) -> None:
            if head is None or room.syncing or self._rooms.get(room.name) is not room:
                return
            if not isinstance(head, Position) or not sent_at <= head.seq <= room.seq:
                self._sync(room)
                return
            known = room.tag if head.seq == room.seq else room.ring.tag_at(head.seq)
            if known is not None and known != head.tag:
                self._sync(room)

        if room.known and self._rooms.get(room.name) is room:
            self._reader.head(room.address, on_head)


def _parting(room: Room, page: LogPage) -> Position | None:
    """Where a room goes on whose log holds another history than the one that was delivered: after the newest
    message that both have, or else where the log begins."""
    shared = room.ring.newest_shared(page.entries)
    if shared is None and page.head is not None and room.ring.tag_at(page.head.seq) == page.head.tag:
        shared = page.head
    if shared is not None and shared != room.position:
        return shared
    # the log has a hole, or begins later: what comes first after the room's position
    later = [entry for entry in page.entries if shared is None or entry.seq > room.seq]
    if later:
        return Position(later[0].seq - 1, later[0].prev)
    return page.head


def _event_of(body: bytes) -> str:
    """The event's name out of a body, which begins with it."""
    end = body.find(b'"', 10)
    if end < 0 or body[end - 1 : end] == b"\\":
        return OTHER
    return body[10:end].decode("utf-8", "replace")
