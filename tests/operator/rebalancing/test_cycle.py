"""When a plan is made, what becomes of it, and what is said: turn by turn, without a fleet."""

import dataclasses
import datetime as dt
import itertools
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest

from tableforge_dataplane.contract.fleet import Fleet, InstanceRecord, RedisState, RoomLoad, Totals
from tableforge_operator.decide.rebalancing import cycle
from tableforge_operator.decide.rebalancing.load import Load, load_of
from tableforge_operator.decide.rebalancing.state import (
    Command,
    MoveRooms,
    Settings,
    ShedClients,
    Sight,
    State,
    Turn,
)
from tests.operator.rebalancing.fleets import fleet

WALL = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
GATEWAY = Settings(mode="Gateway")
SERVICE = Settings(mode="Service")
SLICED: Mapping[str, Sequence[int]] = {"a": [40] * 10, "b": [], "c": []}
LEAVING = "the fleet shrinks"
UNEVEN: Mapping[str, Sequence[int]] = {"a": [100, 80, 60, 40, 20], "b": [50], "c": [50]}


class Driver:
    """The cycle with a fleet that does nothing by itself: each test says what the records say."""

    def __init__(self, rooms: Mapping[str, Sequence[int]], settings: Settings = GATEWAY) -> None:
        self.settings = settings
        self.now = 1000.0
        self.state: State = cycle.begin(now=self.now)
        self.rooms = {
            name: {f"{name}-room-{index}": count for index, count in enumerate(members)}
            for name, members in rooms.items()
        }
        self.changes: dict[str, dict[str, Any]] = {name: {} for name in rooms}
        self.news: list[str] = []
        self.request: str | None = None
        self.redis_connected = True
        self.leaving = ""

    def load(self, *, age: float = 0.0) -> Load:
        """Every record as it would be written now."""
        made = fleet({name: list(rooms.values()) for name, rooms in self.rooms.items()})
        return Load(
            instances=tuple(
                dataclasses.replace(one, updated_at=self.now - age, **self.changes[one.name])
                for one in made.instances
            ),
            rooms={
                name: dataclasses.replace(held, names=list(self.rooms[name]))
                for name, held in made.rooms.items()
            },
            as_of=self.now,
        )

    def turn(self, seconds: float = 30.0, *, load: Load | None = None, age: float = 0.0, **more: Any) -> Turn:
        """One turn so much later, with records written anew (`age` seconds ago)."""
        self.now += seconds
        sight = Sight(
            load=load or self.load(age=age),
            seen_at=self.now,
            redis_connected=self.redis_connected,
            leaving=self.leaving,
        )
        turn = cycle.step(
            self.state,
            **{
                "sight": sight,
                "settings": self.settings,
                "now": self.now,
                "wall": WALL + dt.timedelta(seconds=self.now),
                "request": self.request,
                "reign": "7",
                **more,
            },
        )
        self.state = turn.state
        self.news += [one.reason for one in turn.news]
        return turn

    def until_planned(self) -> Turn:
        """Turns until there is a plan under way."""
        for _ in range(60):
            turn = self.turn()
            if turn.state.work is not None:
                return turn
        raise AssertionError("nothing was planned")

    def answer(self, *commands: Command, outcomes: Mapping[str, str] | None = None) -> None:
        for command in commands:
            self.state = cycle.answered(self.state, command.id, outcomes)

    def follow(self, *commands: Command) -> None:
        """The moves are taken and their members arrive."""
        for command in commands:
            assert isinstance(command, MoveRooms)
            for move in command.moves:
                members = self.rooms[move.source].pop(move.room)
                self.rooms[move.target][move.room] = members
            self.answer(command)


def test_load_must_be_uneven_twice_and_an_interval_have_passed() -> None:
    driver = Driver(UNEVEN)
    assert driver.turn(1).report.reason == "Measuring"
    # The same records once more are no second reading, however much later.
    same = driver.load()
    driver.turn(40, load=dataclasses.replace(same, as_of=driver.now))
    turn = driver.turn(40, load=dataclasses.replace(same, as_of=driver.now))
    assert (turn.state.work, turn.report.reason) == (None, "Measuring")
    turn = driver.turn(30)
    assert turn.state.work is not None
    assert turn.report.phase == "Rebalancing"
    assert driver.news == ["RebalanceStarted"]


def test_nothing_is_planned_in_the_first_interval() -> None:
    driver = Driver(UNEVEN)
    for _ in range(5):
        turn = driver.turn(11.9)
        assert turn.state.work is None
    assert turn.report.reason == "AboveThreshold"
    assert turn.report.balanced == "False"
    assert driver.turn(1).state.work is not None


