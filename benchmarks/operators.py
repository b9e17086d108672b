"""One operator with 1, 50 and 500 clusters, without nodes: `python -m benchmarks.operators`.

For each number: how long it takes until all are made and judged, and what that costs; what is written while
nothing happens; and after a restart, while everything is adopted, how long one cluster that changes has to
wait. With `--write` the page and the pictures in docs/ are made anew. It ends with 1 where a figure is beyond
what is promised (`LIMITS`).
"""

import argparse
import asyncio
import datetime as dt
import json
import os
import re
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import aiohttp

from benchmarks import machine, plots
from devcluster.cluster import Devcluster
from tableforge_operator.kube import CLUSTERS, Kube, resource_of

ROOT: Final = Path(__file__).parents[1]
NUMBERS: Final = (1, 50, 500)
QUIET_SECONDS: Final = 60.0
CHANGES: Final = 10
"""Clusters that are changed, one after the other, while the others are being adopted."""
WATCHING_SECONDS: Final = 3.0
"""After its start the operator watches by then; what is changed before is found in a list."""
NAMESPACE: Final = "bench"
DEPLOYMENTS: Final = resource_of("apps/v1", "Deployment")
PAGE: Final = ROOT / "docs" / "benchmarks-operator.md"
PICTURES: Final = ROOT / "docs" / "benchmarks"


def say(text: str) -> None:
    """Progress, for people."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


class Operator:
    """The operator's process, and what it costs."""

    def __init__(self, kubeconfig: Path, log: Path, port: int) -> None:
        self._kubeconfig = kubeconfig
        self._log = log
        self._url = f"http://127.0.0.1:{port}"
        self._port = port
        self._running: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it, and wait until it leads."""
        with self._log.open("ab") as log:
            self._running = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "tableforge_operator", "run", f"--kubeconfig={self._kubeconfig}"),
                *("--health-host=127.0.0.1", f"--health-port={self._port}", "--operator-namespace=default"),
                stderr=log,
            )
        async with asyncio.timeout(60):
            while await self._get("/readyz") != "leading\n":  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.05)

    @property
    def _process(self) -> asyncio.subprocess.Process:
        if self._running is None:
            raise RuntimeError("not started")
        return self._running

    async def stop(self) -> None:
        self._process.terminate()
        await self._process.wait()

    async def metric(self, name: str) -> float:
        """The sum of all series of a metric."""
        text = await self._get("/metrics")
        return sum(float(value) for value in re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", text, re.MULTILINE))

    async def writes(self) -> float:
        """Writes to the API server, those of its own lease apart."""
        text = await self._get("/metrics")
        found = re.findall(r"^tableforge_operator_api_writes_total\{(.*)\} (\S+)$", text, re.MULTILINE)
        return sum(float(value) for labels, value in found if 'resource="leases"' not in labels)

    async def _get(self, path: str) -> str:
        try:
            async with aiohttp.ClientSession() as session, session.get(self._url + path) as answer:
                return await answer.text()
        except aiohttp.ClientConnectionError:
            return ""

    @property
    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory_mb(self, which: str = "VmRSS") -> float:
        """Resident memory now, or (`VmHWM`) at its highest."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        found = re.search(rf"^{which}:\s+(\d+) kB", status, re.MULTILINE)
        return int(found[1]) / 1024 if found else 0.0


def cluster(number: int, **spec: Any) -> dict[str, Any]:
    """One with a Redis of somebody else's and one instance, which finds no node."""
    return {
        "apiVersion": CLUSTERS.api_version,
        "kind": CLUSTERS.kind,
        "metadata": {"name": f"tables-{number}", "namespace": NAMESPACE},
        "spec": {
            "replicas": 1,
            "auth": {"required": False},
            "redis": {"external": {"host": "redis.example"}},
            # Else the verdict changes in the middle, on a slow machine.
            "rollout": {"progressDeadline": "6h"},
            **spec,
        },
    }


async def _judged(kube: Kube, number: int) -> None:
    while True:
        clusters, _ = await kube.list(CLUSTERS, NAMESPACE)
        done = sum(
            bool(obj.get("status", {}).get("conditions"))
            and obj["status"]["observedGeneration"] == obj["metadata"]["generation"]
            for obj in clusters
        )
        if done == number:
            return
        await asyncio.sleep(0.2)


async def _quiet(operator: Operator) -> None:
    """Wait until nothing has been written for ten seconds."""
    last, since = await operator.writes(), time.monotonic()
    while time.monotonic() - since < 10:
        await asyncio.sleep(1)
        now = await operator.writes()
        if now != last:
            last, since = now, time.monotonic()


