"""The server API: what an application's own backend asks, of any instance, for the whole cluster."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Final, TypeVar

import msgspec
from aiohttp import web

from tableforge_dataplane.broker.connection import ReplyError
from tableforge_dataplane.broker.control import Control, ControlUnavailableError, Outcome
from tableforge_dataplane.broker.entries import Position
from tableforge_dataplane.broker.listing import BadCursorError, RoomListing
from tableforge_dataplane.broker.presence import RoomPresence
from tableforge_dataplane.contract import endpoints
from tableforge_dataplane.http.answers import CallError, answer, refusal
from tableforge_dataplane.http.bearer import BearerKey
from tableforge_dataplane.http.body import read_body, too_large
from tableforge_dataplane.http.overview import MOST_A_PAGE, USUAL_PAGE, Overview
from tableforge_dataplane.http.posting import MAX_PUBLISHES, DirectPost, Name, Post, Posting
from tableforge_dataplane.observability.logging import EventLog
from tableforge_dataplane.observability.metrics import Metrics
from tableforge_dataplane.protocol import names
from tableforge_dataplane.protocol.events import History
from tableforge_dataplane.protocol.native import Native
from tableforge_dataplane.registry.connection import REDIS_FAILURES
from tableforge_dataplane.rooms.history import HistoryPage, HistoryReader
from tableforge_dataplane.rooms.presence import Presence
from tableforge_dataplane.session.client import BAD_POS, BAD_ROOM
from tableforge_dataplane.session.looking import presence_event
from tableforge_dataplane.session.roster import Disconnect, Remove

MAX_BATCH_BYTES: Final = 4_194_304

MORE_THAN_DATA_BYTES: Final = 4096
"""What a call's body may have around its `data`."""

MOST_CALLS: Final = 200
"""Under way at once; further ones are told to come back. Clients' messages go through the same loop."""

MOST_BYTES: Final = 33_554_432
"""Bodies of all calls under way."""

BUSY_RETRY_SECONDS: Final = 1.0

MAX_REASON_BYTES: Final = 123
"""What a close frame has room for."""

_log = EventLog("server_api")

Body = TypeVar("Body")
Call = Callable[[web.Request], Awaitable[object]]


class _Batch(msgspec.Struct):
    publishes: list[msgspec.Raw]


class _DisconnectCall(msgspec.Struct):
    user: Name
    code: int = 4403
    reason: Annotated[str, msgspec.Meta(max_length=MAX_REASON_BYTES)] = "disconnected by the application"


class _RemoveCall(msgspec.Struct):
    room: str
    user: Name


_post: Final = msgspec.json.Decoder(Post)
_direct: Final = msgspec.json.Decoder(DirectPost)
_batch: Final = msgspec.json.Decoder(_Batch)
_disconnect: Final = msgspec.json.Decoder(_DisconnectCall)
_remove: Final = msgspec.json.Decoder(_RemoveCall)