def test_a_plan_is_sent_until_it_is_answered_and_done_when_the_clients_have_arrived() -> None:
    driver = Driver(UNEVEN)
    turn = driver.until_planned()
    (command,) = turn.commands
    assert isinstance(command, MoveRooms)
    assert {move.source for move in command.moves} == {"a"}
    # Nobody answered: it is the same command again.
    assert driver.turn(5).commands == (command,)
    driver.answer(command)
    turn = driver.turn(5)
    assert (turn.commands, turn.report.moves_done) == ((), 0)
    driver.follow(command)
    turn = driver.turn(30)
    assert turn.state.work is None
    assert turn.report.moves_done == turn.report.moves_planned == len(command.moves)
    assert turn.report.spread < turn.report.spread_before
    assert driver.news == ["RebalanceStarted", "RebalanceFinished"]
    for _ in range(3):
        turn = driver.turn(60)
    assert (turn.report.phase, turn.report.balanced, turn.report.reason) == (
        "Idle",
        "True",
        "WithinThreshold",
    )
    assert turn.report.last_plan_at is not None


def test_right_after_a_plan_of_use_load_is_not_said_to_be_above_the_threshold() -> None:
    driver = Driver(UNEVEN)
    driver.follow(*driver.until_planned().commands)
    turn = driver.turn(30)
    assert turn.state.work is None
    assert turn.report.spread is not None
    assert turn.report.spread <= driver.settings.threshold
    assert (turn.report.phase, turn.report.balanced, turn.report.reason) == ("Idle", "False", "Measuring")
    assert driver.turn(30).report.reason == "WithinThreshold"


def test_a_room_that_was_moved_stays_for_the_cooldown() -> None:
    driver = Driver({"a": [100, 100], "b": []})
    driver.follow(*driver.until_planned().commands)
    driver.turn()
    finished = driver.now
    # Now it shares an instance with one that is too busy, and would have to go.
    (moved,) = driver.rooms["b"]
    driver.rooms["b"] = {moved: 100, "busy": 150}
    driver.rooms["a"] = {}
    while driver.now < finished + driver.settings.cooldown_seconds - 30:
        assert driver.turn(30).state.work is None
    work = driver.until_planned().state.work
    assert work is not None
    assert [one.move.room for one in work.moves] == [moved]


def test_clients_that_do_not_follow_fail_the_move() -> None:
    driver = Driver(UNEVEN)
    driver.answer(*driver.until_planned().commands)
    for _ in range(3):
        turn = driver.turn(30)
    assert turn.state.work is None
    assert turn.report.moves_failed == turn.report.moves_planned > 0
    assert turn.report.reason == "ClientsStay"
    assert any("its clients don't follow" in one.message for one in turn.news)


def test_clients_that_are_on_the_way_are_waited_for() -> None:
    driver = Driver(UNEVEN)
    driver.answer(*driver.until_planned().commands)
    driver.changes["a"]["following"] = 5
    for _ in range(4):
        assert driver.turn(30).state.work is not None


def test_most_members_of_a_room_are_enough() -> None:
    driver = Driver({"a": [100, 100], "b": []})
    (command,) = driver.until_planned().commands
    assert isinstance(command, MoveRooms)
    driver.answer(command)
    (move,) = command.moves
    driver.rooms["a"][move.room], driver.rooms["b"][move.room] = 40, 60
    for _ in range(4):
        turn = driver.turn(30)
    assert (turn.state.work, turn.report.moves_done, turn.report.moves_failed) == (None, 1, 0)


def test_plans_that_come_to_nothing_double_the_time_to_the_next() -> None:
    driver = Driver(UNEVEN)
    planned = []
    for number in range(4):
        driver.answer(*driver.until_planned().commands)
        planned.append(driver.now)
        while driver.state.work is not None:
            driver.turn(30)
        # Other rooms, or the cooldown alone would hold them.
        driver.rooms["a"] = {f"again-{number}-{room}": count for room, count in driver.rooms["a"].items()}
    waits = [later - earlier for earlier, later in itertools.pairwise(planned)]
    assert [120 <= waits[0] < 240, 240 <= waits[1] < 480, 480 <= waits[2] < 960] == [True] * 3


