"""`python -m benchmarks.rebalancing`: the planner before a model of a fleet, and what a large plan costs.

Prints a table of the scenarios, a plan from beginning to end, and the time that plans take on this machine.
With `--write` the plots and figures of `docs/rebalancing.md` are made anew.
"""

import argparse
import dataclasses
import gc
import random
import statistics
import sys
import time
import tracemalloc
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from benchmarks import machine, plots
from benchmarks.plots import Line, Marks
from benchmarks.rebalancing import scenarios
from benchmarks.rebalancing.model import NAMED, STARTED, Model
from benchmarks.rebalancing.scenarios import ALL, MINUTE
from tableforge_dataplane.contract.fleet import (
    MOST_MOVES,
    Fleet,
    InstanceRecord,
    RedisState,
    RoomLoad,
    Totals,
)
from tableforge_operator.decide.rebalancing import cycle
from tableforge_operator.decide.rebalancing.load import Rooms, load_of
from tableforge_operator.decide.rebalancing.state import Settings, Sight

REPOSITORY: Final = Path(__file__).parent.parent.parent
DOCUMENTATION: Final = REPOSITORY / "docs" / "rebalancing.md"
PICTURES: Final = REPOSITORY / "docs" / "rebalancing"
MARKERS: Final = {
    name: (f"<!-- {name} -->", f"<!-- /{name} -->") for name in ("scenarios", "example", "cost")
}
TITLES: Final = {one.name: one.title for one in ALL}
POINTS: Final = 48
"""Of a line."""
POINTS_OF_MANY: Final = 150
"""Of one of a dozen lines, which have no dots."""
LOADS: Final = {"skew": 10, "burst": 50, "pods": 50, "chase": 20}
"""Scenarios of which every instance's connections are drawn, and for how many minutes."""
CYCLES: Final = 10_000


def large(instances: int, rooms: int, *, seed: int = 1) -> Fleet:
    """A skewed fleet that names so many rooms of each instance; some are several times as busy as others."""
    chance = random.Random(seed)  # noqa: S311
    records = []
    for index in range(instances):
        busy = chance.choice((0.5, 0.8, 1.0, 1.0, 1.3, 2.5))
        members = sorted(
            (max(1, min(int(busy * 3 * chance.paretovariate(1.5)), 500)) for _ in range(rooms)), reverse=True
        )
        records.append(
            InstanceRecord(
                instance=f"p-{index:04}",
                boot="1",
                version="1",
                started_at=0.0,
                updated_at=0.0,
                connections=sum(members),
                rooms=rooms,
                capacity=50_000,
                draining=False,
                alive=True,
                heaviest_rooms=[
                    RoomLoad(f"room-{index}-{place}", number) for place, number in enumerate(members)
                ],
                address=f"/i/p-{index:04}/ws",
            )
        )
    return Fleet(
        instance="p-0000",
        redis=RedisState(connected=True, reason="Connected", message=""),
        as_of=0.0,
        totals=Totals(instances=instances, connections=0, rooms=0),
        instances=records,
    )


def cost() -> str:
    """What turns of the cycle take of the processor and of memory, as a table: the median of five."""
    lines = [
        (
            "| instances | rooms named | moves at most | moves planned | rooms looked at | "
            "CPU seconds of a turn that plans | of one that only looks | MB that planning takes |"
        ),
        "|---|---|---|---|---|---|---|---|",
    ]
    for instances, rooms in ((10, NAMED), (1000, NAMED), (100, 1000), (1000, 1000)):
        fleet = large(instances, rooms)
        for most in (50, MOST_MOVES):
            settings = Settings(mode="Gateway", most_moves=most, reconnects_per_second=10_000)
            gc.collect()
            runs = [_turns(fleet, settings) for _ in range(5)]
            looking, planning = (
                statistics.median(seconds) for seconds in zip(*(one.seconds for one in runs), strict=True)
            )
            found = _turns(fleet, settings, traced=True)
            lines.append(
                f"| {instances:,} | {instances * rooms:,} | {most:,} | {found.moves:,} "
                f"| {found.looked_at:,} | {planning:.3f} | {looking:.3f} | {found.memory / 1e6:.1f} |"
            )
    return "\n".join([*lines, "", _where()])


