"""How a room keeps in step with its log: gaps are filled, forks found, and members hear of what is lost."""

import sys
from collections.abc import Callable
from typing import Final, Literal

from tableforge_dataplane.broker.entries import Entry, Position
from tableforge_dataplane.broker.recovery import LogPage, LogReader
from tableforge_dataplane.observability.logging import EventLog
from tableforge_dataplane.observability.metrics import Metrics
from tableforge_dataplane.rooms.room import Room

SYNC_COUNT: Final = 100
"""Entries read at once where a room catches up with its log."""

EVERYTHING: Final = sys.maxsize
"""No reading that was asked for earlier is enough."""

ResetReason = Literal["log_lost", "forked"]

_log = EventLog("hub")


class Following:
    """Reads what rooms missed, and delivers it or tells of another history."""

    def __init__(self, *, metrics: Metrics) -> None:
        self._metrics = metrics
        self.reader: LogReader
        self.deliver: Callable[[Room, Entry], None]
        """Gives the room's next message to its members."""
        self.end_burst: Callable[[], None]
        """What was delivered goes out now."""
        self.in_step: Callable[[Room], None]
        """The room's position is known and nothing is being read: who has waited for that may go on."""

    def learn(self, room: Room) -> None:
        """Ask where a new room stands."""
        if room.opening:
            # subscribed anew meanwhile: the answer may be from before that
            room.seen = EVERYTHING
            return
        room.opening = True

        def on_position(position: Position | None) -> None:
            room.opening = False
            if room.closed:
                return
            if position is None:
                room.sync_wanted = True
                return
            room.sync_wanted = False
            if any(member.joined for member in room.members.values()):
                # they were in it while it had no log
                self._rebased(room, "log_lost", position, shared=False)
                return
            room.seq, room.tag = position.seq, position.tag
            if room.seen > room.seq:
                self.sync(room)
            else:
                self.in_step(room)

        self.reader.join(room.address, on_position)

    def sync(self, room: Room, *, up_to: int = EVERYTHING) -> None:
        """Read what follows the room's position and deliver it.

        `up_to`: a reading that was asked for earlier is enough where it gets as far as this seq.
        """
        if room.syncing:
            room.sync_wanted = True
            room.seen = max(room.seen, up_to)
            return
        room.syncing, room.sync_wanted, room.seen = True, False, 0
        from_seq = room.seq

        def on_page(page: LogPage | None) -> None:
            room.syncing = False
            if room.closed:
                return
            if page is None:
                room.sync_wanted = True
            else:
                self._synced(room, from_seq, page)

        self.reader.read(room.address, first_seq=from_seq + 1, count=SYNC_COUNT, callback=on_page)

    def _synced(self, room: Room, from_seq: int, page: LogPage) -> None:
        loss = self._take(room, from_seq, page)
        self.end_burst()
        if loss is not None:
            self._rebase(room, loss, page.head)
        elif len(page.entries) == SYNC_COUNT:
            self.sync(room)
        elif room.sync_wanted and room.seen > room.seq:
            # something happened while the log was read, and what was read does not explain it
            self.sync(room)
        else:
            room.sync_wanted = False
            self.in_step(room)

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
                self.deliver(room, entry)
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

            def on_position(position: Position | None) -> None:
                if position is None or position.seq == 0:
                    self._rebased(room, reason, position, shared=False)
                else:  # somebody has begun a new log meanwhile
                    self._rebase(room, reason, position)

            self.reader.join(room.address, on_position)
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

        self.reader.read(room.address, first_seq=start, count=SYNC_COUNT, callback=on_page)

    def _rebased(self, room: Room, reason: ResetReason, position: Position | None, *, shared: bool) -> None:
        room.syncing = False
        if room.closed:
            return
        if position is None:  # Redis is away again
            room.sync_wanted = True
            return
        _log.warning("room_reset", room=room.name, reason=reason, was=str(room.position), now=str(position))
        self._metrics.resets.add(reason)
        room.take_back(position, shared=shared)
        room.pages.clear()
        room.encoded.clear()
        for member in list(room.members.values()):
            if not member.joined or (shared and not room.is_live(member) and member.seq <= position.seq):
                continue  # it waits, or reads the part of the log that still holds
            room.admit(member)
            member.occupant.on_reset(member, position, reason)
        self.sync(room)

    def check(self, room: Room) -> None:
        sent_at = room.seq

        def on_head(head: Position | bool | None) -> None:
            if head is None or room.syncing or room.closed:
                return
            if not isinstance(head, Position) or not sent_at <= head.seq <= room.seq:
                self.sync(room)
                return
            known = room.tag if head.seq == room.seq else room.ring.tag_at(head.seq)
            if known is not None and known != head.tag:
                self.sync(room)

        if room.known and not room.closed:
            self.reader.head(room.address, on_head)


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
