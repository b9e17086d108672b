"""Whatever instances say, whenever, and however commands are answered: what the cycle never does."""

import dataclasses
import datetime as dt

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tableforge_operator.decide.rebalancing import cycle
from tableforge_operator.decide.rebalancing.load import Load
from tableforge_operator.decide.rebalancing.state import (
    MOST_COOLING,
    MoveRooms,
    Settings,
    Sight,
    State,
)
from tests.operator.rebalancing.fleets import loads

WALL = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
MANY_TURNS = 25

outcomes = st.sampled_from(["moved", "moved", "moved", "elsewhere", "no_target", "no_such_room", "nonsense"])
turns = st.fixed_dictionaries(
    {
        "seconds": st.sampled_from([1.0, 15.0, 31.0, 100.0]),
        "load": st.one_of(st.none(), st.just("the same"), loads()),
        "age": st.sampled_from([0.0, 0.0, 0.0, 20.0, 70.0]),
        "redis": st.sampled_from([True, True, True, False]),
        "request": st.sampled_from([None, None, "now", "now-1", "nonsense"]),
        "enabled": st.sampled_from([True, True, True, True, False]),
        "leaving": st.sampled_from(["", "", "", "", "the fleet shrinks"]),
        "answers": st.booleans(),
        "obeys": st.booleans(),
        "outcome": outcomes,
        "mode": st.sampled_from(["kept", "kept", "kept", "kept", "Service", "Gateway"]),
        "restarts": st.sampled_from([False] * 9 + [True]),
    }
)


def written(load: Load, *, at: float, closed: frozenset[str], done: tuple[str, ...]) -> Load:
    """The load as records written then."""
    return dataclasses.replace(
        load,
        as_of=at,
        instances=tuple(
            dataclasses.replace(one, updated_at=at, closed=one.name in closed, done=done)
            for one in load.instances
        ),
    )


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    mode=st.sampled_from(["Service", "Gateway"]),
    first=loads(),
    script=st.lists(turns, min_size=3, max_size=MANY_TURNS),
)
def test_any_story(mode: str, first: Load, script: list[dict[str, object]]) -> None:
    now, load = 1000.0, first
    base = Settings(mode=mode, most_moves=7, reconnects_per_second=5)  # type: ignore[arg-type]
    state: State = cycle.begin(now=now)
    closed: frozenset[str] = frozenset()
    done: tuple[str, ...] = ()
    last_moved: dict[str, float] = {}
    seen: dict[str, object] = {}
    for turn in script:
        now += turn["seconds"]  # type: ignore[operator]
        if turn["mode"] != "kept":
            base = dataclasses.replace(base, mode=turn["mode"])  # type: ignore[arg-type]
        wanted = dataclasses.replace(base, enabled=bool(turn["enabled"]))
        if turn["restarts"]:
            state, last_moved = cycle.begin(now=now, last_request=state.last_request), {}
        if isinstance(turn["load"], Load):
            load = turn["load"]
        sight = Sight(
            load=None
            if turn["load"] is None
            else written(
                load,
                at=now - turn["age"],  # type: ignore[operator]
                closed=closed if turn["obeys"] else frozenset(),
                done=done if turn["obeys"] else (),
            ),
            seen_at=now,
            redis_connected=bool(turn["redis"]),
            leaving=str(turn["leaving"]),
        )
        request = turn["request"]
        before = state
        arguments = {
            "sight": sight,
            "settings": wanted,
            "now": now,
            "wall": WALL + dt.timedelta(seconds=now),
            "request": request,
            "reign": "12345678901234567890",
        }
        found = cycle.step(before, **arguments)  # type: ignore[arg-type]
        assert cycle.step(before, **arguments) == found  # type: ignore[arg-type]
        state, closed = found.state, found.closed
        fresh = before.work is None and state.work is not None
        if fresh:
            assert wanted.enabled
            assert sight.redis_connected
            assert sight.load is not None
            assert len(state.work.parts) <= wanted.most_moves  # type: ignore[union-attr]
            assert state.work.clients <= wanted.most_clients  # type: ignore[union-attr]
            asked = request is not None and found.report.last_request == request
            for one in state.work.moves:  # type: ignore[union-attr]
                if not asked:
                    assert now - last_moved.get(one.move.room, -1e9) >= wanted.cooldown_seconds
            if not asked:
                assert now - state.born_at >= wanted.interval_seconds
        if closed and sight.load is not None:
            assert wanted.enabled
            # The blind wait with what they have; who sees leaves somebody open.
            if found.report.phase == "Rebalancing":
                taking_part = {one.name for one in sight.load.instances if one.takes_part}
                assert taking_part - closed
        asked_now = [one for one in found.commands if isinstance(one, MoveRooms)]
        assert len(asked_now) <= 1
        for one in asked_now:
            clients = sum(move.members for move in one.moves)
            assert len(one.moves) == 1 or clients <= cycle.SLICE_SECONDS * wanted.reconnects_per_second
        if sight.leaving or not wanted.enabled:
            assert not closed
            # What has begun is waited for, and nothing else of it begins.
            assert state.work is None or before.work is not None
            if state.work is not None:
                assert {one.fate for one in state.work.moves} <= {"waiting", "done", "failed", "dropped"}
                assert any(one.fate == "waiting" for one in state.work.moves)
                assert not state.work.sheds
            assert not asked_now
        # A command is the same until it is answered, and ids are as the contract wants them.
        for command in found.commands:
            assert 1 <= len(command.id) <= 64
            assert seen.setdefault(command.id, command) == command
            if turn["answers"]:
                results = (
                    {move.room: str(turn["outcome"]) for move in command.moves}
                    if isinstance(command, MoveRooms)
                    else {}
                )
                state = cycle.answered(state, command.id, results)
                done = (*done, command.id)[-100:]
        if before.work is not None and state.work is not before.work:
            for one in before.work.moves:
                if state.work is None or state.work.id != before.work.id:
                    last_moved[one.move.room] = now
        assert len(state.cooling) <= MOST_COOLING
        assert found.again_in_seconds > 0
        report = found.report
        assert report.message
        assert report.moves_done + report.moves_failed <= report.moves_planned
        assert (report.spread is None) == (sight.load is None)
        assert report.spread is None or report.spread >= 0
