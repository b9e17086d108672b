"""The directory of homes in Redis: its scripts, as calls with types."""

import dataclasses
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any, Final, Literal, TypeVar

import msgspec

from tableforge_dataplane.contract.fleet import InstanceOrder, MoveOutcome, RoomMove, Shed
from tableforge_dataplane.contract.settings import PlacementStrategy
from tableforge_dataplane.homes.checks import is_address, order_problem, shed_problem
from tableforge_dataplane.registry.link import Link

ROOMS_PER_CALL: Final = 100
"""1 to 2 ms of Redis's time."""

ROOMS_PER_LOOK: Final = 1000

ROOMS_SWEPT: Final = 200
"""At once: 0.7 ms of Redis's time at each heartbeat of each instance."""

HOMES_FREED_AT_ONCE: Final = 500

INSTANCES_PER_CALL: Final = 100
"""That are forgotten: with a call for each, a thousand take a busy machine longer than a command may."""

NEVER_SEEN_KEPT: Final = 100
"""Orders and stands of instances without a record: of such as are starting again, mostly."""

SHED_HOLDS_SECONDS: Final = 600

State = Literal["takes", "full", "leaves"]
Outcome = Literal["moved", "elsewhere", "no_target", "no_such_room"]

T = TypeVar("T")

_order: Final = msgspec.json.Decoder(InstanceOrder)
_shed: Final = msgspec.json.Decoder(Shed)


class StaleFenceError(Exception):
    """A later operator has given commands; `fence` is its number."""

    def __init__(self, fence: int) -> None:
        super().__init__(f"a command with fence {fence} came before")
        self.fence = fence


@dataclasses.dataclass(frozen=True, slots=True)
class Standing:
    """What an instance is in the directory."""

    takes_rooms: bool
    moved: int
    """Counted up by each home that changes or goes."""
    changed: list[str] | None
    """Whose did since the count was what the caller said; None: too many, or nobody knows."""
    homes: int
    """Rooms whose home it is."""


@dataclasses.dataclass(frozen=True, slots=True)
class Told:
    """What an instance is told to be and to do."""

    order: InstanceOrder | None
    shed: Shed | None


