"""One room with members on this instance: its position, its members, and what they still have to get."""

from typing import Protocol

from tableforge_dataplane.broker.addresses import RoomAddress
from tableforge_dataplane.broker.entries import Entry, Position
from tableforge_dataplane.rooms.outlet import Encoder, Outlet
from tableforge_dataplane.rooms.ring import Ring

UNKNOWN = -1
"""A room's seq before Redis said where the room stands."""


class Occupant(Protocol):
    """A session as the rooms know it. The hub calls; nothing here calls back into the hub."""

    outlet: Outlet

    def on_joined(
        self, member: "Member", position: Position, *, recovered: bool | None, reason: str | None
    ) -> None:
        """The member is in; what follows `position` comes next. `recovered`: None where nothing was asked."""

    def on_reset(self, member: "Member", position: Position, reason: str) -> None:
        """What follows `position` does not continue what came before."""

    def on_join_failed(self, member: "Member") -> None:
        """Redis did not say in time where the room stands: the member is not in."""

    def on_quiet_copy(self, origin: bytes, entry: Entry) -> None:
        """The place in the room's order of a message that this session published and wants no copy of."""


class Member:
    """One session in one room."""

    __slots__ = ("asked", "checked", "gone", "joined", "occupant", "request", "room", "seq", "since", "tag")

    def __init__(self, *, occupant: Occupant, room: "Room", asked: Position | None, request: object) -> None:
        self.occupant = occupant
        self.room = room
        self.asked = asked
        """Where it wants to go on from; None where it starts with the present."""
        self.request = request
        """The occupant's, to answer by."""
        self.seq = asked.seq if asked is not None else 0
        self.tag = asked.tag if asked is not None else b""
        """While it catches up: the last message it was given."""
        self.joined = False
        self.checked = False
        """Whether the room was compared with its log for this member, which says to be ahead of it."""
        self.gone = False
        self.since = 0.0
        """Loop time at which it began to wait."""


class Room:
    """Bookkeeping only; the hub decides."""

    __slots__ = (
        "address",
        "burst",
        "encoded",
        "groups",
        "kept_at",
        "members",
        "name",
        "opening",
        "pages",
        "publish_head",
        "ring",
        "seen",
        "seq",
        "subscribed",
        "sync_wanted",
        "syncing",
        "tag",
        "waiting",
    )

    def __init__(self, address: RoomAddress, *, publish_head: bytes) -> None:
        self.address = address
        self.name = address.room
        self.publish_head = publish_head
        self.seq = UNKNOWN
        self.tag = b""
        self.ring = Ring()
        self.members: dict[Occupant, Member] = {}
        self.groups: dict[Encoder, dict[Outlet, None]] = {}
        """The outlets of members that get messages as they arrive, by what they are encoded with."""
        self.burst: list[Entry] = []
        """Arrived in this read, not yet given to the groups."""
        self.waiting: list[Member] = []
        """To be looked at once the room is in step with its log."""
        self.encoded: dict[tuple[Encoder, int, bytes], bytes] = {}
        """Parts of `pages` and the ring as they were given to recovering members, by the first seq and the
        last tag, which no other history has."""
        self.pages: dict[int, list[Entry] | list[Member]] = {}
        self.subscribed = False
        self.opening = False
        self.syncing = False
        self.sync_wanted = False
        self.seen = 0
        """The highest seq that arrived and did not fit."""
        self.kept_at = 0.0
        """Loop time at which its keys' lifetimes were last renewed from here."""

    @property
    def known(self) -> bool:
        """Whether its position is known."""
        return self.seq != UNKNOWN

    @property
    def position(self) -> Position:
        """Of the last message given to the members."""
        return Position(self.seq, self.tag)

    def admit(self, member: Member) -> None:
        """From now on the member gets what arrives."""
        outlet = member.occupant.outlet
        self.groups.setdefault(outlet.encoder, {})[outlet] = None

    def dismiss(self, member: Member) -> None:
        """From now on it does not."""
        outlet = member.occupant.outlet
        group = self.groups.get(outlet.encoder)
        if group is not None:
            group.pop(outlet, None)
            if not group:
                del self.groups[outlet.encoder]

    def is_live(self, member: Member) -> bool:
        """Whether the member gets what arrives, as it arrives."""
        outlet = member.occupant.outlet
        return outlet in self.groups.get(outlet.encoder, ())
