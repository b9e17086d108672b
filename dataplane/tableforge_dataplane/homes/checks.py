"""What a command to the fleet may say: bounds, and for who breaks one the sentence that names it."""

import math
import re
from typing import Final

from tableforge_dataplane.contract.fleet import (
    MOST_MOVES,
    FleetCommand,
    Forget,
    InstanceOrder,
    Move,
    RoomMove,
    Shed,
)
from tableforge_dataplane.contract.settings import specs
from tableforge_dataplane.protocol import names

MOST_ID_CHARACTERS: Final = 64

LATEST_FENCE: Final = 9_000_000_000_000_000
"""What Redis's scripts can count to without an error."""

MOST_SHED: Final = 1_000_000

HEAVIEST: Final = 1_000_000.0

_ADDRESS: Final = re.compile(specs()["routing.address"][0].pattern or "")
_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,253}")


def is_address(text: str) -> bool:
    """Whether clients can be sent there: a path on the host they use, or a whole URL."""
    return text != "" and _ADDRESS.fullmatch(text) is not None


def is_instance(text: str) -> bool:
    """Whether an instance may be called so."""
    return _NAME.fullmatch(text) is not None


def problem(command: FleetCommand) -> str | None:
    """What is wrong with it, and what would be right, in one sentence that names the field; None: nothing."""
    if not 1 <= len(command.id) <= MOST_ID_CHARACTERS:
        return f"`id` must have 1 to {MOST_ID_CHARACTERS} characters."
    if not 0 <= command.fence <= LATEST_FENCE:
        return f"`fence` must be from 0 to {LATEST_FENCE}."
    if isinstance(command, Shed):
        return shed_problem(command)
    if isinstance(command, Move):
        return _problem_among("moves", [_move_problem(move) for move in command.moves])
    if isinstance(command, Forget):
        return _problem_among("instances", [_name_problem(name) for name in command.instances])
    named = [order.instance for order in command.instances]
    if len(set(named)) < len(named):
        return "`instances` must name each instance once."
    return _problem_among("instances", [order_problem(order) for order in command.instances])


def order_problem(order: InstanceOrder) -> str | None:
    """What is wrong with an order; the sentence names the field of it."""
    if (wrong := _name_problem(order.instance, "instance")) is not None:
        return wrong
    if order.weight is not None and not (math.isfinite(order.weight) and 0 < order.weight <= HEAVIEST):
        return f"`weight` must be above 0 and at most {HEAVIEST:.0f}."
    if order.address is not None and not is_address(order.address):
        return "`address` must be a path such as /i/tables-1/ws, or a whole URL such as wss://host/ws."
    return None


def shed_problem(order: Shed) -> str | None:
    """What is wrong with an order to shed; the sentence names the field of it."""
    if (wrong := _name_problem(order.instance, "instance")) is not None:
        return wrong
    if not 0 <= order.connections <= MOST_SHED:
        return f"`connections` must be from 0 to {MOST_SHED}."
    return None


def _move_problem(move: RoomMove) -> str | None:
    if not names.is_room(move.room):
        return "`room` must be 1 to 128 characters of A-Z a-z 0-9 . _ - :"
    return _name_problem(move.source, "source") or _name_problem(move.target, "target")


def _name_problem(name: str, field: str = "") -> str | None:
    if is_instance(name):
        return None
    what = f"`{field}`" if field else "it"
    return f"{what} must be the name of an instance, 1 to 253 characters of A-Z a-z 0-9 . _ -"


def _problem_among(field: str, problems: list[str | None]) -> str | None:
    """Of a list that `field` holds: the first problem, or that it has too many entries or none."""
    if not 1 <= len(problems) <= MOST_MOVES:
        return f"`{field}` has {len(problems)} entries: 1 to {MOST_MOVES} are taken."
    for number, problem_there in enumerate(problems):
        if problem_there is not None:
            return f"`{field}[{number}]`: {problem_there}"
    return None
