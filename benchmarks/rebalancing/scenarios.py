"""What happens to the model's fleet: each a day in the life of somebody's service."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Literal

from benchmarks.rebalancing.model import Model, Moved
from tableforge_operator.decide.rebalancing.load import spread_of
from tableforge_operator.decide.rebalancing.planner import AIM, Limits, plan
from tableforge_operator.decide.rebalancing.state import Settings

MINUTE: Final = 60.0


def zipf(number: int, total: int, *, exponent: float = 0.8) -> list[int]:
    """Members of so many rooms, the heaviest first, as skewed as rooms usually are."""
    shares = [1 / (place + 1) ** exponent for place in range(number)]
    return [max(1, round(total * share / sum(shares))) for share in shares]


def skewed(model: Model, *, instances: int = 10, rooms: int = 300, clients: int = 8000, hot: int = 3) -> None:
    """A fleet of which the first few have most rooms."""
    names = [f"p-{index}" for index in range(instances)]
    for name in names:
        model.add_instance(name)
    for place, members in enumerate(zipf(rooms, clients)):
        home = model.chance.choice(names[:hot] if model.chance.random() < 0.6 else names)
        model.add_room(f"room-{place:04}", members, home)


@dataclasses.dataclass(frozen=True)
class Scenario:
    """What is done to a model, and for how long."""

    name: str
    title: str
    settings: Settings
    play: Callable[[Model], Iterator[float]]
    noise: float = 0.0
    stubborn: float = 0.0
    late: float = 0.0
    seed: int = 1

    def run(self) -> Model:
        model = Model(self.settings, seed=self.seed, noise=self.noise, stubborn=self.stubborn, late=self.late)
        for _ in self.play(model):
            pass
        return model


def _skew(model: Model) -> Iterator[float]:
    skewed(model)
    yield from model.run(20 * MINUTE)


def _burst(model: Model) -> Iterator[float]:
    """A room gets a tenth of the fleet's clients within two minutes, and loses them 20 minutes later."""
    skewed(model, hot=10)
    yield from model.run(10 * MINUTE)
    for _ in range(10):
        model.grow("room-0100", 80)
        yield from model.run(10)
    yield from model.run(20 * MINUTE)
    model.grow("room-0100", -800)
    yield from model.run(20 * MINUTE)


def _pods(model: Model) -> Iterator[float]:
    """Two pods come; one goes."""
    skewed(model, hot=10)
    yield from model.run(10 * MINUTE)
    model.add_instance("p-new-1")
    model.add_instance("p-new-2")
    yield from model.run(20 * MINUTE)
    model.remove_instance("p-0")
    yield from model.run(20 * MINUTE)


def _chase(model: Model) -> Iterator[float]:
    """Wherever a room goes, as many clients as it has leave others where it was, and join another there."""
    skewed(model)

    def follow(moved: Moved) -> None:
        there = min(room for room, home in model.homes.items() if home == moved.target)
        left = moved.members
        source = model.instances[moved.source].rooms
        for room in sorted(source):
            if room != moved.room and model.homes[room] == moved.source:
                number = min(left, source[room])
                model.grow(room, -number)
                left -= number
        model.grow(there, moved.members - left)

    model.on_move = follow
    yield from model.run(240 * MINUTE)


def _churn(model: Model) -> Iterator[float]:
    """Clients come and go, room by room, a tenth of a room each ten seconds."""
    skewed(model, hot=10)
    names = sorted(model.homes)
    sizes = {name: model.instances[model.homes[name]].rooms[name] for name in names}
    for _ in model.run(240 * MINUTE):
        for room in model.chance.sample(names, 20):
            now = model.instances[model.homes[room]].rooms.get(room, 0)
            model.grow(room, round((sizes[room] - now) * 0.3 + model.chance.uniform(-0.1, 0.1) * sizes[room]))
        yield model.now


GATEWAY: Final = Settings(mode="Gateway")
SERVICE: Final = Settings(mode="Service")

ALL: Final[Sequence[Scenario]] = (
    Scenario("skew", "Most rooms on 3 of 10", GATEWAY, _skew),
    Scenario("shed", "The same, behind one Service", SERVICE, _skew),
    Scenario("burst", "A room of 10 % bursts, and is over", GATEWAY, _burst),
    Scenario("pods", "Two pods come, one goes", GATEWAY, _pods),
    Scenario("stubborn", "A third don't follow", GATEWAY, _skew, stubborn=0.33),
    Scenario("late", "A third of the records are late", GATEWAY, _skew, late=0.33),
    Scenario("chase", "Load follows what moves", GATEWAY, _chase),
    Scenario("churn", "Members come and go", GATEWAY, _churn),
)


@dataclasses.dataclass
class Noise:
    """Moves under noise, cycle by cycle."""

    cycles: int
    model: Model
    moves: list[tuple[float, float]]
    """Cycle, and moves up to it."""
    after_settling: int
    """Moves later than the first ten cycles."""
    back_too_soon: int
    """Rooms that moved twice within the cooldown."""


def noise(
    cycles: int, *, noise: float = 0.2, seed: int = 3, mode: Literal["Gateway", "Service"] = "Gateway"
) -> Noise:
    """A skewed fleet whose every record is off by up to `noise`, for so many intervals."""
    model = Model(Settings(mode=mode), seed=seed, noise=noise)
    skewed(model, rooms=120, clients=6000)
    moves: list[tuple[float, float]] = []
    for cycle in range(cycles):
        for _ in model.run(model.settings.interval_seconds, step=30.0):
            pass
        if cycle < 20 or cycle % (cycles // 100 or 1) == 0:
            moves.append((cycle + 1, _moves(model)))
    settled = 10 * model.settings.interval_seconds
    last: dict[str, float] = {}
    back = 0
    for moved in model.moved:
        back += moved.at - last.get(moved.room, -1e9) < model.settings.cooldown_seconds
        last[moved.room] = moved.at
    later = [moved for moved in model.moved if moved.at > settled]
    moves.append((cycles, _moves(model)))
    return Noise(cycles, model, moves, len(later), back)


def without_averages(cycles: int, *, noise: float = 0.2, seed: int = 3) -> list[tuple[float, float]]:
    """The same fleet with nothing but a threshold: what the averages are there for. Cycle, moves up to it."""
    model = Model(Settings(mode="Gateway", enabled=False), seed=seed, noise=noise)
    skewed(model, rooms=120, clients=6000)
    settings, moves, number = Settings(mode="Gateway"), [], 0
    for cycle in range(cycles):
        for _ in model.run(settings.interval_seconds, step=30.0):
            pass
        load = model.load()
        if spread_of(load, "capacity") > settings.threshold:
            limits = Limits(
                aim=AIM * settings.threshold,
                most_moves=settings.most_moves,
                most_clients=settings.most_clients,
            )
            for move in plan(load, limits, mode="Gateway", measure="capacity").moves:
                model.move(move.room, move.source, move.target)
                number += 1
        if cycle < 20 or cycle % (cycles // 100 or 1) == 0:
            moves.append((cycle + 1.0, float(number)))
    moves.append((float(cycles), float(number)))
    return moves


def _moves(model: Model) -> float:
    return float(len(model.moved))
