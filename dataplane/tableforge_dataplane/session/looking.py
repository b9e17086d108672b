"""What a client may see of a room without being told: who is there."""

from typing import Final

from tableforge_dataplane.broker.presence import RoomPresence
from tableforge_dataplane.protocol import names
from tableforge_dataplane.protocol.commands import CommandId, Presence
from tableforge_dataplane.protocol.events import Presence as PresenceEvent
from tableforge_dataplane.protocol.events import PresentUser
from tableforge_dataplane.session.client import BAD_ROOM, Client

PRESENT_BYTES: Final = 48
"""About what one user takes in an answer, beside the name."""


def sees_presence(client: Client, room: str, identifier: CommandId, command: str) -> bool:
    """Whether the client may see who is in the room; where not, it was told why."""
    if not client.rights.may_see_presence(room):
        client.error(
            "forbidden", "The token gives no right to see who is in this room.", identifier, command, room
        )
        return False
    if not client.around.presence.shown(room, guest=client.guest):
        client.error("forbidden", "Who is in this room is kept from you.", identifier, command, room)
        return False
    return True


def presence(client: Client, command: Presence) -> None:
    """Tell who is in the room, which the client need not have joined."""
    room = command.room
    if not names.is_room(room):
        client.error("bad_room", BAD_ROOM, command.id, "presence", room[:128])
        return
    if not sees_presence(client, room, command.id, "presence"):
        return
    wait = client.budget.debt_seconds(client.around.clock())
    if wait > 0:
        most = client.around.settings.security.max_bytes_per_second
        client.limited(command, f"A user may publish and read {most} bytes a second.", wait)
        return

    def on_presence(found: RoomPresence | None) -> None:
        if client.closed:
            return
        if found is None:
            client.error(
                "unavailable",
                "Redis does not answer, so nobody can say who is there: ask again later.",
                command.id,
                "presence",
                room,
                2.0,
            )
            return
        # a short question with a long answer: what is read counts, as it does for `history`
        size = sum(len(present.user) + PRESENT_BYTES for present in found.members)
        client.budget.owe(size, client.around.clock())
        client.send(presence_event(room, found, command.id))

    client.around.presence.ask(room, on_presence)


def presence_event(room: str, found: RoomPresence, identifier: CommandId = None) -> PresenceEvent:
    """The answer, for a client or for an application's own backend."""
    return PresenceEvent(
        id=identifier,
        room=room,
        members=[
            PresentUser(user=present.user, since=present.since, sockets=present.sockets)
            for present in found.members
        ],
        count=found.count,
        rev=found.rev,
    )