def fruitless() -> Driver:
    """A driver after plans that came to nothing, the last one just now."""
    driver = Driver(UNEVEN)
    driver.turn(1)
    driver.state = dataclasses.replace(driver.state, fruitless=5, planned_at=driver.now)
    for _ in range(4):
        assert driver.turn(30).state.work is None
    return driver


def test_for_an_instance_that_is_new_the_next_plan_need_not_be_waited_for() -> None:
    driver = fruitless()
    driver.rooms["new"], driver.changes["new"] = {}, {}
    joined = driver.now
    driver.until_planned()
    assert driver.now - joined <= driver.settings.interval_seconds


def test_an_instance_that_comes_while_a_plan_comes_to_nothing_is_new_after_it() -> None:
    driver = Driver(UNEVEN)
    driver.answer(*driver.until_planned().commands)
    driver.rooms["new"], driver.changes["new"] = {}, {}
    while driver.state.work is not None:
        driver.turn(30)
    assert (driver.news[-1], driver.state.fruitless) == ("RebalanceFinished", 0)


@pytest.mark.parametrize("change", [{"alive": False}, {"accepting": False}])
def test_an_instance_that_comes_back_is_not_new(change: dict[str, bool]) -> None:
    driver = fruitless()
    driver.changes["b"].update(change)
    driver.turn(30)
    driver.changes["b"].clear()
    driver.turn(30)
    assert driver.state.fruitless == 5


def test_who_switches_it_off_and_on_need_not_wait_for_the_next_plan() -> None:
    driver = fruitless()
    driver.settings = dataclasses.replace(driver.settings, enabled=False)
    driver.turn(1)
    driver.settings = dataclasses.replace(driver.settings, enabled=True)
    switched = driver.now
    driver.until_planned()
    assert driver.now - switched <= driver.settings.interval_seconds


def test_moves_that_the_fleet_refuses_have_failed() -> None:
    driver = Driver(UNEVEN)
    (command,) = driver.until_planned().commands
    assert isinstance(command, MoveRooms)
    driver.answer(command, outcomes={move.room: "elsewhere" for move in command.moves})
    turn = driver.turn(5)
    assert turn.state.work is None
    assert turn.report.moves_failed == len(command.moves)
    assert any("its home is another instance by now" in one.message for one in turn.news)


def test_a_move_to_an_instance_that_has_gone_has_failed() -> None:
    driver = Driver({"a": [100, 80, 60, 40, 20], "b": [30]})
    driver.answer(*driver.until_planned().commands)
    driver.changes["b"]["alive"] = False
    turn = driver.turn(5)
    assert turn.report.moves_failed > 0
    assert (turn.state.work, turn.report.reason) == (None, "OneInstance")


def test_a_plan_nobody_answers_ends_at_its_deadline() -> None:
    driver = Driver(UNEVEN)
    turn = driver.until_planned()
    deadline = turn.state.work.deadline if turn.state.work is not None else 0.0
    while turn.state.work is not None:
        turn = driver.turn(30)
        assert driver.now <= deadline + 30
    assert turn.report.moves_failed == turn.report.moves_planned


def test_sheds_wait_until_the_others_are_closed() -> None:
    driver = Driver(UNEVEN, SERVICE)
    turn = driver.until_planned()
    assert turn.closed == {"a"}
    assert turn.commands == ()
    driver.changes["a"]["closed"] = True
    turn = driver.turn(5)
    (command,) = turn.commands
    assert isinstance(command, ShedClients)
    assert (command.instance, turn.closed) == ("a", frozenset({"a"}))
    assert len(command.id) <= 64
    driver.answer(command)
    assert driver.turn(5).commands == ()
    driver.rooms = {"a": {"r": 150}, "b": {"r": 125}, "c": {"r": 125}}
    driver.changes["a"]["done"] = (command.id,)
    turn = driver.turn(30)
    assert (turn.closed, turn.report.moves_done, turn.report.moves_failed) == (frozenset(), 1, 0)


def test_nobody_sheds_where_the_others_are_not_closed_in_time() -> None:
    driver = Driver(UNEVEN, SERVICE)
    driver.until_planned()
    for _ in range(4):
        turn = driver.turn(30)
        assert turn.commands == ()
    assert (turn.closed, turn.report.moves_failed) == (frozenset(), 1)


