"""Made-up loads."""

from collections.abc import Mapping, Sequence
from typing import Any

from hypothesis import strategies as st

from tableforge_operator.decide.rebalancing.load import Instance, Load, Measure, Rooms
from tableforge_operator.decide.rebalancing.planner import Limits, Plan

CAPACITY = 2000
GENEROUS = Limits(aim=0.15, most_moves=10_000, most_clients=10**9)


def fleet(
    rooms: Mapping[str, Sequence[int]], *, changes: Mapping[str, Mapping[str, Any]] | None = None
) -> Load:
    """Instances with rooms of so many members; each client is in one."""
    return Load(
        instances=tuple(
            Instance(
                **{
                    "name": name,
                    "connections": sum(members),
                    "capacity": CAPACITY,
                    "updated_at": 0.0,
                    **(changes or {}).get(name, {}),
                }
            )
            for name, members in rooms.items()
        ),
        rooms={
            name: Rooms([f"{name}-room-{index}" for index in range(len(members))], list(members))
            for name, members in rooms.items()
        },
    )


def after(load: Load, plan: Plan) -> dict[str, float]:
    """Connections of each instance once the plan is carried out; who is shed goes to who is open, evenly."""
    connections = {one.name: float(one.connections) for one in load.instances}
    for move in plan.moves:
        connections[move.source] -= move.members
        connections[move.target] += move.members
    is_open = [one.name for one in load.instances if one.takes_part and one.name not in plan.closed]
    for shed in plan.sheds:
        connections[shed.instance] -= shed.connections
        for name in is_open:
            connections[name] += shed.connections / len(is_open)
    return connections


def spread_after(load: Load, plan: Plan, measure: Measure) -> float:
    """(max − min) / mean of that, among who takes part."""
    connections = after(load, plan)
    loads = [connections[one.name] / one.strength(measure) for one in load.instances if one.takes_part]
    strength = sum(one.strength(measure) for one in load.instances if one.takes_part)
    total = sum(connections[one.name] for one in load.instances if one.takes_part)
    return (max(loads) - min(loads)) / (total / strength) if total else 0.0


@st.composite
def loads(draw: st.DrawFn) -> Load:
    """Anything that instances may say, the impossible included."""
    count = draw(st.integers(0, 7))
    instances, rooms = [], {}
    for index in range(count):
        name = f"p-{index}"
        members = draw(st.lists(st.integers(0, 300), max_size=12))
        # Rooms may be named twice, by two instances.
        names = [f"room-{draw(st.integers(0, 40))}-{place}" for place in range(len(members))]
        elsewhere = frozenset(room for room in names if draw(st.integers(0, 9)) == 0)
        rooms[name] = Rooms(names, members, elsewhere)
        extra = draw(st.integers(-50, 50))
        instances.append(
            Instance(
                name=name,
                connections=max(sum(members) + extra, 0),
                capacity=draw(st.sampled_from([1, 100, 400, 2000, 2000])),
                weight=draw(st.sampled_from([0.5, 1.0, 1.0, 4.0])),
                accepting=draw(st.integers(0, 9)) > 0,
                draining=draw(st.integers(0, 9)) == 0,
                alive=draw(st.integers(0, 9)) > 0,
                reachable=draw(st.integers(0, 9)) > 0,
            )
        )
    return Load(instances=tuple(instances), rooms=rooms)


limits = st.builds(
    Limits,
    aim=st.sampled_from([0.05, 0.15, 0.5]),
    most_moves=st.integers(0, 30),
    most_clients=st.one_of(st.integers(0, 200), st.just(10**6)),
)
