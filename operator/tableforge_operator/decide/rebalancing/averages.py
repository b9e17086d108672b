"""What load is like when it jumps about: averages over readings, and how far chance alone explains a spread.

A reading counts only when every instance has written its record anew since the one before. Loads are relative
to the mean, so a fleet that fills or empties as a whole does not look uneven.
"""

import dataclasses
import math
import statistics
from collections.abc import Collection, Mapping
from typing import Final

from tableforge_operator.decide.rebalancing.load import Instance, Load, Measure, spread

NEWEST: Final = 0.2
"""What the newest reading counts at least; the first few count alike."""
LOUDEST: Final = 0.15
"""The most that is taken for noise, as a standard deviation of relative load: ±25 % and evenly spread. What
jumps further is a burst, and to be acted on."""
MEDIAN_OF_SQUARES: Final = 0.455
"""The median of a squared normal deviate, so that a few instances with real bursts don't count as noise."""


@dataclasses.dataclass(frozen=True, slots=True)
class Average:
    """One instance's."""

    relative: float
    """1: as much as the mean."""
    readings: int

    @property
    def variance(self) -> float:
        """Of the average, where a reading's is 1."""
        return max(1 / self.readings, NEWEST / (2 - NEWEST))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Averages:
    """The fleet's, and its noise."""

    of: Mapping[str, Average] = dataclasses.field(default_factory=dict)
    """Who takes part, and nobody else: so no more than there are instances."""
    noise: float = 0.0
    """Variance of one reading of one instance."""
    noises: int = 0
    """Readings that it was measured by."""
    read_at: float = -math.inf
    """`Load.as_of` of the last reading."""

    def spread(self, enough: int = 1) -> float:
        """(max − min) / mean of the averages of who has at least so many readings."""
        return spread([one.relative for one in self.of.values() if one.readings >= enough], 1.0)

    def certain(self, enough: int) -> float:
        """As much of that as chance does not explain; instances with fewer readings don't count."""
        known = [one for one in self.of.values() if one.readings >= enough]
        if len(known) < 2:
            return 0.0
        # Of so many independent deviates the greatest is about so many standard deviations away.
        reach = math.sqrt(2 * math.log(len(known)) * self.noise)
        high = max(one.relative - reach * math.sqrt(one.variance) for one in known)
        low = min(one.relative + reach * math.sqrt(one.variance) for one in known)
        return max(high - low, 0.0)

    def without(self, names: Collection[str]) -> "Averages":
        """After a move: what was read of these instances says nothing any more."""
        return dataclasses.replace(self, of={name: one for name, one in self.of.items() if name not in names})


def read(averages: Averages, load: Load, measure: Measure) -> Averages:
    """The averages with one more reading, or as they are where it is no new one."""
    found = [one for one in load.instances if one.takes_part]
    if not found or min(one.updated_at for one in found) <= averages.read_at:
        return averages
    relative = _relative(found, measure)
    if not relative:
        return Averages(noise=averages.noise, noises=averages.noises, read_at=load.as_of)
    # Others came or went, and the mean with them: then those that stayed are all higher or lower by as much.
    stayed = [name for name in relative if name in averages.of]
    was = sum(averages.of[name].relative for name in stayed)
    shift = sum(relative[name] for name in stayed) / was if was > 0 else 1.0
    of, jumps = {}, []
    for name, value in relative.items():
        before = averages.of.get(name)
        if before is None:
            of[name] = Average(value, 1)
            continue
        expected = before.relative * shift
        jumps.append((value - expected) ** 2 / (1 + before.variance))
        readings = before.readings + 1
        newest = max(1 / readings, NEWEST)
        # Beyond that the number says nothing more.
        of[name] = Average(expected + newest * (value - expected), min(readings, math.ceil(2 / NEWEST)))
    noise, noises = averages.noise, averages.noises
    if len(jumps) > 1:
        loud = min(statistics.median(jumps) / MEDIAN_OF_SQUARES, LOUDEST**2)
        noises = min(noises + 1, math.ceil(1 / NEWEST))
        noise += (loud - noise) / noises
    return Averages(of=of, noise=noise, noises=noises, read_at=load.as_of)


def usual(averages: Averages, load: Load, measure: Measure) -> dict[str, float]:
    """The connections that who takes part has on average, when the fleet has as many as now."""
    found = [one for one in load.instances if one.takes_part]
    strength = sum(one.strength(measure) for one in found)
    if not strength:
        return {}
    mean = sum(one.connections for one in found) / strength
    return {
        one.name: averages.of[one.name].relative * mean * one.strength(measure)
        for one in found
        if one.name in averages.of
    }


def _relative(found: list[Instance], measure: Measure) -> dict[str, float]:
    total = sum(one.connections for one in found)
    if total <= 0:
        return {}
    mean = total / sum(one.strength(measure) for one in found)
    return {one.name: one.connections / one.strength(measure) / mean for one in found}
