"""How a member that has missed something comes to the present: page by page, as its socket drains."""

import asyncio
from collections.abc import Callable
from typing import Final, Literal

from tableforge_dataplane.broker.entries import Entry, Position
from tableforge_dataplane.broker.recovery import LogPage, LogReader, Marker
from tableforge_dataplane.observability.metrics import Metrics
from tableforge_dataplane.rooms.following import ResetReason
from tableforge_dataplane.rooms.room import Member, Occupant, Room

PAGE_SIZE: Final = 64
"""Members who recover read the log in pages with fixed borders, so that they share the reads."""

PAGES_KEPT: Final = 16

PAGE_BYTES: Final = 65_536
"""About how much a recovering member is given before its socket has to drain."""

SOCKET_FULL_BYTES: Final = 65_536

Loss = Literal["trimmed", "log_lost", "forked"]


class CatchingUp:
    """Brings members from their positions to the present, and tells them where that can't be."""

    def __init__(self, *, metrics: Metrics, quiet: dict[bytes, Occupant]) -> None:
        self._metrics = metrics
        self._quiet = quiet
        self._loop = asyncio.get_running_loop()
        self.reader: LogReader
        self.sync: Callable[[Room], None]
        """Compares a room with its log; `look_at_waiting` follows."""
        self.count: Callable[[list[Entry], int], None]
        """Counts messages given to so many members."""

    def wait(self, member: Member) -> None:
        """Until the room's position is known and nothing is being read."""
        member.since = self._loop.time()
        member.room.waiting.append(member)

    def look_at_waiting(self, room: Room) -> None:
        """The room is in step with its log."""
        waiting, room.waiting = room.waiting, []
        for member in waiting:
            self.step(member)

    def step(self, member: Member) -> None:
        """Bring a member one page nearer to the present."""
        room = member.room
        if member.gone or room.is_live(member):
            return
        if not room.known or room.syncing or room.sync_wanted:
            self.wait(member)
        elif room.options.volatile:
            asked = member.asked is not None
            self._tell_joined(
                member,
                room.position,
                recovered=False if asked else None,
                reason="trimmed" if asked else None,
            )
            self._admit(member)
        elif member.asked is None and room.personal:
            self._find_start(member)
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
                self.wait(member)
                self.sync(room)
        else:
            entries = room.ring.after(member.seq)
            if entries is not None:
                self._give(member, entries)
            else:
                self._turn_page(member)

    def _find_start(self, member: Member) -> None:
        """A device without a position of its own goes on where `received` left off, or with the oldest
        message that the personal log holds."""
        room = member.room

        def on_marker(marker: Marker | None) -> None:
            if member.gone or member.room is not room:
                return
            if marker is None:
                room.sync_wanted = True
                self.wait(member)
                return
            if marker.received is not None:
                member.beginning = marker.beginning
                self._set_out(member, marker.received)
            elif self._tell_joined(member, marker.beginning, recovered=None, reason=None):
                self._set_out(member, marker.beginning)
            self.step(member)

        self.reader.marker(room.address, on_marker)

    def _set_out(self, member: Member, position: Position) -> None:
        member.asked = position
        member.seq, member.tag = position.seq, position.tag

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
                if waiter.gone or waiter.room is not room:
                    continue
                if page is None:
                    room.sync_wanted = True
                    self.wait(waiter)
                else:
                    self._give(waiter, [entry for entry in page.entries if entry.seq > waiter.seq])

        self.reader.read(
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
            occupant.outlet.socket.when_drained(lambda: self.step(member))
            return
        if not member.joined:
            position = Position(member.seq, member.tag)
            if not self._tell_joined(member, position, recovered=True, reason=None):
                return
        part: list[Entry] = []
        size = 0
        for entry in entries:
            if entry.origin[:1] == b"!" and self._quiet.get(entry.origin) is occupant:
                self._hand_over(member, part)
                part = []
                occupant.on_quiet_copy(entry.origin, entry)
            else:
                part.append(entry)
            member.seq, member.tag = entry.seq, entry.tag
            member.checked = False
            size += len(entry.body) + 128
            if size >= PAGE_BYTES:
                break
        self._hand_over(member, part)
        if member.seq == room.seq and not room.syncing:
            self._caught_up(member)
        elif occupant.outlet.waiting_bytes() > SOCKET_FULL_BYTES:
            occupant.outlet.socket.when_drained(lambda: self.step(member))
        else:
            self._loop.call_soon(self.step, member)

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
        self.count(entries, 1)

    def _caught_up(self, member: Member) -> None:
        room = member.room
        if member.tag != room.tag:
            self._lost(member, "forked")
            return
        if not member.joined:
            self._tell_joined(member, room.position, recovered=True, reason=None)
        self._admit(member)

    def _lost(self, member: Member, loss: Loss) -> None:
        """The member goes on from where its history and the log's part, or else from the present, in its
        personal log from the beginning, and hears it."""
        room = member.room
        parting = room.taken_back.get(Position(member.seq, member.tag))
        if parting is not None:
            self._go_back(member, parting)
            return
        if member.joined:
            reason: ResetReason = "forked" if loss == "forked" else "log_lost"
            self._metrics.resets.add(reason)
            member.occupant.on_reset(member, room.position, reason)
        elif member.beginning is not None:
            position, member.beginning = member.beginning, None
            if self._tell_joined(member, position, recovered=False, reason=loss):
                self._set_out(member, position)
                self._loop.call_soon(self.step, member)
            return
        else:
            self._tell_joined(member, room.position, recovered=False, reason=loss)
        self._admit(member)

    def _go_back(self, member: Member, parting: Position) -> None:
        """The member's last message was taken back: it goes on after the newest that was not."""
        if member.joined:
            self._metrics.resets.add("forked")
            member.occupant.on_reset(member, parting, "forked")
        elif not self._tell_joined(member, parting, recovered=False, reason="forked"):
            return
        member.beginning = None
        self._set_out(member, parting)
        self._loop.call_soon(self.step, member)

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
