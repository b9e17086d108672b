"""What the pods' processes use: CPU and memory of each container, from `/proc`."""

import asyncio
import collections
import dataclasses
import datetime as dt
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from devcluster.agent import clock
from devcluster.agent.api import Object

SAMPLE_SECONDS = 3.0
"""How often it is looked, and so over how long CPU is averaged. A metrics server takes 15 s; here nobody
should have to wait that long for an autoscaler."""

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Process:
    """A container that runs: by what it is found in `/proc`, and whose it is."""

    pod: Object
    container: str
    run: str
    """Another one for each run of the container."""
    pid: int
    """The first process of its PID namespace: all others there descend from it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContainerUsage:
    """What a container used."""

    pod: Object
    container: str
    cpu_cores: float
    memory_bytes: int
    """Resident memory of its processes; pages that several of them share count for each."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Usage:
    """All containers at one moment."""

    at: dt.datetime
    window_seconds: float
    containers: tuple[ContainerUsage, ...]


@dataclasses.dataclass(frozen=True)
class _Reading:
    monotonic: float
    cpu_seconds: float


class UsageSampler:
    """Looks at the containers again and again. A container shows from its second look on."""

    def __init__(self, running: Callable[[], Iterable[Process]]) -> None:
        self._running = running
        self._readings: dict[str, _Reading] = {}
        self.latest: Usage | None = None
        """None until the first look."""

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            # In a thread: a machine with thousands of processes takes a while to go through.
            self._take(*await asyncio.to_thread(_look, tuple(self._running())))
            await asyncio.sleep(SAMPLE_SECONDS)

    def _take(self, monotonic: float, found: list[tuple[Process, float, int]]) -> None:
        used: list[ContainerUsage] = []
        readings: dict[str, _Reading] = {}
        window = 0.0
        for process, cpu_seconds, memory_bytes in found:
            readings[process.run] = _Reading(monotonic, cpu_seconds)
            before = self._readings.get(process.run)
            if before is None or monotonic <= before.monotonic:
                continue
            span = monotonic - before.monotonic
            window = max(window, span)
            used.append(
                ContainerUsage(
                    pod=process.pod,
                    container=process.container,
                    # Less than before where a process ended whose parent did not wait for it.
                    cpu_cores=max(cpu_seconds - before.cpu_seconds, 0.0) / span,
                    memory_bytes=memory_bytes,
                )
            )
        self._readings = readings
        self.latest = Usage(at=clock.now(), window_seconds=window or SAMPLE_SECONDS, containers=tuple(used))


def _look(running: tuple[Process, ...]) -> tuple[float, list[tuple[Process, float, int]]]:
    """CPU seconds since its start and memory of each container that still runs."""
    children: dict[int, list[int]] = collections.defaultdict(list)
    numbers: dict[int, tuple[float, int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # The second field is the program's name in parentheses, and may hold anything.
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # gone since
        pid = int(entry.name)
        children[int(fields[1])].append(pid)
        # Of itself, and of the children that it has waited for.
        ticks = sum(int(field) for field in fields[11:15])
        numbers[pid] = (ticks / _TICKS, int(fields[21]) * _PAGE_BYTES)
    monotonic = time.monotonic()
    found: list[tuple[Process, float, int]] = []
    for process in running:
        cpu_seconds, memory_bytes = 0.0, 0
        waiting = [process.pid] if process.pid in numbers else []
        if not waiting:
            continue
        while waiting:
            pid = waiting.pop()
            cpu_seconds += numbers[pid][0]
            memory_bytes += numbers[pid][1]
            waiting += children.get(pid, ())
        found.append((process, cpu_seconds, memory_bytes))
    return monotonic, found
