"""`Settings.rooms`."""

import dataclasses

from tableforge_dataplane.contract.settings.declaration import Unit, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoomSettings:
    """How far each room's log reaches."""

    log_max_messages: int = setting(
        1000,
        "TABLEFORGE_ROOMS_LOG_MAX_MESSAGES",
        "Messages a room's log keeps.",
        minimum=32,
        maximum=1_000_000,
        live=True,
    )
    log_max_bytes: int = setting(
        1_048_576,
        "TABLEFORGE_ROOMS_LOG_MAX_BYTES",
        "Bytes a room's log keeps.",
        unit=Unit.BYTES,
        minimum=16_384,
        maximum=268_435_456,
        live=True,
    )
    log_max_age_seconds: float = setting(
        3600.0,
        "TABLEFORGE_ROOMS_LOG_MAX_AGE",
        "How long a room's log keeps a message; an idle room's keys expire after it.",
        unit=Unit.MILLISECONDS,
        minimum=1000,
        maximum=604_800_000,
        live=True,
    )
    personal_max_messages: int = setting(
        1000,
        "TABLEFORGE_ROOMS_PERSONAL_MAX_MESSAGES",
        "Direct messages a user's personal log keeps.",
        minimum=32,
        maximum=1_000_000,
        live=True,
    )
    personal_max_bytes: int = setting(
        1_048_576,
        "TABLEFORGE_ROOMS_PERSONAL_MAX_BYTES",
        "Bytes a user's personal log keeps.",
        unit=Unit.BYTES,
        minimum=16_384,
        maximum=268_435_456,
        live=True,
    )
    personal_max_age_seconds: float = setting(
        86_400.0,
        "TABLEFORGE_ROOMS_PERSONAL_MAX_AGE",
        "How long a user's personal log keeps a direct message, and `received` after the last one.",
        unit=Unit.MILLISECONDS,
        minimum=1000,
        maximum=2_592_000_000,
        live=True,
    )
    options: str = setting(
        "",
        "TABLEFORGE_ROOMS_OPTIONS",
        "What is special about some rooms: a JSON list of objects with `pattern`, `logMaxMessages`, "
        "`logMaxBytes`, `logMaxAge`, `volatile`, `presence`, `join`, `publish` and `seePresence`.",
        pattern=r"(?s).{0,262144}",
        examples=('[{"pattern":"cursor:**","volatile":true}]', '[{"pattern":"news","publish":"server"}]'),
        live=True,
    )
    options_file: str = setting(
        "",
        "TABLEFORGE_ROOMS_OPTIONS_FILE",
        "A file that holds what TABLEFORGE_ROOMS_OPTIONS would; it is read again when it changes.",
        pattern=r".{1,4096}",
        examples=("/dev/null",),
    )
    presence: bool = setting(
        True,
        "TABLEFORGE_ROOMS_PRESENCE",
        "Whether rooms keep who is in them, where their options don't say otherwise: a write to Redis for a "
        "room whose users changed, ten times a second at most.",
        live=True,
    )
    presence_grace_seconds: float = setting(
        3.0,
        "TABLEFORGE_ROOMS_PRESENCE_GRACE",
        "How long a user whose last connection broke still counts as present: who is back by then has "
        "neither left nor joined.",
        unit=Unit.MILLISECONDS,
        minimum=0,
        maximum=600_000,
        live=True,
    )
    check_interval_seconds: float = setting(
        10.0,
        "TABLEFORGE_ROOMS_CHECK_INTERVAL",
        "How often rooms with members are compared with their logs, so that a lost notification only delays.",
        unit=Unit.MILLISECONDS,
        minimum=100,
        maximum=600_000,
        live=True,
    )
