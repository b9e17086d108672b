"""What is said on one connection: a reader, a sender, and the renewal of the token.

The sender is level-triggered: it looks at what a room wants and where it stands on this connection. So a new
connection needs nothing but every room being looked at again.
"""

import asyncio
import dataclasses
import logging
import random
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final

from tableforge_client import frames
from tableforge_client.errors import ClosedError, RefusedError, RoomLeftError, UnknownOutcomeError
from tableforge_client.frames import Event
from tableforge_client.inbox import Inbox
from tableforge_client.items import Ack
from tableforge_client.link import Link, LinkEndedError
from tableforge_client.membership import DIRECTS, PERSONAL, Membership, Publication, Standing
from tableforge_client.rooms import Rooms
from tableforge_client.routes import Verdict
from tableforge_client.tokens import TokenSource, expires_at

_log = logging.getLogger("tableforge_client")

_RETRY_AFTER_SECONDS: Final = 1.0
"""Where a refusal that passes doesn't say when."""
_DOUBTFUL_TRIES: Final = 3
"""How often a publish is sent in all where a repetition may mend a refusal but need not."""
_RESEND_RESERVE_BYTES: Final = 128
"""What a repetition adds to a frame (`since`, a longer number): it must fit where the first one did."""
_HANDLED_SECONDS: Final = 0.5
"""How often the server hears how far the personal log was handled, at most."""
_LONGEST_PAUSE_SECONDS: Final = 5.0
"""How long reading stops for a slow application. Longer, and pings would go unanswered."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Join:
    membership: Membership
    asked: str | None


@dataclasses.dataclass(frozen=True, slots=True)
class _Publish:
    membership: Membership
    publication: Publication


@dataclasses.dataclass(frozen=True, slots=True)
class _Ping:
    answer: asyncio.Future[float]
    began: float


@dataclasses.dataclass(frozen=True, slots=True)
class _Question:
    answer: asyncio.Future[Event]


@dataclasses.dataclass(frozen=True, slots=True)
class _Other:
    command: str


_Waiting = _Join | _Publish | _Ping | _Question | _Other
"""What a command's number stands for until it is answered."""


