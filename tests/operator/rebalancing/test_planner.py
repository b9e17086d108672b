"""What to move: what holds for any fleet, and what it comes to for some."""

import dataclasses
import itertools
import random
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tableforge_dataplane.contract.fleet import Fleet, InstanceRecord, RedisState, RoomLoad, Totals
from tableforge_operator.decide.rebalancing.load import (
    Instance,
    Load,
    Measure,
    Rooms,
    load_of,
    spread_of,
)
from tableforge_operator.decide.rebalancing.planner import Limits, Mode, Plan, plan
from tableforge_operator.decide.rebalancing.plans import MOST_NAMED, BusyRoom
from tableforge_operator.decide.rebalancing.rooms import TRIES
from tests.operator.rebalancing.fleets import CAPACITY, GENEROUS, after, fleet, limits, loads, spread_after

modes = st.sampled_from(["Service", "Gateway"])
measures = st.sampled_from(["capacity", "weight"])
cooling = st.frozensets(st.builds("room-{}-{}".format, st.integers(0, 40), st.integers(0, 11)), max_size=60)
usuals = st.none() | st.dictionaries(
    st.sampled_from([f"p-{index}" for index in range(7)]),
    st.one_of(st.just(0.0), st.floats(0, 3000), st.floats(0, 300)),
)


def rooms_moved(load: Load, bounds: Limits = GENEROUS, **more: object) -> Plan:
    """The plan where rooms have homes."""
    return plan(load, bounds, mode="Gateway", measure="capacity", **more)  # type: ignore[arg-type]


def shed(load: Load, bounds: Limits = GENEROUS) -> Plan:
    """The plan behind one Service."""
    return plan(load, bounds, mode="Service", measure="capacity")


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    load=loads(),
    bounds=limits,
    mode=modes,
    measure=measures,
    cooling=cooling,
    usual=usuals,
    seed=st.integers(0, 999),
)
def test_a_plan_keeps_to_its_limits_and_helps(
    load: Load,
    bounds: Limits,
    mode: Mode,
    measure: Measure,
    cooling: frozenset[str],
    usual: dict[str, float] | None,
    seed: int,
) -> None:
    found = plan(load, bounds, mode=mode, measure=measure, cooling=cooling, usual=usual)
    by_name = {one.name: one for one in load.instances}
    # Limits.
    assert len(found.moves) + len(found.sheds) <= bounds.most_moves
    assert found.clients <= bounds.most_clients
    moved = [move.room for move in found.moves]
    assert len(moved) == len(set(moved))
    assert not cooling.intersection(moved)
    for move in found.moves:
        assert by_name[move.source].takes_part
        assert by_name[move.target].takes_part
        assert by_name[move.target].reachable
        assert move.source != move.target
        assert move.members > 0
        assert move.room in load.rooms[move.source].names
        assert move.room not in load.rooms[move.source].elsewhere
    for asked in found.sheds:
        assert 0 < asked.connections <= by_name[asked.instance].connections
        assert asked.instance in found.closed
    if found.sheds:
        still_open = {one.name for one in load.instances if one.takes_part} - set(found.closed)
        assert still_open
    connections = after(load, found)
    for name in {move.target for move in found.moves}:
        assert connections[name] <= max(by_name[name].capacity, by_name[name].connections)
    for one in load.instances:
        if one.takes_part and one.name not in found.closed and found.sheds:
            assert connections[one.name] <= max(one.capacity, one.connections) + 1e-6
    # Never worse, and what it says it comes to is what it comes to: by what instances usually have.
    counted = dataclasses.replace(
        load,
        instances=[
            dataclasses.replace(one, connections=(usual or {}).get(one.name, one.connections))
            for one in load.instances
        ],
    )
    assert found.before == pytest.approx(spread_of(counted, measure))
    assert found.after <= found.before + 1e-9
    assert found.after == pytest.approx(spread_after(counted, found, measure))
    # No move without benefit: each leaves both instances strictly between where they were.
    running = {one.name: float(one.connections) for one in counted.instances}
    for move in found.moves:
        strengths = [by_name[name].strength(measure) for name in (move.source, move.target)]
        high, low = running[move.source] / strengths[0], running[move.target] / strengths[1]
        running[move.source] -= move.members
        running[move.target] += move.members
        assert low < running[move.source] / strengths[0] < high
        assert low < running[move.target] / strengths[1] < high
    # The same, in whatever order it comes.
    mixed = random.Random(seed)
    order = mixed.sample(list(load.instances), len(load.instances))
    rooms = {}
    for name in mixed.sample(sorted(load.rooms), len(load.rooms)):
        held = load.rooms[name]
        pairs = list(zip(held.names, held.members, strict=True))
        mixed.shuffle(pairs)
        rooms[name] = Rooms([room for room, _ in pairs], [members for _, members in pairs], held.elsewhere)
    again = plan(
        Load(instances=order, rooms=rooms), bounds, mode=mode, measure=measure, cooling=cooling, usual=usual
    )
    assert again == found


