"""One room's publications while its slot moves between the nodes of a Redis Cluster.

They wait in order and go one at a time, wherever the cluster sends them, until one is stored without a
detour; then the rest follows and the room goes its usual way again. Other rooms are not held up.
"""

import asyncio
import bisect
from collections import deque
from typing import Final, Protocol

from tableforge_dataplane.broker.publications import Publication, PublicationOwner, RefusalCode
from tableforge_dataplane.broker.publisher import ABANDONED, OVERTAKEN, RETRY_AFTER_SECONDS, Publisher
from tableforge_dataplane.topology.nodes import Node
from tableforge_dataplane.topology.slots import Redirection

TRY_AGAIN: Final = "TRYAGAIN"


class Load:
    """What waits in all detours together."""

    __slots__ = ("count", "size_bytes")

    def __init__(self) -> None:
        self.count = 0
        self.size_bytes = 0
        """Of the bodies."""

    def add(self, publication: Publication) -> None:
        """It waits in a detour now."""
        self.count += 1
        self.size_bytes += len(publication.body)

    def remove(self, publication: Publication) -> None:
        """Not any more."""
        self.count -= 1
        self.size_bytes -= len(publication.body)


class Roads(Protocol):
    """Where a detour finds its ways: the sharded publisher."""

    load: Load
    retries: int
    """Redirections followed at once before a pause."""
    pause_seconds: float

    def publisher_of(self, slot: int) -> Publisher | None:
        """Of the shard that serves the slot, as far as is known."""

    def publisher_at(self, node: Node) -> Publisher | None:
        """Of this node, which need not serve any slot yet."""

    def lost_way(self) -> None:
        """The slots should be asked for anew."""

    def arrived(self, detour: "Detour") -> None:
        """Nothing of the room waits any more."""


class Detour:
    """The publications of one room, in order. Owner of the one that is under way."""

    def __init__(self, roads: Roads, *, room: bytes, slot: int) -> None:
        self._roads = roads
        self.room = room
        self.slot = slot
        self.blocked_by: Publisher | None = None
        """Who still has older publications of this room under way."""
        self._waiting: deque[Publication] = deque()
        """By number: what comes back may be older than what came back before, or than what never went."""
        self._turned_away: list[Publication] = []
        """Which of these the one that blocks has not stored."""
        self._sent: tuple[Publication, PublicationOwner] | None = None
        """What is under way, and its owner's place, which the detour has taken."""
        self._via: Node | None = None
        """Where the cluster said that the room is; None: the usual way."""
        self._asking = False
        """Whether it is only about to be there."""
        self._redirections = 0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def depth(self) -> int:
        """How many wait here; what is under way waits at its shard."""
        return len(self._waiting)

    @property
    def idle(self) -> bool:
        """Whether nothing of the room waits or is under way."""
        return self.depth == 0 and self._sent is None

    def add(self, publication: Publication) -> None:
        """One more, in its place: new, or from a shard that gave it back."""
        self._roads.load.add(publication)
        waiting = self._waiting
        if waiting and publication.number < waiting[-1].number:
            bisect.insort(waiting, publication, key=_number)
        else:
            waiting.append(publication)

    def add_turned_away(self, publication: Publication) -> None:
        """One that was under way and is wanted elsewhere."""
        self.add(publication)
        if self.blocked_by is not None:
            self._turned_away.append(publication)

    def overtaken(self) -> None:
        """A later one was stored where these were turned away: the slot came there just in between."""
        turned_away, self._turned_away = self._turned_away, []
        for publication in turned_away:
            self._waiting.remove(publication)
            self._roads.load.remove(publication)
            publication.owner.refused(publication, "unavailable", OVERTAKEN, RETRY_AFTER_SECONDS)

    def unblock(self) -> None:
        """Nothing older is under way any more."""
        self.blocked_by = None
        self._turned_away.clear()
        self.advance()

    def advance(self) -> None:
        """Send the next one, where it is time."""
        if self.blocked_by is not None or self._sent is not None or self._timer is not None:
            return
        self._drop_abandoned()
        if not self._waiting:
            self._roads.arrived(self)
            return
        publisher = (
            self._roads.publisher_at(self._via)
            if self._via is not None
            else self._roads.publisher_of(self.slot)
        )
        if publisher is None:
            self._pause()
            return
        publication = self._next()
        self._sent = publication, publication.owner
        publication.owner = self
        if not self._asking:
            publisher.send_again(publication)
        elif not publisher.send_asking(publication):
            self.take_back(publication)
            self._pause()

    def _next(self) -> Publication:
        publication = self._waiting.popleft()
        self._roads.load.remove(publication)
        # it has waited: its client may have sent the same over another instance meanwhile
        publication.retried = publication.retried or publication.others_may_send_it
        return publication

    def _drop_abandoned(self) -> None:
        """As the publisher does, which is not asked about what goes ahead of its slot."""
        while self._waiting and self._waiting[0].others_may_send_it and self._waiting[0].owner.abandoned:
            publication = self._next()
            publication.owner.refused(publication, "unavailable", ABANDONED, RETRY_AFTER_SECONDS)

    def redirected(self, publication: Publication, text: str, *, asked: Node) -> None:
        """The one that was under way is wanted elsewhere."""
        self.take_back(publication)
        self.follow(text, asked=asked)
        self._redirections += 1
        if text.startswith(TRY_AGAIN) or self._redirections > self._roads.retries:
            self._pause()
        else:
            self.advance()

    def follow(self, text: str, *, asked: Node) -> None:
        """Note where the cluster says that the room is."""
        redirection = Redirection.of(text, asked=asked)
        self._via = redirection.node if redirection is not None else None
        self._asking = text.startswith("ASK ")
        if not self._asking:
            self._roads.lost_way()

    def take_back(self, publication: Publication) -> None:
        """It waits again: its shard gave it back."""
        self._done(publication)
        self.add(publication)

    @property
    def abandoned(self) -> bool:
        """From the publisher: of what is under way."""
        return self._sent is not None and self._sent[1].abandoned

    def published(self, publication: Publication, seq: int, tag: bytes, duplicate: bool) -> None:
        """From the publisher."""
        self._redirections = 0
        owner = self._done(publication)
        owner.published(publication, seq, tag, duplicate)
        self._go_on()

    def refused(
        self, publication: Publication, code: RefusalCode, message: str, retry_after: float | None
    ) -> None:
        """From the publisher."""
        owner = self._done(publication)
        owner.refused(publication, code, message, retry_after)
        self._go_on()

    def stop(self) -> None:
        """Send nothing more."""
        self._stop_timer()

    def _done(self, publication: Publication) -> PublicationOwner:
        if self._sent is not None:
            publication.owner = self._sent[1]
            self._sent = None
        return publication.owner

    def _go_on(self) -> None:
        roads = self._roads
        publisher = roads.publisher_of(self.slot)
        if self._via is not None and roads.publisher_at(self._via) is not publisher:
            self.advance()  # the next one has the same way
            return
        self._via, self._asking = None, False
        if publisher is not None and self.blocked_by is None and self._timer is None:
            # the way is clear: all the rest follows in one go
            while self._waiting:
                publisher.send_again(self._next())
        self.advance()

    def _pause(self) -> None:
        self._redirections = 0
        self._roads.lost_way()
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._roads.pause_seconds, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._via, self._asking = None, False
        self.advance()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _number(publication: Publication) -> int:
    return publication.number
