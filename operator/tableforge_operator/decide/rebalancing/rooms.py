"""Which rooms get another home: from the hottest instance to the coldest, the room that fits best, and again.

A move must leave both instances strictly between where the two were: so no move makes anything worse, each
brings the fleet nearer to even, and there is an end. Of the rooms that bring both within the aim the
lightest is taken, for it makes the fewest clients move; where none does, the one that comes nearest to what
the target can take or the source should keep, so that few moves are needed.
"""

import bisect
import heapq
from collections.abc import Collection, Mapping
from typing import Final

from tableforge_operator.decide.rebalancing.load import NO_ROOMS, Rooms, spread
from tableforge_operator.decide.rebalancing.plans import (
    MOST_NAMED,
    Bins,
    BusyRoom,
    Limits,
    Obstacle,
    Plan,
    RoomMove,
)

TRIES: Final = 8
"""How many targets, the coldest first, are tried before an instance counts as having nothing that helps."""
SLACK: Final = 1e-9
"""Against the floating point's last digits."""


def plan(bins: Bins, rooms: Mapping[str, Rooms], limits: Limits, cooling: Collection[str]) -> Plan:
    """The moves. Among 1,000 instances with 1,000,000 rooms: `python -m benchmarks.rebalancing`."""
    return _Planning(bins, rooms, limits, cooling).plan()


class _Shelf:
    """The rooms of one instance that may move, the lightest first."""

    def __init__(self, rooms: Rooms, cooling: Collection[str], most: int) -> None:
        self.looked_at = len(rooms.names)
        there = [
            (count, name)
            for name, members in zip(rooms.names, rooms.members, strict=True)
            if (count := min(members, most)) > 0 and name not in rooms.elsewhere
        ]
        kept = sorted(one for one in there if one[1] not in cooling) if cooling else sorted(there)
        self.cooling = len(kept) < len(there)
        self.members = [members for members, _ in kept]
        self.names = [name for _, name in kept]

    def take(self, index: int) -> tuple[str, int]:
        return self.names.pop(index), self.members.pop(index)


