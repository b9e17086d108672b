"""How far a plan under way has come: by what the instances' records say since the command."""

import dataclasses
from collections.abc import Mapping
from typing import Final

from tableforge_operator.decide.rebalancing.load import NO_ROOMS, Instance, Load
from tableforge_operator.decide.rebalancing.state import MoveRooms, Moving, Shedding, Work

CALM: Final = 3
"""Records in a row without anybody on the way or leaving after which who is left counts as staying."""


def looked_at(work: Work, load: Load, *, now: float) -> Work:
    """The work with the fates that are known by now."""
    by_name = {one.name: one for one in load.instances}
    rooms = {
        name: dict(zip(held.names, held.members, strict=True))
        for name in {one.move.source for one in work.moves if one.fate == "waiting"}
        for held in (load.rooms.get(name, NO_ROOMS),)
    }
    unheard = {move.room for one in work.unanswered if isinstance(one, MoveRooms) for move in one.moves}
    late = now >= work.deadline
    return dataclasses.replace(
        work,
        moves=tuple(
            _moving(one, by_name, rooms, late=late, heard=one.move.room not in unheard) for one in work.moves
        ),
        sheds=tuple(_shedding(one, by_name, late=late) for one in work.sheds),
    )


def _moving(
    one: Moving,
    by_name: Mapping[str, Instance],
    rooms: Mapping[str, Mapping[str, int]],
    *,
    late: bool,
    heard: bool,
) -> Moving:
    if one.fate == "planned" and late:
        return dataclasses.replace(one, fate="dropped", why="there was no time left for it")
    if one.fate != "waiting":
        return one
    source, target = by_name.get(one.move.source), by_name.get(one.move.target)
    if target is None or not target.takes_part:
        return dataclasses.replace(one, fate="failed", why="the instance it was to go to has gone")
    if source is None or not source.alive:
        # Its clients have no choice but to follow.
        return dataclasses.replace(one, fate="done", left=0)
    if heard and source.updated_at > one.seen_at:
        # Not among the heaviest any more counts as gone: it was one of them.
        left = rooms[source.name].get(one.move.room, 0)
        still = source.following == 0 and left >= one.left
        one = dataclasses.replace(
            one, left=left, seen_at=source.updated_at, calm=one.calm + 1 if still else 0
        )
    if one.left == 0:
        return dataclasses.replace(one, fate="done")
    if one.calm >= CALM or late:
        # Who is left doesn't follow; most have gone, or it was for nothing.
        if 2 * one.left <= one.move.members:
            return dataclasses.replace(one, fate="done")
        why = "its clients didn't follow in time" if late else "its clients don't follow"
        return dataclasses.replace(one, fate="failed", why=why)
    return one


def _shedding(one: Shedding, by_name: Mapping[str, Instance], *, late: bool) -> Shedding:
    if one.fate != "waiting":
        return one
    instance = by_name.get(one.shed.instance)
    if instance is None or not instance.alive or instance.draining:
        return dataclasses.replace(one, fate="failed", why="the instance is leaving, or has gone")
    if one.id in instance.done:
        return dataclasses.replace(one, fate="done")
    if late:
        return dataclasses.replace(one, fate="failed", why="its clients didn't go in time")
    return one
