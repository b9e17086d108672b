"""One client's session: its commands in order, its rooms, and what it is still to be told."""

import asyncio
import secrets
import time
from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from tableforge_dataplane.broker.entries import Entry, Position
from tableforge_dataplane.broker.publisher import Publication, Publisher, RefusalCode, new_tag
from tableforge_dataplane.contract.settings import Settings
from tableforge_dataplane.observability.metrics import Metrics
from tableforge_dataplane.protocol import names
from tableforge_dataplane.protocol.commands import (
    Auth,
    Command,
    CommandId,
    Join,
    Leave,
    Ping,
    Publish,
    Refused,
)
from tableforge_dataplane.protocol.events import (
    Ack,
    Authenticated,
    Error,
    Event,
    Joined,
    Left,
    Pong,
    Reset,
    Welcome,
)
from tableforge_dataplane.rooms.hub import Hub
from tableforge_dataplane.rooms.outlet import Outlet
from tableforge_dataplane.rooms.room import Member
from tableforge_dataplane.security.access import Rights
from tableforge_dataplane.security.tokens import Identity, TokenError
from tableforge_dataplane.session.limits import BadFrames, ByteBudget, ByteBudgets, CommandRate

MOST_DEFERRED: Final = 100
"""Commands that may wait for one room's `joined`."""

FURTHEST_TIMER_SECONDS: Final = 86_400.0
"""Event loops don't like timers that are years away."""

_json: Final = msgspec.json.Encoder().encode


class Voice(Protocol):
    """What a session needs of its connection."""

    def encode(self, event: Event) -> bytes:
        """A whole frame for this client."""

    def finish(self, code: int, reason: str) -> None:
        """Begin the closing handshake."""


class Verifier(Protocol):
    """Judges tokens."""

    def verify(self, token: str) -> Identity:
        """Raises TokenError."""


class Surroundings:
    """What all sessions of an instance share."""

    def __init__(
        self,
        *,
        settings: Settings,
        instance: str,
        hub: Hub,
        publisher: Publisher,
        verifier: Verifier,
        metrics: Metrics,
    ) -> None:
        self.settings = settings
        self.instance = instance
        self.hub = hub
        self.publisher = publisher
        self.verifier = verifier
        self.metrics = metrics
        self.budgets = ByteBudgets(settings.security)
        self.loop = asyncio.get_running_loop()
        self.clock: Callable[[], float] = self.loop.time


class _Pending(Publication, kw_only=True, eq=False):
    """A publish that Redis has not answered, or whose answer waits for its place in the room's order."""

    id: CommandId
    room: str
    event: str
    member: Member
    answered: Position | None = None
    """Set once Redis has it, where the acknowledgement still waits for the copy's place."""


class _Joining:
    """A join on its way, and the commands for its room that came meanwhile."""

    __slots__ = ("deferred", "id")

    def __init__(self, identifier: CommandId) -> None:
        self.id = identifier
        self.deferred: list[Command] = []