class _Planning:
    def __init__(
        self, bins: Bins, rooms: Mapping[str, Rooms], limits: Limits, cooling: Collection[str]
    ) -> None:
        self.bins, self.rooms, self.limits, self.cooling = bins, rooms, limits, cooling
        self.clients_left = limits.most_clients
        self.shelves: dict[int, _Shelf] = {}
        self.moves: list[RoomMove] = []
        self.moved: set[str] = set()
        self.stuck: dict[int, Obstacle] = {}
        self.full: set[int] = set()
        self.unrouted = [index for index, reachable in enumerate(bins.reachable) if not reachable]
        # What the band is about: without those that can neither give nor take.
        self.connections, self.strength = sum(bins.connections), sum(bins.strengths)
        self.hot = [(-load, index) for index, load in enumerate(bins.loads)]
        self.cold = [(load, index) for index, load in enumerate(bins.loads) if bins.reachable[index]]
        heapq.heapify(self.hot)
        heapq.heapify(self.cold)
        self.aim = limits.aim * bins.mean

    def plan(self) -> Plan:
        while len(self.moves) < self.limits.most_moves and self.clients_left > 0:
            source = self._hottest()
            if source is None or not self._give(source):
                break
        return self._result()

    def _give(self, source: int) -> bool:
        """One move away from `source`, or that there can be none. False where all is well."""
        bins, moved = self.bins, False
        tried: list[tuple[float, int]] = []
        obstacle: Obstacle | None = None
        while len(tried) < TRIES and (target := self._coldest()) is not None:
            if bins.loads[source] - bins.loads[target] <= self.aim + SLACK:
                break
            if bins.free[target] < 1:
                heapq.heappop(self.cold)
                self.full.add(target)
                self._leave_out(target)
                continue
            found = self._room(source, target)
            if isinstance(found, int):
                self._move(source, target, found)
                moved = True
                break
            obstacle = obstacle or found
            tried.append(heapq.heappop(self.cold))
        for entry in tried:
            heapq.heappush(self.cold, entry)
        if moved:
            return True
        if obstacle is None:
            return False
        self.stuck[source] = obstacle
        heapq.heappop(self.hot)
        self._leave_out(source)
        return True

    def _room(self, source: int, target: int) -> int | Obstacle:
        """The place on the source's shelf of what should go to the target, or why nothing can."""
        bins, shelf = self.bins, self._shelf(source)
        if not shelf.members:
            return "RoomsCooling" if shelf.cooling else "NothingFits"
        from_load, to_load = bins.loads[source], bins.loads[target]
        from_strength, to_strength = bins.strengths[source], bins.strengths[target]
        useful = (from_load - to_load) * min(from_strength, to_strength) * (1 - SLACK)
        allowed = min(useful, bins.free[target], self.clients_left)
        middle = self.connections / self.strength if self.strength > 0 else bins.mean
        low, high = middle - self.aim / 2, middle + self.aim / 2
        enough = max((from_load - high) * from_strength, (low - to_load) * to_strength)
        most = min((high - to_load) * to_strength, (from_load - low) * from_strength)
        at = bisect.bisect_left(shelf.members, enough - SLACK)
        if at < len(shelf.members) and shelf.members[at] <= min(most, allowed):
            return at
        above = bisect.bisect_right(shelf.members, most)
        below = bisect.bisect_right(shelf.members, min(most, allowed)) - 1
        # What is too much for the target all alone stays, and the others go: it would only be hot elsewhere.
        # Of two such rooms on one instance, one goes.
        fits = (
            above < len(shelf.members)
            and shelf.members[above] <= allowed
            and (shelf.members[above] <= high * to_strength or above + 1 < len(shelf.members))
        )
        if below >= 0 and not (fits and shelf.members[above] - most < most - shelf.members[below]):
            # The first by name of as heavy ones.
            return bisect.bisect_left(shelf.members, shelf.members[below])
        if fits:
            return above
        if shelf.members[0] > useful or shelf.members[0] <= allowed:
            return "RoomTooBusy"
        return "NoCapacity" if shelf.members[0] > bins.free[target] else "BudgetTooSmall"

    def _move(self, source: int, target: int, place: int) -> None:
        bins = self.bins
        room, members = self._shelf(source).take(place)
        if room in self.moved:
            # Named by two instances: once is enough, and it is off the shelf now.
            return
        self.moved.add(room)
        self.moves.append(RoomMove(room, bins.names[source], bins.names[target], members))
        self.clients_left -= members
        bins.free[target] -= members
        for index, change in ((source, -members), (target, members)):
            bins.connections[index] = max(bins.connections[index] + change, 0.0)
            bins.loads[index] = bins.connections[index] / bins.strengths[index]
            heapq.heappush(self.hot, (-bins.loads[index], index))
            if bins.reachable[index]:
                heapq.heappush(self.cold, (bins.loads[index], index))

    def _hottest(self) -> int | None:
        while self.hot:
            load, index = self.hot[0]
            if index not in self.stuck and -load == self.bins.loads[index]:
                return index
            heapq.heappop(self.hot)
        return None

    def _coldest(self) -> int | None:
        while self.cold:
            load, index = self.cold[0]
            if index not in self.full and load == self.bins.loads[index]:
                return index
            heapq.heappop(self.cold)
        return None

    def _leave_out(self, index: int) -> None:
        self.connections -= self.bins.connections[index]
        self.strength -= self.bins.strengths[index]

    def _shelf(self, index: int) -> _Shelf:
        if index not in self.shelves:
            self.shelves[index] = _Shelf(
                self.rooms.get(self.bins.names[index], NO_ROOMS), self.cooling, self.bins.here[index]
            )
        return self.shelves[index]

    def _result(self) -> Plan:
        bins = self.bins
        after = spread(bins.loads, bins.mean)
        busy = sorted(
            (
                BusyRoom(shelf.names[-1], bins.names[index], shelf.members[-1])
                for index, why in self.stuck.items()
                if why == "RoomTooBusy" and (shelf := self.shelves[index]).names
            ),
            key=lambda one: (-one.members, one.room),
        )
        return Plan(
            moves=tuple(self.moves),
            after=after,
            obstacle=self._obstacle() if after > self.limits.aim + SLACK else None,
            busy=tuple(busy[:MOST_NAMED]),
            rooms_looked_at=sum(shelf.looked_at for shelf in self.shelves.values()),
        )

    def _obstacle(self) -> Obstacle | None:
        """What is in the way of the hottest that had to stay; else of the coldest that nobody is sent to."""
        stuck = {
            index: why
            for index, why in self.stuck.items()
            # What the other moves have used up is there again in the next cycle.
            if why != "BudgetTooSmall" or not self.moves
        }
        if stuck:
            return stuck[max(stuck, key=lambda index: (self.bins.loads[index], -index))]
        if self.full:
            return "NoCapacity"
        if self.unrouted and len(self.moves) < self.limits.most_moves:
            return "NotRouted"
        return None