@dataclasses.dataclass(frozen=True)
class _Turns:
    """A turn that only looks, and the next one, which plans."""

    seconds: tuple[float, float]
    """Of the processor."""
    moves: int
    looked_at: int
    """Rooms, in both."""
    memory: int
    """Bytes that the second one had at most, beyond what was there before."""


class _Counted(Mapping[str, Rooms]):
    """Rooms by instance, and how many were asked for."""

    def __init__(self, rooms: Mapping[str, Rooms]) -> None:
        self._rooms = rooms
        self.looked_at = 0

    def __getitem__(self, name: str) -> Rooms:
        found = self._rooms[name]
        self.looked_at += len(found.names)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._rooms)

    def __len__(self) -> int:
        return len(self._rooms)


def _turns(fleet: Fleet, settings: Settings, *, traced: bool = False) -> _Turns:
    """As the operator has them, from what the fleet answered to what is to be done."""
    state, seconds, looked_at = cycle.begin(now=0.0), [], 0
    for now in (30.0, 90.0):
        records = [msgspec.structs.replace(one, updated_at=now) for one in fleet.instances]
        told = msgspec.structs.replace(fleet, as_of=now, instances=records)
        if traced:
            tracemalloc.start()
        started = time.process_time()
        load = load_of(told)
        rooms = _Counted(load.rooms)
        sight = Sight(load=dataclasses.replace(load, rooms=rooms), seen_at=now)
        turn = cycle.step(state, sight=sight, settings=settings, now=now, wall=STARTED)
        seconds.append(time.process_time() - started)
        memory = tracemalloc.get_traced_memory()[1] if traced else 0
        tracemalloc.stop()
        state, looked_at = turn.state, looked_at + rooms.looked_at
    return _Turns((seconds[0], seconds[1]), turn.report.moves_planned, looked_at, memory)


def _where() -> str:
    found = machine.describe()
    return (
        f"Measured on {found['cores']} cores of {found['processor']}, {found['memory']}, {found['kernel']}; "
        f"Python {found['python']}; commit {found['commit']}."
    )


