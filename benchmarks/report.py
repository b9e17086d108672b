"""Results as a file to compare with, as tables in the documentation, and as plots."""

import dataclasses
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks import contestants, curves, plots, stores, workloads
from benchmarks.workloads import Values, Workload

REPOSITORY: Final = Path(__file__).parent.parent
DOCUMENTATION: Final = REPOSITORY / "docs" / "benchmarks.md"
PICTURES: Final = REPOSITORY / "docs" / "benchmarks"
README: Final = REPOSITORY / "README.md"

BASE: Final = "guide"
"""Ratios are to this one."""

MUST_REACH: Final = {
    "room-4": "≤ 0.25",
    "room-16": "≤ 0.10",
    "rooms": "≤ 0.70",
    "connections": "≤ 1.0",
    "memory": "≤ 16 KB",
}


@dataclasses.dataclass
class Results:
    """Everything of one call."""

    date: str
    machine: dict[str, str]
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    missing: dict[str, str] = dataclasses.field(default_factory=dict)
    """Why a peer could not be had, or failed."""
    runs: dict[str, dict[str, list[Values]]] = dataclasses.field(default_factory=dict)
    """By workload and contestant, one a pair."""
    curves: dict[str, dict[str, list[tuple[float, Values]]]] = dataclasses.field(default_factory=dict)
    stores: dict[str, list[Values]] = dataclasses.field(default_factory=dict)
    """Ours on each kind of Redis, one a round."""
    also: list[str] = dataclasses.field(default_factory=list)
    """When else something of it was measured."""

    def add(self, workload: str, contestant: str, values: Values) -> None:
        """One run's."""
        self.runs.setdefault(workload, {}).setdefault(contestant, []).append(values)

    def median(self, workload: Workload, contestant: str) -> float | None:
        """Of the row's figure; None where it was not measured."""
        runs = self.runs.get(workload.name, {}).get(contestant)
        return statistics.median(values[workload.figure] for values in runs) if runs else None

    def ratio(self, workload: Workload, contestant: str) -> float | None:
        """To the base, run by run, so that what disturbs one pair disturbs both of it; the median."""
        ours = self.runs.get(workload.name, {}).get(contestant, [])
        base = self.runs.get(workload.name, {}).get(BASE, [])
        ratios = [
            one[workload.figure] / other[workload.figure] for one, other in zip(ours, base, strict=False)
        ]
        return statistics.median(ratios) if ratios else None

    def take(self, later: "Results") -> None:
        """What was measured later, in another call on the same machine, instead of what is here of it."""
        self.also.append(f"{later.date} (commit {later.machine['commit']})")
        self.versions |= later.versions
        self.missing |= later.missing
        self.runs |= later.runs
        self.curves |= later.curves
        self.stores |= later.stores

    def save(self, path: Path) -> None:
        """As JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Results":
        """What `save` wrote."""
        raw: dict[str, Any] = json.loads(path.read_text())
        return cls(**raw)


def table(results: Results) -> str:
    """One row a workload, one column a server: the figure, and its ratio to the guide's stack."""
    columns = [one for one in contestants.ALL if any(one.name in runs for runs in results.runs.values())]
    head = [f"{one.title}, {one.log}" for one in columns]
    lines = [
        "| workload, 128-byte payloads | " + " | ".join(head) + " | must reach |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for workload in workloads.ALL:
        if workload.name not in results.runs:
            continue
        cells = [_cell(results, workload, one.name) for one in columns]
        lines.append(f"| {workload.title} | " + " | ".join(cells) + f" | {_target(results, workload)} |")
    return "\n".join(lines)


def _target(results: Results, workload: Workload) -> str:
    """What is to be reached, and whether it was missed."""
    target = MUST_REACH[workload.name]
    most, _, unit = target.removeprefix("≤ ").partition(" ")
    # a ratio where it has no unit of its own
    found = results.median(workload, contestants.OURS) if unit else results.ratio(workload, contestants.OURS)
    return target if found is None or found <= float(most) else f"{target}: **missed**"


def _cell(results: Results, workload: Workload, contestant: str) -> str:
    value = results.median(workload, contestant)
    if value is None:
        return "not measured"
    ratio = results.ratio(workload, contestant)
    digits = 2 if value < 10 else 1 if value < 100 else 0
    shown = f"{value:,.{digits}f} {workload.unit}"
    if ratio is None or contestant == BASE:
        return f"{shown} = 1" if contestant == BASE else shown
    return f"**{ratio:.2f}** ({shown})" if contestant == contestants.OURS else f"{ratio:.2f} ({shown})"


def redis_table(results: Results) -> str:
    """What a message costs Redis."""
    lines = ["| CPU of Redis per message, µs | " + " | ".join(_titles(results)) + " |"]
    lines.append("|---" * (len(_titles(results)) + 1) + "|")
    for workload in workloads.ALL:
        runs = results.runs.get(workload.name)
        if not runs or "redis_cpu_per_message" not in next(iter(runs.values()))[0]:
            continue
        cells = [
            f"{statistics.median(one['redis_cpu_per_message'] for one in runs[name]):.1f}"
            if name in runs
            else "not measured"
            for name in _names(results)
        ]
        lines.append(f"| {workload.title.partition(':')[0]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def store_table(results: Results) -> str:
    """Ours on each kind of Redis."""
    lines = [
        "| 200 rooms of 5, 1 outstanding | messages/s | p50 ms | p99 ms | CPU per message | of Redis |",
        "|---|---|---|---|---|---|",
    ]
    for store in stores.ALL:
        runs = results.stores.get(store.name)
        if not runs:
            continue
        figures = ("messages_per_second", "p50_ms", "p99_ms", "cpu_per_message", "redis_cpu_per_message")
        rate, p50, p99, cpu, redis = (statistics.median(one[name] for one in runs) for name in figures)
        lines.append(
            f"| {store.title} | {rate:,.0f} | {p50:.1f} | {p99:.1f} | {cpu:.1f} µs | {redis:.1f} µs |"
        )
    return "\n".join(lines)


def _names(results: Results) -> list[str]:
    return [
        one.name
        for one in contestants.ALL
        if one.needs_redis and any(one.name in runs for runs in results.runs.values())
    ]


def _titles(results: Results) -> list[str]:
    titles = {one.name: one.title for one in contestants.ALL}
    return [titles[name] for name in _names(results)]


def provenance(results: Results) -> str:
    """Where, when and of what."""
    machine = results.machine
    versions = sorted(set(results.versions.values()))
    measured = (
        f"Measured on {results.date} on {machine['cores']} cores of {machine['processor']}, "
        f"{machine['memory']}, {machine['kernel']}; Python {machine['python']}, {machine['libraries']}; "
        f"{'; '.join(versions)}; commit {machine['commit']}.{_disturbance(results)}"
    )
    if results.also:
        measured += f" Parts of it on {', '.join(results.also)}."
    return "\n".join(
        [measured, *(f"\n**Missing:** {name}: {reason}" for name, reason in results.missing.items())]
    )


def _disturbance(results: Results) -> str:
    """How much of the machine something else had: above a little, latencies and rates mean little."""
    found = [
        values["others_cores"]
        for runs in results.runs.values()
        for each in runs.values()
        for values in each
        if "others_cores" in values
    ]
    if not found:
        return ""
    return (
        f" Meanwhile other work took {statistics.median(found):.1f} of the {results.machine['cores']} cores."
    )


def draw(results: Results) -> list[Path]:
    """The plots of what was measured."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    titles = {one.name: one.title for one in contestants.ALL}
    drawn: list[Path] = []
    found = results.curves.get(stores.CURVE, {})
    drawn += [
        _draw_stores(plot, found) for plot in stores.PLOTS if any(found.get(one) for one in plot.stores)
    ]
    for curve in curves.ALL:
        found = results.curves.get(curve.name, {})
        if not any(found.values()):
            continue
        picture = plots.chart(
            curve.title,
            [
                plots.Line(
                    titles.get(name, name), [(x, values[curve.figure]) for x, values in found.get(name, [])]
                )
                for name in (
                    *curve.contestants,
                    *(other for other in found if other not in curve.contestants),
                )
            ],
            x=curve.x,
            y=curve.y,
            x_is_logarithmic=curve.x_is_logarithmic,
            y_is_logarithmic=curve.y_is_logarithmic,
        )
        path = PICTURES / f"{curve.name}.svg"
        path.write_text(picture)
        drawn.append(path)
    return drawn


def _draw_stores(plot: stores.Plot, found: dict[str, list[tuple[float, Values]]]) -> Path:
    picture = plots.chart(
        plot.title,
        [
            plots.Line(
                one.title.replace("`", ""), [(x, values["p99_ms"]) for x, values in found.get(one.name, [])]
            )
            for one in stores.ALL
            if one.name in plot.stores
        ],
        x="messages a second",
        y="p99 from publish to own copy, ms",
        x_is_logarithmic=False,
        y_is_logarithmic=True,
    )
    path = PICTURES / f"{plot.name}.svg"
    path.write_text(picture)
    return path


def sections(results: Results) -> list[str]:
    """The tables of what was measured, and where."""
    found = [table(results), redis_table(results)] if results.runs else []
    if results.stores:
        found.append(store_table(results))
    return [*found, provenance(results)]


def write(results: Results) -> None:
    """Put the tables where the documentation has its marks. Raises ValueError where one is missing."""
    _replace(DOCUMENTATION, "\n\n".join(sections(results)))
    _replace(README, "\n\n".join([table(_short(results)), provenance(results)]))


def _short(results: Results) -> Results:
    shown: Sequence[str] = (contestants.OURS, BASE, "socketio", "centrifuge-history", "nchan")
    return dataclasses.replace(
        results,
        runs={
            workload: {name: values for name, values in runs.items() if name in shown}
            for workload, runs in results.runs.items()
        },
    )


def _replace(path: Path, text: str) -> None:
    begin, end = "<!-- measured -->\n", "<!-- /measured -->"
    page = path.read_text()
    if page.count(begin) != 1 or page.count(end) != 1:
        raise ValueError(f"{path.name} needs exactly one `{begin.strip()}` and one `{end}`")
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    path.write_text(f"{before}{begin}\n{text}\n\n{end}{after}")