def test_a_room_of_an_instance_that_says_it_has_nobody_stays() -> None:
    """Its usual load may count, but a move would make nobody move."""
    load = fleet({"p-0": [3, 2], "p-1": [1]}, changes={"p-0": {"connections": 0}})
    found = rooms_moved(load, usual={"p-0": 50.0, "p-1": 1.0})
    assert not found
    assert found.obstacle == "NothingFits"


@settings(max_examples=200, deadline=None)
@given(load=loads(), mode=modes, measure=measures)
def test_planning_again_and_again_comes_to_an_end(load: Load, mode: Mode, measure: Measure) -> None:
    """Even where nothing cools and every plan is cut short."""
    bounds = Limits(aim=0.05, most_moves=3, most_clients=200)
    total = sum(one.connections for one in load.instances)
    for _ in range(50 + 10 * total):
        found = plan(load, bounds, mode=mode, measure=measure)
        if not found:
            break
        load = carried_out(load, found)
    else:
        raise AssertionError("there is always more to move")


def carried_out(load: Load, found: Plan) -> Load:
    """The fleet afterwards, in whole clients."""
    connections = {one.name: one.connections for one in load.instances}
    rooms = {name: dict(zip(one.names, one.members, strict=True)) for name, one in load.rooms.items()}
    for move in found.moves:
        rooms[move.source].pop(move.room)
        rooms[move.target][move.room] = rooms[move.target].get(move.room, 0) + move.members
        connections[move.source] -= move.members
        connections[move.target] += move.members
    is_open = [one.name for one in load.instances if one.takes_part and one.name not in found.closed]
    turn = itertools.cycle(is_open)
    for one in found.sheds:
        connections[one.instance] -= one.connections
        for _ in range(one.connections):
            connections[next(turn)] += 1
    return Load(
        instances=tuple(
            dataclasses.replace(one, connections=connections[one.name]) for one in load.instances
        ),
        rooms={name: Rooms(list(held), list(held.values())) for name, held in rooms.items()},
    )


def fewest(loads_of_rooms: Sequence[Sequence[int]], threshold: float) -> int | None:
    """The least number of moves that bring the fleet within the threshold, by trying all; None: none do."""
    rooms = [(members, home) for home, held in enumerate(loads_of_rooms) for members in held]
    mean = sum(members for members, _ in rooms) / len(loads_of_rooms)
    best: int | None = None
    for homes in itertools.product(range(len(loads_of_rooms)), repeat=len(rooms)):
        moves = sum(home != was for home, (_, was) in zip(homes, rooms, strict=True))
        if best is not None and moves >= best:
            continue
        totals = [0] * len(loads_of_rooms)
        for home, (members, _) in zip(homes, rooms, strict=True):
            totals[home] += members
        if max(totals) - min(totals) <= threshold * mean:
            best = moves
    return best


