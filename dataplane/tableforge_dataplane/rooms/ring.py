"""The last messages of one room: they tell duplicates from forks and serve those who just missed some."""

from collections import deque
from typing import Final

from tableforge_dataplane.broker.entries import Entry, Position

MOST_ENTRIES: Final = 64
MOST_BYTES: Final = 32_768
"""Of bodies, a room; the newest message is kept whatever its size."""


class Ring:
    """Entries without gaps, each the predecessor of the next."""

    __slots__ = ("_bytes", "_entries")

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def first_seq(self) -> int | None:
        """The oldest entry's seq; None where it is empty."""
        return self._entries[0].seq if self._entries else None

    def append(self, entry: Entry) -> None:
        """Add the successor of the last entry; what no longer fits goes."""
        entries = self._entries
        entries.append(entry)
        size = self._bytes + len(entry.body)
        while len(entries) > MOST_ENTRIES or (size > MOST_BYTES and len(entries) > 1):
            size -= len(entries.popleft().body)
        self._bytes = size

    def tag_at(self, seq: int) -> bytes | None:
        """The tag of message `seq`, or of the first entry's predecessor; None where the ring doesn't know."""
        entries = self._entries
        if not entries:
            return None
        index = seq - entries[0].seq
        if index == -1:
            return entries[0].prev
        return entries[index].tag if 0 <= index < len(entries) else None

    def after(self, seq: int) -> list[Entry] | None:
        """What follows message `seq`; None where the ring doesn't reach back so far."""
        entries = self._entries
        if not entries or seq < entries[0].seq - 1:
            return None
        index = seq - entries[0].seq + 1
        return [entries[position] for position in range(index, len(entries))]

    def newest_shared(self, others: list[Entry]) -> Position | None:
        """The newest position that both this ring and `others` (in order) have; None without one."""
        for other in reversed(others):
            if self.tag_at(other.seq) == other.tag:
                return Position(other.seq, other.tag)
        if others and self.tag_at(others[0].seq - 1) == others[0].prev:
            return Position(others[0].seq - 1, others[0].prev)
        return None

    def cut(self, position: Position) -> None:
        """Forget everything after `position`; everything where the ring doesn't have it."""
        if self.tag_at(position.seq) != position.tag:
            self._entries.clear()
            self._bytes = 0
            return
        while self._entries and self._entries[-1].seq > position.seq:
            self._bytes -= len(self._entries.pop().body)
