"""The client as an application holds it."""

import random
from collections.abc import Callable, Sequence
from typing import Any, Literal, Self

from tableforge_client import frames
from tableforge_client.conversation import Conversation
from tableforge_client.engine import Engine, Options, State, StateChange
from tableforge_client.errors import ClosedError
from tableforge_client.items import Ack, Direct, History, Message, Presence, Present
from tableforge_client.link import Link, LinkOptions
from tableforge_client.membership import PERSONAL
from tableforge_client.room import Inbox, Room
from tableforge_client.tokens import Token


class Client:
    """A connection to a service that mends itself. Made by `connect`, used as an async context manager."""

    def __init__(self, urls: list[str], *, token: Token, options: Options, rng: random.Random) -> None:
        self._urls = urls
        self._token = token
        self._options = options
        self._rng = rng
        self._engine: Engine | None = None

    async def __aenter__(self) -> Self:
        """Connect. Raises ClosedError (UnauthorizedError) where refused, or not connected in time."""
        if self._engine is not None:
            raise RuntimeError("a client is used once: make another by connect()")
        self._engine = Engine(self._urls, token=self._token, options=self._options, rng=self._rng)
        await self._engine.start()
        return self

    async def __aexit__(self, kind: object, error: object, traceback: object) -> None:
        """Close; where no exception is on the way, after outstanding publishes are acknowledged."""
        await self.close(flush_timeout=5.0 if error is None else 0.0)

    @property
    def state(self) -> State:
        return self._engine.state if self._engine is not None else State.CONNECTING

    @property
    def instance(self) -> str | None:
        """The instance connected to now; None while reconnecting."""
        link = self._link()
        return None if link is None else link.welcome.instance

    @property
    def session(self) -> str | None:
        """The session's id on that instance; None while reconnecting."""
        link = self._link()
        return None if link is None else link.welcome.session

    @property
    def user(self) -> str | None:
        """Who the server says this is; None while reconnecting or without authentication."""
        link = self._link()
        return None if link is None else link.welcome.user

    @property
    def url(self) -> str | None:
        """The address connected to now; None while reconnecting."""
        link = self._link()
        return None if link is None else link.url

    async def join(self, room: str, *, pos: str | None = None, presence: bool = False) -> Room:
        """Join a room, and stay in it over reconnects until `Room.leave`.

        With `pos`, of the last message handled in an earlier run, everything after it comes first; where that
        can't be had any more, a Reset comes first. A room that is already joined is given again, `pos`
        ignored. With `presence`, the room's items have Members among them: who came and who went.

        Waits through reconnects and refusals that pass. Raises RefusedError (`forbidden`, `bad_room`,
        `bad_pos`, `too_many_rooms`), ClosedError.
        """
        rooms = self._running().rooms
        return Room(rooms, await rooms.join(room, pos=pos, presence=presence))

    async def inbox(self, *, pos: str | None = None) -> Inbox:
        """Direct messages to this user, as long as its personal log keeps them.

        With `pos`, of the last one this device has handled, everything after it comes; without, everything
        that was not handled on any device. Raises as `join` does; `forbidden` without a token.
        """
        rooms = self._running().rooms
        return Inbox(rooms, await rooms.join(PERSONAL, pos=pos))

    async def direct(self, to: str, event: str, data: Any = None, *, key: str | None = None) -> Ack:
        """Write to a user, and wait until it is in that user's personal log, whether it is connected or not.

        Sent again, refused and cancelled as `Room.publish`; the answer has no `seq`.
        """
        return await self._running().rooms.direct(to, event, data, key=key)

    async def history(self, room: str, *, after: str | None = None, last: int | None = None) -> History:
        """A part of a room's log, joined or not: what follows `after`, or the `last` messages (100 at most).

        Raises RefusedError, and ClosedError where not connected or the connection ends meanwhile.
        """
        event = await self._talking().ask(
            lambda number: frames.history(room, number=number, after=after, last=last)
        )
        messages: list[Message] | list[Direct]
        if room == PERSONAL:
            messages = [
                Direct(event=one.event, sender=one.sender, pos=one.pos, ts=one.ts, data=one.data)
                for one in event.messages
            ]
        else:
            messages = [
                Message(
                    room=room,
                    event=one.event,
                    sender=one.sender,
                    seq=one.seq,
                    pos=one.pos,
                    ts=one.ts,
                    data=one.data,
                )
                for one in event.messages
            ]
        return History(
            room=room,
            messages=messages,
            pos=event.pos,
            complete=event.complete,
            reason=event.reason or None,
        )

    async def presence(self, room: str) -> Presence:
        """Who is in a room, joined or not. Raises as `history` does."""
        event = await self._talking().ask(lambda number: frames.presence(room, number=number))
        return Presence(
            room=room,
            members=[Present(user=one.user, since=one.since, sockets=one.sockets) for one in event.members],
            count=event.count,
            rev=event.rev,
        )

    async def ping(self) -> float:
        """Seconds to the instance and back. Raises ClosedError where not connected."""
        return await self._talking().ping()

    async def close(self, *, flush_timeout: float = 5.0) -> None:
        """Wait for outstanding publishes to be acknowledged, at most so many seconds; then close.

        Publishes not acknowledged by then raise ClosedError; iterators of rooms end.
        """
        if self._engine is not None:
            await self._engine.close(flush_timeout=flush_timeout)

    def _link(self) -> Link | None:
        if self._engine is None or self._engine.conversation is None:
            return None
        return self._engine.conversation.link

    def _talking(self) -> Conversation:
        conversation = self._running().conversation
        if conversation is None:
            raise ClosedError("unreachable", "not connected")
        return conversation

    def _running(self) -> Engine:
        if self._engine is None:
            raise RuntimeError("not connected: use `async with connect(…) as client`")
        return self._engine


