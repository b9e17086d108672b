"""Whether an instance has too much to do: by its memory, and by how late its event loop comes.

Plain arithmetic over figures and a clock that are passed in; `wire.relief` takes the figures and acts.
"""

import dataclasses
import enum
from collections import deque
from pathlib import Path
from typing import Final

from tableforge_dataplane.contract.settings import MonitoringSettings


class Stage(enum.IntEnum):
    """What an instance under pressure does; each stage includes the ones before it."""

    CALM = 0
    WARN = 1
    REFUSE = 2
    """No new connections."""
    SHED = 3
    """The slowest consumers are closed."""


HELD_SECONDS: Final = 5.0
"""A stage is kept for at least so long after its figure was last reached."""

LAG_WINDOW_SECONDS: Final = 5.0

LIMIT_SHARE: Final = 0.8
"""Of a container's memory limit: there it begins to warn, at nine tenths to refuse, at 95 % to shed."""

WITHOUT_LIMIT_BYTES: Final = 512 * 1024 * 1024

_MEMORY_FACTORS: Final = (1.0, 1.125, 1.1875)
_LAG_FACTORS: Final = (1.0, 4.0, 8.0)

_LIMIT_FILES: Final = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)

_NO_LIMIT_BYTES: Final = 1 << 60
"""The first version of control groups says about this much where there is no limit."""


def memory_threshold_bytes(settings: MonitoringSettings) -> int:
    """What was set, or what the container's limit makes of it."""
    if settings.memory_threshold_bytes:
        return settings.memory_threshold_bytes
    for file in _LIMIT_FILES:
        try:
            limit = int(file.read_text(encoding="ascii"))
        except (OSError, ValueError):
            continue  # not there, or `max`
        if limit < _NO_LIMIT_BYTES:
            return int(limit * LIMIT_SHARE)
    return WITHOUT_LIMIT_BYTES


class Figure:
    """One figure with its bounds: a stage is entered at once, and left late, so that it doesn't flutter."""

    __slots__ = ("_bounds", "_leave_share", "_reached_at", "now", "stage")

    def __init__(self, bounds: tuple[float, float, float], *, leave_share: float) -> None:
        """`bounds` of the three stages; one is left only below `leave_share` of its bound."""
        self._bounds = bounds
        self._leave_share = leave_share
        self._reached_at = -float("inf")
        self.stage = Stage.CALM
        self.now = Stage.CALM
        """What the figure alone says at the moment; the stage is kept for longer."""

    def update(self, value: float, now: float) -> Stage:
        """Take the figure as it is at `now`; the stage that follows."""
        reached = self.now = Stage(sum(value >= bound for bound in self._bounds))
        if reached >= self.stage:
            self.stage = reached
            self._reached_at = now
        elif value >= self._bounds[self.stage - 1] * self._leave_share:
            self._reached_at = now
        elif now - self._reached_at >= HELD_SECONDS:
            self.stage = Stage(self.stage - 1)
            self._reached_at = now
        return self.stage


class Lag:
    """How late the event loop comes, on average over some seconds: a long pause counts, and is forgotten."""

    __slots__ = ("_samples", "_sum")

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float]] = deque()
        self._sum = 0.0

    def add(self, late_seconds: float, now: float) -> float:
        """Take one sample; the average that follows, in seconds."""
        samples = self._samples
        samples.append((now, late_seconds))
        self._sum += late_seconds
        while samples[0][0] < now - LAG_WINDOW_SECONDS:
            self._sum -= samples.popleft()[1]
        return max(0.0, self._sum) / len(samples)


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """How things are."""

    stage: Stage
    reason: str
    """`memory` or `lag`; of two, the worse."""
    too_much_now: bool = False
    """Whether the figure itself is as high as that, and the stage is not only kept: for one that has fallen
    already too many would be closed."""


class Pressure:
    """Both figures together."""

    def __init__(self, settings: MonitoringSettings) -> None:
        self.threshold_bytes = threshold = memory_threshold_bytes(settings)
        first, second, third = (threshold * factor for factor in _MEMORY_FACTORS)
        self.shed_bytes = third
        """With less memory than this nobody is closed."""
        self._memory = Figure((first, second, third), leave_share=0.95)
        first, second, third = (settings.loop_lag_threshold_seconds * factor for factor in _LAG_FACTORS)
        self._loop = Figure((first, second, third), leave_share=0.5)

    def judge(self, *, memory_bytes: int, lag_seconds: float, now: float) -> Verdict:
        """What both figures, as they are at `now`, make of it."""
        memory = self._memory.update(memory_bytes, now)
        loop = self._loop.update(lag_seconds, now)
        if loop > memory:
            return Verdict(loop, "lag", self._loop.now is loop)
        return Verdict(memory, "memory", self._memory.now is memory)