def test_moves_are_few() -> None:
    """Beside the least number that there is, found by trying every way, at the same aim."""
    chance = random.Random(7)
    planned = least = reached = possible = 0
    for _ in range(150):
        rooms = [[chance.randint(1, 60) for _ in range(chance.randint(0, 4))] for _ in range(3)]
        if not any(map(sum, rooms)) or sum(map(len, rooms)) > 8:
            continue
        best = fewest(rooms, 0.3)
        if best is None:
            continue
        possible += 1
        found = rooms_moved(
            fleet({f"p-{index}": held for index, held in enumerate(rooms)}),
            dataclasses.replace(GENEROUS, aim=0.3),
        )
        if found.after <= 0.3:
            reached += 1
            planned += len(found.moves)
            least += best
    assert possible > 60
    assert reached >= 0.75 * possible
    assert planned <= 1.25 * least


def test_one_hot_instance_gives_to_the_coldest() -> None:
    found = rooms_moved(fleet({"a": [300, 200, 100, 50], "b": [150], "c": [100]}))
    assert found.moves[0].source == "a"
    assert {move.target for move in found.moves} <= {"b", "c"}
    assert found.before == pytest.approx(550 / 300)
    assert found.after <= 0.15
    assert found.obstacle is None


def test_a_room_whose_home_is_elsewhere_is_not_moved() -> None:
    """Who is in it here is on the way, or doesn't follow: there is no home here to take away."""
    load = fleet({"a": [300, 200, 100, 50], "b": [150], "c": [100]})
    guests = dataclasses.replace(load.rooms["a"], elsewhere=frozenset({"a-room-1", "a-room-2"}))
    found = rooms_moved(dataclasses.replace(load, rooms={**load.rooms, "a": guests}))
    moved = {move.room for move in found.moves}
    assert "a-room-3" in moved
    assert moved.isdisjoint(guests.elsewhere)
    nowhere = dataclasses.replace(load.rooms["a"], elsewhere=load.rooms["a"].names)
    found = rooms_moved(dataclasses.replace(load, rooms={**load.rooms, "a": nowhere}))
    assert {move.source for move in found.moves} <= {"b", "c"}
    assert found.obstacle == "NothingFits"


def test_a_new_instance_is_filled() -> None:
    found = rooms_moved(fleet({**{f"old-{index}": [10] * 50 for index in range(4)}, "new": []}))
    assert {move.target for move in found.moves} == {"new"}
    assert found.after <= 0.15


def test_a_room_that_is_busier_than_an_instance_stays_and_the_others_go() -> None:
    found = rooms_moved(fleet({"a": [1500, 40, 30, 20], "b": [200, 100], "c": [250]}))
    assert {move.room for move in found.moves} == {"a-room-1", "a-room-2", "a-room-3"}
    assert found.obstacle == "RoomTooBusy"
    assert found.busy == (BusyRoom("a-room-0", "a", 1500),)


def test_nobody_is_sent_to_where_there_is_no_room() -> None:
    load = fleet({"a": [100] * 10, "b": [100]}, changes={"b": {"capacity": 100, "weight": 9.0}})
    found = plan(load, GENEROUS, mode="Gateway", measure="weight")
    assert not found
    assert found.obstacle == "NoCapacity"
    assert plan(load, GENEROUS, mode="Service", measure="weight").obstacle == "NoCapacity"


def test_a_room_with_more_members_than_may_move_in_a_cycle_stays() -> None:
    found = rooms_moved(
        fleet({"a": [500, 500, 500], "b": []}), dataclasses.replace(GENEROUS, most_clients=499)
    )
    assert not found
    assert found.obstacle == "BudgetTooSmall"


def test_what_cools_stays() -> None:
    found = rooms_moved(
        fleet({"a": [50, 50, 50], "b": []}), cooling={f"a-room-{index}" for index in range(3)}
    )
    assert not found
    assert found.obstacle == "RoomsCooling"


