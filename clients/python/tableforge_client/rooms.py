"""The rooms of a client and what the application does with them, whatever becomes of the connection."""

import asyncio
import secrets
from typing import Any

from tableforge_client import frames
from tableforge_client.errors import ClosedError, RoomLeftError, TableForgeError
from tableforge_client.items import Ack, Item
from tableforge_client.membership import DIRECTS, Membership, Publication, Standing


class Rooms:
    """Every room this client is in or on its way into, and which of them the sender has to look at.

    Everything runs in one event loop; nothing here is thread-safe.
    """

    def __init__(self, *, max_pending: int, buffer: int) -> None:
        self._buffer = buffer
        self._by_name: dict[str, Membership] = {}
        self._to_look_at: dict[Membership, None] = {}  # a set that keeps its order
        self._slots = asyncio.Semaphore(max_pending)
        self._place = 0
        # keys belong to the user, so two clients of one user must never make the same
        self._key_prefix = secrets.token_urlsafe(12)
        self.unacknowledged = 0
        """Publishes in progress, those that wait for their turn included."""
        self.quiet = asyncio.Event()
        """Set while there are none."""
        self.quiet.set()
        self.wake = asyncio.Event()
        """Set where the sender has something to look at."""
        self.eased = asyncio.Event()
        """Set where something has happened that a paused reader waits for."""
        self.closed: ClosedError | None = None

    # the application's side

    async def join(self, room: str, *, pos: str | None, presence: bool = False) -> Membership:
        """Wait until the room is joined. Raises RefusedError, ClosedError."""
        self._check_open()
        membership = self._by_name.get(room)
        if membership is None or membership.ended is not None:
            membership = Membership(room, pos=pos, buffer=self._buffer, presence=presence)
            self._by_name[room] = membership
            self.look_at(membership)
        membership.joiners += 1
        try:
            await membership.joined.wait()
        except asyncio.CancelledError:
            if membership.joiners == 1 and not membership.joined.is_set():
                self._end(membership, RoomLeftError("left", f"joining room {room} was cancelled"))
            raise
        finally:
            membership.joiners -= 1
        if membership.ended is not None:
            raise membership.ended
        return membership

    async def leave(self, membership: Membership) -> None:
        """Leave once all publishes to it are answered."""
        await membership.quiet.wait()
        self._end(membership, RoomLeftError("left", f"room {membership.room} was left"))

    async def direct(self, to: str, event: str, data: Any, *, key: str | None) -> Ack:
        """See Client.direct."""
        membership = self._by_name.get(DIRECTS)
        if membership is None:
            self._check_open()
            membership = self._by_name[DIRECTS] = Membership(DIRECTS, pos=None, buffer=1)
        return await self.publish(membership, event, data, key=key, to=to)

    def handled(self, membership: Membership) -> None:
        """What the application took from its personal log it has handled."""
        pos = membership.inbox.taken_pos
        if pos is not None:
            membership.handled = pos
            self.look_at(membership)

    async def publish(
        self, membership: Membership, event: str, data: Any, *, key: str | None, to: str | None = None
    ) -> Ack:
        """See Room.publish."""
        encoded = frames.encode_data(data)
        self.unacknowledged += 1
        self.quiet.clear()
        try:
            async with self._slots:
                self._check_open()
                if membership.ended is not None:
                    raise membership.ended
                self._place += 1
                publication = Publication(
                    place=self._place,
                    event=event,
                    data=encoded,
                    to=to,
                    key=f"{self._key_prefix}-{self._place}" if key is None else key,
                    answer=asyncio.get_running_loop().create_future(),
                )
                membership.publish(publication)
                self.look_at(membership)
                try:
                    return await publication.answer
                except asyncio.CancelledError:
                    membership.given_up(publication)
                    raise
        finally:
            self.unacknowledged -= 1
            if self.unacknowledged == 0:
                self.quiet.set()

    async def receive(self, membership: Membership) -> Item:
        """See Room.receive."""
        inbox = membership.inbox
        while True:
            item = inbox.take()
            if item is not None:
                self.eased.set()
                if inbox.wants_refill:
                    self.look_at(membership)
                return item
            if membership.ended is not None:
                raise membership.ended
            membership.news.clear()
            await membership.news.wait()

    def close(self, error: ClosedError, *, by_choice: bool) -> None:
        """The client has ended: so have all rooms. The first reason stays."""
        if self.closed is not None:
            return
        self.closed = error
        for membership in self._by_name.values():
            membership.end(error, by_choice=by_choice)
        self._by_name.clear()
        self._to_look_at.clear()
        self.eased.set()

    def _check_open(self) -> None:
        if self.closed is not None:
            raise ClosedError(self.closed.code, self.closed.message)

    def _end(self, membership: Membership, error: TableForgeError) -> None:
        if membership.ended is not None:
            return
        membership.end(error, by_choice=True)
        # on the connection it stays where it is until the sender has said `leave`, before any new join of it
        self.look_at(membership)

    # the connection's side

    def member_of(self, room: str) -> Membership | None:
        """The membership to which what comes for this room belongs."""
        membership = self._by_name.get(room)
        if membership is None or membership.ended is not None or membership.standing is not Standing.JOINED:
            return None
        return membership

    def look_at(self, membership: Membership) -> None:
        """Something about this room may have to be sent."""
        self._to_look_at[membership] = None
        self.wake.set()

    def next_to_look_at(self) -> Membership | None:
        """The room that has waited longest for the sender."""
        membership = next(iter(self._to_look_at), None)
        if membership is not None:
            del self._to_look_at[membership]
        return membership

    def remove(self, membership: Membership, error: TableForgeError) -> None:
        """The server has ended it."""
        membership.standing = Standing.OUT
        membership.end(error, by_choice=False)
        self.forget(membership)

    def forget(self, membership: Membership) -> None:
        """It has ended on both sides."""
        if self._by_name.get(membership.room) is membership:
            del self._by_name[membership.room]

    def connected(self) -> None:
        """There is a new connection, on which no room is joined yet."""
        for membership in self._by_name.values():
            self.look_at(membership)

    def disconnected(self) -> None:
        """The connection is gone, and with it what it had not answered."""
        self._to_look_at.clear()
        for membership in list(self._by_name.values()):
            membership.disconnected()
            if membership.ended is not None:
                self.forget(membership)