class Directory:
    """Every call raises one of REDIS_FAILURES where Redis doesn't answer, or refuses."""

    def __init__(self, link: Link, *, instance: str, boot: str, strategy: PlacementStrategy) -> None:
        self._link = link
        self._instance = instance
        self._boot = boot
        self._strategy = strategy
        self._misunderstood = ["", ""]
        """An order and a shed that made no sense: removed by the next reading, where they still lie there."""

    # This instance

    async def told(self, done: Iterable[str]) -> Told:
        """What this instance is told. `done`: ids of orders to shed that need not be told again."""
        order, shed, stored = await self._run("told", self._instance, *self._misunderstood, *done)
        self._misunderstood = ["", ""]
        told_order = _understood(_order, order)
        told_shed = _understood(_shed, shed)
        if told_order is not None and (told_order.instance != self._instance or order_problem(told_order)):
            told_order = None
        if told_shed is not None and (told_shed.instance != self._instance or shed_problem(told_shed)):
            told_shed = None
        if (order and told_order is None) or (shed and told_shed is None):
            self._misunderstood = [order if told_order is None else "", stored if told_shed is None else ""]
        return Told(order=told_order, shed=told_shed)

    async def stand(
        self,
        state: State,
        *,
        address: str,
        weight: float,
        connections: int,
        capacity: int,
        moved: int | None = None,
    ) -> Standing | None:
        """Write whether this instance takes rooms. `address` and `weight`: by its own settings. `moved`: the
        count that was read before.

        None where a newer process holds its name.
        """
        answer = await self._run(
            "stand",
            self._instance,
            self._boot,
            self._strategy,
            state,
            address,
            weight,
            connections,
            capacity,
            -1 if moved is None else moved,
        )
        if not answer:
            return None
        takes, count, homes, known, *rooms = answer
        return Standing(
            takes_rooms=takes == 1,
            moved=count,
            homes=homes,
            changed=[_text(room) for room in rooms] if known else None,
        )

    async def own(self) -> AsyncIterator[list[str]]:
        """The rooms that live here, some at a time; one may come twice."""
        cursor: bytes | str = "0"
        while True:
            cursor, rooms = await self._run("index", self._instance, cursor, ROOMS_PER_LOOK)
            yield [_text(room) for room in rooms]
            if cursor == b"0":
                return

    # Homes

    async def place(self, rooms: Sequence[str], *, itself: bool, dead: frozenset[str]) -> list[str | None]:
        """Where these rooms live, at most ROOMS_PER_CALL; they get a home where they have none.

        `itself`: this instance takes them before others. `dead`: instances that lose their homes.
        None where nobody takes one.
        """
        return _homes(
            await self._run(
                "place",
                self._instance,
                self._strategy,
                "1" if itself else "0",
                len(dead),
                *dead,
                *rooms,
            )
        )

    async def look(self, rooms: Sequence[str]) -> list[str | None]:
        """Where these rooms live, at most ROOMS_PER_LOOK."""
        return _homes(await self._run("look", *rooms))

    async def free(self, rooms: Sequence[str]) -> int:
        """These rooms, at most ROOMS_PER_LOOK, live here no longer."""
        return int(await self._run("free", self._instance, *rooms))

    async def give_away(self, rooms: Sequence[str]) -> list[str | None]:
        """This instance leaves: those of the rooms that live here get other homes. At most ROOMS_PER_CALL."""
        return _homes(await self._run("away", self._instance, self._strategy, *rooms))

    async def addresses(self, instances: Sequence[str]) -> dict[str, tuple[str | None, bool, bool]]:
        """Where clients reach each, whether it has a lease, and whether it takes rooms."""
        answers = await self._run("addresses", *instances)
        found: dict[str, tuple[str | None, bool, bool]] = {}
        for at, instance in enumerate(instances):
            address = _text(answers[at * 2])
            state = answers[at * 2 + 1]
            found[instance] = (address if is_address(address) else None, state > 0, state == 2)
        return found

    async def sweep(self) -> int:
        """Put a part of the directory right; how many homes were nobody's."""
        return int(await self._run("sweep", ROOMS_SWEPT, NEVER_SEEN_KEPT))

    # Commands. All raise StaleFenceError.

    async def move(self, fence: int, moves: Sequence[RoomMove]) -> list[MoveOutcome]:
        """Move homes; what became of each."""
        outcomes: list[MoveOutcome] = []
        for start in range(0, len(moves), ROOMS_PER_CALL):
            part = moves[start : start + ROOMS_PER_CALL]
            named = [text for move in part for text in (move.room, move.source, move.target)]
            found = await self._command("move", fence, self._strategy, *named)
            outcomes += [
                MoveOutcome(room=move.room, outcome=_outcome(outcome))
                for move, outcome in zip(part, found, strict=True)
            ]
        return outcomes

    async def order(self, fence: int, orders: Sequence[InstanceOrder]) -> list[str]:
        """How instances should be from now on; those that don't exist."""
        named: list[Any] = []
        for order in orders:
            named += [order.instance, "1" if order.cordoned else "0", msgspec.json.encode(order)]
        return [_text(name) for name in await self._command("order", fence, *named)]

    async def shed(self, order: Shed) -> list[str]:
        """Tell an instance to send clients elsewhere; its name where it doesn't exist."""
        unknown = await self._command(
            "shed", order.fence, order.instance, SHED_HOLDS_SECONDS, msgspec.json.encode(order)
        )
        return [_text(name) for name in unknown]

    async def forget(self, fence: int, instances: Iterable[str]) -> list[str]:
        """Remove everything of these instances; those that there was nothing of."""
        pending = deque(dict.fromkeys(instances))
        begun = False
        unknown = []
        while pending:
            part = [pending[index] for index in range(min(len(pending), INSTANCES_PER_CALL))]
            for outcome in await self._command("forget", fence, HOMES_FREED_AT_ONCE, *part):
                if outcome == 2:
                    begun = True
                    break
                name = pending.popleft()
                if outcome == 0 and not begun:
                    unknown.append(name)
                begun = False
        return unknown

    async def _command(self, script: str, fence: int, *args: Any) -> list[Any]:
        answer: list[Any]
        admitted, latest, *answer = await self._run(script, fence, *args)
        if not admitted:
            raise StaleFenceError(int(latest))
        return answer

    async def _run(self, script: str, *args: Any) -> Any:
        return await self._link.run_directory(script, *args, package=_PACKAGE)


_PACKAGE: Final = __package__ or ""


def _homes(answers: list[bytes]) -> list[str | None]:
    return [_text(answer) or None for answer in answers]


def _text(answer: bytes) -> str:
    return answer.decode("utf-8", "replace")


def _outcome(answer: bytes) -> Outcome:
    outcomes: dict[bytes, Outcome] = {
        b"moved": "moved",
        b"elsewhere": "elsewhere",
        b"no_target": "no_target",
        b"no_such_room": "no_such_room",
    }
    return outcomes[answer]


def _understood(decoder: msgspec.json.Decoder[T], text: bytes) -> T | None:
    try:
        return decoder.decode(text) if text else None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