class ServerApi:
    """The routes below `/api`, and `/stats` and `/rooms`, all with the API's key."""

    def __init__(
        self,
        *,
        key: BearerKey,
        metrics: Metrics,
        posting: Posting,
        presence: Presence,
        control: Control,
        listing: RoomListing,
        overview: Overview,
        history: HistoryReader,
        homes: Callable[[list[str]], Awaitable[list[str | None]]],
        max_payload_bytes: int,
    ) -> None:
        self._key = key
        self._metrics = metrics
        self._posting = posting
        self._presence = presence
        self._control = control
        self._listing = listing
        self._overview = overview
        self._history = history
        self._homes = homes
        self._part = Native().part
        self._max_payload_bytes = max_payload_bytes
        self._calls = 0
        self._bytes = 0

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Answer from now on."""
        posts: dict[str, Call] = {
            "publish": self._publish,
            "batch": self._publish_batch,
            "direct": self._direct,
            "disconnect": self._disconnect,
            "remove": self._remove,
        }
        for name, call in posts.items():
            router.add_post(f"{endpoints.API_PATH}/{name}", self._route(name, call))
        gets: dict[str, Call] = {
            f"{endpoints.API_PATH}/rooms/{{room}}/presence": self._room_presence,
            f"{endpoints.API_PATH}/rooms/{{room}}/history": self._room_history,
            f"{endpoints.API_PATH}/rooms": self._rooms,
            f"{endpoints.API_PATH}/instances": self._instances,
            endpoints.STATS_PATH: self._stats,
            endpoints.ROOMS_PATH: self._distribution,
        }
        for path, call in gets.items():
            name = path.rpartition("/")[2] if path != endpoints.ROOMS_PATH else "distribution"
            router.add_get(path, self._route(name, call), allow_head=False)

    def _route(self, name: str, call: Call) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handler(request: web.Request) -> web.StreamResponse:
            try:
                # before a byte of the body is read: who has no key costs nothing
                self._key.check(request)
                with self._counted():
                    response = answer(await call(request))
            except CallError as refused:
                response = refusal(refused)
            except TimeoutError:
                # the limit on all pages, which the caller above answers
                self._metrics.api_calls.record(name, 503)
                raise
            self._metrics.api_calls.record(name, response.status)
            return response

        return handler

    # Messages

    async def _publish(self, request: web.Request) -> object:
        with self._body(request, self._max_payload_bytes + MORE_THAN_DATA_BYTES) as body:
            post = _decoded(_post, await body)
            self._posting.check(post)
            (result,) = await self._posting.publish([post])
        return _posted(result)

    async def _publish_batch(self, request: web.Request) -> object:
        with self._body(request, MAX_BATCH_BYTES) as body:
            raw = await body
            batch = _decoded(_batch, raw)
            if not 1 <= len(batch.publishes) <= MAX_PUBLISHES:
                raise CallError(
                    "bad_frame",
                    f"`publishes` has {len(batch.publishes)} entries: 1 to {MAX_PUBLISHES} are taken.",
                )
            results: list[object] = [None] * len(batch.publishes)
            good: list[tuple[int, Post]] = []
            for number, item in enumerate(batch.publishes):
                try:
                    post = _decoded(_post, bytes(item))
                    self._posting.check(post)
                except CallError as refused:
                    results[number] = refused.body
                else:
                    good.append((number, post))
                if number % 100 == 99:
                    await asyncio.sleep(0)  # clients' messages go first
            stored = await self._posting.publish([post for _, post in good])
            for (number, _), result in zip(good, stored, strict=True):
                results[number] = result.body if isinstance(result, CallError) else _position(result)
        return {"results": results}

    async def _direct(self, request: web.Request) -> object:
        with self._body(request, self._max_payload_bytes + MORE_THAN_DATA_BYTES) as body:
            post = _decoded(_direct, await body)
            result = await self._posting.direct(post)
        if isinstance(result, CallError):
            raise result
        return {"pos": str(result)}

    # Users

    async def _disconnect(self, request: web.Request) -> object:
        with self._body(request, MORE_THAN_DATA_BYTES) as body:
            asked = _decoded(_disconnect, await body)
        if not (asked.code in (1000, 1008, 1012, 1013) or 3000 <= asked.code <= 4999):
            raise CallError("bad_frame", "`code` must be 1000, 1008, 1012, 1013 or from 3000 to 4999.")
        if len(asked.reason.encode()) > MAX_REASON_BYTES:
            raise CallError("bad_frame", f"`reason` may have {MAX_REASON_BYTES} bytes.")
        order = Disconnect(user=asked.user, code=asked.code, reason=asked.reason)
        return _outcome("closed", await self._everywhere("disconnect", order))

    async def _remove(self, request: web.Request) -> object:
        with self._body(request, MORE_THAN_DATA_BYTES) as body:
            asked = _decoded(_remove, await body)
        _check_room(asked.room)
        order = Remove(room=asked.room, user=asked.user)
        return _outcome("removed", await self._everywhere("remove", order))

    async def _everywhere(self, kind: str, order: object) -> Outcome:
        fleet = await self._overview.fleet()
        living = frozenset(record.instance for record in fleet.instances if record.alive)
        try:
            return await self._control.ask(kind, order, expected=living)
        except ControlUnavailableError:
            raise _away() from None

    # Looking

    async def _room_presence(self, request: web.Request) -> object:
        room = request.match_info["room"]
        _check_room(room)
        if not self._presence.kept(room):
            raise CallError("forbidden", "Who is in this room is not kept here.")
        done: asyncio.Future[RoomPresence | None] = asyncio.get_running_loop().create_future()
        self._presence.ask(room, lambda found: None if done.done() else done.set_result(found))
        found = await done
        if found is None:
            raise _away()
        return presence_event(room, found)

    async def _room_history(self, request: web.Request) -> object:
        room = request.match_info["room"]
        _check_room(room)
        after, last = request.query.get("after"), request.query.get("last")
        if (after is None) == (last is None):
            raise CallError("bad_frame", "Give either `after`, a position, or `last`, a count.")
        position = None
        if after is not None:
            parsed = names.parse_position(after)
            if parsed is None:
                raise CallError("bad_pos", BAD_POS.format("after"))
            position = Position(*parsed)
        count = _number("last", last, names.MAX_HISTORY) if last is not None else 0
        done: asyncio.Future[HistoryPage | None] = asyncio.get_running_loop().create_future()
        self._history.read(
            room,
            after=position,
            last=count,
            callback=lambda page: None if done.done() else done.set_result(page),
        )
        page = await done
        if page is None:
            raise _away()
        return History(
            room=room,
            messages=[
                msgspec.Raw(self._part(room, entry.seq, entry.tag, entry.ts, entry.body))
                for entry in page.entries
            ],
            pos=str(page.position) if page.position is not None else None,
            complete=page.complete,
            reason=page.reason,
        )

    async def _rooms(self, request: web.Request) -> object:
        try:
            page = await self._listing.page(cursor=request.query.get("cursor", ""), limit=_limit(request))
            homes = await self._homes([listed.room for listed in page.rooms])
        except BadCursorError:
            raise CallError("bad_frame", "`cursor` must be one that a page of this list gave.") from None
        except TimeoutError:
            raise  # the limit on all pages, which the caller above answers
        except (ConnectionError, *REDIS_FAILURES):
            raise _away() from None
        except ReplyError as error:
            _log.warning("rooms_not_listed", reply=str(error))
            raise _away() from None
        return msgspec.structs.replace(
            page,
            rooms=[
                msgspec.structs.replace(listed, home=home)
                for listed, home in zip(page.rooms, homes, strict=True)
            ],
        )

    async def _instances(self, request: web.Request) -> object:
        return await self._overview.instances(after=request.query.get("cursor", ""), limit=_limit(request))

    async def _stats(self, _request: web.Request) -> object:
        return self._overview.stats()

    async def _distribution(self, request: web.Request) -> object:
        return await self._overview.distribution(after=request.query.get("cursor", ""), limit=_limit(request))

    # Bounds

    @contextmanager
    def _counted(self) -> Iterator[None]:
        if self._calls >= MOST_CALLS:
            raise _busy()
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1

    @contextmanager
    def _body(self, request: web.Request, limit_bytes: int) -> Iterator[Awaitable[bytes]]:
        """The body, counted for as long as it is in use."""
        announced = request.content_length
        if announced is not None and announced > limit_bytes:
            raise too_large(limit_bytes)
        size = limit_bytes if announced is None else announced
        if self._bytes + size > MOST_BYTES:
            raise _busy()
        self._bytes += size
        reading = read_body(request, limit_bytes)
        try:
            yield reading
        finally:
            reading.close()
            self._bytes -= size


def _decoded(decoder: msgspec.json.Decoder[Body], body: bytes) -> Body:
    """Raises CallError that names the field."""
    try:
        body.decode()  # msgspec leaves what it keeps as it came
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        field = str(error).rpartition("`$.")[2].rstrip("`") if "`$." in str(error) else ""
        code = {"room": "bad_room", "event": "bad_event", "data": "bad_data"}.get(
            field or _missing(str(error)), "bad_frame"
        )
        raise CallError(code, f"{error}.") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CallError("bad_frame", f"The body must be a JSON object in UTF-8: {error}.") from None


def _missing(text: str) -> str:
    return text.partition("required field `")[2].rstrip("`")


def _posted(result: Position | CallError) -> object:
    if isinstance(result, CallError):
        raise result
    return _position(result)


def _position(position: Position) -> dict[str, Any]:
    if position.seq == 0:  # in a room whose messages have no place in a log
        return {}
    return {"pos": str(position), "seq": position.seq}


def _outcome(name: str, outcome: Outcome) -> dict[str, Any]:
    return {name: outcome.count, "instances": outcome.instances, "missing": outcome.missing}


def _check_room(room: str) -> None:
    if not names.is_room(room):
        raise CallError("bad_room", BAD_ROOM)


def _limit(request: web.Request) -> int:
    return _number("limit", request.query.get("limit", str(USUAL_PAGE)), MOST_A_PAGE)


def _number(name: str, text: str, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 6 and 1 <= int(text) <= most):
        raise CallError("bad_frame", f"`{name}` must be from 1 to {most}.")
    return int(text)


def _away() -> CallError:
    return CallError("unavailable", "Redis does not answer: call again later.", BUSY_RETRY_SECONDS)


def _busy() -> CallError:
    return CallError(
        "unavailable", "This instance carries out many calls already: call again later.", BUSY_RETRY_SECONDS
    )
