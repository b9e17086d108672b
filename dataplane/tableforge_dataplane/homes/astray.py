"""Who would be better off on another instance, when each is told so, and how often. No I/O, no clock."""

import bisect
from collections.abc import Callable, Hashable, Iterable
from typing import Final, Generic, TypeAlias, TypeVar

FIRST_AFTER_SECONDS: Final = 1.0
"""Nobody is told before: who has just come may still be joining its other rooms."""

PAUSES_SECONDS: Final = (15.0, 60.0, 240.0, 900.0)
"""Between one time that a client is told and the next, where it doesn't go. After the last it is left alone:
it doesn't know the event, or can't reach the other, and is served here all the same."""

FOLLOW_WITHIN_SECONDS: Final = 10.0
"""Who was told and is still here after that long isn't going."""

C = TypeVar("C", bound=Hashable)

_Entry: TypeAlias = tuple[float, int, C]
"""When, a number that no other has, and who."""


def best_home(
    rooms: Iterable[str], home_of: Callable[[str], str | None], *, this: str, leaves: bool = False
) -> str | None:
    """The instance that most of a client's rooms live on; None where it may as well stay.

    Of several with equally many, that of the room it joined first. `leaves`: it can't stay on `this`.
    """
    counts: dict[str, int] = {}
    for room in rooms:
        home = home_of(room)
        if home is not None:
            counts[home] = counts.get(home, 0) + 1
    here = counts.pop(this, 0)
    if not counts:
        return None
    best = max(counts, key=counts.__getitem__)
    return best if leaves or counts[best] > here else None


class _Client(Generic[C]):
    __slots__ = ("due", "entry", "told")

    def __init__(self, due: float) -> None:
        self.told = 0
        """How often."""
        self.due = due
        """When it may be told (again)."""
        self.entry: _Entry[C] | None = None
        """Its place in the queue, while it is in one."""


class Astray(Generic[C]):
    """Clients that are not where they should be, and those that once were told so."""

    def __init__(self) -> None:
        self._clients: dict[C, _Client[C]] = {}
        # one for each number of times told, in the order of time: who was at home meanwhile goes between
        self._queues: list[list[_Entry[C]]] = [[] for _ in range(len(PAUSES_SECONDS) + 1)]
        self._entries = 0
        self._following: dict[C, float] = {}

    def stray(self, client: C, *, now: float) -> None:
        """It should be elsewhere."""
        found = self._clients.get(client)
        if found is None:
            found = self._clients[client] = _Client(now + FIRST_AFTER_SECONDS)
        if found.entry is None and found.told < len(self._queues):
            self._queue(client, found)

    def at_home(self, client: C) -> None:
        """It is where it should be, or there is no way to where it should be."""
        found = self._clients.get(client)
        if found is None:
            return
        self._unqueue(found)
        if found.told == 0:
            del self._clients[client]

    def gone(self, client: C) -> None:
        """It is not here any more: nothing is kept of it."""
        found = self._clients.pop(client, None)
        if found is not None:
            self._unqueue(found)
            self._following.pop(client, None)

    def due(self, *, most: int, now: float) -> int:
        """How many there are to be told now; `most` where there are more."""
        count = 0
        for queue in self._queues:
            for due, _, _ in queue:
                if due > now or count == most:
                    break
                count += 1
        return count

    def take(self, count: int, *, now: float) -> list[C]:
        """The next `count` to be told, those first that never were; they count as told from now on."""
        taken: list[C] = []
        for queue in self._queues:
            for due, _, client in queue:
                if due > now or len(taken) == count:
                    break
                taken.append(client)
        for client in taken:
            found = self._clients[client]
            self._unqueue(found)
            found.told += 1
            self._following.pop(client, None)
            self._following[client] = now + FOLLOW_WITHIN_SECONDS
            if found.told <= len(PAUSES_SECONDS):
                found.due = now + PAUSES_SECONDS[found.told - 1]
                self._queue(client, found)
        return taken

    def next_due(self) -> float | None:
        """When somebody is to be told next; None: nobody."""
        return min((queue[0][0] for queue in self._queues if queue), default=None)

    def following(self, *, now: float) -> int:
        """How many were told and are expected to go any moment."""
        while self._following:
            client = next(iter(self._following))
            if self._following[client] > now:
                break
            del self._following[client]
        return len(self._following)

    def _queue(self, client: C, found: _Client[C]) -> None:
        self._entries += 1
        found.entry = (found.due, self._entries, client)
        bisect.insort(self._queues[found.told], found.entry)

    def _unqueue(self, found: _Client[C]) -> None:
        if found.entry is not None:
            queue = self._queues[found.told]
            del queue[bisect.bisect_left(queue, found.entry)]
            found.entry = None