def test_nobody_is_sent_to_an_instance_without_an_address() -> None:
    found = rooms_moved(fleet({"a": [50] * 20, "b": [50], "c": []}, changes={"c": {"reachable": False}}))
    assert {move.target for move in found.moves} == {"b"}
    assert found.obstacle == "NotRouted"


@pytest.mark.parametrize("change", [{"alive": False}, {"draining": True}, {"accepting": False}])
def test_who_takes_no_part_is_neither_source_nor_target(change: dict[str, bool]) -> None:
    load = fleet({"a": [50] * 20, "b": [50] * 2, "out": []}, changes={"out": change})
    assert all("out" not in (move.source, move.target) for move in rooms_moved(load).moves)
    assert "out" not in shed(load).closed
    assert rooms_moved(load).before == pytest.approx(900 / 550)


def test_weights_count_where_they_are_asked_for() -> None:
    load = fleet(
        {"big": [10] * 40, "small": [10] * 10}, changes={"big": {"weight": 4.0}, "small": {"weight": 1.0}}
    )
    assert not plan(load, GENEROUS, mode="Gateway", measure="weight")
    assert plan(load, GENEROUS, mode="Gateway", measure="capacity")


def test_a_weak_instance_does_not_give_away_more_than_evens_it_out() -> None:
    """Its one room is little to the strong one, and everything to it: moved, the weak one would be idle."""
    load = fleet(
        {"strong": [160], "weak": [30]}, changes={"strong": {"weight": 10.0}, "weak": {"weight": 1.0}}
    )
    found = plan(load, GENEROUS, mode="Gateway", measure="weight")
    assert not found
    assert found.obstacle == "RoomTooBusy"


def test_where_nothing_helps_the_coldest_the_next_one_is_tried() -> None:
    load = fleet({"a": [100] * 6, "weak": [10], "c": [150]}, changes={"weak": {"capacity": 200}})
    found = rooms_moved(load)
    assert {move.target for move in found.moves} == {"c"}


def test_who_is_full_keeps_nobody_from_being_tried() -> None:
    full = {f"full-{number}": [10] for number in range(2 * TRIES)}
    load = fleet({"a": [100] * 6, "c": [100], **full}, changes={name: {"capacity": 10} for name in full})
    found = plan(load, GENEROUS, mode="Gateway", measure="weight")
    assert {move.target for move in found.moves} == {"c"}


def test_what_is_in_the_coldests_way_is_said() -> None:
    """Where several were tried, and each for a reason of its own."""
    load = fleet({"a": [200, 200], "full": [], "c": [250]}, changes={"full": {"capacity": 100}})
    found = plan(load, GENEROUS, mode="Gateway", measure="weight")
    assert not found
    assert found.obstacle == "NoCapacity"


def test_the_others_even_out_among_themselves_whatever_the_one_has_that_cannot_give() -> None:
    """Measured by the mean of all, none would be enough, and three small rooms would go."""
    found = rooms_moved(fleet({"busy": [1500], "a": [300, 100, 100, 100], "b": []}))
    assert [(move.room, move.target) for move in found.moves] == [("a-room-0", "b")]


@pytest.mark.parametrize(
    ("rooms", "first"),
    [
        ([38, 60, 62], 38),  # nearest to what the target can take: 40
        ([5, 42, 113], 42),
        ([40, 30, 50, 40], 40),  # not what the source should give: 50, which were too much for the target
    ],
)
def test_where_no_room_is_enough_the_one_goes_that_comes_nearest(rooms: list[int], first: int) -> None:
    found = rooms_moved(fleet({"a": rooms, "b": [70], "c": [70]}), dataclasses.replace(GENEROUS, aim=0.2))
    # the first by name of as heavy ones
    assert found.moves[0].room == f"a-room-{rooms.index(first)}"


def test_a_room_that_is_just_enough_is_enough() -> None:
    found = rooms_moved(fleet({"a": [20, 25, 85], "b": [70]}), dataclasses.replace(GENEROUS, aim=0.2))
    assert [move.members for move in found.moves] == [20]


