"""Messages from an application's backend: checked like a client's, and answered once they are stored."""

import asyncio
import functools
from collections.abc import Sequence
from typing import Annotated, Any, Final

import msgspec

from tableforge_dataplane.broker.addresses import RoomAddress
from tableforge_dataplane.broker.broker import Broker
from tableforge_dataplane.broker.entries import Position
from tableforge_dataplane.broker.publications import Publication, RefusalCode, new_tag
from tableforge_dataplane.http.answers import CallError
from tableforge_dataplane.protocol import names, payload
from tableforge_dataplane.protocol.commands import Key
from tableforge_dataplane.session.client import BAD_ROOM

DEFAULT_FROM: Final = "server"
MAX_PUBLISHES: Final = 1000
"""In one batch."""

AT_ONCE: Final = 100
"""Of one batch in the publisher's queue."""

NOWHERE: Final = Position(-1, b"")

_ORIGIN: Final = b"api"
_json: Final = msgspec.json.Encoder().encode

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=names.MAX_USER_CHARACTERS)]


class Post(msgspec.Struct, rename={"sender": "from"}):
    """The body of `/api/publish`, and one of `/api/batch`."""

    room: str
    event: Annotated[str, msgspec.Meta(min_length=1, max_length=names.MAX_EVENT_CHARACTERS)]
    data: msgspec.Raw
    sender: Name = DEFAULT_FROM
    key: Key | None = None


class DirectPost(msgspec.Struct, rename={"sender": "from"}):
    """The body of `/api/direct`."""

    to: str
    event: Annotated[str, msgspec.Meta(min_length=1, max_length=names.MAX_EVENT_CHARACTERS)]
    data: msgspec.Raw
    sender: Name = DEFAULT_FROM
    key: Key | None = None


class _Waiting(Publication, kw_only=True, eq=False):
    done: "asyncio.Future[Position]"


class _Owner:
    """Hands what became of publications to who waits for it. A `PublicationOwner`."""

    abandoned = False
    """A backend's requests have no order that a late one could break."""

    def published(self, publication: Publication, seq: int, tag: bytes, duplicate: bool) -> None:  # noqa: ARG002
        """From the publisher."""
        if isinstance(publication, _Waiting) and not publication.done.done():
            publication.done.set_result(Position(seq, tag))

    def refused(
        self, publication: Publication, code: RefusalCode, message: str, retry_after: float | None
    ) -> None:
        """From the publisher."""
        if isinstance(publication, _Waiting) and not publication.done.done():
            publication.done.set_exception(CallError(code, message, retry_after))


class Posting:
    """Publishes for backends through the instance's own publisher: same order, durability and limits."""

    def __init__(self, broker: Broker, *, max_payload_bytes: int, boot: str) -> None:
        self._broker = broker
        self._max_payload_bytes = max_payload_bytes
        self._boot = boot.encode()
        self._owner = _Owner()
        self._count = 0

    def check(self, post: Post) -> None:
        """Raises CallError for what a client would be refused for, too."""
        if not names.is_room(post.room):
            raise CallError("bad_room", BAD_ROOM)
        if self._broker.options(post.room).publish == "nobody":
            raise CallError("forbidden", "Nobody publishes to this room: its options say so.")
        self._check(post.sender, post.data)

    def _check(self, sender: str, data: msgspec.Raw) -> None:
        if not names.is_user(sender):
            raise CallError("bad_frame", "`from` must have printable characters.")
        size_bytes = len(bytes(data))
        if size_bytes > self._max_payload_bytes:
            raise CallError(
                "too_large", f"`data` has {size_bytes} bytes; {self._max_payload_bytes} are allowed."
            )
        try:
            payload.check(data, payload.MAX_DEPTH - 1)
        except payload.DataError as error:
            raise CallError("bad_data", str(error)) from None

    async def publish(self, posts: Sequence[Post]) -> list[Position | CallError]:
        """Publish those that `check` has let through, in this order; what became of each."""
        addresses = {post.room: self._broker.address(post.room) for post in posts}
        results: list[Position | CallError] = []
        for start in range(0, len(posts), AT_ONCE):
            # not all at once: what clients publish meanwhile must find room in the queue
            results += await self._send(
                [(addresses[post.room], post) for post in posts[start : start + AT_ONCE]]
            )
        return results

    async def direct(self, post: DirectPost) -> Position | CallError:
        """Into the user's personal log, whether the user is there or not.

        Raises CallError for what a client would be refused for, too.
        """
        if not names.is_user(post.to):
            raise CallError(
                "bad_frame", f"`to` must be a user: 1 to {names.MAX_USER_CHARACTERS} printable characters."
            )
        self._check(post.sender, post.data)
        room = names.personal_log(post.to)
        message = Post(room=room, event=post.event, data=post.data, sender=post.sender, key=post.key)
        (result,) = await self._send([(self._broker.address(room), message)])
        return result

    async def _send(self, posts: Sequence[tuple[RoomAddress, Post]]) -> list[Position | CallError]:
        positions = await self._positions(
            {address.room: address for address, post in posts if not self._broker.options(post.room).volatile}
        )
        loop = asyncio.get_running_loop()
        waiting: list[asyncio.Future[Position]] = []
        for address, post in posts:
            done: asyncio.Future[Position] = loop.create_future()
            waiting.append(done)
            volatile = address.room not in positions
            position = NOWHERE if volatile else positions[address.room]
            if position is None:
                done.set_exception(
                    CallError("unavailable", f"{self._broker.trouble()} Send this one again later.", 1.0)
                )
                continue
            self._count += 1
            publication = _Waiting(
                head=self._broker.publisher.head(address),
                tag=new_tag(),
                origin=_ORIGIN,
                key=b"i:%b:%d" % (self._boot, self._count)
                if post.key is None
                else b"s:%b" % post.key.encode(),
                body=b'{"event":%b,"from":%b,"data":%b}'
                % (_json(post.event), _json(post.sender), bytes(post.data)),
                owner=self._owner,
                base_seq=position.seq,
                base_tag=position.tag,
                others_may_send_it=post.key is not None,
                done=done,
            )
            if volatile:
                publication.channel = address.channel
            self._broker.publisher.publish(publication)
        results: list[Any] = await asyncio.gather(*waiting, return_exceptions=True)
        found: list[Position | CallError] = []
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, CallError):
                raise result
            found.append(result)
        return found

    async def _positions(self, addresses: dict[str, RoomAddress]) -> dict[str, Position | None]:
        """Where the rooms stand: should the connection break, a second attempt can tell by it whether the log
        still reaches back to the first."""
        loop = asyncio.get_running_loop()
        asked: dict[str, asyncio.Future[Position | None]] = {}
        for room, address in addresses.items():
            future: asyncio.Future[Position | None] = loop.create_future()
            asked[room] = future
            self._broker.log.join(address, functools.partial(_resolve, future))
        return {room: await future for room, future in asked.items()}


def _resolve(future: "asyncio.Future[Position | None]", position: Position | None) -> None:
    if not future.done():
        future.set_result(position)