def table(models: dict[str, Model], noise: scenarios.Noise) -> str:
    """One row a scenario."""
    lines = [
        "| what happens | spread at first | later at most | at last | plans | rooms moved | clients moved |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in ALL:
        model = models[one.name]
        spreads = [spread for _, spread in model.spreads]
        later = [spread for at, spread in model.spreads if at > 10 * MINUTE]
        plans = sum(news.reason == "RebalanceStarted" for news in model.news)
        lines.append(
            f"| {one.title} | {spreads[0]:.2f} | {max(later):.2f} | {spreads[-1]:.2f} | {plans} | "
            f"{len(model.moved)} | {model.sent:,} |"
        )
    model = noise.model
    plans = sum(news.reason == "RebalanceStarted" for news in model.news)
    most = max(spread for at, spread in model.spreads if at > 10 * MINUTE)
    lines.append(
        f"| Records off by up to 20 %, {noise.cycles:,} cycles | {model.spreads[0][1]:.2f} | {most:.2f} | "
        f"{model.spreads[-1][1]:.2f} | {plans} | {len(model.moved)}, of them {noise.after_settling} after "
        f"the first ten cycles | {model.sent:,} |"
    )
    return "\n".join(lines)


def example() -> str:
    """A small plan from beginning to end, with what it says."""
    model = Model(Settings(mode="Gateway"), seed=2)
    rooms = {
        "p-0": [("lobby", 420), ("chess", 260), ("go", 180), ("poker", 120), ("bridge", 60)],
        "p-1": [("news", 240), ("help", 90)],
        "p-2": [("sports", 200), ("music", 130)],
    }
    for name in rooms:
        model.add_instance(name)
    for name, held in rooms.items():
        for room, members in held:
            model.add_room(room, members, name)
    lines = [_row("at first", model)]
    told = 0
    for now in model.run(10 * MINUTE):
        for news in model.news[told:]:
            lines.append(f"{now:5.0f} s  {news.reason}: {news.message}")
            if news.reason == "RebalanceStarted" and model.state.work is not None:
                lines += [
                    f"         {move.room} ({move.members}): {move.source} → {move.target}"
                    for move in (one.move for one in model.state.work.moves)
                ]
            else:
                lines.append(_row(f"{now:5.0f} s", model))
        told = len(model.news)
    if model.report is not None:
        report = model.report
        lines += [
            f"at last  phase {report.phase}, Balanced={report.balanced}, reason {report.reason}:",
            f"         {report.message}",
        ]
    return "```text\n" + "\n".join(lines) + "\n```"


def _row(when: str, model: Model) -> str:
    loads = ", ".join(f"{one.name} {one.connections:,}" for one in model.instances.values())
    return f"{when}  {loads} connections of {next(iter(model.instances.values())).capacity:,} each"


def draw(models: dict[str, Model], noise: scenarios.Noise) -> list[Path]:
    """The plots."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    pictures = {
        "settling.svg": plots.chart(
            "A skewed fleet becomes even",
            [_line(models[name], TITLES[name], 15) for name in ("skew", "shed", "stubborn", "late")],
            x="minutes",
            y="spread: (max − min) / mean",
            x_is_logarithmic=False,
            y_is_logarithmic=False,
        ),
        "changes.svg": plots.chart(
            "What changes is answered",
            [_line(models[name], TITLES[name], 50) for name in ("burst", "pods")],
            x="minutes",
            y="spread: (max − min) / mean",
            x_is_logarithmic=False,
            y_is_logarithmic=False,
        ),
        "noise.svg": plots.chart(
            f"Records that are off by up to 20 %, {noise.cycles:,} cycles",
            [
                Line("as it is", _thinned([point for point in noise.moves if point[1] > 0])),
                Line(
                    "a threshold alone",
                    _thinned([point for point in scenarios.without_averages(noise.cycles) if point[1] > 0]),
                ),
            ],
            x="cycles of 60 s",
            y="rooms moved up to there",
            x_is_logarithmic=True,
            y_is_logarithmic=True,
        ),
    }
    for name, minutes in LOADS.items():
        pictures[f"load-{name}.svg"] = plots.chart(
            f"{TITLES[name]}: each instance",
            [
                Line(instance, _upto(points, minutes, POINTS_OF_MANY))
                for instance, points in models[name].connections.items()
            ],
            x="minutes",
            y="connections",
            x_is_logarithmic=False,
            y_is_logarithmic=False,
            marks=Marks("a plan is made", [at / MINUTE for at in models[name].planned]),
        )
    for name, picture in pictures.items():
        (PICTURES / name).write_text(picture)
    return [PICTURES / name for name in pictures]


def _line(model: Model, name: str, minutes: float) -> Line:
    return Line(name, _upto(model.spreads, minutes, POINTS))


def _upto(points: Sequence[tuple[float, float]], minutes: float, most: int) -> Sequence[tuple[float, float]]:
    """In minutes."""
    return _thinned([(at / MINUTE, number) for at, number in points if at <= minutes * MINUTE], most)


def _thinned(points: Sequence[tuple[float, float]], most: int = POINTS) -> Sequence[tuple[float, float]]:
    step = max(1, -(-len(points) // most))
    return [*points[::step], points[-1]]


def write(parts: dict[str, str]) -> None:
    """The figures into the documentation, between their markers."""
    text = DOCUMENTATION.read_text()
    for name, part in parts.items():
        begin, end = MARKERS[name]
        head, rest = text.split(begin, 1)
        text = f"{head}{begin}\n\n{part}\n\n{end}{rest.split(end, 1)[1]}"
    DOCUMENTATION.write_text(text)


def main(arguments: Sequence[str]) -> int:
    """The command line's."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rebalancing",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--write", action="store_true", help="make the documentation's figures and plots anew"
    )
    parser.add_argument("--cycles", type=int, default=CYCLES, help=f"under noise ({CYCLES:,})")
    options = parser.parse_args(arguments)
    models = {one.name: one.run() for one in ALL}
    noise = scenarios.noise(options.cycles)
    parts = {"scenarios": table(models, noise), "example": example(), "cost": cost()}
    print(*parts.values(), sep="\n\n")
    if options.write:
        write(parts)
        for picture in draw(models, noise):
            print(f"drawn: {picture.relative_to(REPOSITORY)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