@pytest.mark.parametrize("change", [{"alive": False}, {"draining": True}, {"accepting": False}])
def test_cordons_are_taken_back_when_nobody_else_is_open(change: dict[str, bool]) -> None:
    driver = Driver({"a": [400], "b": [300], "c": [50], "d": [50]}, SERVICE)
    turn = driver.until_planned()
    for name in turn.closed:
        driver.changes[name]["closed"] = True
    turn = driver.turn(5)
    driver.answer(*turn.commands)
    for name in {"a", "b", "c", "d"} - turn.closed:
        driver.changes[name].update(change)
    stopped = driver.turn(5)
    assert stopped.closed == frozenset()
    assert {one.connections for one in stopped.commands if isinstance(one, ShedClients)} == {0}
    assert {one.instance for one in stopped.commands if isinstance(one, ShedClients)} == {
        one.instance for one in turn.commands if isinstance(one, ShedClients)
    }


def test_switched_off_it_stops_in_the_middle() -> None:
    driver = Driver(UNEVEN, SERVICE)
    driver.until_planned()
    driver.changes["a"]["closed"] = True
    driver.answer(*driver.turn(5).commands)
    driver.settings = dataclasses.replace(SERVICE, enabled=False)
    turn = driver.turn(5)
    assert (turn.report.phase, turn.report.reason, turn.closed) == ("Stopped", "Disabled", frozenset())
    (stop,) = turn.commands
    assert isinstance(stop, ShedClients)
    assert stop.connections == 0
    assert driver.news == ["RebalanceStarted", "RebalanceStopped", "RebalanceFinished"]
    # Until it is answered, and not for ever.
    assert driver.turn(5).commands == (stop,)
    driver.answer(stop)
    assert driver.turn(5).commands == ()
    for _ in range(20):
        assert driver.turn(30).state.work is None


def sliced(rooms: Mapping[str, Sequence[int]] = SLICED) -> tuple[Driver, MoveRooms]:
    """A driver with a plan of more than may begin at once, and what has."""
    driver = Driver(rooms, dataclasses.replace(GATEWAY, reconnects_per_second=20))
    (command,) = driver.until_planned().commands
    assert isinstance(command, MoveRooms)
    return driver, command


def fates(driver: Driver) -> Mapping[str, int]:
    assert driver.state.work is not None
    return Counter(one.fate for one in driver.state.work.moves)


def test_moves_begin_at_the_pace_of_the_budget() -> None:
    driver, first = sliced()
    # Two rooms of 40 are what is nearest to five seconds of 20 clients.
    assert [move.members for move in first.moves] == [40, 40]
    assert fates(driver) == {"waiting": 2, "planned": 4}
    # What nobody has taken is sent again, and nothing beside it.
    assert driver.turn(100).commands == (first,)
    driver.answer(first)
    turn = driver.turn(1)
    assert turn.commands == ()
    assert turn.again_in_seconds == 3.0, "80 clients at 20 a second, of which one has passed"
    (second,) = driver.turn(3).commands
    assert isinstance(second, MoveRooms)
    assert {move.room for move in second.moves}.isdisjoint(move.room for move in first.moves)
    # What is done early makes way for the next ones at once.
    driver.follow(first, second)
    (third,) = driver.turn(1).commands
    assert len({first.id, second.id, third.id}) == 3
    driver.follow(third)
    turn = driver.turn(30)
    assert (turn.state.work, turn.report.moves_done) == (None, 6)


def test_a_room_of_more_than_a_slice_begins_alone() -> None:
    driver, first = sliced({"a": [110, 110, 110], "b": [], "c": []})
    assert [move.members for move in first.moves] == [110]
    driver.answer(first)
    assert driver.turn(5).commands == ()
    assert len(driver.turn(1).commands) == 1


def test_switched_off_nothing_more_of_a_plan_begins_and_what_has_goes_on() -> None:
    driver, first = sliced()
    driver.answer(first)
    driver.settings = dataclasses.replace(driver.settings, enabled=False)
    for seconds in (1, 5, 20, 60):
        turn = driver.turn(seconds)
        assert turn.commands == ()
        if seconds == 1:
            (stopped,) = turn.news
            assert stopped.reason == "RebalanceStopped"
            assert stopped.message == (
                "clustering.enableLoadRebalancing is false: nothing more is begun. "
                "Of 6 rooms 0 moved, 2 are on the way and go on, 4 stay."
            )
            # Two rooms are under way, and nobody could call them back.
            assert (turn.report.phase, turn.report.reason) == ("Rebalancing", "Rebalancing")
            driver.follow(first)
    assert turn.state.work is None
    assert (turn.report.phase, turn.report.reason) == ("Stopped", "Disabled")
    planned, done, failed = turn.report.moves_planned, turn.report.moves_done, turn.report.moves_failed
    assert (planned, done, failed) == (6, 2, 0), "what never began has not failed"
    assert driver.news == ["RebalanceStarted", "RebalanceStopped", "RebalanceFinished"]
    # Switched on again, what stayed may be moved at once: it never was.
    assert set(turn.state.cooling) == {move.room for move in first.moves}
    assert turn.state.fruitless == 0
    driver.settings = dataclasses.replace(driver.settings, enabled=True)
    assert driver.until_planned().state.work is not None


