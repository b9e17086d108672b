"""The rules for names and positions that clients send."""

import re
from typing import Final
from urllib.parse import quote

MAX_ROOM_CHARACTERS: Final = 128
MAX_EVENT_CHARACTERS: Final = 50
MAX_KEY_CHARACTERS: Final = 128
MAX_ID_CHARACTERS: Final = 64
MAX_USER_CHARACTERS: Final = 128

MAX_HISTORY: Final = 100
"""Messages one `history` asks for."""

PERSONAL: Final = "@"
"""What a client calls its own personal log."""

_ROOM: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
# seq: Lua's numbers are exact to 2^53; tag: 52 bits
_POSITION: Final = re.compile(r"([0-9]{1,15})-([0-9]{1,16})")


def is_room(name: str) -> bool:
    """Whether `name` may name a room."""
    return _ROOM.fullmatch(name) is not None


def personal_log(user: str) -> str:
    """The name of a user's personal log among the rooms; no room that a client can name is called so."""
    return PERSONAL + quote(user, safe="")


def is_user(name: str) -> bool:
    """Whether `name` may be somebody's: what a token's `sub` may be."""
    return 1 <= len(name) <= MAX_USER_CHARACTERS and name.isprintable()


def parse_position(text: str) -> tuple[int, bytes] | None:
    """`<seq>-<tag>` as numbers and bytes; None where it is nothing a server ever sent."""
    found = _POSITION.fullmatch(text)
    if found is None or str(int(found[1])) != found[1]:
        return None
    return int(found[1]), found[2].encode()


def format_position(seq: int, tag: bytes) -> str:
    """The form clients know positions in."""
    return f"{seq}-{tag.decode()}"