async def _change(kube: Kube, number: int) -> float:
    """Change one cluster; in how many seconds its Deployment is as asked for."""
    _, version = await kube.list(DEPLOYMENTS, NAMESPACE)
    name = f"tables-{number}"
    started = time.monotonic()
    await kube.merge(CLUSTERS, NAMESPACE, name, {"spec": {"replicas": 2}}, field_manager="bench")
    async with asyncio.timeout(300):
        async for event in kube.watch(DEPLOYMENTS, NAMESPACE, resource_version=version):
            if event.object["metadata"].get("name") == f"{name}-a" and event.object["spec"]["replicas"] == 2:
                return time.monotonic() - started
    raise RuntimeError("the watch ended")


async def measure(number: int, folder: Path) -> dict[str, float]:
    """All figures for that many clusters."""
    from tests.operator.engine.operators import kubectl
    from tests.support.children import free_port

    values: dict[str, float] = {}
    async with Devcluster(agent=False) as control_plane:
        config = control_plane.kubeconfig
        kubectl(config, "apply", "-f", str(ROOT / "crds" / "websocketclusters.tableforge.io.yaml"))
        kubectl(config, "wait", "--for=condition=Established", "crd/websocketclusters.tableforge.io")
        kubectl(config, "create", "namespace", NAMESPACE)
        operator = Operator(config, folder / f"operator-{number}.log", free_port())
        async with await Kube.connect(config, calls_per_second=10_000) as kube:
            await operator.start()
            values["memory_before_mb"] = operator.memory_mb()
            started, cpu = time.monotonic(), operator.cpu_seconds
            for first in range(0, number, 50):
                await asyncio.gather(
                    *(
                        kube.apply(cluster(index), field_manager="bench", force=True)
                        for index in range(first, min(first + 50, number))
                    )
                )
            await _judged(kube, number)
            values["made_seconds"] = time.monotonic() - started
            await _quiet(operator)
            values["made_cpu_seconds"] = operator.cpu_seconds - cpu
            values["made_writes"] = await operator.writes()
            writes, turns = (
                await operator.writes(),
                await operator.metric("tableforge_operator_reconciles_total"),
            )
            cpu = operator.cpu_seconds
            await asyncio.sleep(QUIET_SECONDS)
            values["quiet_writes"] = await operator.writes() - writes
            quiet_turns = await operator.metric("tableforge_operator_reconciles_total") - turns
            values["quiet_turns"] = quiet_turns
            values["quiet_cpu_share"] = (operator.cpu_seconds - cpu) / QUIET_SECONDS
            values["turn_cpu_ms"] = 1000 * (operator.cpu_seconds - cpu) / max(quiet_turns, 1)
            values["memory_mb"] = operator.memory_mb()
            await operator.stop()
            await operator.start()
            started = time.monotonic()
            await asyncio.sleep(WATCHING_SECONDS)
            delays = [await _change(kube, index) for index in range(min(CHANGES, number))]
            values["change_median_seconds"] = statistics.median(delays)
            values["change_longest_seconds"] = max(delays)
            values["changes_done_seconds"] = time.monotonic() - started
            await _quiet(operator)
            values["adopted_seconds"] = time.monotonic() - started - 10
            values["adopted_writes"] = await operator.writes()
            values["memory_highest_mb"] = operator.memory_mb("VmHWM")
            await operator.stop()
    return values


ROWS: Final = (
    ("made_seconds", "all are made and judged", "{:.1f} s"),
    ("made_writes", "writes for that, Events and status included", "{:,.0f}"),
    ("made_cpu_seconds", "CPU for that, until nothing moves any more", "{:.1f} s"),
    ("quiet_turns", "turns in a minute in which nothing happens", "{:,.0f}"),
    ("quiet_writes", "writes in that minute", "{:,.0f}"),
    ("turn_cpu_ms", "CPU of such a turn", "{:.1f} ms"),
    ("quiet_cpu_share", "of one core in that minute", "{:.1%}"),
    ("memory_mb", "resident memory then", "{:.0f} MB"),
    ("adopted_seconds", "after a restart, everything is adopted", "{:.1f} s"),
    ("adopted_writes", "applies and Events for that and for ten changes", "{:,.0f}"),
    ("change_median_seconds", "meanwhile, from one cluster's change to its Deployment's, median", "{:.2f} s"),
    ("change_longest_seconds", "the longest of ten", "{:.2f} s"),
    ("memory_highest_mb", "highest resident memory", "{:.0f} MB"),
)