def test_of_two_rooms_that_are_each_too_much_for_the_others_one_goes() -> None:
    found = rooms_moved(fleet({"a": [500, 500], "b": [], "c": [], "d": []}))
    assert [(move.room, move.target) for move in found.moves] == [("a-room-0", "b")]


def test_a_room_that_were_too_much_for_any_other_is_too_busy_though_it_could_move() -> None:
    load = fleet({"a": [500], "b": [], "c": [], "d": []}, changes={"a": {"connections": 600}})
    found = rooms_moved(load)
    assert not found
    assert found.obstacle == "RoomTooBusy"


@pytest.mark.parametrize("capacity", [200, 250])
def test_an_instance_is_filled_as_far_as_it_has_room(capacity: int) -> None:
    load = fleet({"a": [100] * 10, "b": []}, changes={"b": {"capacity": capacity}})
    found = plan(load, GENEROUS, mode="Gateway", measure="weight")
    assert [move.target for move in found.moves] == ["b", "b"]
    assert found.obstacle == "NoCapacity"


def test_the_busiest_rooms_are_named_the_heaviest_first() -> None:
    found = rooms_moved(fleet({**{f"p-{number}": [1000 + number] for number in range(9)}, "cold": []}))
    assert [one.members for one in found.busy] == [1008 - number for number in range(MOST_NAMED)]


def test_what_moves_of_the_same_plan_used_up_stands_in_nobodys_way() -> None:
    found = rooms_moved(fleet({"a": [100] * 8, "b": []}), dataclasses.replace(GENEROUS, most_clients=150))
    assert len(found.moves) == 1
    assert found.obstacle is None
    load = fleet({"a": [50] * 20, "b": [50], "c": []}, changes={"c": {"reachable": False}})
    found = rooms_moved(load, dataclasses.replace(GENEROUS, most_moves=3))
    assert len(found.moves) == 3
    assert found.obstacle is None


def test_a_room_that_two_instances_name_moves_once() -> None:
    load = Load(
        instances=tuple(
            Instance(name=name, connections=number, capacity=CAPACITY)
            for name, number in (("a", 400), ("b", 400), ("c", 0), ("d", 0))
        ),
        rooms={"a": Rooms(["lobby", "a-1"], [150, 250]), "b": Rooms(["lobby", "b-1"], [150, 250])},
    )
    found = rooms_moved(load)
    assert [move.room for move in found.moves].count("lobby") == 1


def test_nobody_sheds_below_the_mean_however_few_shed() -> None:
    load = fleet({**{f"hot-{index}": [600] for index in range(4)}, "cold": [0], "colder": [0]})
    found = shed(load, dataclasses.replace(GENEROUS, most_moves=1))
    assert [one.connections for one in found.sheds] == [200]


def test_each_shelf_is_looked_at_once() -> None:
    load = fleet({f"p-{index}": [1 + index % 7] * (20 + 10 * index) for index in range(40)})
    found = rooms_moved(load)
    assert found.moves
    assert found.rooms_looked_at <= sum(len(rooms.names) for rooms in load.rooms.values())


def test_all_but_the_coldest_are_closed_while_clients_are_sent_away() -> None:
    load = fleet({"a": [900], "b": [500], "c": [400], "d": [200]})
    found = shed(load)
    assert found.closed == ("a", "b", "c")
    assert [one.instance for one in found.sheds] == ["a"]
    assert sum(one.connections for one in found.sheds) <= 300


def test_sheds_level_the_hottest_first_and_nobody_below_the_mean() -> None:
    load = fleet({"a": [1000], "b": [900], "c": [500], "d": [100], "e": [100]})
    found = shed(load)
    connections = after(load, found)
    mean = sum(one.connections for one in load.instances) / 5
    assert found.after < found.before
    assert all(connections[one.instance] >= mean - 1e-6 for one in found.sheds)
    assert connections["a"] == pytest.approx(connections["b"], abs=1)


