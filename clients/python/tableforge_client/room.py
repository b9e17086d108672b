"""A room as the application holds it: an iterator of what comes, and a place to publish to."""

from collections.abc import AsyncIterator
from typing import Any

from tableforge_client.errors import TableForgeError
from tableforge_client.items import Ack, Item
from tableforge_client.membership import Membership, Standing
from tableforge_client.rooms import Rooms


class Room:
    """One room. Made by `Client.join`.

        async for item in room:
            match item:
                case Message(): ...
                case Reset(): ...  # messages may be missing: read the room's state anew

    Iterating ends where this application leaves the room or closes the client. Where the server ends it, it
    raises a TableForgeError, after everything that had arrived was taken.
    """

    def __init__(self, rooms: Rooms, membership: Membership) -> None:
        self._rooms = rooms
        self._membership = membership

    @property
    def name(self) -> str:
        return self._membership.room

    @property
    def pos(self) -> str | None:
        """The `pos` of the last item taken. Store it: `join(room, pos=…)` goes on after it, in a later run
        too."""
        return self._membership.inbox.taken_pos

    @property
    def joined(self) -> bool:
        """Whether the present connection is in the room."""
        return self._membership.standing is Standing.JOINED

    @property
    def gaps(self) -> int:
        """How often messages were missing that the server had not announced as lost; each was asked for
        again."""
        return self._membership.inbox.gaps

    async def publish(self, event: str, data: Any = None, *, key: str | None = None) -> Ack:
        """Publish to the room, and wait until the message is in the room's log.

        `event` is the application's name for it (1 to 50 characters), `data` any JSON value. After a lost
        connection, or a refusal that passes, it is sent again with the same key and arrives once. `key` (at
        most 64 characters) is made up where not given; two publishes of one user with one key are one
        message.

        Publishes arrive in the order of the calls, unless the server refuses one for its rate while later
        ones are on the way. While more than the client's `max_pending` wait for their answers, this waits
        too.

        Cancelling, also by `asyncio.timeout`, stops waiting and sending again; whether it arrived is unknown.

        Raises RefusedError, UnknownOutcomeError, RoomLeftError, ClosedError; TypeError where `data` has no
        form in JSON.
        """
        return await self._rooms.publish(self._membership, event, data, key=key)

    async def receive(self) -> Item:
        """The next Message or Reset; waits for it.

        Raises the reason why nothing comes any more, once everything that had arrived was taken.
        """
        return await self._rooms.receive(self._membership)

    async def __aiter__(self) -> AsyncIterator[Item]:
        while True:
            try:
                item = await self.receive()
            except TableForgeError:
                if self._membership.ended_by_choice:
                    return
                raise
            yield item

    async def leave(self) -> None:
        """Wait until this room's publishes are acknowledged, leave it, and end its iterators."""
        await self._rooms.leave(self._membership)


class Inbox(Room):
    """The direct messages to this user. Made by `Client.inbox`.

        async for item in inbox:
            match item:
                case Direct(): ...
                case Reset(): ...  # messages may be missing

    Who iterates says with each step that the message before was handled: the user's other devices, and this
    one in a later run without `pos`, go on after it. With `receive` alone, say so by `received`.
    """

    def received(self) -> None:
        """Everything that was taken so far has been handled."""
        self._rooms.handled(self._membership)

    async def __aiter__(self) -> AsyncIterator[Item]:
        async for item in super().__aiter__():
            yield item
            self.received()