LIMITS: Final = {
    "quiet_writes": 0,
    "memory_highest_mb": 300,
    # The longest of ten depends on what else is on the machine, API server and etcd to begin with.
    "change_median_seconds": 1,
}
"""What no figure of a run may exceed."""


def beyond(results: dict[str, Any]) -> list[str]:
    """What is not as promised, in words."""
    forms = {name: (title, form) for name, title, form in ROWS}
    found = []
    for number, values in results["runs"].items():
        for name, limit in LIMITS.items():
            title, form = forms[name]
            if values[name] > limit:
                found.append(
                    f"{number} clusters: {title}: {form.format(values[name])}, beyond {form.format(limit)}"
                )
    return found


_PAGE: Final = """\
# One operator, many clusters

Written by `python -m benchmarks.operators --write`: a real API server, etcd and controllers without a node,
so that every instance waits for one; the operator as it ships, its limits included (100 calls a second, 40
adoptions). Each cluster has 8 children and a Secret.

{date}; {cores} cores, {processor}, shared with the API server and with whatever else ran; Python {python},
commit {commit}.

| | {head} |
|---|{line}
{table}

![Memory](benchmarks/operator-memory.svg)
![Time](benchmarks/operator-time.svg)
![Writes](benchmarks/operator-writes.svg)

A change does not wait for the others: two of eight workers are kept for clusters that somebody has just
changed, what they do is not held back as an adoption is, and their calls have every second place of those
that a second has. The command ends with 1 where a figure is beyond what is promised: a write in the quiet
minute, more than 300 MB at any time, or a median above 1 s from a change to its Deployment's (the longest
of ten depends on what else is on the machine).
"""


def page(results: dict[str, Any]) -> str:
    """The page for docs/."""
    runs = {int(number): values for number, values in results["runs"].items()}
    head = " | ".join(f"{number} cluster{'' if number == 1 else 's'}" for number in runs)
    host = results["machine"]
    table = [
        f"| {title} | {' | '.join(form.format(values[name]) for values in runs.values())} |"
        for name, title, form in ROWS
    ]
    return _PAGE.format(
        date=results["date"],
        head=head,
        line="---:|" * len(runs),
        table="\n".join(table),
        **{name: host[name] for name in ("cores", "processor", "python", "commit")},
    )


def pictures(results: dict[str, Any]) -> dict[str, str]:
    """The curves, by the name of their file."""
    runs = {int(number): values for number, values in results["runs"].items()}

    def line(title: str, name: str) -> plots.Line:
        return plots.Line(title, [(number, max(values[name], 0.001)) for number, values in runs.items()])

    def chart(title: str, lines: Sequence[plots.Line], y: str, *, logarithmic: bool) -> str:
        return plots.chart(
            title, lines, x="clusters", y=y, x_is_logarithmic=True, y_is_logarithmic=logarithmic
        )

    return {
        "operator-memory": chart(
            "The operator's memory",
            [line("resident", "memory_mb"), line("highest, after a restart", "memory_highest_mb")],
            "MB",
            logarithmic=False,
        ),
        "operator-time": chart(
            "How long it takes",
            [
                line("all made", "made_seconds"),
                line("all adopted after a restart", "adopted_seconds"),
                line("one change meanwhile, median", "change_median_seconds"),
            ],
            "seconds",
            logarithmic=True,
        ),
        "operator-writes": chart(
            "Writes to the API server",
            [line("all made", "made_writes"), line("all adopted after a restart", "adopted_writes")],
            "writes",
            logarithmic=True,
        ),
    }


async def run(numbers: Sequence[int], folder: Path) -> dict[str, Any]:
    """Everything, for each number."""
    results: dict[str, Any] = {
        "date": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine.describe(),
        "runs": {},
    }
    for number in numbers:
        say(f"{number} clusters")
        values = await measure(number, folder)
        results["runs"][str(number)] = values
        for name, title, form in ROWS:
            say(f"  {title}: {form.format(values[name])}")
    return results


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.operators", description=__doc__)
    parser.add_argument("--clusters", type=int, nargs="+", default=NUMBERS, metavar="NUMBER")
    parser.add_argument("--write", action="store_true", help="write the page and the pictures in docs/")
    options = parser.parse_args(argv)
    folder = ROOT / ".bench" / "results"
    folder.mkdir(parents=True, exist_ok=True)
    results = asyncio.run(run(options.clusters, folder))
    (folder / "operators.json").write_text(json.dumps(results, indent=2))
    if options.write:
        PAGE.write_text(page(results))
        for name, picture in pictures(results).items():
            (PICTURES / f"{name}.svg").write_text(picture)
    broken = beyond(results)
    for line in broken:
        say(line)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