def test_switched_off_what_nobody_has_taken_is_not_sent_again() -> None:
    driver, first = sliced()
    driver.settings = dataclasses.replace(driver.settings, enabled=False)
    turn = driver.turn(1)
    assert (turn.commands, turn.state.work, turn.report.phase) == ((), None, "Stopped")
    assert (turn.report.moves_done, turn.report.moves_failed) == (0, 0)
    assert turn.state.cooling == {}
    # A late answer changes nothing.
    driver.answer(first)
    assert driver.turn(1).commands == ()


def test_switched_off_and_on_again_a_plan_does_not_go_on() -> None:
    driver, first = sliced()
    driver.answer(first)
    driver.settings = dataclasses.replace(driver.settings, enabled=False)
    driver.turn(1)
    driver.settings = dataclasses.replace(driver.settings, enabled=True)
    driver.changes["a"]["following"] = 80
    for _ in range(3):
        turn = driver.turn(20)
        assert turn.commands == ()
        assert turn.state.work is not None
    driver.follow(first)
    assert driver.turn(1).report.moves_done == 2
    assert driver.news == ["RebalanceStarted", "RebalanceStopped", "RebalanceFinished"]


def test_switched_off_out_of_sight_it_ends_at_the_deadline() -> None:
    driver, first = sliced()
    driver.answer(first)
    driver.settings = dataclasses.replace(driver.settings, enabled=False)
    blind = Sight(load=None)
    assert driver.turn(1, sight=blind).report.phase == "Blocked"
    turn = driver.turn(1000, sight=blind)
    assert (turn.report.phase, turn.report.moves_failed, turn.state.work) == ("Stopped", 2, None)


def test_after_a_pause_longer_than_a_plan_takes_nothing_more_of_it_begins() -> None:
    """`tableforge.io/paused`: there are no turns meanwhile."""
    driver, first = sliced()
    driver.follow(first)
    turn = driver.turn(1000)
    assert (turn.commands, turn.state.work) == ((), None)
    assert (turn.report.moves_done, turn.report.moves_failed) == (2, 0)
    assert "4: there was no time left for it" in turn.news[0].message


def test_a_move_whose_target_goes_before_it_begins_is_dropped() -> None:
    driver, first = sliced()
    driver.answer(first)
    driver.changes["c"]["draining"] = True
    (second,) = driver.turn(5).commands
    assert isinstance(second, MoveRooms)
    assert {move.target for move in second.moves} == {"b"}
    assert fates(driver)["dropped"] == 3 - len([move for move in first.moves if move.target == "c"])


def test_a_stop_that_nobody_answers_is_not_sent_for_ever() -> None:
    driver = Driver(UNEVEN, SERVICE)
    driver.until_planned()
    driver.changes["a"]["closed"] = True
    driver.turn(5)
    driver.settings = dataclasses.replace(SERVICE, enabled=False)
    assert driver.turn(5).commands
    assert driver.turn(1000).commands == ()


@pytest.mark.parametrize(
    ("rooms", "changes", "expected"),
    [
        ({"a": [10, 20]}, {}, ("Idle", "True", "OneInstance")),
        ({}, {}, ("Idle", "Unknown", "NoInstances")),
        ({"a": [], "b": []}, {}, ("Idle", "True", "NoConnections")),
        (
            {"a": [10], "b": []},
            {"a": {"accepting": False}, "b": {"accepting": False}},
            ("Blocked", "False", "NobodyAccepts"),
        ),
        ({"a": [100] * 5, "b": [100]}, {"b": {"capacity": 100}}, ("Blocked", "False", "NoCapacity")),
        ({"a": [500], "b": [50]}, {}, ("Blocked", "False", "RoomTooBusy")),
        ({"a": [20] * 10, "b": []}, {"b": {"reachable": False}}, ("Blocked", "False", "NotRouted")),
    ],
)
def test_what_stands_in_the_way_is_said_and_stays(
    rooms: Mapping[str, Sequence[int]], changes: dict[str, dict[str, Any]], expected: tuple[str, str, str]
) -> None:
    settings = dataclasses.replace(GATEWAY, measure="weight") if expected[2] == "NoCapacity" else GATEWAY
    driver = Driver(rooms, settings)
    for name, change in changes.items():
        driver.changes[name].update(change)
    for _ in range(5):
        driver.turn(30)
    messages = set()
    for _ in range(20):
        turn = driver.turn(30)
        messages.add(turn.report.message)
        assert (turn.report.phase, turn.report.balanced, turn.report.reason) == expected
        assert turn.commands == ()
    assert len(messages) == 1
    assert len(driver.news) <= 1


