"""Parts of rooms' logs for those who ask: from the ring where it reaches, else from Redis, read once for all
who ask the same at once."""

from collections.abc import Callable
from typing import Final, Literal

import msgspec

from tableforge_dataplane.broker.addresses import RoomAddress
from tableforge_dataplane.broker.entries import Entry, Position
from tableforge_dataplane.broker.recovery import LogPage, LogReader
from tableforge_dataplane.contract.room_options import RoomOptions
from tableforge_dataplane.protocol.names import MAX_HISTORY
from tableforge_dataplane.rooms.room import NOWHERE, Room

PAGE_BYTES: Final = 65_536
"""About how much one answer holds; one message at least."""

Reason = Literal["trimmed", "log_lost", "forked"]


class HistoryPage(msgspec.Struct, frozen=True):
    """An answer."""

    entries: list[Entry]
    """In order."""
    position: Position | None
    """Of the last entry, or where the room stands if there is none; None where the room has no history."""
    complete: bool
    """Whether nothing follows, or all of the last ones that were asked for and are there are here."""
    reason: Reason | None = None
    """Why the entries don't follow what was asked for: they begin with the oldest one that is there."""


Callback = Callable[[HistoryPage | None], None]


class HistoryReader:
    """Reads for sessions and for the server API."""

    def __init__(
        self,
        *,
        rooms: dict[str, Room],
        reader: LogReader,
        address: Callable[[str], RoomAddress],
        options: Callable[[str], RoomOptions],
    ) -> None:
        self._rooms = rooms
        self._reader = reader
        self._address = address
        self._options = options
        self._under_way: dict[tuple[str, Position | None, int], list[Callback]] = {}

    def read(self, name: str, *, after: Position | None, last: int, callback: Callback) -> None:
        """What follows `after`, or, where that is None, the `last` messages. `callback` gets None where Redis
        did not answer."""
        if self._options(name).volatile:
            callback(HistoryPage(entries=[], position=NOWHERE, complete=True))
            return
        room = self._rooms.get(name)
        if room is not None and room.known and not room.syncing and not room.sync_wanted:
            page = _from_ring(room, after, last)
            if page is not None:
                callback(page)
                return
        question = (name, after, last)
        waiting = self._under_way.get(question)
        if waiting is not None:
            waiting.append(callback)
            return
        self._under_way[question] = [callback]
        address = self._address(name)

        def answer(page: HistoryPage | None) -> None:
            for each in self._under_way.pop(question):
                each(page)

        if after is None:
            self._reader.last(
                address, last, lambda page: answer(None if page is None else _newest(page, last))
            )
            return

        def on_page(page: LogPage | None) -> None:
            reason = _mismatch(page, after) if page is not None else None
            if page is None or reason is None:
                answer(None if page is None else _following(page, after))
            elif page.head is None:
                answer(HistoryPage(entries=[], position=None, complete=True, reason=reason))
            else:
                self._reader.read(
                    address,
                    first_seq=0,
                    count=MAX_HISTORY,
                    callback=lambda page: answer(None if page is None else _oldest(page, reason)),
                )

        self._reader.read(address, first_seq=after.seq, count=MAX_HISTORY + 1, callback=on_page)


def _from_ring(room: Room, after: Position | None, last: int) -> HistoryPage | None:
    if after is None:
        first = room.ring.first_seq
        if first is None or (room.seq - first + 1 < last and first > 1):
            return None
        entries = room.ring.after(max(first - 1, room.seq - last))
        return _newest(LogPage(head=room.position, entries=entries or []), last)
    if room.ring.tag_at(after.seq) != after.tag:
        return None
    return _following(LogPage(head=room.position, entries=room.ring.after(after.seq) or []), after)


def _mismatch(page: LogPage, after: Position) -> Reason | None:
    """Why the log does not go on after this position; None where it does."""
    if page.head is None or after.seq > max(
        page.head.seq, page.entries[-1].seq if page.entries else page.head.seq
    ):
        return "log_lost"
    if page.entries:
        first = page.entries[0]
        if first.seq == after.seq:
            return None if first.tag == after.tag else "forked"
        if first.seq == after.seq + 1:
            return None if first.prev == after.tag else "forked"
        return "trimmed"
    if page.head.seq == after.seq:
        return None if page.head.tag == after.tag else "forked"
    return "trimmed"


def _following(page: LogPage, after: Position) -> HistoryPage:
    entries = [entry for entry in page.entries if entry.seq > after.seq]
    fit = _fit(entries[:MAX_HISTORY])
    last = Position(fit[-1].seq, fit[-1].tag) if fit else after
    complete = len(fit) == len(entries) and (page.head is None or last.seq >= page.head.seq)
    return HistoryPage(entries=fit, position=last, complete=complete)


def _oldest(page: LogPage, reason: Reason) -> HistoryPage:
    fit = _fit(page.entries)
    last = Position(fit[-1].seq, fit[-1].tag) if fit else page.head
    complete = page.head is None or last is None or last.seq >= page.head.seq
    return HistoryPage(entries=fit, position=last, complete=complete, reason=reason)


def _newest(page: LogPage, last: int) -> HistoryPage:
    entries = page.entries[-last:]
    fit = _fit(entries[::-1])[::-1]
    position = Position(fit[-1].seq, fit[-1].tag) if fit else page.head
    return HistoryPage(entries=fit, position=position, complete=len(fit) == len(entries))


def _fit(entries: list[Entry]) -> list[Entry]:
    """As many as an answer holds, from the first one on."""
    size = 0
    for index, entry in enumerate(entries):
        size += len(entry.body) + 64
        if size > PAGE_BYTES and index:
            return entries[:index]
    return entries
