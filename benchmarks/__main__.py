"""`make bench`: the data plane beside its peers, on this machine, now.

Installs the peers into `.bench/`, runs every workload in alternating order, then the curves, and writes
`.bench/results/<date>.json`. With `--write` the tables and plots of the documentation are made anew from it.
"""

import argparse
import datetime as dt
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import uvloop

from benchmarks import contestants, curves, machine, report, stores, workloads
from benchmarks.contestants import Contestant, DidNotStartError
from benchmarks.installation import ROOT, Installed
from benchmarks.load import LoadError
from benchmarks.report import Results

STORES: Final = "stores"
"""What `--only` calls the runs on each kind of Redis."""


def say(text: str) -> None:
    """Progress, for people."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def keep(results: Results) -> Path:
    """Save what there is so far."""
    path = ROOT / "results" / f"{results.date.replace(' ', '-').replace(':', '')}.json"
    results.save(path)
    return path


async def run(options: argparse.Namespace) -> Results:
    """Everything that was asked for. What is measured is saved as it comes."""
    wanted = [one for one in contestants.ALL if not options.servers or one.name in options.servers]
    rows = [one for one in workloads.ALL if not options.only or one.name in options.only]
    plotted = (
        []
        if options.no_curves
        else [one for one in curves.ALL if not options.only or one.name in options.only]
    )
    results = Results(date=dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC"), machine=machine.describe())
    installed, results.missing = await contestants.install(wanted, say)
    results.versions = {name: one.version for name, one in installed.items()}
    here = [one for one in wanted if one.name not in results.missing]
    for workload in rows:
        say(workload.title)
        if workload.measured_with in results.runs:
            results.runs[workload.name] = results.runs[workload.measured_with]
            continue
        for pair in range(options.pairs):
            # whoever came first comes last in the next: what changes slowly touches all alike
            for contestant in here if pair % 2 == 0 else reversed(here):
                await _one(results, workload, contestant, installed.get(contestant.name), options.seconds)
        keep(results)
    for curve in plotted:
        say(curve.title)
        for contestant in here:
            if contestant.name in curve.contestants:
                await _curve(results, curve, contestant, installed.get(contestant.name), options.seconds)
        keep(results)
    if any(one.name == contestants.OURS for one in wanted) and (not options.only or STORES in options.only):
        say("TableForge on each kind of Redis")
        for _ in range(options.pairs):
            for store in stores.ALL:
                await _store(results, store, options.seconds)
    if any(one.name == contestants.OURS for one in wanted) and (
        stores.CURVE in options.only if options.only else not options.no_curves
    ):
        say("Latency against throughput on each kind of Redis")
        for store in stores.ALL:
            await _saturation(results, store, options.seconds)
    return results


async def _store(results: Results, store: stores.Store, seconds: float) -> None:
    ours = next(one for one in contestants.ALL if one.name == contestants.OURS)
    try:
        values = await stores.run(store, ours, seconds)
    except (DidNotStartError, LoadError) as error:
        results.missing[f"{contestants.OURS}, {store.name}"] = str(error)
        say(f"  {store.name}: FAILED: {error}")
        return
    results.stores.setdefault(store.name, []).append(values)
    say(
        f"  {store.name}: {values['messages_per_second']:,.0f} messages/s, p99 {values['p99_ms']:.1f} ms, "
        f"{values['cpu_per_message']:.1f} µs a message"
    )


async def _saturation(results: Results, store: stores.Store, seconds: float) -> None:
    ours = next(one for one in contestants.ALL if one.name == contestants.OURS)
    found = results.curves.setdefault(stores.CURVE, {}).setdefault(store.name, [])
    try:
        async for point in stores.saturation(store, ours, seconds):
            found.append((point.x, point.values))
            say(f"  {store.name}, {point.x:,.0f} messages/s: p99 {point.values['p99_ms']:.2f} ms")
    except (DidNotStartError, LoadError) as error:
        results.missing[f"{store.name}, {stores.CURVE}"] = str(error)
        say(f"  {store.name}: FAILED: {error}")


async def _one(
    results: Results,
    workload: workloads.Workload,
    contestant: Contestant,
    installed: Installed | None,
    seconds: float,
) -> None:
    try:
        values = await workloads.run(workload, contestant, installed, seconds=seconds)
    except (DidNotStartError, LoadError) as error:
        results.missing[contestant.name] = f"{workload.name}: {error}"
        say(f"  {contestant.name}: FAILED: {error}")
        return
    results.add(workload.name, contestant.name, values)
    extra = ""
    if "messages_per_second" in values:
        extra = (
            f"; {values['messages_per_second']:,.0f} messages/s, "
            f"Redis {values['redis_cpu_per_message']:.1f} µs a message, "
            f"generator at {values['generator_cores']:.0%}"
        )
    say(f"  {contestant.name}: {values[workload.figure]:.2f} {workload.unit}{extra}")


async def _curve(
    results: Results, curve: curves.Curve, contestant: Contestant, installed: Installed | None, seconds: float
) -> None:
    found = results.curves.setdefault(curve.name, {}).setdefault(contestant.name, [])
    try:
        async for point in curve.points(contestant, installed, seconds):
            found.append((point.x, point.values))
            figure, rate = point.values[curve.figure], point.values["messages_per_second"]
            say(f"  {contestant.name}, {point.x:,.0f} {curve.x}: {figure:.2f} ({curve.y}); {rate:,.0f}/s")
    except (DidNotStartError, LoadError) as error:
        results.missing[f"{contestant.name}, {curve.name}"] = str(error)
        say(f"  {contestant.name}: FAILED: {error}")


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [STORES, stores.CURVE, *(one.name for one in (*workloads.ALL, *curves.ALL))]
    parser.add_argument(
        "--only", action="append", choices=sorted(set(names)), help="a workload or curve; may be repeated"
    )
    parser.add_argument(
        "--servers", action="append", choices=[one.name for one in contestants.ALL], help="may be repeated"
    )
    parser.add_argument("--pairs", type=int, default=3, help="runs of each workload and server (3)")
    parser.add_argument("--seconds", type=float, default=4.0, help="how long each run is measured (4)")
    parser.add_argument("--no-curves", action="store_true", help="the table's workloads only")
    parser.add_argument("--write", action="store_true", help="make the documentation's tables and plots anew")
    parser.add_argument(
        "--from",
        dest="saved",
        type=Path,
        action="append",
        help="don't measure: take these saved results; repeated, what later ones have takes the place of it",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """The command line's."""
    options = _options(arguments)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if options.saved:
        results = Results.load(options.saved[0])
        for path in options.saved[1:]:
            results.take(Results.load(path))
    else:
        results = uvloop.run(run(options))
        say(f"saved as {keep(results).relative_to(report.REPOSITORY)}")
    print(*report.sections(results), sep="\n\n")
    if options.write:
        report.write(results)
        for picture in report.draw(results):
            say(f"drawn: {picture.relative_to(report.REPOSITORY)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