class Conversation:
    """One connection's worth of talk."""

    def __init__(
        self, link: Link, rooms: Rooms, tokens: TokenSource, *, on_migrate: Callable[[Event], None]
    ) -> None:
        """`on_migrate`: the server asks for another connection instead of this one."""
        self.link = link
        self._on_migrate = on_migrate
        self.moved = asyncio.Event()
        """Set where another connection takes over: this one ends, and is left to be closed."""
        self._rooms = rooms
        self._tokens = tokens
        self._waiting: dict[int, _Waiting] = {}
        self._command = 0
        self._hold_until = 0.0
        """Loop time before which nothing is published: the server asked for it."""

    async def run(self) -> LinkEndedError:
        """Talk until the connection ends; gives the reason. It leaves every room as not joined."""
        works: list[Coroutine[Any, Any, None]] = [
            self._read(),
            self._send(),
            self._renew(),
            self._make_way(),
        ]
        tasks = [asyncio.create_task(work) for work in works]
        self._rooms.connected()
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            self._rooms.disconnected()
            for waiting in self._waiting.values():
                if isinstance(waiting, _Ping | _Question) and not waiting.answer.done():
                    waiting.answer.set_exception(ClosedError("unreachable", "the connection ended"))
            if not self.moved.is_set():
                await self.link.close()
        ended: LinkEndedError | None = None
        for task in tasks:
            error = None if task.cancelled() else task.exception()
            if isinstance(error, LinkEndedError):
                ended = ended or error
            elif error is not None:
                raise error
        if ended is None:
            raise RuntimeError("the connection's tasks ended without a reason")
        return ended

    async def ping(self) -> float:
        """Seconds to the instance and back. Raises ClosedError where the connection ends meanwhile."""
        answer: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        number = self._expect(_Ping(answer, time.monotonic()))
        try:
            await self.link.send(frames.ping(number=number))
        except LinkEndedError as ended:
            raise ended.as_closed() from ended
        return await answer

    async def ask(self, frame: Callable[[int], str]) -> Event:
        """The answer to the command that `frame` makes with a number. Raises RefusedError, and ClosedError
        where the connection ends meanwhile."""
        answer: asyncio.Future[Event] = asyncio.get_running_loop().create_future()
        number = self._expect(_Question(answer))
        try:
            await self.link.send(frame(number))
        except LinkEndedError as ended:
            raise ended.as_closed() from ended
        return await answer

    async def _make_way(self) -> None:
        await self.moved.wait()
        raise LinkEndedError("migrate", "moved to another connection", Verdict(again=True))

    async def _renew(self) -> None:
        """Present a new token before the old one expires."""
        if not self._tokens.renewable:
            return
        # expiry goes by the server's clock
        ahead = (self.link.welcome.time or time.time()) - time.time()
        while (token := await self._tokens.current()) is not None:
            expiry = expires_at(token)
            if expiry is None:
                return
            left = expiry - (time.time() + ahead)
            await asyncio.sleep(max(1.0, left - min(60.0, left * 0.2)))
            try:
                token = await self._tokens.fresh()
            except Exception as error:  # noqa: BLE001  # the application's callable may raise anything
                _log.warning("no new token: %r", error)
                continue
            if token is not None:
                await self.link.send(frames.auth(token, number=self._expect(_Other("auth"))))

    # sending

    def _expect(self, waiting: _Waiting) -> int:
        self._command += 1
        self._waiting[self._command] = waiting
        self._rooms.eased.set()  # the answer may be behind messages that a paused reader doesn't read
        return self._command

    async def _send(self) -> None:
        rooms = self._rooms
        while True:
            rooms.wake.clear()
            due: float | None = None
            later: list[Membership] = []
            while (membership := rooms.next_to_look_at()) is not None:
                at = await self._send_for(membership)
                if at is not None:
                    later.append(membership)
                    due = at if due is None else min(due, at)
            try:
                async with asyncio.timeout_at(due):
                    await rooms.wake.wait()
            except TimeoutError:
                pass
            for membership in later:
                rooms.look_at(membership)

    async def _send_for(self, membership: Membership) -> float | None:
        """Send what this room wants now. Gives the loop time when it wants more, if only time is missing."""
        now = asyncio.get_running_loop().time()
        if membership.ended is not None:
            self._rooms.forget(membership)
            if membership.standing is not Standing.OUT:
                await self._send_leave(membership)
            return None
        if membership.standing is Standing.JOINED and membership.inbox.wants_refill:
            await self._send_leave(membership)
        if membership.room == DIRECTS:
            membership.standing = Standing.JOINED
        if membership.standing is Standing.OUT:
            if now < membership.retry_at:
                return membership.retry_at
            membership.standing = Standing.JOINING
            asked = membership.inbox.pos
            number = self._expect(_Join(membership, asked))
            await self.link.send(
                frames.join(membership.room, number=number, pos=asked, presence=membership.presence)
            )
            return None
        if membership.handled is not None and membership.standing is Standing.JOINED:
            due = membership.handled_at + _HANDLED_SECONDS
            if now < due:
                return due
            await self._send_handled(membership)
        while membership.standing is Standing.JOINED and membership.outbox:
            if asyncio.get_running_loop().time() < self._hold_until:
                return self._hold_until
            await self._send_publication(membership)
        return None

    async def _send_handled(self, membership: Membership) -> None:
        pos, membership.handled = membership.handled, None
        membership.handled_at = asyncio.get_running_loop().time()
        if pos is not None:
            await self.link.send(frames.received(pos))

    async def _send_leave(self, membership: Membership) -> None:
        if membership.handled is not None:
            await self._send_handled(membership)
        membership.standing = Standing.OUT
        await self.link.send(frames.leave(membership.room, number=self._expect(_Other("leave"))))

    async def _send_publication(self, membership: Membership) -> None:
        publication = membership.outbox[0]
        again = publication.sent
        make = frames.publish if publication.to is None else frames.direct
        frame = make(
            membership.room if publication.to is None else publication.to,
            number=self._command + 1,
            event=publication.event,
            data=publication.data,
            key=publication.key,
            since=publication.since if again else None,
        )
        largest = self.link.welcome.max_payload_bytes
        size_bytes = len(frame.encode())
        if largest is not None and not again and size_bytes + _RESEND_RESERVE_BYTES > largest:
            membership.failed(
                publication,
                RefusedError(
                    "too_large",
                    f"the message makes a frame of {size_bytes} bytes; "
                    f"{largest - _RESEND_RESERVE_BYTES} are allowed",
                ),
            )
            return
        membership.sent(publication, self._expect(_Publish(membership, publication)))
        await self.link.send(frame)

    # reading

    async def _read(self) -> None:
        async for event in self.link.events():
            match event.type:
                case "message" | "direct":
                    await self._on_message(event)
                case "members":
                    membership = self._rooms.member_of(event.room)
                    if membership is not None:
                        membership.inbox.members(event)
                        membership.news.set()
                case "migrate":
                    self._on_migrate(event)
                case "history" | "presence":
                    waiting = self._answered(event)
                    if isinstance(waiting, _Question) and not waiting.answer.done():
                        waiting.answer.set_result(event)
                case "ack":
                    self._on_ack(event)
                case "joined":
                    self._on_joined(event)
                case "reset":
                    self._on_reset(event)
                case "left":
                    self._on_left(event)
                case "error":
                    self._on_error(event)
                case "pong" | "authenticated":
                    waiting = self._answered(event)
                    if isinstance(waiting, _Ping) and not waiting.answer.done():
                        waiting.answer.set_result(time.monotonic() - waiting.began)

    def _answered(self, event: Event) -> _Waiting | None:
        return self._waiting.pop(event.id, None) if isinstance(event.id, int) else None

    async def _on_message(self, event: Event) -> None:
        membership = self._rooms.member_of(PERSONAL if event.type == "direct" else event.room)
        if membership is None:
            return
        inbox = membership.inbox
        if inbox.full and not inbox.lagging:
            await self._pause(membership)
        if membership.ended is not None:
            return
        if inbox.message(event) is Inbox.Taken.KEPT:
            membership.news.set()
        elif inbox.wants_refill:
            self._rooms.look_at(membership)

    async def _pause(self, membership: Membership) -> None:
        """Stop reading, so that the server holds back, until the application has taken something.

        Not while an answer is awaited: it is behind the messages, and who waits for it may be who should take
        them.
        """
        try:
            async with asyncio.timeout(_LONGEST_PAUSE_SECONDS):
                while membership.inbox.full and membership.ended is None and not self._waiting:
                    self._rooms.eased.clear()
                    await self._rooms.eased.wait()
        except TimeoutError:
            pass

    def _on_ack(self, event: Event) -> None:
        waiting = self._answered(event)
        if isinstance(waiting, _Publish):
            ack = Ack(pos=event.pos or "", seq=event.seq or 0)
            waiting.membership.acknowledged(waiting.publication, ack)

    def _on_joined(self, event: Event) -> None:
        waiting = self._answered(event)
        if not isinstance(waiting, _Join):
            return
        membership = waiting.membership
        if membership.ended is not None:
            return  # the sender says `leave`
        membership.standing = Standing.JOINED
        membership.inbox.joined(event, asked=waiting.asked)
        membership.news.set()
        membership.joined.set()
        self._rooms.look_at(membership)

    def _on_reset(self, event: Event) -> None:
        membership = self._rooms.member_of(event.room)
        if membership is not None:
            membership.inbox.reset(event)
            membership.news.set()

    def _on_left(self, event: Event) -> None:
        if self._answered(event) is not None:
            return
        membership = self._rooms.member_of(event.room)
        if membership is not None:
            error = RoomLeftError("removed", f"the server removed this user from room {event.room}")
            self._rooms.remove(membership, error)

    def _on_error(self, event: Event) -> None:
        waiting = self._answered(event)
        match waiting:
            case None:
                _log.warning("the server says %s: %s", event.code, event.message)
            case _Other(command):
                _log.warning("%s was refused: %s: %s", command, event.code, event.message)
            case _Ping(answer) | _Question(answer):
                if not answer.done():
                    answer.set_exception(_refusal(event))
            case _Join(membership):
                self._on_join_refused(membership, event)
            case _Publish(membership, publication):
                self._on_publish_refused(membership, publication, event)

    def _on_join_refused(self, membership: Membership, event: Event) -> None:
        membership.standing = Standing.OUT
        if membership.ended is not None:
            return
        if event.code in ("rate_limited", "unavailable", "internal"):
            membership.retry_at = asyncio.get_running_loop().time() + _wait_seconds(event)
            self._rooms.look_at(membership)
        else:
            self._rooms.remove(membership, _refusal(event))

    def _on_publish_refused(self, membership: Membership, publication: Publication, event: Event) -> None:
        if publication.answer.done():
            return  # given up meanwhile
        passes = event.code in ("rate_limited", "unavailable")
        doubtful = event.code in ("internal", "not_joined")
        publication.refusals += doubtful
        if not passes and not (doubtful and publication.refusals < _DOUBTFUL_TRIES):
            membership.failed(publication, _refusal(event))
            return
        if event.code == "not_joined":
            membership.standing = Standing.OUT
        else:
            hold_until = asyncio.get_running_loop().time() + _wait_seconds(event)
            self._hold_until = max(self._hold_until, hold_until)
        membership.refused(publication)
        self._rooms.look_at(membership)


def _wait_seconds(event: Event) -> float:
    """What the server asked for, and a little of one's own so that not all come back at once."""
    asked = _RETRY_AFTER_SECONDS if event.retry_after is None else max(0.05, min(event.retry_after, 60.0))
    return asked * random.uniform(1.0, 1.25)  # noqa: S311


def _refusal(event: Event) -> RefusedError:
    kind = UnknownOutcomeError if event.code == "unknown_key" else RefusedError
    return kind(event.code, event.message, retry_after_seconds=event.retry_after)
