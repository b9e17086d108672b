"""Members who hear who comes to their room and who goes: what they know, and what they are told next."""

from typing import Final

from tableforge_dataplane.broker.presence import MOST_MEMBERS, PresenceChange, RoomPresence
from tableforge_dataplane.protocol.events import Members
from tableforge_dataplane.rooms.outlet import Encoder, Outlet

BEHIND: Final = 1000
"""A change up to so many revs behind what is known is an old one; one further behind, another history's."""

MOST_EARLY: Final = 100
"""Changes kept while the room is read; with more it is read again."""


class Watchers:
    """Of one room here. Bookkeeping only, without a clock; `Presence` reads Redis and calls `tell`."""

    __slots__ = ("_crowded", "_early", "_in_step", "_known", "_news", "_outlets", "_reading", "_rev", "_room")

    def __init__(self, room: str) -> None:
        self._room = room
        self._outlets: dict[Encoder, dict[Outlet, None]] = {}
        self._known: set[str] | None = None
        """Who is there, as the watchers know it once they have been told; None before the first reading."""
        self._rev = 0
        self._in_step = False
        """Whether nothing is missing up to `_rev`."""
        self._crowded = False
        """Whether too many are there to be told about: `_known` is what was told last."""
        self._reading = False
        self._early: list[PresenceChange] = []
        """What came while the room was read."""
        self._news: dict[str, bool] = {}
        """Users by whether they came or went last. One who came and went is told too: somebody may have
        asked for the whole in between."""

    def __bool__(self) -> bool:
        return bool(self._outlets)

    def add(self, outlet: Outlet) -> None:
        """From now on it is told."""
        self._outlets.setdefault(outlet.encoder, {})[outlet] = None

    def remove(self, outlet: Outlet) -> None:
        """From now on it isn't."""
        group = self._outlets.get(outlet.encoder)
        if group is not None:
            group.pop(outlet, None)
            if not group:
                del self._outlets[outlet.encoder]

    @property
    def needs_reading(self) -> bool:
        """Whether only Redis can say who is there, and nobody is asking it."""
        return not self._in_step and not self._reading

    def begin_reading(self) -> None:
        """The room is read now."""
        self._reading = True
        self._early.clear()

    def lost(self) -> None:
        """What is known may not hold any more."""
        self._in_step = False
        self._reading = False

    def take(self, change: PresenceChange) -> bool:
        """One change from the room's channel; True where the watchers are to be told something."""
        if self._reading:
            if len(self._early) < MOST_EARLY:
                self._early.append(change)
            return False
        if not self._in_step:
            return False
        if change.rev != self._rev + 1:
            self._in_step = self._rev - BEHIND < change.rev <= self._rev
            return False
        if change.joined is None or change.left is None:
            self._rev = change.rev
            self._crowded = True
            return False
        if self._crowded:
            self._in_step = False  # few enough again: what differs from what was told last, the reading shows
            return False
        self._rev = change.rev
        known = self._known if self._known is not None else set()
        for user in change.joined:
            known.add(user)
            self._news[user] = True
        for user in change.left:
            known.discard(user)
            self._news[user] = False
        return True

    def compare(self, presence: RoomPresence) -> None:
        """The room was read: news is what differs from what was known."""
        self._reading = False
        self._in_step = True
        self._rev = presence.rev
        self._crowded = presence.count > MOST_MEMBERS
        if self._crowded:
            self._known = self._known if self._known is not None else set()
        else:
            there = {present.user for present in presence.members}
            if self._known is not None:
                self._news.update(dict.fromkeys(there - self._known, True))
                self._news.update(dict.fromkeys(self._known - there, False))
            self._known = there

    def catch_up(self) -> bool:
        """Take what came while the room was read; True where the watchers are to be told something.

        Not with the reading itself: whoever asked for it is answered before anybody hears of what came later.
        """
        early, self._early = self._early, []
        news = False
        for change in early:
            news |= self.take(change)
        if len(early) >= MOST_EARLY:
            self._in_step = False
        return news

    def tell(self) -> None:
        """Give the watchers the news, encoded once for each kind of client."""
        if not self._news:
            return
        event = Members(
            room=self._room,
            joined=[user for user, came in self._news.items() if came],
            left=[user for user, came in self._news.items() if not came],
            rev=self._rev,
        )
        self._news = {}
        for encoder, outlets in self._outlets.items():
            frame = encoder.event(event)
            for outlet in outlets:
                outlet.send(frame)