@pytest.mark.parametrize(
    ("connections", "clients"),
    [
        ({"a": 300, "b": 100}, 80),  # half the aim is left on either side
        ({"a": 290, "b": 170, "c": 170, "d": 170}, 70),  # so many has the hot one too many
        ({"a": 230, "b": 230, "c": 230, "d": 110}, 70),  # so many lacks the cold one
    ],
)
def test_as_many_are_shed_as_bring_all_within_the_aim(connections: dict[str, int], clients: int) -> None:
    load = fleet({name: [number] for name, number in connections.items()})
    found = shed(load, dataclasses.replace(GENEROUS, aim=0.2))
    assert clients - 1 <= found.clients <= clients  # nobody is halved


def test_of_as_many_clients_for_fewer_and_for_more_instances_more_take_them() -> None:
    load = fleet({"a": [350], "b": [100], "c": [150]})
    found = plan(load, GENEROUS, mode="Service", measure="weight")
    assert found.closed == ("a",)
    assert found.clients == 100


def test_one_that_is_full_is_named_where_no_other_has_much_less_than_it_should() -> None:
    load = fleet({"a": [100], "b": [54], "full": [10]}, changes={"full": {"capacity": 10}})
    found = plan(load, GENEROUS, mode="Service", measure="weight")
    assert (found.clients, found.obstacle) == (0, "NoCapacity")


def test_who_usually_has_more_sheds_no_more_than_it_has() -> None:
    load = fleet({"a": [5], "b": []})
    found = plan(load, GENEROUS, mode="Service", measure="capacity", usual={"a": 600.0, "b": 0.0})
    assert found.clients == 5


def test_sheds_keep_to_the_budget() -> None:
    found = shed(fleet({"a": [1900], "b": [0]}), dataclasses.replace(GENEROUS, most_clients=60))
    assert found.clients == 60
    none = shed(fleet({"a": [1900], "b": [0]}), dataclasses.replace(GENEROUS, most_clients=0))
    assert (none.clients, none.closed, none.obstacle) == (0, (), "BudgetTooSmall")


def test_records_become_columns() -> None:
    def record(name: str, rooms: dict[str, int], **more: object) -> InstanceRecord:
        return InstanceRecord(
            instance=name,
            boot="1",
            version="1",
            started_at=0.0,
            connections=sum(rooms.values()),
            rooms=len(rooms),
            capacity=CAPACITY,
            heaviest_rooms=[RoomLoad(room, members) for room, members in rooms.items()],
            **{"updated_at": 5.0, "draining": False, "alive": True, **more},  # type: ignore[arg-type]
        )

    records = [
        record("a", {"lobby": 10, "chess": 5}, address="/i/a/ws", weight=2.0, following=3, commands=["x"]),
        record("b", {"lobby": 3, "go": 5}, cordoned=True, elsewhere=["lobby"]),
        record("c", {"go": 5}, cordoned=True),
    ]
    load = load_of(
        Fleet(
            instance="a",
            redis=RedisState(connected=True, reason="Connected", message=""),
            as_of=9.0,
            totals=Totals(instances=3, connections=0, rooms=0),
            instances=records[::-1],
        ),
        cordoned={"c"},
    )
    by_name = {one.name: one for one in load.instances}
    assert by_name["a"] == Instance(
        name="a",
        connections=15,
        capacity=CAPACITY,
        weight=2.0,
        following=3,
        updated_at=5.0,
        done=("x",),
    )
    assert (by_name["b"].accepting, by_name["b"].closed, by_name["b"].reachable) == (True, True, False)
    assert (by_name["c"].accepting, by_name["c"].closed) == (False, False)
    assert load.rooms["a"] == Rooms(["lobby", "chess"], [10, 5], frozenset())
    assert load.rooms["b"] == Rooms(["lobby", "go"], [3, 5], frozenset({"lobby"}))
    assert (set(load.rooms), len(load.rooms)) == ({"a", "b", "c"}, 3)
    assert load.as_of == 9.0
