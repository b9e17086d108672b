"""One room with members on this instance: its position, its members, and what they still have to get."""

from typing import Final, Protocol

from tableforge_dataplane.broker.addresses import RoomAddress
from tableforge_dataplane.broker.entries import Entry, Position
from tableforge_dataplane.contract.room_options import RoomOptions
from tableforge_dataplane.protocol.names import PERSONAL
from tableforge_dataplane.rooms.outlet import Encoder, Outlet
from tableforge_dataplane.rooms.ring import Ring

NOWHERE: Final = Position(0, b"0")
"""The position of a room without a log. (It has no tag itself, so that no message follows it.)"""

UNKNOWN = -1
"""A room's seq before Redis said where the room stands."""

TAKEN_BACK_KEPT: Final = 256
"""So many messages that a failover took back are remembered, by their positions."""


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

    def on_options(self, member: "Member") -> None:
        """The room's options are others now: see `Room.options`."""

    def on_quiet_copy(self, origin: bytes, entry: Entry) -> None:
        """The place in the room's order of a message that this session published and wants no copy of."""


class Member:
    """One session in one room."""

    __slots__ = (
        "asked",
        "beginning",
        "checked",
        "gone",
        "joined",
        "occupant",
        "present",
        "request",
        "room",
        "seq",
        "since",
        "tag",
        "writable",
    )

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
        self.beginning: Position | None = None
        """Of a personal log, where it goes on from instead of the present if `asked` can't be."""
        self.writable = False
        """Whether the occupant may publish here; its own to decide, once it is in."""
        self.joined = False
        self.present = False
        """Whether it counts in the room's presence; the occupant's own to know."""
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
        "closed",
        "encoded",
        "groups",
        "kept_at",
        "members",
        "name",
        "opening",
        "options",
        "pages",
        "publish_head",
        "ring",
        "seen",
        "seq",
        "shown",
        "subscribed",
        "sync_wanted",
        "syncing",
        "tag",
        "taken_back",
        "waiting",
    )

    def __init__(self, address: RoomAddress, *, publish_head: bytes, options: RoomOptions) -> None:
        self.address = address
        self.name = address.room
        self.shown = PERSONAL if self.name[0] == PERSONAL else self.name
        """What its members call it."""
        self.options = options
        self.publish_head = publish_head
        self.seq = UNKNOWN
        self.tag = b""
        self.ring = Ring()
        self.taken_back: dict[Position, Position] = {}
        """Messages that were delivered here and are in the log no more, and after which one the log went
        another way."""
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
        """How far the log has to be read: the highest seq that arrived and did not fit."""
        self.closed = False
        """Whether the last member has left: what comes for it is for nobody."""
        self.kept_at = 0.0
        """Loop time at which its keys' lifetimes were last renewed from here."""

    @property
    def known(self) -> bool:
        """Whether its position is known."""
        return self.seq != UNKNOWN

    @property
    def personal(self) -> bool:
        """Whether it is a user's personal log."""
        return self.name[0] == PERSONAL

    @property
    def position(self) -> Position:
        """Of the last message given to the members."""
        return NOWHERE if self.options.volatile else Position(self.seq, self.tag)

    def take_back(self, position: Position, *, shared: bool) -> None:
        """The log goes on after `position`, and not as it was delivered. `shared`: up to there it does."""
        taken_back: dict[Position, Position] = {}
        if shared:
            for earlier, parting in self.taken_back.items():
                taken_back[earlier] = min(parting, position, key=_seq)
            for entry in self.ring.after(position.seq) or ():
                taken_back[Position(entry.seq, entry.tag)] = position
            for earlier in list(taken_back)[:-TAKEN_BACK_KEPT]:
                del taken_back[earlier]
        self.taken_back = taken_back
        self.ring.cut(position)
        self.seq, self.tag = position.seq, position.tag

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


def _seq(position: Position) -> int:
    return position.seq
