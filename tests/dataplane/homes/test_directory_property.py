"""Whatever several instances do to the directory, and in which order: its two halves say the same."""

import asyncio
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tableforge_dataplane.contract.fleet import InstanceOrder, RoomMove
from tests.dataplane.homes.directories import Directories
from tests.support.redis import RedisServer

NAMES = ("a", "b", "c")
ROOMS = tuple(f"room-{number}" for number in range(4))

names = st.sampled_from(NAMES)
rooms = st.sampled_from(ROOMS)
joins = st.tuples(st.just("join"), names, rooms)
moves = st.tuples(st.just("move"), rooms, st.one_of(st.none(), st.none(), names), names)
"""None for the right source."""
steps = st.one_of(
    joins,
    joins,
    joins,
    moves,
    moves,
    st.tuples(st.just("empty"), names, rooms),
    st.tuples(st.just("cordon"), names, st.booleans()),
    st.tuples(st.just("die"), names),
    st.tuples(st.just("live"), names),
    st.tuples(st.just("bury"), names),
    st.tuples(st.just("withdraw"), names),
    st.tuples(st.just("leave"), names, st.booleans()),
    st.tuples(st.just("forget"), names),
)


class Model:
    """What must be so after each step, however the scripts do it."""

    def __init__(self) -> None:
        self.homes: dict[str, str] = {}
        self.alive = set(NAMES)
        self.takes = set(NAMES)
        self.cordoned: set[str] = set()
        self.known = set(NAMES)
        self.leaving: set[str] = set()

    def gone(self, name: str) -> None:
        self.alive.discard(name)
        self.takes.discard(name)
        self.known.discard(name)
        self.leaving.discard(name)
        self.homes = {room: home for room, home in self.homes.items() if home != name}


async def run(directories: Directories, plan: list[tuple[Any, ...]]) -> None:
    await directories.redis.flushall()
    model = Model()
    by_name = {one.name: one for one in await directories(*NAMES)}
    for step in plan:
        before = await directories.homes()
        assert before == model.homes
        match step:
            case ("join", name, room):
                # one that is thought to be dead and isn't changes nothing
                dead = frozenset(NAMES)
                (home,) = await by_name[name].place(room, dead=dead)
                old = before.get(room)
                if old in model.alive and old not in model.leaving:
                    assert home == old, step
                elif model.takes & model.alive:
                    assert home in model.takes & model.alive, step
                else:
                    assert home is None, step
                model.homes.pop(room, None)
                if home is not None:
                    model.homes[room] = home
            case ("empty", name, room):
                await by_name[name].directory.free([room])
                if before.get(room) == name:
                    del model.homes[room]
            case ("move", room, named, target):
                source = named or before.get(room, target)
                (found,) = await by_name["a"].directory.move(
                    1, [RoomMove(room=room, source=source, target=target)]
                )
                if before.get(room) == target:
                    assert found.outcome == "moved"
                elif room not in before:
                    assert found.outcome == "no_such_room"
                elif before[room] != source:
                    assert found.outcome == "elsewhere"
                elif target not in model.takes & model.alive:
                    assert found.outcome == "no_target"
                else:
                    assert found.outcome == "moved"
                    model.homes[room] = target
            case ("cordon", name, cordoned):
                order = InstanceOrder(instance=name, cordoned=cordoned)
                unknown = await by_name["a"].directory.order(1, [order])
                assert unknown == ([] if name in model.known | model.alive else [name]), step
                if not unknown:
                    (model.cordoned.add if cordoned else model.cordoned.discard)(name)
                    if cordoned:
                        model.takes.discard(name)
                if name in model.alive and name not in model.leaving:
                    await by_name[name].stand()
                    if name not in model.cordoned:
                        model.takes.add(name)
            case ("die", name):
                await directories.die(by_name[name])
                model.alive.discard(name)
            case ("live", name):
                await directories.live(by_name[name])
                await by_name[name].stand()
                model.alive.add(name)
                model.known.add(name)
                model.leaving.discard(name)
                if name not in model.cordoned:
                    model.takes.add(name)
            case ("bury", name):
                await directories.bury(name, 2)
                if name not in model.alive:
                    model.gone(name)
                    model.cordoned.discard(name)
            case ("withdraw", name):
                while await directories.link.run_directory("withdraw", name, f"{name}-boot", 2) == 2:
                    pass
                model.gone(name)
            case ("leave", name, whole):
                if name in model.alive:
                    own = [room for room, home in model.homes.items() if home == name]
                    if not whole:
                        own = own[: len(own) // 2]  # it came no further
                    model.takes.discard(name)
                    given = await by_name[name].directory.give_away(own)
                    model.leaving.add(name)
                    for room, home in zip(own, given, strict=True):
                        del model.homes[room]
                        if home is not None:
                            assert home in model.takes & model.alive
                            model.homes[room] = home
                        else:
                            assert not model.takes & model.alive
            case ("forget", name):
                await by_name["a"].directory.forget(1, [name])
                model.gone(name)
                model.cordoned.discard(name)
        homes = await directories.homes()
        assert homes == model.homes, step
        assert await directories.index() == homes, step
    # in the end whoever is dead is buried, and nobody lives there
    for name in set(NAMES) - model.alive:
        await directories.bury(name)
    homes = await directories.homes()
    assert set(homes.values()) <= model.alive
    assert await directories.index() == homes


def test_the_index_is_the_homes_the_other_way_round_and_no_home_is_dead(tmp_path: Path) -> None:
    with asyncio.Runner() as runner:
        server = RedisServer(tmp_path / "redis", appendfsync=None)
        runner.run(server.start())
        directories = Directories(server.environ)

        @settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
        @given(st.lists(steps, min_size=40, max_size=60))
        def holds(plan: list[tuple[Any, ...]]) -> None:
            runner.run(run(directories, plan))

        try:
            holds()
        finally:
            runner.run(directories.close())
            runner.run(server.stop())