def test_load_that_hovers_at_the_threshold_is_not_told_of_again_and_again() -> None:
    rng = random.Random(1)
    driver = Driver({"a": [1080], "b": [810], "c": [810]})
    conditions = []
    for _ in range(2000):
        for rooms, usual in zip(driver.rooms.values(), (1080, 810, 810), strict=True):
            for room in rooms:
                rooms[room] = round(usual * rng.uniform(0.98, 1.02))
        conditions.append(driver.turn(30).report.balanced)
    assert {"True", "False"} <= set(conditions), "it does not hover"
    assert driver.news == ["RebalanceBlocked"]
    # Once it was clearly even, it is news again.
    for usual in (810, 1080):
        driver.rooms["a"] = dict.fromkeys(driver.rooms["a"], usual)
        for _ in range(60):
            driver.turn(30)
    driver.rooms["a"] = dict.fromkeys(driver.rooms["a"], 1400)
    for _ in range(60):
        driver.turn(30)
    assert driver.news == ["RebalanceBlocked"] * 2


def test_a_budget_that_is_too_small_is_named() -> None:
    driver = Driver(
        {"a": [90] * 4, "b": []},
        dataclasses.replace(GATEWAY, reconnects_per_second=1, interval_seconds=60.0),
    )
    for _ in range(5):
        turn = driver.turn(30)
    assert turn.report.reason == "BudgetTooSmall"
    assert "rollout.maxReconnectsPerSecond" in turn.report.message


@pytest.mark.parametrize("fault", ["stale", "redis", "unseen", "unknown"])
def test_nothing_is_planned_from_what_is_not_known(fault: str) -> None:
    driver = Driver(UNEVEN)
    driver.turn(20)
    driver.turn(20)
    reasons = set()
    for _ in range(10):
        match fault:
            case "stale":
                turn = driver.turn(30, age=61)
            case "redis":
                driver.redis_connected = False
                turn = driver.turn(30)
            case "unseen":
                turn = driver.turn(30, sight=Sight(load=driver.load(), seen_at=driver.now - 61))
            case _:
                turn = driver.turn(30, sight=Sight(load=None))
        reasons.add(turn.report.reason)
        assert (turn.state.work, turn.report.phase, turn.report.balanced) == (None, "Blocked", "Unknown")
    assert len(reasons) == 1


def test_one_stale_record_is_named() -> None:
    driver = Driver(UNEVEN)
    load = driver.load()
    told = [one for one in load.instances if one.name == "b"]
    driver.now += 61
    others = [one for one in driver.load().instances if one.name != "b"]
    turn = driver.turn(0, load=dataclasses.replace(driver.load(), instances=(*others, *told)))
    assert turn.report.reason == "RecordsStale"
    assert "b last told" in turn.report.message


def test_a_request_is_planned_for_at_once_and_once() -> None:
    driver = Driver(UNEVEN)
    driver.request = "now"
    turn = driver.turn(1)
    assert turn.state.work is not None
    assert turn.report.last_request == "now"
    driver.follow(*turn.commands)
    driver.turn(30)
    driver.rooms["a"]["new"] = 400
    assert driver.turn(1).state.work is None
    driver.request = "now-2"
    turn = driver.turn(1)
    assert (turn.report.last_request, turn.state.work is not None) == ("now-2", True)


@pytest.mark.parametrize("request_", [None, "now"])
def test_nobody_is_sent_to_instances_that_leave_next(request_: str | None) -> None:
    driver = Driver(UNEVEN)
    driver.leaving, driver.request = LEAVING, request_
    for _ in range(20):
        turn = driver.turn()
        assert turn.state.work is None
    assert (turn.report.balanced, turn.report.reason) == ("False", "InstancesLeave")
    assert turn.report.last_request is None
    asks = ", though tableforge.io/rebalance asks" if request_ else ""
    assert turn.report.message.endswith(f"Nothing is planned while the fleet shrinks{asks}.")
    driver.leaving = ""
    assert driver.until_planned().report.last_request == request_