def connect(
    url: str | Sequence[str],
    *,
    token: Token = None,
    auth: Literal["header", "frame"] = "header",
    on_state: Callable[[StateChange], None] | None = None,
    allowed_hosts: Sequence[str] = (),
    connect_timeout: float = 30.0,
    reconnect_timeout: float | None = None,
    open_timeout: float = 10.0,
    backoff_base: float = 0.5,
    backoff_longest: float = 30.0,
    stable_after: float = 5.0,
    ping_interval: float = 20.0,
    ping_timeout: float = 20.0,
    max_pending: int = 1000,
    room_buffer: int = 1024,
    rng: random.Random | None = None,
) -> Client:
    """A client of the service at `url`, to be entered: `async with connect("wss://…/ws") as client: …`.

    All times are in seconds.

    `url`: where the service is; of several, a random one is taken, and another where it fails.
    `token`: a JWT, or a callable (it may be async) that gives one. A callable is asked again where the server
    refuses the token and before it expires; with a fixed one, a refusal is the end.
    `auth`: whether the token travels in the handshake's `Authorization` header, where a refusal is plain
    HTTP, or in the first frame.
    `on_state`: called in the event loop with every StateChange.
    `allowed_hosts`: hosts beside that of `url` that a server may send this client to (`migrate`).
    `connect_timeout`: how long the first connection may take, all attempts together.
    `reconnect_timeout`: after how long without a connection the client gives up; None: never.
    `open_timeout`: how long one attempt may take.
    `backoff_base`, `backoff_longest`: the n-th attempt in a row waits a random time between 0 and
    base × 2ⁿ, at most the longest, plus what the server asks for.
    `stable_after`: a connection that lasts so long starts the count of attempts anew.
    `ping_interval`, `ping_timeout`: how often the connection is probed, and when it counts as dead.
    `max_pending`: publishes that may wait for their acknowledgement; `Room.publish` waits beyond that.
    `room_buffer`: messages a room keeps for an application that is slow to take them. Beyond that the server
    is held back, and in the end the rest is read from the room's log later.
    """
    urls = [url] if isinstance(url, str) else list(url)
    if not urls:
        raise ValueError("no address to connect to: give at least one URL")
    options = Options(
        link=LinkOptions(
            auth=auth, open_timeout=open_timeout, ping_interval=ping_interval, ping_timeout=ping_timeout
        ),
        allowed_hosts=tuple(allowed_hosts),
        connect_timeout=connect_timeout,
        reconnect_timeout=reconnect_timeout,
        backoff_base=backoff_base,
        backoff_longest=backoff_longest,
        stable_after=stable_after,
        max_pending=max_pending,
        room_buffer=room_buffer,
        on_state=on_state,
    )
    return Client(urls, token=token, options=options, rng=rng or random.Random())  # noqa: S311