class Session:
    """An `Occupant` of rooms and a `PublicationOwner`."""

    def __init__(self, surroundings: Surroundings, *, outlet: Outlet, voice: Voice) -> None:
        self.outlet = outlet
        self._voice = voice
        self._around = surroundings
        self._hub = surroundings.hub
        self._publisher = surroundings.publisher
        self._now = surroundings.clock
        self._received = surroundings.metrics.messages_received
        self.name = secrets.token_hex(8)
        self._origin = self.name.encode()
        self._identity: Identity | None = None
        self._rights: Rights
        self._guest = False
        self._user_json = b""
        self._user_key = b""
        self._rate = CommandRate(surroundings.settings.security)
        self._budget: ByteBudget
        self._bad: BadFrames | None = None
        self._rooms: dict[str, Member] = {}
        self._publishes = 0
        self._quiet: dict[bytes, _Pending] = {}
        """Publishes without a copy for their sender, by origin."""
        self._timer: asyncio.TimerHandle | None = None
        self.closed = False

    @property
    def user(self) -> str | None:
        """Who it is; None before it has said so."""
        return self._identity.user if self._identity is not None else None

    # Beginning and end

    def begin(self, identity: Identity | None, *, guest: bool = False) -> None:
        """The connection stands. Without an identity the first frame has to bring a token."""
        if identity is not None:
            self._enter(identity, guest=guest)
            return
        timeout = self._around.settings.websocket.auth_timeout_seconds
        self._timer = self._around.loop.call_later(
            timeout,
            self._refuse_and_close,
            "unauthorized",
            f"No token came within {timeout:g} s: send one in an `auth` frame first.",
            4401,
        )

    def end(self) -> None:
        """The connection is gone or about to be closed: out of all rooms."""
        if self.closed:
            return
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for member in self._rooms.values():
            self._hub.leave(member)
        self._rooms.clear()
        for origin in self._quiet:
            self._hub.quiet.pop(origin, None)
        self._quiet.clear()
        self.outlet.close()

    def close(self, code: int, reason: str) -> None:
        """End the session and close the connection."""
        if not self.closed:
            self.outlet.flush()
            self.end()
            self._voice.finish(code, reason)

    def send(self, event: Event) -> None:
        """Tell the client."""
        self.outlet.send(self._voice.encode(event))

    def refuse_and_close(self, code: str, message: str, close_code: int, retry_after: float | None) -> None:
        """Say `error`, then close."""
        self.send(Error(code=code, message=message, retry_after=retry_after))
        self.close(close_code, code)

    def _refuse_and_close(self, code: str, message: str, close_code: int) -> None:
        self._timer = None
        self.refuse_and_close(code, message, close_code, None)

    def _enter(self, identity: Identity, *, guest: bool) -> None:
        self._become(identity, guest=guest)
        websocket = self._around.settings.websocket
        self.send(
            Welcome(
                instance=self._around.instance,
                session=self.name,
                user=identity.user,
                time=round(time.time(), 3),
                ping_interval=websocket.ping_interval_seconds,
                max_payload_bytes=websocket.max_payload_bytes,
            )
        )

    def _become(self, identity: Identity, *, guest: bool) -> None:
        self._identity = identity
        self._rights = identity.rights
        self._guest = guest
        self._user_json = b',"from":' + _json(identity.user) + b',"data":'
        # Guests share one scope: who reconnects has another name, and its resends must still be known.
        user = b"" if guest else identity.user.encode()
        # a length in front: no user and key can look like another user's
        self._user_key = b"k:%d:%b:" % (len(user), user)
        self._budget = self._around.budgets.of(identity.user)
        self._watch_expiry()

    def _watch_expiry(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        identity = self._identity
        if identity is None or identity.expires_at == float("inf"):
            return
        left = identity.expires_at - time.time()
        if left > FURTHEST_TIMER_SECONDS:
            self._timer = self._around.loop.call_later(FURTHEST_TIMER_SECONDS, self._watch_expiry)
        else:
            self._timer = self._around.loop.call_later(
                max(0.0, left),
                self._refuse_and_close,
                "unauthorized",
                "The token has expired: renew it with `auth` before it does.",
                4401,
            )

    # Commands

    def handle(self, command: Command | Refused) -> None:
        """Carry out one command. `publish`, of which there are thousands, has a path of its own."""
        now = self._now()
        wait = self._rate.take(now)
        if wait is not None:
            self._too_often(command, wait)
            return
        if type(command) is Publish:
            if self._identity is not None:
                self._publish(command, now)
            else:
                self._unauthenticated(command)
            return
        self._handle_other(command, now)

    def _handle_other(self, command: Command | Refused, now: float) -> None:
        if isinstance(command, Refused):
            self._error(command.code, command.message, command.id, command.type, command.room)
            if self._bad is None:
                self._bad = BadFrames()
            if self._bad.add(now):
                self.close(4400, "too many bad frames")
        elif isinstance(command, Auth):
            self._authenticate(command)
        elif self._identity is None:
            self._unauthenticated(command)
        elif isinstance(command, Join):
            self._join(command)
        elif isinstance(command, Leave):
            self._leave(command)
        elif isinstance(command, Ping):
            self.send(Pong(id=command.id, time=round(time.time(), 3)))

    def _too_often(self, command: Command | Refused, wait: float) -> None:
        if self._rate.hopeless:
            self.refuse_and_close("rate_limited", "The rate limit was broken again and again.", 4429, 60.0)
            return
        security = self._around.settings.security
        self._limited(
            command,
            f"At most {security.max_messages_per_second} commands a second and "
            f"{security.max_messages_per_minute} a minute are taken.",
            wait,
        )

    def _limited(self, command: Command | Refused, message: str, wait: float) -> None:
        kind = command.type if isinstance(command, Refused) else _type_of(command)
        if kind == "publish":
            self._around.metrics.publishes_refused.add("rate_limited")
        self.send(
            Error(
                id=command.id,
                code="rate_limited",
                message=message,
                retry_after=max(0.001, round(wait, 3)),
                command=kind,
                room=_room_of(command),
            )
        )

    def _unauthenticated(self, command: Command) -> None:
        self._error(
            "unauthorized",
            "The first frame must be `auth` with a token.",
            command.id,
            _type_of(command),
            _room_of(command),
        )
        self.close(4401, "unauthorized")

    def _error(
        self,
        code: str,
        message: str,
        identifier: CommandId,
        command: str | None,
        room: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        if command == "publish":
            self._around.metrics.publishes_refused.add(code)
        self.send(
            Error(
                id=identifier, code=code, message=message, retry_after=retry_after, command=command, room=room
            )
        )

    def _authenticate(self, command: Auth) -> None:
        try:
            identity = self._around.verifier.verify(command.token)
        except TokenError as error:
            self._error(error.code, error.message, command.id, "auth")
            if self._identity is None:
                self.close(4401 if error.code == "unauthorized" else 1013, error.code)
            return
        current = self._identity
        if current is None:
            self._enter(identity, guest=False)
            return
        if current.user != identity.user and not (self._guest and not self._rooms):
            self._error(
                "forbidden",
                "The token is another user's: a connection stays one user's, open a second one.",
                command.id,
                "auth",
            )
            return
        self._become(identity, guest=False)
        self.send(Authenticated(id=command.id, user=identity.user, expires_at=identity.expires_at))
        for room in [room for room in self._rooms if not identity.rights.may_join(room)]:
            joining = self._rooms[room].request
            self._out_of(room)
            message = "The new token gives no right to this room."
            if isinstance(joining, _Joining):
                self._error("forbidden", message, joining.id, "join", room)
                self._carry_on(joining.deferred)
            else:
                self._error("forbidden", message, None, "auth", room)
                self.send(Left(room=room))

    def _join(self, command: Join) -> None:
        room = command.room
        identity = self._identity
        if identity is None:
            return
        if not names.is_room(room):
            self._error("bad_room", _BAD_ROOM, command.id, "join", room[:128])
            return
        if not identity.rights.may_join(room):
            self._error("forbidden", "The token gives no right to join this room.", command.id, "join", room)
            return
        asked = None
        if command.pos is not None:
            parsed = names.parse_position(command.pos)
            if parsed is None:
                self._error("bad_pos", _BAD_POS.format("pos"), command.id, "join", room)
                return
            asked = Position(*parsed)
        member = self._rooms.get(room)
        if member is not None:
            if isinstance(member.request, _Joining):
                self._defer(member.request, command)
                return
            if asked is None:
                position = (
                    member.room.position if member.room.is_live(member) else Position(member.seq, member.tag)
                )
                self.send(Joined(id=command.id, room=room, pos=str(position)))
                return
            self._out_of(room)
        elif len(self._rooms) >= self._around.settings.security.max_rooms_per_connection:
            self._error(
                "too_many_rooms",
                f"A connection may be in {self._around.settings.security.max_rooms_per_connection} rooms at "
                "once: leave one first.",
                command.id,
                "join",
                room,
            )
            return
        joining = _Joining(command.id)
        member = self._hub.join(self, room, asked=asked, request=joining)
        if not member.gone and not self.closed:
            self._rooms[room] = member

    def _leave(self, command: Leave) -> None:
        room = command.room
        member = self._rooms.get(room)
        if member is None:
            if names.is_room(room):
                self._error("not_joined", _NOT_JOINED, command.id, "leave", room)
            else:
                self._error("bad_room", _BAD_ROOM, command.id, "leave", room[:128])
            return
        if isinstance(member.request, _Joining) and self._defer(member.request, command):
            return
        self._out_of(room)
        self.send(Left(id=command.id, room=room))

    def _out_of(self, room: str) -> None:
        member = self._rooms.pop(room)
        self._hub.leave(member)
        for origin in [origin for origin, pending in self._quiet.items() if pending.member is member]:
            self._release(origin)

    def _defer(self, joining: _Joining, command: Command) -> bool:
        """Keep a command until its room is joined; False where it has to be answered now."""
        if len(joining.deferred) >= MOST_DEFERRED:
            self._limited(command, "This room is not joined yet: wait for `joined`.", 1.0)
        else:
            joining.deferred.append(command)
        return True

    def _publish(self, command: Publish, now: float) -> None:
        member = self._rooms.get(command.room)
        if member is None or member.request is not None or not self._rights.may_publish(command.room):
            self._not_now(command, member)
            return
        since = b""
        if command.since is not None:
            if command.key is None or names.parse_position(command.since) is None:
                self._bad_since(command)
                return
            since = command.since.encode()
        body = b'{"event":%b%b%b}' % (_json(command.event), self._user_json, command.data)
        wait = self._budget.take(len(body), now)
        if wait is not None:
            self._limited(
                command,
                f"A user may publish {self._around.settings.security.max_bytes_per_second} bytes a second.",
                wait,
            )
            return
        self._publishes += 1
        room = member.room
        pending = _Pending(
            head=room.publish_head,
            tag=new_tag(),
            origin=self._origin,
            key=b"i:%b:%d" % (self._origin, self._publishes)
            if command.key is None
            else self._user_key + command.key.encode(),
            body=body,
            owner=self,
            since=since,
            base_seq=room.seq,
            base_tag=room.tag,
            others_may_send_it=command.key is not None,
            id=command.id,
            room=command.room,
            event=command.event,
            member=member,
        )
        if command.volatile:
            pending.channel = room.address.channel
        if not command.echo:
            pending.origin = origin = b"!%b:%d" % (self._origin, self._publishes)
            self._quiet[origin] = pending
            self._hub.quiet[origin] = self
        self._publisher.publish(pending)

    def _not_now(self, command: Publish, member: Member | None) -> None:
        room = command.room
        if member is not None and isinstance(member.request, _Joining):
            self._defer(member.request, command)
        elif member is not None:
            message = "The token gives no right to publish to this room."
            self._error("forbidden", message, command.id, "publish", room)
        elif names.is_room(room):
            self._error("not_joined", _NOT_JOINED, command.id, "publish", room)
        else:
            self._error("bad_room", _BAD_ROOM, command.id, "publish", room[:128])

    def _bad_since(self, command: Publish) -> None:
        if command.key is None:
            message = "`since` means something only with a `key`."
            self._error("bad_frame", message, command.id, "publish", command.room)
        else:
            self._error("bad_pos", _BAD_POS.format("since"), command.id, "publish", command.room)

    # What becomes of publications (a `PublicationOwner`)

    def published(self, publication: Publication, seq: int, tag: bytes, duplicate: bool) -> None:
        """From the publisher."""
        if not isinstance(publication, _Pending):
            return
        pending = publication
        if not duplicate:
            self._received.add(pending.event)
        if self.closed:
            return
        origin = publication.origin
        if origin[:1] == b"!":
            if origin not in self._quiet:
                return  # acknowledged already, in its copy's place
            room = pending.member.room
            if not seq:
                # the copy is still to be kept from the sender
                identifier, pending.id = pending.id, None
                if identifier is not None:
                    self.send(Ack(id=identifier, room=pending.room))
                pending.answered = Position(0, b"")
                if pending.member.gone:
                    self._forget_quiet(origin)
                return
            if not duplicate and not pending.member.gone and room.seq < seq:
                pending.answered = Position(seq, tag)
                return
            self._forget_quiet(origin)
        if pending.id is None:
            return
        self.send(_ack(pending, seq, tag))

    def refused(
        self, publication: Publication, code: RefusalCode, message: str, retry_after: float | None
    ) -> None:
        """From the publisher."""
        if self.closed or not isinstance(publication, _Pending):
            return
        self._forget_quiet(publication.origin)
        self._error(code, message, publication.id, "publish", publication.room, retry_after)

    def on_quiet_copy(self, origin: bytes, entry: Entry) -> None:
        """From the hub: here the copy would be, were it wanted."""
        pending = self._forget_quiet(origin)
        if pending is not None and pending.id is not None and not self.closed:
            self.send(_ack(pending, entry.seq, entry.tag))

    def _release(self, origin: bytes) -> None:
        """No copy will come: acknowledge what Redis has already said it has."""
        pending = self._quiet.get(origin)
        if pending is None or pending.answered is None:
            return
        self._forget_quiet(origin)
        if pending.id is not None:
            self.send(_ack(pending, pending.answered.seq, pending.answered.tag))

    def _forget_quiet(self, origin: bytes) -> _Pending | None:
        self._hub.quiet.pop(origin, None)
        return self._quiet.pop(origin, None)

    # What rooms say (an `Occupant`)

    def on_joined(
        self, member: Member, position: Position, *, recovered: bool | None, reason: str | None
    ) -> None:
        """From the hub."""
        joining = member.request
        member.request = None
        name = member.room.name
        self._rooms[name] = member
        self.send(
            Joined(
                id=joining.id if isinstance(joining, _Joining) else None,
                room=name,
                pos=str(position),
                recovered=recovered,
                reason=reason,
            )
        )
        if isinstance(joining, _Joining) and joining.deferred:
            self._carry_on(joining.deferred)

    def on_reset(self, member: Member, position: Position, reason: str) -> None:
        """From the hub."""
        self.send(Reset(room=member.room.name, pos=str(position), reason=reason))
        for origin in [origin for origin, pending in self._quiet.items() if pending.member is member]:
            self._release(origin)

    def on_join_failed(self, member: Member) -> None:
        """From the hub."""
        joining = member.request
        member.request = None
        self._rooms.pop(member.room.name, None)
        if isinstance(joining, _Joining):
            self._error(
                "unavailable",
                "Redis does not answer, so the room could not be joined: try again later.",
                joining.id,
                "join",
                member.room.name,
                2.0,
            )
            self._carry_on(joining.deferred)

    def _carry_on(self, deferred: list[Command]) -> None:
        for command in deferred:
            if not self.closed:
                if isinstance(command, Publish):
                    self._publish(command, self._now())
                else:
                    self._handle_other(command, self._now())


_BAD_ROOM: Final = (
    f"A room's name has 1 to {names.MAX_ROOM_CHARACTERS} characters of A-Z, a-z, 0-9, `.`, `_`, `-` and `:`."
)
_BAD_POS: Final = "`{}` must be a position that a `message`, `joined`, `ack` or `reset` carried."
_NOT_JOINED: Final = "This connection is not in the room: `join` it first."


def _ack(pending: _Pending, seq: int, tag: bytes) -> Ack:
    if seq == 0:
        return Ack(id=pending.id, room=pending.room)
    return Ack(id=pending.id, room=pending.room, pos=names.format_position(seq, tag), seq=seq)


def _type_of(command: Command) -> str:
    return str(command.__struct_config__.tag)


def _room_of(command: Command | Refused) -> str | None:
    room = getattr(command, "room", None)
    return room[:128] if isinstance(room, str) else None