def test_an_even_fleet_says_only_that_a_request_waits_for_instances_to_leave() -> None:
    driver = Driver({"a": [50], "b": [50]})
    driver.leaving = LEAVING
    for _ in range(3):
        turn = driver.turn()
    assert (turn.report.balanced, turn.report.reason) == ("True", "WithinThreshold")
    driver.request = "now"
    turn = driver.turn()
    assert (turn.report.balanced, turn.report.reason) == ("True", "InstancesLeave")
    driver.leaving = ""
    assert driver.turn().report.last_request == "now"


def test_a_plan_under_way_goes_no_further_once_instances_leave() -> None:
    driver, first = sliced()
    driver.answer(first)
    driver.leaving = LEAVING
    for seconds in (1, 5, 20, 60):
        turn = driver.turn(seconds)
        assert turn.commands == ()
        assert turn.report.phase == "Rebalancing"
        if seconds == 1:
            (stopped,) = turn.news
            assert stopped.message == (
                "The fleet shrinks: nothing more is begun. "
                "Of 6 rooms 0 moved, 2 are on the way and go on, 4 stay."
            )
        driver.changes["a"]["following"] = 80
    driver.follow(first)
    turn = driver.turn(1)
    assert (turn.state.work, turn.report.moves_done, turn.report.moves_failed) == (None, 2, 0)
    assert driver.news == ["RebalanceStarted", "RebalanceStopped", "RebalanceFinished"]
    for _ in range(10):
        assert driver.turn(30).state.work is None
    driver.leaving = ""
    over = driver.now
    driver.until_planned()
    assert driver.now - over <= driver.settings.interval_seconds


@pytest.mark.parametrize("answered", [False, True])
def test_nobody_sheds_and_nobody_is_closed_any_more_once_instances_leave(answered: bool) -> None:
    driver = Driver(UNEVEN, SERVICE)
    driver.until_planned()
    driver.changes["a"]["closed"] = True
    turn = driver.turn(5)
    if answered:
        driver.answer(*turn.commands)
    driver.leaving = LEAVING
    turn = driver.turn(5)
    assert (turn.state.work, turn.closed) == (None, frozenset())
    (stop,) = turn.commands
    assert isinstance(stop, ShedClients)
    assert (stop.instance, stop.connections) == ("a", 0)
    # It was not for want of clients that follow.
    assert turn.state.fruitless == 0


def test_who_was_to_be_closed_is_not_once_instances_leave() -> None:
    driver = Driver(UNEVEN, SERVICE)
    assert driver.until_planned().closed == {"a"}
    driver.leaving = LEAVING
    turn = driver.turn(5)
    assert (turn.state.work, turn.closed, turn.commands) == (None, frozenset(), ())
    assert (turn.report.moves_done, turn.report.moves_failed) == (0, 0)


def test_a_request_comes_again_when_the_annotation_was_taken_away() -> None:
    driver = Driver({"a": [50], "b": [50]})
    driver.request = "now"
    driver.turn(1)
    driver.request = None
    assert driver.turn(1).report.last_request is None
    driver.request = "now"
    driver.turn(1)
    assert driver.news == ["RebalanceNotNeeded", "RebalanceNotNeeded"]


def test_a_request_waits_for_the_plan_under_way() -> None:
    driver = Driver(UNEVEN)
    turn = driver.until_planned()
    driver.request = "now-x"
    assert driver.turn(1).report.last_request is None
    driver.follow(*turn.commands)
    driver.rooms["a"]["new"] = 400
    done = turn.report.moves_planned
    turn = driver.turn(30)
    assert turn.report.last_request == "now-x"
    # It is under way, and what became of the one before is not forgotten.
    assert (turn.state.work is not None, turn.report.moves_done) == (True, 0)
    assert turn.finished is not None
    assert (turn.finished.done, turn.finished.failed) == (done, 0)
    assert driver.turn(1).finished is None


def test_a_request_moves_what_cools() -> None:
    driver = Driver({"a": [100, 100], "b": []})
    driver.follow(*driver.until_planned().commands)
    driver.turn()
    driver.rooms["a"].update(driver.rooms["b"])
    driver.rooms["b"] = {}
    driver.state = dataclasses.replace(driver.state, cooling=dict.fromkeys(driver.rooms["a"], 1e9))
    driver.request = "now"
    assert driver.turn(1).state.work is not None


