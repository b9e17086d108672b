"""What one client publishes: on its way to Redis, and acknowledged in its place."""

from typing import Final

import msgspec

from tableforge_dataplane.broker.entries import Entry, Position
from tableforge_dataplane.broker.publications import Publication, RefusalCode, new_tag
from tableforge_dataplane.observability.metrics import SAMPLED_EVERY
from tableforge_dataplane.protocol import names
from tableforge_dataplane.protocol.commands import CommandId, Publish
from tableforge_dataplane.protocol.events import Ack
from tableforge_dataplane.rooms.room import Member
from tableforge_dataplane.session.client import BAD_POS, BAD_ROOM, NOT_JOINED, Client
from tableforge_dataplane.session.membership import Joining, Membership

TIMED: Final = SAMPLED_EVERY - 1
"""One publish in so many is timed until its acknowledgement, the first of a connection among them."""

_json: Final = msgspec.json.Encoder().encode


class _Pending(Publication, kw_only=True, eq=False):
    """A publish that Redis has not answered, or whose answer waits for its place in the room's order."""

    id: CommandId
    room: str
    event: str
    member: Member
    sent_at: float = 0.0
    """When it came, for the few that are timed."""
    answered: Position | None = None
    """Set once Redis has it, where the acknowledgement still waits for the copy's place."""


class Publishing:
    """A `PublicationOwner`."""

    __slots__ = (
        "_body_head",
        "_client",
        "_count",
        "_event",
        "_from",
        "_hub",
        "_key_head",
        "_membership",
        "_origin",
        "_outlet",
        "_publisher",
        "_quiet",
        "_received",
        "_rooms",
    )

    def __init__(self, client: Client, membership: Membership) -> None:
        self._client = client
        self._hub = client.around.hub
        self._publisher = client.around.publisher
        self._received = client.around.metrics.messages_received
        self._membership = membership
        self._rooms = membership.rooms
        self._origin = client.name.encode()
        self._outlet = client.outlet
        self._key_head = b"i:%b:" % self._origin
        self._event: str | None = None
        """The last message's, and what its body began with: most clients send few kinds of messages."""
        self._from = b""
        self._body_head = b""
        self._count = 0
        self._quiet: dict[bytes, _Pending] = {}
        """Publishes without a copy for their sender, by origin."""

    def publish(self, command: Publish, now: float) -> None:
        """Send it on its way, or say why not."""
        member = self._rooms.get(command.room)
        client = self._client
        if member is None or member.request is not None or not member.writable:
            self._not_now(command, member)
            return
        since = b""
        if command.since is not None:
            if command.key is None or names.parse_position(command.since) is None:
                self._bad_since(command)
                return
            since = command.since.encode()
        if command.event != self._event or client.from_json is not self._from:
            self._event = command.event
            self._from = client.from_json
            self._body_head = b'{"event":%b%b' % (_json(command.event), client.from_json)
        body = b"".join((self._body_head, command.data, b"}"))
        wait = client.budget.take(len(body), now)
        if wait is not None:
            client.limited(
                command,
                f"A user may publish {client.around.settings.security.max_bytes_per_second} bytes a second.",
                wait,
            )
            return
        self._count += 1
        room = member.room
        pending = _Pending(
            head=room.publish_head,
            tag=new_tag(),
            origin=self._origin,
            key=self._key_head + b"%d" % self._count
            if command.key is None
            else client.key_scope + command.key.encode(),
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
        if self._count & TIMED == 1:
            pending.sent_at = now
        if command.volatile or room.options.volatile:
            pending.channel = room.address.channel
        if not command.echo:
            pending.origin = origin = b"!%b:%d" % (self._origin, self._count)
            self._quiet[origin] = pending
            self._hub.quiet[origin] = self._membership
        self._publisher.publish(pending)

    def end(self) -> None:
        """The connection is gone: nobody waits for acknowledgements."""
        for origin in self._quiet:
            self._hub.quiet.pop(origin, None)
        self._quiet.clear()

    def _not_now(self, command: Publish, member: Member | None) -> None:
        client = self._client
        room = command.room
        if member is not None and isinstance(member.request, Joining):
            self._membership.defer(member.request, command)
        elif room == names.PERSONAL:
            message = "Nobody publishes to a personal log: `direct` writes to it."
            client.error("forbidden", message, command.id, "publish", room)
        elif member is not None:
            message = (
                "This room takes no messages from you."
                if client.rights.may_publish(room)
                else "The token gives no right to publish to this room."
            )
            client.error("forbidden", message, command.id, "publish", room)
        elif names.is_room(room):
            client.error("not_joined", NOT_JOINED, command.id, "publish", room)
        else:
            client.error("bad_room", BAD_ROOM, command.id, "publish", room[:128])

    def _bad_since(self, command: Publish) -> None:
        if command.key is None:
            message = "`since` means something only with a `key`."
            self._client.error("bad_frame", message, command.id, "publish", command.room)
        else:
            self._client.error("bad_pos", BAD_POS.format("since"), command.id, "publish", command.room)

    # What becomes of publications (a `PublicationOwner`)

    @property
    def abandoned(self) -> bool:
        """Whether the connection is gone."""
        return self._client.closed

    def published(self, publication: Publication, seq: int, tag: bytes, duplicate: bool) -> None:
        """From the publisher."""
        if not isinstance(publication, _Pending):
            return
        pending = publication
        if not duplicate:
            self._received.add(pending.event)
        if pending.sent_at:
            around = self._client.around
            around.metrics.publish_ack_seconds.observe(around.clock() - pending.sent_at)
        if self._client.closed:
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
                    self._client.send(Ack(id=identifier, room=pending.room))
                pending.answered = Position(0, b"")
                if pending.member.gone:
                    self._forget_quiet(origin)
                return
            if not duplicate and not pending.member.gone and room.seq < seq:
                pending.answered = Position(seq, tag)
                return
            self._forget_quiet(origin)
        if pending.id is not None:
            self._acknowledge(pending, seq, tag)

    def refused(
        self, publication: Publication, code: RefusalCode, message: str, retry_after: float | None
    ) -> None:
        """From the publisher."""
        if self._client.closed or not isinstance(publication, _Pending):
            return
        self._forget_quiet(publication.origin)
        self._client.error(code, message, publication.id, "publish", publication.room, retry_after)

    def on_quiet_copy(self, origin: bytes, entry: Entry) -> None:
        """From the hub: here the copy would be, were it wanted."""
        if self._publisher.fenced and (waiting := self._quiet.get(origin)) and waiting.answered is None:
            return  # delivered, and not yet as safe as an acknowledgement says: `published` follows
        pending = self._forget_quiet(origin)
        if pending is not None and pending.id is not None and not self._client.closed:
            self._acknowledge(pending, entry.seq, entry.tag)

    def release(self, member: Member) -> None:
        """No copies will come from this member's room: acknowledge what Redis has already said it has."""
        for origin, pending in list(self._quiet.items()):
            if pending.member is member and pending.answered is not None:
                self._forget_quiet(origin)
                if pending.id is not None:
                    self._acknowledge(pending, pending.answered.seq, pending.answered.tag)

    def _forget_quiet(self, origin: bytes) -> _Pending | None:
        self._hub.quiet.pop(origin, None)
        return self._quiet.pop(origin, None)

    def _acknowledge(self, pending: _Pending, seq: int, tag: bytes) -> None:
        if seq:
            outlet = self._outlet
            outlet.send(outlet.encoder.ack(pending.id, pending.room, seq, tag))
        else:
            self._client.send(Ack(id=pending.id, room=pending.room))
