"""One client's rooms: how it gets in and out, and what waits until it is in."""

from collections.abc import Callable, Iterator
from typing import Final

from tableforge_dataplane.broker.entries import Entry, Position
from tableforge_dataplane.protocol import names
from tableforge_dataplane.protocol.commands import Command, CommandId, Join, Leave, Publish
from tableforge_dataplane.protocol.events import Event, Joined, Left, Reset
from tableforge_dataplane.rooms.room import Member
from tableforge_dataplane.session.client import BAD_POS, BAD_ROOM, NOT_JOINED, Client
from tableforge_dataplane.session.looking import sees_presence

MOST_DEFERRED: Final = 100
"""Commands that may wait for one room's `joined`."""

DEFERRED_BYTES: Final = 262_144
"""So much `data` may wait for all of a connection's rooms together, or one message: a client that doesn't
read its socket is kept waiting for `joined` as long as it likes."""


class Joining:
    """A join on its way, and the commands for its room that came meanwhile."""

    __slots__ = ("deferred", "id", "presence")

    def __init__(self, command: Join) -> None:
        self.id: CommandId = command.id
        self.presence = command.presence
        self.deferred: list[Command] = []


class Membership:
    """An `Occupant` of rooms."""

    __slots__ = ("_client", "_deferred_bytes", "carry_out", "on_quiet_copy", "outlet", "release", "rooms")

    def __init__(self, client: Client) -> None:
        self._client = client
        self.outlet = client.outlet
        self.rooms: dict[str, Member] = {}
        self._deferred_bytes = 0
        self.carry_out: Callable[[Command], None]
        """Carries out a command that has waited for its room; the session's."""
        self.release: Callable[[Member], None]
        """Acknowledges what can't get its place in the member's room any more; `Publishing`'s."""
        self.on_quiet_copy: Callable[[bytes, Entry], None]
        """From the hub; `Publishing`'s."""

    # For who guides clients

    @property
    def closed(self) -> bool:
        """Whether the connection is over."""
        return self._client.closed

    def shared_rooms(self) -> Iterator[str]:
        """The rooms it is in or on its way into, but for its own log; in the order of joining."""
        return (member.room.name for member in self.rooms.values() if not member.room.personal)

    def tell(self, event: Event) -> None:
        """Where there is still somebody to hear it."""
        if not self._client.closed:
            self._client.send(event)

    # Commands

    def join(self, command: Join) -> None:
        """Into the room, from now or from `pos` on."""
        client = self._client
        room = command.room
        name = client.reach(room, command.id, "join")
        if name is None:
            return
        asked = None
        if command.pos is not None:
            parsed = names.parse_position(command.pos)
            if parsed is None:
                client.error("bad_pos", BAD_POS.format("pos"), command.id, "join", room)
                return
            asked = Position(*parsed)
        if command.presence and not sees_presence(client, room, command.id, "join"):
            return
        member = self.rooms.get(room)
        if member is not None:
            if isinstance(member.request, Joining):
                self.defer(member.request, command)
                return
            if asked is None:
                position = (
                    member.room.position if member.room.is_live(member) else Position(member.seq, member.tag)
                )
                client.send(Joined(id=command.id, room=room, pos=str(position)))
                self._watch(room, wanted=command.presence)
                return
            self._out_of(room)
        elif len(self.rooms) >= client.around.settings.security.max_rooms_per_connection:
            client.error(
                "too_many_rooms",
                f"A connection may be in {client.around.settings.security.max_rooms_per_connection} rooms at "
                "once: leave one first.",
                command.id,
                "join",
                room,
            )
            return
        joining = Joining(command)
        member = client.around.hub.join(self, name, asked=asked, request=joining)
        if not member.gone and not client.closed:
            self.rooms[room] = member

    def leave(self, command: Leave) -> None:
        """Out of the room."""
        client = self._client
        room = command.room
        member = self.rooms.get(room)
        if member is None:
            if names.is_room(room) or room == names.PERSONAL:
                client.error("not_joined", NOT_JOINED, command.id, "leave", room)
            else:
                client.error("bad_room", BAD_ROOM, command.id, "leave", room[:128])
            return
        if isinstance(member.request, Joining):
            self.defer(member.request, command)
            return
        self._out_of(room)
        client.send(Left(id=command.id, room=room))

    def defer(self, joining: Joining, command: Command) -> None:
        """Keep a command until its room is joined."""
        size = _size_of(command)
        too_much = size > 0 and self._deferred_bytes + size > DEFERRED_BYTES
        if len(joining.deferred) >= MOST_DEFERRED or (too_much and self._deferred_bytes):
            self._client.limited(command, "This room is not joined yet: wait for `joined`.", 1.0)
        else:
            self._deferred_bytes += size
            joining.deferred.append(command)

    def check_rights(self) -> None:
        """The client has other rights: out of the rooms it may not be in any more."""
        client = self._client
        for room, member in list(self.rooms.items()):
            if client.rights.may_join(room) or room == names.PERSONAL:
                self._look_at_rights(member)
            else:
                self._forbid(member, "The new token gives no right to this room.", "auth")

    def on_options(self, member: Member) -> None:
        """From the hub."""
        if member.room.options.may_join(guest=self._client.guest):
            self._look_at_rights(member)
            if member.room.options.presence:
                self._present(member)
            else:
                self._absent(member, lingers=False)
        else:
            self._forbid(member, "This room takes you as a member no more.", None)

    def _look_at_rights(self, member: Member) -> None:
        client = self._client
        member.writable = client.rights.may_publish(member.room.name) and member.room.options.may_publish(
            guest=client.guest
        )
        if not (
            client.rights.may_see_presence(member.room.name)
            and member.room.options.may_see_presence(guest=client.guest)
        ):
            client.around.presence.unwatch(member.room.name, self.outlet)

    def _forbid(self, member: Member, message: str, command: str | None) -> None:
        client = self._client
        room = member.room.shown
        joining = member.request
        if self.rooms.get(room) is not member:
            return
        self._out_of(room)
        if isinstance(joining, Joining):
            client.error("forbidden", message, joining.id, "join", room)
            self._carry_on(joining.deferred)
        else:
            client.error("forbidden", message, None, command, room)
            client.send(Left(room=room))

    def put_out(self, room: str) -> bool:
        """The application wants the user out of the room; False where it was not in it."""
        member = self.rooms.get(room)
        if member is None:
            return False
        joining = member.request
        self._out_of(room)
        if isinstance(joining, Joining):
            message = "The application has just put this user out of the room."
            self._client.error("forbidden", message, joining.id, "join", room)
            self._carry_on(joining.deferred)
        else:
            self._client.send(Left(room=room, reason="removed"))
        return True

    def end(self) -> None:
        """The connection is gone: out of all rooms, without a word."""
        for member in self.rooms.values():
            self._client.around.hub.leave(member)
            self._absent(member, lingers=True)
        self.rooms.clear()
        self._client.around.on_rooms(self)

    def _out_of(self, room: str) -> None:
        member = self.rooms.pop(room)
        self._client.around.hub.leave(member)
        self._absent(member, lingers=False)
        self.release(member)
        self._client.around.on_rooms(self)

    def _watch(self, room: str, *, wanted: bool) -> None:
        presence = self._client.around.presence
        if wanted:
            presence.watch(room, self.outlet)
        else:
            presence.unwatch(room, self.outlet)

    def _present(self, member: Member) -> None:
        user = self._client.user
        if member.joined and not member.present and user is not None:
            member.present = self._client.around.presence.enter(member.room.name, user)

    def _absent(self, member: Member, *, lingers: bool) -> None:
        """(Only who was counted is taken off: whether the room keeps it may have changed meanwhile.)"""
        user = self._client.user
        if member.joined and user is not None:
            self._client.around.presence.unwatch(member.room.name, self.outlet)
            if member.present:
                member.present = False
                self._client.around.presence.leave(member.room.name, user, lingers=lingers)

    def _carry_on(self, deferred: list[Command]) -> None:
        self._deferred_bytes -= sum(map(_size_of, deferred))
        for command in deferred:
            if not self._client.closed:
                self.carry_out(command)

    # What rooms say (an `Occupant`)

    def on_joined(
        self, member: Member, position: Position, *, recovered: bool | None, reason: str | None
    ) -> None:
        """From the hub."""
        joining = member.request
        member.request = None
        room = member.room.shown
        self.rooms[room] = member
        self._look_at_rights(member)
        self._present(member)
        self._client.around.on_rooms(self)
        self._client.send(
            Joined(
                id=joining.id if isinstance(joining, Joining) else None,
                room=room,
                pos=str(position),
                recovered=recovered,
                reason=reason,
            )
        )
        if isinstance(joining, Joining):
            if joining.presence:
                self._watch(room, wanted=True)
            if joining.deferred:
                self._carry_on(joining.deferred)

    def on_reset(self, member: Member, position: Position, reason: str) -> None:
        """From the hub."""
        self._client.send(Reset(room=member.room.shown, pos=str(position), reason=reason))
        self.release(member)

    def on_join_failed(self, member: Member) -> None:
        """From the hub."""
        joining = member.request
        member.request = None
        self.rooms.pop(member.room.shown, None)
        if isinstance(joining, Joining):
            self._client.error(
                "unavailable",
                f"{self._client.around.redis_trouble()} The room could not be joined: try again later.",
                joining.id,
                "join",
                member.room.shown,
                2.0,
            )
            self._carry_on(joining.deferred)


def _size_of(command: Command) -> int:
    return memoryview(command.data).nbytes if isinstance(command, Publish) else 0
