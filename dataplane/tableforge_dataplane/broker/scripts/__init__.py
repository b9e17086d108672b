"""Lua scripts, a file each, with their keys, arguments and answers written on top."""

import dataclasses
import hashlib
from importlib import resources
from typing import Final

PUBLISH_VARIANTS: Final = 256
"""Redis keeps every script it was ever given, 13 KB each of this one: so there are not more."""


@dataclasses.dataclass(frozen=True, slots=True)
class Script:
    """A script as Redis knows it."""

    name: str
    text: bytes
    sha: bytes
    """Hexadecimal SHA-1, what EVALSHA wants."""


def _script(name: str, text: bytes) -> Script:
    return Script(name=name, text=text, sha=hashlib.sha1(text, usedforsecurity=False).hexdigest().encode())


def _load(name: str) -> Script:
    return _script(name, resources.files(__name__).joinpath(f"{name}.lua").read_bytes())


def publish_script(variant: int) -> Script:
    """The publish script under a name that other variants don't have.

    Redis may forget its scripts while messages are on their way. Were all instances' scripts one, another
    instance's loading would let the later ones of these messages pass the earlier, already refused ones.
    """
    return _script(PUBLISH.name, PUBLISH.text + b"-- variant %d\n" % (variant % PUBLISH_VARIANTS))


PUBLISH = _load("publish")
JOIN = _load("join")
RECEIVED = _load("received")
PRESENCE = _load("presence")
PRESENCE_BURY = _load("presence_bury")
PRESENCE_READ = _load("presence_read")
