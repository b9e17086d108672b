"""One room as the engine sees it: where it stands on the connection, what came, and what is to be sent."""

import asyncio
import bisect
import dataclasses
import enum
from collections import deque
from typing import Final

import msgspec

from tableforge_client.errors import TableForgeError
from tableforge_client.inbox import Inbox
from tableforge_client.items import Ack

DIRECTS: Final = ""
"""The room that direct messages wait in, which is none: it is never joined."""

PERSONAL: Final = "@"
"""What the own personal log is called among the rooms."""

_MOST_LATEST: Final = 1000


class Standing(enum.Enum):
    """Where a room stands on the present connection."""

    OUT = enum.auto()
    JOINING = enum.auto()
    JOINED = enum.auto()


@dataclasses.dataclass(slots=True, kw_only=True, eq=False)
class Publication:
    """A publish that is not acknowledged yet."""

    place: int
    """Its place among all publishes of this client."""
    event: str
    data: msgspec.Raw
    key: str
    to: str | None = None
    """The user it is for; None where it is for the room."""
    answer: asyncio.Future[Ack]
    since: str | None = None
    """The room's `pos` when it was first sent; None also where the room had none then."""
    sent: bool = False
    """Whether it was ever sent: then it may have arrived."""
    command: int | None = None
    """The number under which it waits for its answer on the present connection."""
    refusals: int = 0
    """Refusals so far that a repetition may mend but need not."""


def _place(publication: Publication) -> int:
    return publication.place


class Membership:
    """A room that this client is in, or on its way into."""

    def __init__(self, room: str, *, pos: str | None, buffer: int, presence: bool = False) -> None:
        self.room = room
        self.presence = presence
        """Whether the application wants to hear who comes and goes."""
        self.handled: str | None = None
        """Of a personal log, up to where the application has handled it and the server has not heard."""
        self.handled_at = 0.0
        """Loop time at which the server last heard."""
        self.latest: dict[str, str] = {}
        """Of direct messages, where the users' personal logs were last seen."""
        self.inbox = Inbox(room, size=buffer, pos=pos)
        self.standing = Standing.OUT
        self.retry_at = 0.0
        """Loop time before which the room is not to be joined again."""
        self.outbox: deque[Publication] = deque()
        """To be sent, in the order of `place`."""
        self.inflight: dict[int, Publication] = {}
        """Sent and not answered, by command number."""
        self.ended: TableForgeError | None = None
        """Why nothing comes any more."""
        self.ended_by_choice = False
        self.news = asyncio.Event()
        """Set where something can be taken, or the room has ended."""
        self.joiners = 0
        """Tasks of the application that wait for `joined`."""
        self.joined = asyncio.Event()
        """Set once the room was joined for the first time, or has ended."""
        self.quiet = asyncio.Event()
        """Set while no publish is outstanding."""
        self.quiet.set()

    def publish(self, publication: Publication) -> None:
        """Queue it behind the others."""
        self.outbox.append(publication)
        self.quiet.clear()

    def sent(self, publication: Publication, command: int) -> None:
        """The first of the outbox goes out as this command."""
        self.outbox.popleft()
        if not publication.sent:
            publication.sent = True
            publication.since = self.inbox.pos if publication.to is None else self.latest.get(publication.to)
        publication.command = command
        self.inflight[command] = publication

    def refused(self, publication: Publication) -> None:
        """Refused for now: back to its place in the queue."""
        self._answered(publication)
        self.outbox.insert(bisect.bisect(self.outbox, publication.place, key=_place), publication)

    def acknowledged(self, publication: Publication, ack: Ack) -> None:
        self._answered(publication)
        if publication.to is not None:
            self.latest.pop(publication.to, None)
            while len(self.latest) >= _MOST_LATEST:
                del self.latest[next(iter(self.latest))]
            self.latest[publication.to] = ack.pos
        if not publication.answer.done():
            publication.answer.set_result(ack)
        self._settle()

    def failed(self, publication: Publication, error: TableForgeError) -> None:
        self._take_back(publication)
        if not publication.answer.done():
            publication.answer.set_exception(error)
        self._settle()

    def given_up(self, publication: Publication) -> None:
        """Nobody waits for it any more: it is not sent (again)."""
        self._take_back(publication)
        self._settle()

    def disconnected(self) -> None:
        """The connection is gone: what it did not answer will be sent again, in the old order."""
        self.standing = Standing.OUT
        self.retry_at = 0.0
        self.outbox = deque(sorted([*self.inflight.values(), *self.outbox], key=_place))
        for publication in self.inflight.values():
            publication.command = None
        self.inflight.clear()

    def end(self, error: TableForgeError, *, by_choice: bool) -> None:
        """Nothing comes any more, and nothing goes."""
        if self.ended is not None:
            return
        self.ended = error
        self.ended_by_choice = by_choice
        for publication in [*self.inflight.values(), *self.outbox]:
            self.failed(publication, error)
        self.joined.set()
        self.news.set()

    def _answered(self, publication: Publication) -> None:
        if publication.command is not None:
            self.inflight.pop(publication.command, None)
            publication.command = None

    def _take_back(self, publication: Publication) -> None:
        if publication.command is not None:
            self._answered(publication)
        elif publication in self.outbox:
            self.outbox.remove(publication)

    def _settle(self) -> None:
        if not self.inflight and not self.outbox:
            self.quiet.set()
