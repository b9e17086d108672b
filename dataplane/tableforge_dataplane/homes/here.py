"""What one instance knows of homes: those of the rooms with members here, and the rooms with their home here.

Plain state with a clock passed in. Redis has the last word; this is what was last heard of it.
"""

import math
from collections.abc import Iterable
from typing import Final

SOMEBODY_HERE: Final = math.inf

LOST_MOST: Final = 3
"""So many homes a room may lose before it is clear that its members here don't go where it lives."""


class Here:
    """Rooms by home, and homes by room, as one instance needs them."""

    def __init__(self, this: str) -> None:
        """`this`: the instance's name."""
        self.this = this
        self.rooms: dict[str, str | None] = {}
        """Rooms with members here, and their homes; None where there is none, or nobody has said yet."""
        self.own: set[str] = set()
        """Rooms that have their home here, with members here or without."""
        self.wanted: dict[str, bool] = {}
        """Rooms with members here that want a home, and whether this instance asks for it itself."""
        self._lost: dict[str, int] = {}
        """How many homes elsewhere a room with members here has lost since this instance took rooms last."""
        self._empty: dict[str, float] = {}
        """Those of `own` that nobody here is in, and since when; the earliest come first."""

    def entered(self, room: str) -> None:
        """The room has its first member here."""
        self._empty.pop(room, None)
        if room in self.own:
            self.rooms[room] = self.this
        else:
            self.rooms[room] = None
            self.wanted[room] = False

    def emptied(self, room: str, *, now: float) -> None:
        """The room has no member here any more."""
        self.rooms.pop(room, None)
        self.wanted.pop(room, None)
        self._lost.pop(room, None)
        if room in self.own:
            self._empty[room] = now

    def want(self, rooms: Iterable[str], *, itself: bool) -> None:
        """Those of them that have members here want a home. `itself`: this instance asks to be it; not where
        a room waits already, which is placed as the strategy says."""
        for room in rooms:
            if room in self.rooms:
                self.wanted.setdefault(room, itself)

    def want_homes(self, *, takes: bool) -> None:
        """Rooms with members here that have no home want one. `takes`: this instance takes rooms.

        Where it takes none, each gets one elsewhere, is freed there because nobody comes, and so on: after a
        few times it is left without, until it has a first member elsewhere too, or this instance takes rooms.
        """
        if takes:
            self._lost.clear()
        self.want((room for room in self.homeless() if self._lost.get(room, 0) < LOST_MOST), itself=True)

    def nobody_takes(self) -> None:
        """What was asked for before is not asked for again now."""
        self.wanted = {room: itself for room, itself in self.wanted.items() if not itself}

    def take_wanted(self, most: int) -> list[tuple[str, bool]]:
        """Up to `most` of them, the oldest first; they are no longer wanted."""
        taken: list[tuple[str, bool]] = []
        for room in self.wanted:
            if len(taken) == most:
                break
            taken.append((room, self.wanted[room]))
        for room, _ in taken:
            del self.wanted[room]
        return taken

    def learn(self, room: str, home: str | None, *, now: float) -> bool:
        """Redis says so. Whether that changes the home of a room with members here."""
        if home == self.this:
            if room not in self.own:
                self.own.add(room)
                if room not in self.rooms:
                    self._empty[room] = now
        elif room in self.own:
            self.own.discard(room)
            self._empty.pop(room, None)
        if room not in self.rooms or self.rooms[room] == home:
            return False
        if home is None and self.rooms[room] != self.this:
            self._lost[room] = self._lost.get(room, 0) + 1
        self.rooms[room] = home
        return True

    def homes(self) -> set[str]:
        """Every instance that is the home of a room with members here."""
        return {home for home in self.rooms.values() if home is not None}

    def homeless(self) -> list[str]:
        """Rooms with members here that have no home, as far as is known."""
        return [room for room, home in self.rooms.items() if home is None]

    def at(self, instances: frozenset[str]) -> list[str]:
        """Rooms with members here whose home is one of these."""
        return [room for room, home in self.rooms.items() if home in instances]

    def empty_since(self, moment: float, *, most: int) -> list[str]:
        """Rooms that live here though nobody here was in them since `moment` or longer."""
        found: list[str] = []
        for room, since in self._empty.items():
            if since > moment or len(found) == most:
                break
            found.append(room)
        return found
