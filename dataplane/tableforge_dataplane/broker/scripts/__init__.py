"""Lua scripts, a file each, with their keys, arguments and answers written on top."""

import dataclasses
import hashlib
from importlib import resources


@dataclasses.dataclass(frozen=True, slots=True)
class Script:
    """A script as Redis knows it."""

    name: str
    text: bytes
    sha: bytes
    """Hexadecimal SHA-1, what EVALSHA wants."""


def _load(name: str) -> Script:
    text = resources.files(__name__).joinpath(f"{name}.lua").read_bytes()
    return Script(name=name, text=text, sha=hashlib.sha1(text, usedforsecurity=False).hexdigest().encode())


PUBLISH = _load("publish")
JOIN = _load("join")
