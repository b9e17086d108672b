"""The order of one room at this client: each message once, in order, and a bounded number of them. No I/O."""

import enum
import logging
from collections import deque
from typing import Literal

from tableforge_client.frames import Event
from tableforge_client.items import Direct, Item, Members, Message, Reset

_log = logging.getLogger("tableforge_client")


class Inbox:
    """What arrived and was not taken yet.

    Where the application is slower than the room, the inbox lags: it drops what comes, remembers where it
    stopped, and asks to be filled from the room's log (`wants_refill`) once half of it is taken. So the log
    is the buffer, memory is bounded, and acknowledgements behind the messages never wait for the application.
    """

    class Taken(enum.Enum):
        """What became of a message."""

        KEPT = enum.auto()
        DUPLICATE = enum.auto()
        DROPPED = enum.auto()

    def __init__(self, room: str, *, size: int, pos: str | None = None) -> None:
        self._room = room
        self._size = size
        self._items: deque[Item] = deque()
        self._seq: int | None = None
        self._asked_again_at: int | None = None
        self.pos = pos
        """The place up to which the room's history is in here or was taken: where to go on from."""
        self.taken_pos = pos
        """The place up to which it was taken."""
        self.lagging = False
        self.gaps = 0
        """How often the server left out a message that it had not announced as lost."""

    def __len__(self) -> int:
        return len(self._items)

    @property
    def full(self) -> bool:
        return len(self._items) >= self._size

    @property
    def wants_refill(self) -> bool:
        """Whether it dropped messages and has room for them now."""
        return self.lagging and len(self._items) <= self._size // 2

    def take(self) -> Item | None:
        """The next item, None where there is none."""
        if not self._items:
            return None
        item = self._items.popleft()
        if not isinstance(item, Members):
            self.taken_pos = item.pos
        return item

    def joined(self, event: Event, *, asked: str | None) -> None:
        """The answer to a join that asked to go on after `asked`."""
        self.lagging = False
        if asked is None and event.recovered is not False:
            self.pos = event.pos
            self._seq = None
        elif event.recovered is not True:
            self._start_anew(event, "join")

    def reset(self, event: Event) -> None:
        """The server says that what follows continues nothing."""
        if not self.lagging:  # a lagging one asks from its own place, and is told then
            self._start_anew(event, "reset")

    def message(self, event: Event) -> Taken:
        """A message arrived."""
        if event.type == "direct":
            return self._direct(event)
        if self.lagging or event.seq is None or event.pos is None:
            return self.Taken.DROPPED
        if self._seq is not None and event.seq <= self._seq:
            return self.Taken.DUPLICATE
        if self.full:
            self.lagging = True
            return self.Taken.DROPPED
        if self._seq is not None and event.seq != self._seq + 1:
            self.gaps += 1
            _log.warning("gap in room %s: %d follows %d", self._room, event.seq, self._seq)
            if self._asked_again_at != self._seq:
                self._asked_again_at = self._seq
                self.lagging = True
                return self.Taken.DROPPED
            self._put(Reset(room=self._room, reason="gap", pos=event.pos, told_by="client"))
        self._seq = event.seq
        self.pos = event.pos
        self._items.append(
            Message(
                room=self._room,
                event=event.event,
                sender=event.sender,
                seq=event.seq,
                pos=event.pos,
                ts=event.ts or 0.0,
                data=event.data,
            )
        )
        return self.Taken.KEPT

    def _direct(self, event: Event) -> Taken:
        """A personal log counts for nobody but the server."""
        if self.lagging or event.pos is None:
            return self.Taken.DROPPED
        if self.full:
            self.lagging = True
            return self.Taken.DROPPED
        self.pos = event.pos
        self._items.append(
            Direct(event=event.event, sender=event.sender, pos=event.pos, ts=event.ts or 0.0, data=event.data)
        )
        return self.Taken.KEPT

    def members(self, event: Event) -> None:
        """Users came or went; where there is no place for it, `presence` still tells who is there."""
        if not self.full:
            self._items.append(Members(room=self._room, joined=event.joined, left=event.left, rev=event.rev))

    def _start_anew(self, event: Event, told_by: Literal["join", "reset"]) -> None:
        reset = Reset(room=self._room, reason=event.reason or "unknown", pos=event.pos, told_by=told_by)
        self.pos = event.pos
        self._seq = None
        self._put(reset)

    def _put(self, reset: Reset) -> None:
        # one is as good as two in a row, and a server that only resets must not fill the memory
        if self._items and isinstance(self._items[-1], Reset):
            self._items.pop()
        self._items.append(reset)
