"""Origins of web pages as they are written in a setting."""

import re
from typing import Final

ANY: Final = "*"

OPAQUE: Final = "null"
"""The origin of a page that has none: a file, a sandboxed frame."""

_ORIGIN: Final = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://"
    r"(?P<any>\*\.)?(?P<host>[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?"
)


def parse_origins(text: str) -> tuple[str, ...]:
    """What `text` lists, in lower case. Raises ValueError with the one that is none."""
    found: list[str] = []
    for part in text.split(","):
        name = part.strip().lower()
        if not name:
            continue
        if name not in (ANY, OPAQUE) and not _ORIGIN.fullmatch(name):
            raise ValueError(
                f"{part.strip()!r} is no origin: write scheme and host, like https://app.example.com, "
                "https://*.example.com or http://localhost:5173"
            )
        found.append(name)
    return tuple(found)
