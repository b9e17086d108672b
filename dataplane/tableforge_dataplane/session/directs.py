"""What one client sends to other users' personal logs, and how far it has handled its own."""

import asyncio
from typing import Final

import msgspec

from tableforge_dataplane.broker.entries import Position
from tableforge_dataplane.broker.publications import Publication, RefusalCode, new_tag
from tableforge_dataplane.protocol import names
from tableforge_dataplane.protocol.commands import CommandId, Direct, Received
from tableforge_dataplane.protocol.events import Ack
from tableforge_dataplane.session.client import BAD_POS, NO_PERSONAL_LOG, Client

MOST_KNOWN: Final = 100
"""Users to whom this client wrote lately, whose logs' newest known positions are kept."""

RETRY_SECONDS: Final = 1.0

NOWHERE: Final = Position(-1, b"")

_json: Final = msgspec.json.Encoder().encode


class _Sent(Publication, kw_only=True, eq=False):
    """A direct message that Redis has not answered."""

    id: CommandId
    to: str
    event: str


class Directs:
    """A `PublicationOwner`."""

    __slots__ = ("_client", "_count", "_known", "_marker", "_noting", "_retry")

    def __init__(self, client: Client) -> None:
        self._client = client
        self._count = 0
        self._known: dict[str, Position] = {}
        """Where others' personal logs were last seen: what makes a retry of the instance's own safe."""
        self._marker: Position | None = None
        """Handled up to here and not noted in Redis yet."""
        self._noting = False
        self._retry: asyncio.TimerHandle | None = None

    def send(self, command: Direct, now: float) -> None:
        """Into the user's personal log, whether it is here or anywhere, or not."""
        client = self._client
        to = command.to
        if not names.is_user(to):
            client.error(
                "bad_frame",
                f"`to` must be a user: 1 to {names.MAX_USER_CHARACTERS} printable characters.",
                command.id,
                "direct",
            )
            return
        if not client.rights.direct.match(to):
            client.error("forbidden", "The token gives no right to write to this user.", command.id, "direct")
            return
        since = b""
        if command.since is not None:
            if command.key is None:
                message = "`since` means something only with a `key`."
                client.error("bad_frame", message, command.id, "direct")
                return
            if names.parse_position(command.since) is None:
                client.error("bad_pos", BAD_POS.format("since"), command.id, "direct")
                return
            since = command.since.encode()
        body = b'{"event":%b%b%b}' % (_json(command.event), client.from_json, command.data)
        wait = client.budget.take(len(body), now)
        if wait is not None:
            most = client.around.settings.security.max_bytes_per_second
            client.limited(command, f"A user may publish {most} bytes a second.", wait)
            return
        self._count += 1
        hub, publisher = client.around.hub, client.around.publisher
        known = self._known.get(to, NOWHERE)
        origin = client.name.encode()
        publisher.publish(
            _Sent(
                head=publisher.head(hub.address(names.personal_log(to))),
                tag=new_tag(),
                origin=origin,
                key=b"i:%b:d%d" % (origin, self._count)
                if command.key is None
                else client.key_scope + command.key.encode(),
                body=body,
                owner=self,
                since=since,
                base_seq=known.seq,
                base_tag=known.tag,
                others_may_send_it=command.key is not None,
                id=command.id,
                to=to,
                event=command.event,
            )
        )

    @property
    def abandoned(self) -> bool:
        """Whether the connection is gone."""
        return self._client.closed

    def published(self, publication: Publication, seq: int, tag: bytes, duplicate: bool) -> None:
        """From the publisher."""
        if not isinstance(publication, _Sent):
            return
        if not duplicate:
            self._client.around.metrics.messages_received.add(publication.event)
        if self._client.closed:
            return
        known = self._known.pop(publication.to, NOWHERE)
        while len(self._known) >= MOST_KNOWN:
            del self._known[next(iter(self._known))]
        self._known[publication.to] = Position(seq, tag) if seq > known.seq or not duplicate else known
        if publication.id is not None:
            self._client.send(Ack(id=publication.id, pos=names.format_position(seq, tag)))

    def refused(
        self, publication: Publication, code: RefusalCode, message: str, retry_after: float | None
    ) -> None:
        """From the publisher."""
        if isinstance(publication, _Sent) and not self._client.closed:
            self._client.error(code, message, publication.id, "direct", None, retry_after)

    # The client's own personal log

    def received(self, command: Received) -> None:
        """Note how far it was handled, so that a device without a position goes on there."""
        client = self._client
        if client.guest or client.identity is None:
            client.error("forbidden", NO_PERSONAL_LOG, command.id, "received")
            return
        parsed = names.parse_position(command.pos)
        if parsed is None:
            client.error("bad_pos", BAD_POS.format("pos"), command.id, "received")
            return
        position = Position(*parsed)
        if self._marker is None or position.seq > self._marker.seq:
            self._marker = position
        if not self._noting and self._retry is None:
            self._note()

    def _note(self) -> None:
        """One at a time: what comes meanwhile makes the next one."""
        self._retry = None
        marker, self._marker = self._marker, None
        client = self._client
        if marker is None or client.closed or client.user is None:
            return
        self._noting = True

        def on_noted(asked: bool) -> None:
            self._noting = False
            if client.closed:
                return
            if asked:
                if self._marker is not None:
                    self._note()
                return
            if self._marker is None or marker.seq > self._marker.seq:
                self._marker = marker
            self._retry = client.around.loop.call_later(RETRY_SECONDS, self._note)

        hub = client.around.hub
        hub.reader.note_received(hub.address(names.personal_log(client.user)), marker, on_noted)

    def end(self) -> None:
        """The connection is gone."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
