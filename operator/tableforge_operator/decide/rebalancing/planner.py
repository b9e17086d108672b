"""What to move so that every instance is within the threshold, with the fewest moves.

A load is connections divided by capacity (or by weight); the mean is that of all of them together, which no
move changes. A plan aims well below the threshold, so that what follows it is rest.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Final, Literal

from tableforge_operator.decide.rebalancing import rooms, sheds
from tableforge_operator.decide.rebalancing.load import Load, Measure, spread
from tableforge_operator.decide.rebalancing.plans import Bins, Limits, Plan

__all__ = ["Limits", "Mode", "Plan", "plan"]

Mode = Literal["Service", "Gateway"]
AIM: Final = 0.5
"""Which share of the threshold a plan leaves."""


def plan(
    load: Load,
    limits: Limits,
    *,
    mode: Mode,
    measure: Measure,
    cooling: Collection[str] = (),
    usual: Mapping[str, float] | None = None,
) -> Plan:
    """The plan. The same input gives the same plan, in whatever order it comes.

    `cooling`: rooms that must stay. `usual`: the connections that instances usually have, where these should
    count instead of those of this moment; capacity is kept by the latter all the same.
    """
    bins = Bins.of(load, measure, usual or {})
    before = spread(bins.loads, bins.mean)
    if len(bins.names) < 2 or before <= limits.aim:
        return Plan(before=before, after=before)
    found = rooms.plan(bins, load.rooms, limits, cooling) if mode == "Gateway" else sheds.plan(bins, limits)
    return dataclasses.replace(found, before=before)
