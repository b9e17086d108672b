"""Durations and sizes as people write them in a WebSocketCluster."""

import functools
import re
from typing import Final, Self

DURATION_PATTERN: Final = "([0-9]{1,6}(ms|s|m|h)){1,2}"
DURATION_MAX_LENGTH: Final = 16

_UNITS: Final = {"h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}


@functools.total_ordering
class Duration:
    """A span of time in whole milliseconds, written `500ms`, `30s`, `2m` or `1h30m`."""

    # No dataclass: msgspec would take it for an object with fields instead of asking our decoder.
    __slots__ = ("milliseconds",)

    def __init__(self, milliseconds: int) -> None:
        self.milliseconds: Final = milliseconds

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ValueError where `text` is no duration."""
        if not re.fullmatch(DURATION_PATTERN, text):
            raise ValueError(f"{text!r} is no duration: write it like 500ms, 30s, 2m or 1h30m")
        return cls(sum(int(n) * _UNITS[unit] for n, unit in re.findall("([0-9]+)(ms|s|m|h)", text)))

    @classmethod
    def of_seconds(cls, seconds: float) -> Self:
        return cls(round(seconds * 1000))

    @property
    def seconds(self) -> float:
        return self.milliseconds / 1000

    @property
    def whole_seconds(self) -> int:
        """Rounded up, for fields of Kubernetes that take whole seconds."""
        return -(-self.milliseconds // 1000)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Duration) and self.milliseconds == other.milliseconds

    def __lt__(self, other: "Duration") -> bool:
        return self.milliseconds < other.milliseconds

    def __hash__(self) -> int:
        return hash(self.milliseconds)

    def __repr__(self) -> str:
        return f"Duration.parse('{self}')"

    def __str__(self) -> str:
        for unit, size in _UNITS.items():
            if self.milliseconds % size == 0 and self.milliseconds >= size:
                return f"{self.milliseconds // size}{unit}"
        return f"{self.milliseconds}ms"


MEMORY_PATTERN: Final = "[1-9][0-9]{0,5}(mb|gb)"
"""Redis's own notation for `maxmemory`: 1mb is 1024 × 1024 bytes."""


def mebibytes(memory: str) -> int:
    """What `256mb` or `2gb` is in MiB. Raises ValueError where it is neither."""
    if not re.fullmatch(MEMORY_PATTERN, memory):
        raise ValueError(f"{memory!r} is no amount of memory: write it like 256mb or 2gb")
    return int(memory[:-2]) * (1024 if memory.endswith("gb") else 1)
