"""`spec.rooms`."""

from typing import Annotated, ClassVar

from tableforge_dataplane.contract import room_options
from tableforge_operator.api.fields import (
    Group,
    Rule,
    bounded,
    field,
    optional_setting,
    written_setting,
)
from tableforge_operator.api.quantities import Duration
from tableforge_operator.api.spec.common import PATTERN


class RoomOptions(Group, frozen=True):
    """What is special about the rooms of a pattern. What is left out is as `rooms` says."""

    pattern: Annotated[str, PATTERN]
    log_max_messages: Annotated[int, bounded("rooms.log_max_messages")] | None = None
    log_max_bytes: Annotated[int, bounded("rooms.log_max_bytes")] | None = None
    log_max_age: Annotated[Duration, bounded("rooms.log_max_age_seconds")] | None = None
    volatile: Annotated[
        bool | None,
        field("Messages are delivered to who is there and never kept; nobody can catch up on them."),
    ] = None
    presence: Annotated[bool | None, field("Whether the room keeps who is in it.")] = None
    join: Annotated[
        room_options.Joiners | None,
        field(
            "Who may join, of those whom a token, or doing without one, allows: `all`, those who are "
            "`authenticated`, or `nobody`."
        ),
    ] = None
    publish: Annotated[
        room_options.Publishers | None,
        field("Who may publish: as `join`, or only the `server` by the server API."),
    ] = None
    see_presence: Annotated[
        room_options.Publishers | None, field("Who may see who is there: as `publish`.")
    ] = None

    rules: ClassVar = (
        Rule(
            "!has(self.volatile) || !self.volatile "
            "|| !(has(self.logMaxMessages) || has(self.logMaxBytes) || has(self.logMaxAge))",
            "a volatile room has no log: remove logMaxMessages, logMaxBytes and logMaxAge, or volatile",
            field_path=".volatile",
        ),
        Rule(
            "!has(self.presence) || self.presence || !has(self.seePresence) || self.seePresence == 'nobody'",
            "there is no presence to see where presence is false: remove seePresence, or presence",
            field_path=".seePresence",
        ),
    )


class Rooms(Group, frozen=True):
    """How far the rooms' logs reach, and what is special about some rooms."""

    log_max_messages: Annotated[int, optional_setting("rooms.log_max_messages")] | None = None
    log_max_bytes: (
        Annotated[
            int,
            optional_setting(
                "rooms.log_max_bytes", "Bytes a room's log keeps, the newest message's included."
            ),
        ]
        | None
    ) = None
    log_max_age: Annotated[Duration, optional_setting("rooms.log_max_age_seconds")] | None = None
    personal_max_messages: Annotated[int, optional_setting("rooms.personal_max_messages")] | None = None
    personal_max_bytes: Annotated[int, optional_setting("rooms.personal_max_bytes")] | None = None
    personal_max_age: Annotated[Duration, optional_setting("rooms.personal_max_age_seconds")] | None = None
    presence: Annotated[bool, optional_setting("rooms.presence")] | None = None
    presence_grace: Annotated[Duration, optional_setting("rooms.presence_grace_seconds")] | None = None
    check_interval: Annotated[Duration, optional_setting("rooms.check_interval_seconds")] | None = None
    options: (
        Annotated[
            list[RoomOptions],
            written_setting(
                "rooms.options",
                "What is special about some rooms. The longest pattern that matches a room decides for it, "
                "alone.",
                schema={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["pattern"]},
                max_length=200,
            ),
        ]
        | None
    ) = None
