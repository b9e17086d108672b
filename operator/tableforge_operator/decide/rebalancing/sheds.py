"""How many clients hot instances send away, and who takes no new ones meanwhile.

Behind one Service nobody can say where a client goes: whoever reconnects arrives at any instance that is
open, each as likely as the other. So all but the coldest are closed meanwhile, and no more are sent away than
those can share evenly without coming above the mean. Who sheds never comes below it.
"""

from tableforge_operator.decide.rebalancing.load import spread
from tableforge_operator.decide.rebalancing.plans import Bins, Limits, Obstacle, Plan, Shed


def plan(bins: Bins, limits: Limits) -> Plan:
    """The sheds, the hottest first."""
    indexes = range(len(bins.names))
    wants = {
        index: min((bins.mean - bins.loads[index]) * bins.strengths[index], bins.free[index])
        for index in indexes
        if bins.loads[index] < bins.mean
    }
    takers = sorted((index for index in wants if wants[index] >= 1), key=lambda index: (-wants[index], index))
    nobody: Obstacle = "NoCapacity" if any(bins.free[index] < 1 for index in wants) else "NothingFits"
    if not takers:
        return _nothing(bins, nobody)
    # Who is open gets an even share, so the one that wants least bounds it. As many as together take most.
    number = max(range(1, len(takers) + 1), key=lambda count: (count * wants[takers[count - 1]], count))
    takers = takers[:number]
    takes = number * wants[takers[-1]]
    half = limits.aim * bins.mean / 2
    excess = sum(
        max((bins.loads[index] - bins.mean - half) * bins.strengths[index], 0.0) for index in indexes
    )
    lack = sum(max((bins.mean - half - bins.loads[index]) * bins.strengths[index], 0.0) for index in takers)
    number_wanted = max(excess, lack)
    clients = int(min(takes, number_wanted, limits.most_clients) + 1e-6)
    if clients < 1:
        return _nothing(bins, "BudgetTooSmall" if limits.most_clients < 1 else nobody)
    givers = sorted(
        (index for index in indexes if bins.loads[index] > bins.mean),
        key=lambda index: (-bins.loads[index], index),
    )[: limits.most_moves]
    found = _shared(bins, givers, clients)
    if not found:
        return _nothing(bins, "NothingFits")
    given = sum(number for _, number in found)
    for index, number_given in found:
        bins.loads[index] -= number_given / bins.strengths[index]
    for index in takers:
        bins.loads[index] += given / len(takers) / bins.strengths[index]
    return Plan(
        sheds=tuple(Shed(bins.names[index], number_given) for index, number_given in found),
        closed=tuple(bins.names[index] for index in indexes if index not in set(takers)),
        after=spread(bins.loads, bins.mean),
    )


def _shared(bins: Bins, givers: list[int], clients: int) -> list[tuple[int, int]]:
    """Who gives how many: to one common level, so that the hottest give most; nobody goes below the mean."""
    level, strength, connections = bins.mean, 0.0, 0.0
    for place, index in enumerate(givers):
        strength += bins.strengths[index]
        connections += bins.connections[index]
        level = (connections - clients) / strength
        if place + 1 == len(givers) or level >= bins.loads[givers[place + 1]]:
            break
    level = max(level, bins.mean)
    found = []
    for index in givers:
        surplus = (bins.loads[index] - level) * bins.strengths[index] + 1e-6
        number = min(int(surplus), bins.here[index], clients)
        if number < 1:
            continue
        found.append((index, number))
        clients -= number
    return found


def _nothing(bins: Bins, obstacle: Obstacle) -> Plan:
    return Plan(after=spread(bins.loads, bins.mean), obstacle=obstacle)
