"""Durations and sizes as people write them in a WebSocketCluster."""

import functools
import math
import re
from fractions import Fraction
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


_SUFFIXES: Final = {
    "": 1,
    "m": Fraction(1, 1000),
    **{suffix: 1000**power for power, suffix in enumerate("kMGTPE", start=1)},
    **{f"{suffix}i": 1024**power for power, suffix in enumerate("KMGTPE", start=1)},
}


def quantity_bytes(text: str) -> int:
    """Any quantity that Kubernetes may write for a size, in bytes. Raises ValueError where it is none."""
    return math.ceil(_quantity(text))


def quantity_thousandths(text: str) -> int:
    """Any quantity that Kubernetes may write for CPUs, in thousandths. Raises ValueError where it is none."""
    return math.ceil(1000 * _quantity(text))


def _quantity(text: str) -> Fraction:
    found = re.fullmatch(r"([0-9]*\.?[0-9]+|[0-9]+\.)([eE][-+]?[0-9]{1,2}|[a-zA-Z]{0,2})", text)
    suffix = "" if found is None else found[2]
    if found is None or not (suffix in _SUFFIXES or suffix[1:].lstrip("+-").isdecimal()):
        raise ValueError(f"{text!r} is no quantity")
    factor = _SUFFIXES[suffix] if suffix in _SUFFIXES else Fraction(10) ** int(suffix[1:])
    return Fraction(found[1]) * factor


BINARY_PATTERN: Final = "[1-9][0-9]{0,5}(Mi|Gi)"
"""An amount of memory as Kubernetes writes it, as far as a field of ours takes it."""


def size_bytes(quantity: str) -> int:
    """What `400Mi` or `2Gi` is in bytes. Raises ValueError where it is neither."""
    if not re.fullmatch(BINARY_PATTERN, quantity):
        raise ValueError(f"{quantity!r} is no amount of memory: write it like 400Mi or 2Gi")
    return int(quantity[:-2]) << (30 if quantity.endswith("Gi") else 20)
