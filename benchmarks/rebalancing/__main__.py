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
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks import machine, plots
from benchmarks.plots import Line
from benchmarks.rebalancing import scenarios
from benchmarks.rebalancing.model import NAMED, STARTED, Model
from benchmarks.rebalancing.scenarios import ALL, MINUTE
from tableforge_operator.decide.rebalancing import cycle
from tableforge_operator.decide.rebalancing.load import Instance, Load, Rooms
from tableforge_operator.decide.rebalancing.planner import Limits, plan
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
CYCLES: Final = 10_000


def large(instances: int, rooms: int, *, seed: int = 1) -> Load:
    """A skewed fleet with so many rooms on each instance; a few are several times as busy as others."""
    chance = random.Random(seed)  # noqa: S311
    found, held = [], {}
    for index in range(instances):
        name = f"p-{index:04}"
        busy = chance.choice((0.5, 0.8, 1.0, 1.0, 1.3, 2.5))
        members = sorted(
            (max(1, min(int(busy * 3 * chance.paretovariate(1.5)), 500)) for _ in range(rooms)), reverse=True
        )
        held[name] = Rooms([f"room-{index}-{place}" for place in range(rooms)], members)
        found.append(Instance(name=name, connections=sum(members), capacity=50_000))
    return Load(instances=found, rooms=held)


def cost() -> str:
    """What plans take of the processor, as a table: the median of five."""
    lines = [
        "| instances | rooms | moves at most | moves planned | rooms looked at | CPU seconds |",
        "|---|---|---|---|---|---|",
    ]
    for instances, rooms in ((10, 200), (100, 1000), (1000, 1000)):
        load = large(instances, rooms)
        for most in (50, 1000, 1_000_000):
            seconds = []
            limits = Limits(aim=0.15, most_moves=most, most_clients=10**9)
            gc.collect()
            for _ in range(5):
                started = time.process_time()
                found = plan(load, limits, mode="Gateway", measure="capacity")
                seconds.append(time.process_time() - started)
            lines.append(
                f"| {instances:,} | {instances * rooms:,} | {most:,} | {len(found.moves):,} | "
                f"{found.rooms_looked_at:,} | {statistics.median(seconds):.3f} |"
            )
    return "\n".join([*lines, "", _turns(), "", _where()])


def _turns() -> str:
    """What whole turns take, as the operator calls them."""
    load = large(1000, NAMED)
    told = tuple(dataclasses.replace(one, updated_at=100.0) for one in load.instances)
    sight = Sight(load=dataclasses.replace(load, as_of=100.0, instances=told), seen_at=100.0)
    settings = Settings(mode="Gateway", reconnects_per_second=10_000)
    state = cycle.begin(now=0.0)
    started = time.process_time()
    turn = cycle.step(state, sight=sight, settings=settings, now=100.0, wall=STARTED)
    quiet = time.process_time() - started
    started = time.process_time()
    turn = cycle.step(turn.state, sight=sight, settings=settings, now=100.0, wall=STARTED, request="now")
    planned = time.process_time() - started
    return (
        f"A whole turn with 1,000 instances that name {NAMED} rooms each takes {planned:.3f} s where it "
        f"plans {turn.report.moves_planned} moves, and {quiet:.3f} s where it only looks."
    )


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
            if news.reason == "RebalanceStarted":
                lines += [
                    f"         {moved.room} ({moved.members}): {moved.source} → {moved.target}"
                    for moved in model.moved
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
    for name, picture in pictures.items():
        (PICTURES / name).write_text(picture)
    return [PICTURES / name for name in pictures]


def _line(model: Model, name: str, minutes: float) -> Line:
    return Line(name, _thinned([(at / 60, spread) for at, spread in model.spreads if at <= minutes * MINUTE]))


def _thinned(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    step = max(1, -(-len(points) // POINTS))
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
