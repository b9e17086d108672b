"""What an application may send as `data`: anything that every recipient can decode, and nothing else.

msgspec's `Raw` lets bad UTF-8, numbers of any size and any depth through; one such message in a room's log
would break every recipient, again and again.
"""

import json
import math
from typing import Any, Final

import msgspec

MAX_DEPTH: Final = 64
"""Of a whole frame."""

_decoder: Final = msgspec.json.Decoder()
_DIGITS: Final = bytes.maketrans(b"123456789", b"000000000")
_SIXTEEN_DIGITS: Final = b"0" * 16


class DataError(ValueError):
    """`data` that cannot be stored; the message says what is wrong and what would be right."""


def check(data: bytes | msgspec.Raw, depth_allowed: int) -> None:
    """Raises DataError. `data` is one JSON value whose bytes are known to be UTF-8.

    0.9 µs for 128 bytes (`benchmarks/steps.py`), 0.3 where it is a string: one decoding, and two looks that
    settle all but odd cases.
    """
    raw = bytes(data)
    try:
        value = _decoder.decode(raw)
    except RecursionError:
        raise DataError(_too_deep(depth_allowed)) from None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise DataError(_explain(raw)) from None
    if type(value) is str:
        return  # it has neither depth nor numbers
    if raw.count(b"{") + raw.count(b"[") > depth_allowed and _depth(value) > depth_allowed:
        raise DataError(_too_deep(depth_allowed))
    if _SIXTEEN_DIGITS in raw.translate(_DIGITS):
        _check_numbers(raw)


def _too_deep(depth_allowed: int) -> str:
    return f"`data` is nested deeper than {depth_allowed}: a frame may be {MAX_DEPTH} deep in all."


def _depth(value: Any) -> int:
    deepest = 0
    todo = [(value, 1)]
    while todo:
        item, depth = todo.pop()
        if isinstance(item, dict):
            inner = list(item.values())
        elif isinstance(item, list):
            inner = item
        else:
            continue
        deepest = max(deepest, depth)
        todo.extend((entry, depth + 1) for entry in inner)
    return deepest


def _check_numbers(raw: bytes) -> None:
    """Raises DataError for a number that a double does not hold: some recipients would see another one."""
    json.loads(raw, parse_int=_whole, parse_float=_fraction)


def _whole(text: str) -> int:
    # longer than any double; and int() would take quadratic time over it
    if len(text) > 310 or math.isinf(float(text)) or int(float(text)) != int(text):
        raise DataError(
            f"`data` has the number {text[:24]}{'…' if len(text) > 24 else ''}, which a double can't hold: "
            "send it as a string."
        )
    return 0


def _fraction(text: str) -> float:
    if math.isinf(float(text)):
        raise DataError(f"`data` has the number {text[:24]}, which a double can't hold: send it as a string.")
    return 0.0


def _explain(raw: bytes) -> str:
    """Why msgspec did not take it, which says so in words that don't help a client."""
    try:
        json.loads(raw, parse_int=_whole, parse_float=_fraction, parse_constant=_no_constant)
    except DataError as error:
        return str(error)
    except (ValueError, RecursionError):
        return "`data` is not valid JSON."
    return "`data` has half of a surrogate pair (\\ud800 to \\udfff alone): send whole characters."


def _no_constant(name: str) -> float:
    raise DataError(f"`data` has {name}, which is not JSON: send null or a string.")