def test_a_request_while_switched_off_is_refused() -> None:
    driver = Driver(UNEVEN, dataclasses.replace(GATEWAY, enabled=False))
    driver.request = "now"
    turn = driver.turn(1)
    assert (turn.report.last_request, driver.news) == ("now", ["RebalanceRefused"])


def test_a_request_served_before_a_restart_is_not_served_again() -> None:
    driver = Driver(UNEVEN)
    driver.state = cycle.begin(now=driver.now, last_request="now")
    driver.request = "now"
    turn = driver.turn(1)
    assert (turn.state.work, turn.report.last_request) == (None, "now")


@pytest.mark.parametrize("text", ["", "Now", "now ", "now-", "later", "now-" + "x" * 51, "now-a b"])
def test_other_words_are_no_request(text: str) -> None:
    assert not cycle.is_request(text)
    driver = Driver(UNEVEN)
    driver.request = text
    assert driver.turn(1).state.work is None


def test_an_operator_that_starts_anew_waits_and_takes_cordons_back() -> None:
    driver = Driver(UNEVEN, SERVICE)
    driver.until_planned()
    driver.changes["a"]["closed"] = True
    assert driver.turn(5).closed == {"a"}
    driver.state = cycle.begin(now=driver.now)
    started = driver.now
    turn = driver.turn(5)
    assert (turn.closed, turn.commands) == (frozenset(), ())
    while driver.state.work is None:
        turn = driver.turn(10)
    assert driver.now - started >= driver.settings.interval_seconds


class Untouched(list[RoomLoad]):
    """Rooms of a record that nobody may look at."""

    def __iter__(self) -> Iterator[RoomLoad]:
        raise AssertionError("rooms of an instance that gives nothing were looked at")

    __getitem__ = __contains__ = __reversed__ = None  # type: ignore[assignment]


def told(name: str, members: int, rooms: list[RoomLoad], *, at: float) -> InstanceRecord:
    return InstanceRecord(
        instance=name,
        boot="1",
        version="1",
        started_at=0.0,
        updated_at=at,
        connections=members,
        rooms=len(rooms),
        capacity=2000,
        draining=False,
        alive=True,
        heaviest_rooms=rooms,
        address=f"/i/{name}/ws",
    )


def test_in_no_turn_of_a_plan_rooms_of_instances_that_give_nothing_are_looked_at() -> None:
    """What a turn costs grows with the rooms of those that give, not with the fleet's."""
    driver = Driver({})
    hot = [RoomLoad(f"hot-{index}", 5) for index in range(400)]
    driver.request = "now"
    seen = []
    for seconds in (1, 30, 30, 30):
        at = driver.now + seconds
        whole = Fleet(
            instance="hot",
            redis=RedisState(connected=True, reason="Connected", message=""),
            as_of=at,
            totals=Totals(instances=101, connections=0, rooms=0),
            instances=[
                told("hot", 5 * len(hot), hot, at=at),
                *(
                    told(f"p-{index}", 300, Untouched([RoomLoad("any", 1)] * 300), at=at)
                    for index in range(100)
                ),
            ],
        )
        turn = driver.turn(seconds, load=load_of(whole))
        driver.answer(*turn.commands)
        seen.append(turn.report.phase)
        moved = {move.room for one in turn.commands if isinstance(one, MoveRooms) for move in one.moves}
        hot = [one for one in hot if one.room not in moved]
    assert turn.report.moves_done == turn.report.moves_planned == 50
    assert seen[0] == "Rebalancing"


def test_more_moves_than_a_command_takes_are_several_commands() -> None:
    driver = Driver({"a": [1] * 5000, "b": []}, dataclasses.replace(GATEWAY, most_moves=10_000))
    driver.changes["b"]["capacity"] = driver.changes["a"]["capacity"] = 10_000
    commands = [*driver.until_planned().commands]
    for _ in range(2):
        driver.follow(commands[-1])
        commands += driver.turn(5).commands
    assert [len(command.moves) for command in commands if isinstance(command, MoveRooms)] == [1000, 1000, 313]
    assert len({command.id for command in commands}) == 3
    assert all(len(command.id) <= 64 for command in commands)


def test_what_is_remembered_of_rooms_is_bounded() -> None:
    driver = Driver({"a": [1] * 60, "b": []}, dataclasses.replace(GATEWAY, most_moves=10_000))
    driver.state = dataclasses.replace(
        driver.state, cooling={f"room-{index}": 1e9 for index in range(19_990)}
    )
    (command,) = driver.until_planned().commands
    assert isinstance(command, MoveRooms)
    assert len(command.moves) == 10
