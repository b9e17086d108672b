"""When to rebalance, and what became of it: one pure step from what is remembered and seen to what to do.

Load counts as uneven only as far as chance does not explain it (`averages`), for two readings at least; a
plan aims well below the threshold; after it nothing is read of the instances it touched but what comes later.
So load that jumps about moves nothing. A plan that comes to nothing doubles the time to the next one.

The state may be lost at any moment. Then cooldowns are forgotten and one more interval is waited for; who was
told to move or to shed finishes that, within its own bounds; and since every turn names all instances that
the planner wants closed, the cordons of a plan that nobody remembers are taken back.
"""

import dataclasses
import datetime as dt
import re
from collections.abc import Mapping
from typing import Final, Literal

from tableforge_dataplane.contract.fleet import MOST_MOVES
from tableforge_operator.decide.rebalancing import arrivals, averages, words
from tableforge_operator.decide.rebalancing.load import Load, misplaced_of, spread_of
from tableforge_operator.decide.rebalancing.planner import AIM, Limits, plan
from tableforge_operator.decide.rebalancing.plans import Plan, RoomMove
from tableforge_operator.decide.rebalancing.state import (
    MOST_COOLING,
    Command,
    MoveRooms,
    Moving,
    News,
    NewsReason,
    Phase,
    Reason,
    Report,
    Result,
    Settings,
    ShedClients,
    Shedding,
    Sight,
    State,
    Turn,
    Work,
)

READINGS: Final = 2
"""Of how many readings at least a load that counts as uneven must be the average."""
STALE_HEARTBEATS: Final = 2
"""How old the records may be that anything is planned from."""
PATIENCE_HEARTBEATS: Final = 5
"""For how long a plan is waited for, beyond twice what its clients need within the budget."""
CLOSING_HEARTBEATS: Final = 3
"""For how long it is waited for that instances are closed before any sheds."""
FAILED_COOLDOWNS: Final = 3
"""For how many cooldowns a room stays that could not be moved."""
MOST_DOUBLINGS: Final = 5
SLICE_SECONDS: Final = 5.0
"""For how many seconds the members of rooms that are moved at a time take up the budget. Who was told to move
does: only what has not begun can be called off."""
FRUIT: Final = 0.25
"""What share of what a plan meant to mend it must have mended to count as of use."""
LOOK_SECONDS: Final = 5.0
"""How often is looked at a plan under way."""

_REQUEST: Final = re.compile(r"now(-[A-Za-z0-9._:-]{1,50})?")
_OFF: Final = "clustering.enableLoadRebalancing is false"
_OUTCOMES: Final[Mapping[str, str]] = {
    "elsewhere": "its home is another instance by now",
    "no_target": "the instance it was to go to takes no rooms",
    "no_such_room": "nobody is in it any more",
}


def is_request(text: str) -> bool:
    """Whether the annotation `tableforge.io/rebalance` says what it may: `now`, or `now-` and any word."""
    return _REQUEST.fullmatch(text) is not None


def begin(*, now: float, last_request: str | None = None, planned_at: dt.datetime | None = None) -> State:
    """A state to start with. `last_request` and `planned_at` as the status has them."""
    return State(born_at=now, last_request=last_request, last=Result(at=planned_at))


def answered(state: State, command: str, outcomes: Mapping[str, str] | None = None) -> State:
    """The state once the fleet has taken a command. `outcomes`: of each move, by room."""
    cancels = tuple(one for one in state.cancels if one.id != command)
    work = state.work
    if work is None or command not in {one.id for one in work.begun}:
        return dataclasses.replace(state, cancels=cancels)
    moves = []
    for one in work.moves:
        why = _OUTCOMES.get((outcomes or {}).get(one.move.room, ""))
        moves.append(
            one if why is None or one.fate != "waiting" else dataclasses.replace(one, fate="failed", why=why)
        )
    work = dataclasses.replace(work, moves=tuple(moves), answered=work.answered | {command})
    return dataclasses.replace(state, work=work, cancels=cancels)


def step(
    state: State,
    *,
    sight: Sight,
    settings: Settings,
    now: float,
    wall: dt.datetime,
    request: str | None = None,
    reign: str = "0",
) -> Turn:
    """One turn. `now`: monotonic seconds. `request`: the annotation's value, None where there is none.

    `reign`: what tells this operator's commands from another's, 20 characters at most: the Lease's fence.
    """
    return _Step(state, sight, settings, now, wall, request, reign).turn()


class _Step:
    def __init__(
        self,
        state: State,
        sight: Sight,
        settings: Settings,
        now: float,
        wall: dt.datetime,
        request: str | None,
        reign: str,
    ) -> None:
        self.state, self.sight, self.settings = state, sight, settings
        self.now, self.wall, self.reign = now, wall, reign
        self.news: list[News] = []
        self.finished: Result | None = None
        if request is None:
            # Taken away, so that the same word counts when it comes back.
            self._remember(last_request=None)
        self.request = (
            request if request is not None and is_request(request) and request != state.last_request else None
        )

    def turn(self) -> Turn:
        if self.state.cancels and self.now >= self.state.cancel_until:
            self._remember(cancels=())
        if not self.settings.enabled:
            self._switch_off()
            if self.state.work is None:
                return self._disabled()
        elif self.sight.leaving:
            self._halt(self.sight.leaving)
        blind = self._blind()
        load = self.sight.load
        if blind is not None or load is None:
            if self.state.work is not None and self.now >= self.state.work.deadline:
                self._stop("the fleet was out of sight for too long")
                if not self.settings.enabled:
                    return self._disabled()
            reason, message = blind or ("FleetUnknown", "")
            return self._done("Blocked", "Unknown", reason, message)
        if self.state.work is not None:
            self._work(self.state.work, load)
        else:
            self._remember(averages=averages.read(self.state.averages, load, self.settings.measure))
        if self.state.work is None:
            if not self.settings.enabled:
                return self._disabled()
            self._welcome(load)
            found = self._nothing_to_compare(load)
            if found is not None:
                return found
            self._judge(load)
            self._plan(load)
        return self._report(load)

    # What is under way.

    def _work(self, work: Work, load: Load) -> None:
        work = arrivals.looked_at(work, load, now=self.now)
        self._remember(work=work)
        if work.sheds and (why := self._unsafe(work, load)):
            self._stop(why)
            return
        if work.closed and work.closed_at is None:
            here = {one.name: one for one in load.instances if one.takes_part}
            if all(here[name].closed for name in work.closed if name in here):
                sheds = [ShedClients(one.id, one.shed.instance, one.shed.connections) for one in work.sheds]
                work = dataclasses.replace(work, closed_at=self.now, begun=tuple(sheds))
                self._remember(work=work)
            elif self.now - work.started_at > CLOSING_HEARTBEATS * self.settings.heartbeat_seconds:
                self._stop("instances that should take no new clients meanwhile still do")
                return
        work = self._next_moves(work, load)
        self._remember(work=work)
        self._finish_if_done(work, load)

    def _next_moves(self, work: Work, load: Load) -> Work:
        """The work with more of its moves begun, where the last ones are done or their time has passed."""
        rate = max(self.settings.reconnects_per_second, 1)
        if work.unanswered:
            # Their time counts from when they are taken.
            asked = sum(_clients(one) for one in work.unanswered)
            return dataclasses.replace(work, next_at=self.now + asked / rate)
        if self.now < work.next_at and any(one.fate == "waiting" for one in work.moves):
            return work
        taking_part = {one.name for one in load.instances if one.takes_part}
        moves, clients = list(work.moves), 0
        chosen: list[RoomMove] = []
        for place, one in enumerate(moves):
            if one.fate != "planned":
                continue
            if not {one.move.source, one.move.target} <= taking_part:
                why = "one of its two instances has gone"
                moves[place] = dataclasses.replace(one, fate="dropped", why=why)
                continue
            if chosen and (clients + one.clients > SLICE_SECONDS * rate or len(chosen) == MOST_MOVES):
                break
            moves[place] = dataclasses.replace(one, fate="waiting", seen_at=load.as_of)
            chosen.append(one.move)
            clients += one.clients
        if not chosen:
            return dataclasses.replace(work, moves=tuple(moves))
        command = MoveRooms(f"{work.id}.{len(work.begun)}", tuple(chosen))
        return dataclasses.replace(
            work, moves=tuple(moves), begun=(*work.begun, command), next_at=self.now + clients / rate
        )

    def _unsafe(self, work: Work, load: Load) -> str | None:
        """Why new clients must be let in everywhere again."""
        taking_part = [one for one in load.instances if one.takes_part]
        still_open = [one for one in taking_part if one.name not in work.closed]
        if not still_open:
            return "nobody was left who takes new clients"
        measure = self.settings.measure
        mean = sum(one.connections for one in taking_part) / sum(one.strength(measure) for one in taking_part)
        high = mean * (1 + self.settings.threshold / 2)
        if all(
            one.connections >= one.capacity or one.connections / one.strength(measure) > high
            for one in still_open
        ):
            return "who took new clients has enough by now"
        return None

    def _stop(self, why: str) -> None:
        """Ends a plan before its time: what was begun and is not done has failed."""
        work = self.state.work
        if work is None:
            return
        moves = [
            dataclasses.replace(one, fate="failed", why=why) if one.fate == "waiting" else one
            for one in work.moves
        ]
        work = self._call_off(dataclasses.replace(work, moves=tuple(moves)), why, shed="failed")
        self._finish(work, self.sight.load)

    def _halt(self, why: str) -> None:
        """Nothing more of a plan begins. Who still sheds is told to stop; who was told to move does.

        What nobody has answered counts as not begun: it is not sent again.
        """
        work = self.state.work
        if work is not None and not work.stopped:
            unheard = {
                move.room for one in work.unanswered if isinstance(one, MoveRooms) for move in one.moves
            }
            moves = [
                dataclasses.replace(one, fate="planned")
                if one.fate == "waiting" and one.move.room in unheard
                else one
                for one in work.moves
            ]
            work = dataclasses.replace(work, moves=tuple(moves), stopped=why)
            work = self._call_off(work, why, shed="failed" if work.closed_at is not None else "dropped")
            begun = tuple(one for one in work.begun if one.id in work.answered)
            work = dataclasses.replace(work, begun=begun)
            self._remember(work=work)
            self._tell("Normal", "RebalanceStopped", words.called_off(work))
            self._finish_if_done(work, self.sight.load)

    def _switch_off(self) -> None:
        self._halt(_OFF)
        if self.request is not None:
            self._remember(last_request=self.request)
            self._tell(
                "Warning",
                "RebalanceRefused",
                f"tableforge.io/rebalance asks for a plan, and {_OFF}: set it to true, and the annotation to "
                "a value that wasn't there before, such as now-2.",
            )
            self.request = None

    def _call_off(self, work: Work, why: str, *, shed: Literal["failed", "dropped"]) -> Work:
        """The work without what has not begun, and with a word to those who shed that they are to stop."""
        self._remember(
            cancels=tuple(
                ShedClients(f"{one.id}-stop", one.shed.instance, 0)
                for one in work.sheds
                if one.fate == "waiting" and work.closed_at is not None
            ),
            cancel_until=self.now + 2 * PATIENCE_HEARTBEATS * self.settings.heartbeat_seconds,
        )
        return dataclasses.replace(
            work,
            moves=tuple(
                dataclasses.replace(one, fate="dropped", why=why) if one.fate == "planned" else one
                for one in work.moves
            ),
            sheds=tuple(
                dataclasses.replace(one, fate=shed, why=why) if one.fate == "waiting" else one
                for one in work.sheds
            ),
        )

    def _finish_if_done(self, work: Work, load: Load | None) -> None:
        if all(one.fate not in ("planned", "waiting") for one in work.parts):
            self._finish(work, load)

    def _finish(self, work: Work, load: Load | None) -> None:
        done = sum(one.fate == "done" for one in work.parts)
        failed = sum(one.fate == "failed" for one in work.parts)
        begun = [one for one in work.moves if one.fate != "dropped"]
        clients = sum(one.clients for one in work.parts if one.fate != "dropped")
        cooling = {room: until for room, until in self.state.cooling.items() if until > self.now}
        for one in begun:
            patience = 1 if one.fate == "done" else FAILED_COOLDOWNS
            cooling[one.move.room] = self.now + patience * self.settings.cooldown_seconds
        measure = self.settings.measure
        total = sum(one.connections for one in load.instances if one.takes_part) if load else 0
        mended = work.misplaced - misplaced_of(load, measure) if load else 0.0
        of_use = done > 0 and mended * total >= FRUIT * clients
        fruitless = self.state.fruitless
        if (done or failed) and not work.stopped:
            fruitless = min(fruitless + 1, MOST_DOUBLINGS)
        touched = {one.move.source for one in begun} | {one.move.target for one in begun}
        if work.sheds:
            # Who was shed may have gone anywhere that was open.
            touched = set(self.state.averages.of)
        known = self.state.averages.without(touched)
        self._remember(
            work=None,
            cooling=cooling,
            averages=dataclasses.replace(known, read_at=load.as_of if load else known.read_at),
            fruitless=0 if of_use else fruitless,
            goes_on=work.cut_short and of_use,
            last=dataclasses.replace(self.state.last, done=done, failed=failed),
        )
        self.finished = self.state.last
        spread = f"{spread_of(load, measure):.2f} now" if load else "not known now"
        whys = words.failures(work)
        self._tell(
            "Normal" if done or not failed else "Warning",
            "RebalanceFinished",
            f"{words.moved(done, self.settings)} of {len(work.parts):,} "
            f"{'moved' if work.moves else 'sent clients elsewhere'}"
            f"{f' ({whys})' if whys else ''}; spread {self.state.last.spread_before:.2f} before, {spread}.",
        )

    def _disabled(self) -> Turn:
        # What is read later has nothing to do with what was read before.
        self._remember(
            averages=averages.Averages(), balanced=None, obstacle=None, goes_on=False, told="", fruitless=0
        )
        return self._done("Stopped", "Unknown", "Disabled", f"{_OFF}: load is left as it is.")

    # Whether to plan, and what.

    def _welcome(self, load: Load) -> None:
        """With an instance that is new, what came to nothing before may come to something."""
        known = self.state.known & {one.name for one in load.instances}
        taking_part = {one.name for one in load.instances if one.takes_part}
        self._remember(
            known=known | taking_part, fruitless=0 if taking_part - known else self.state.fruitless
        )

    def _blind(self) -> tuple[Reason, str] | None:
        load, most = self.sight.load, STALE_HEARTBEATS * self.settings.heartbeat_seconds
        if load is None:
            return "FleetUnknown", "No instance has told the load; nothing is planned meanwhile."
        if not self.sight.redis_connected:
            return "RedisAway", "Redis is away: what instances last said of themselves may be old."
        stale = sorted(
            one.name for one in load.instances if one.takes_part and load.as_of - one.updated_at > most
        )
        if self.now - self.sight.seen_at > most:
            return "RecordsStale", f"The load was last told more than {most:g} seconds ago."
        if stale:
            more = f" and {len(stale) - 1:,} more" if len(stale) > 1 else ""
            return "RecordsStale", f"{stale[0]}{more} last told its load more than {most:g} seconds ago."
        return None

    def _nothing_to_compare(self, load: Load) -> Turn | None:
        """The turn where there are not two instances with clients to share."""
        taking_part = [one for one in load.instances if one.takes_part]
        alive = any(one.alive for one in load.instances)
        if len(taking_part) >= 2 and any(one.connections for one in taking_part):
            return None
        self._remember(obstacle=None, busy=(), goes_on=False, balanced=None)
        self._serve("there are not two instances with clients to share.")
        if not taking_part and not alive:
            return self._done("Idle", "Unknown", "NoInstances", "There are no instances.")
        if not taking_part:
            message = (
                "Every instance is cordoned or leaving: nobody takes clients from another. Remove the "
                "annotation tableforge.io/cordon from a pod that has it."
            )
            return self._done("Blocked", "False", "NobodyAccepts", message)
        if len(taking_part) == 1:
            return self._done("Idle", "True", "OneInstance", "There is one instance that takes clients.")
        return self._done("Idle", "True", "NoConnections", "There are no clients.")

    def _judge(self, load: Load) -> None:
        """Whether load is even: uneven only where that is certain, even only where it looks so."""
        known = self.state.averages
        if known.certain(READINGS) > self.settings.threshold:
            self._remember(balanced=False)
        elif self._all_known(load) and known.spread() <= self.settings.threshold:
            self._remember(balanced=True, obstacle=None, busy=())
            if known.spread() <= AIM * self.settings.threshold:
                # Load that hovers at the threshold is not told of each time, nor tried anew.
                self._remember(told="", fruitless=0)

    def _waits_until(self) -> float:
        interval = self.settings.interval_seconds
        if self.state.planned_at is None:
            return self.state.born_at + interval
        return self.state.planned_at + interval * (1 << self.state.fruitless)

    def _plan(self, load: Load) -> None:
        settings, state = self.settings, self.state
        if self.sight.leaving:
            return
        if self.request is None:
            enough = 1 if state.goes_on else READINGS
            if self.now < self._waits_until() or state.averages.certain(enough) <= settings.threshold:
                return
        cooling = {room: until for room, until in state.cooling.items() if until > self.now}
        found = plan(
            load,
            Limits(
                aim=AIM * settings.threshold,
                most_moves=min(settings.most_moves, MOST_COOLING - len(cooling)),
                most_clients=settings.most_clients,
            ),
            mode=settings.mode,
            measure=settings.measure,
            cooling=() if self.request is not None else cooling,
            usual=None
            if self.request is not None
            else averages.usual(state.averages, load, settings.measure),
        )
        self._remember(
            planned_at=self.now,
            cooling=cooling,
            # What is left when moves are done, the next plan says.
            obstacle=None if found else found.obstacle,
            busy=() if found else found.busy,
            goes_on=False,
        )
        if found:
            self._start(found, load)
        elif self.request is not None:
            if found.obstacle is None:
                self._serve(f"load differs by {found.before:.2f} of the mean only.")
            else:
                self._serve(words.obstacle(found.obstacle, found.busy, settings), blocked=True)
        elif found.obstacle is not None:
            told = f"{found.obstacle} {found.busy[0].room if found.busy else ''}"
            if told != state.told:
                self._remember(told=told)
                self._tell(
                    "Warning", "RebalanceBlocked", words.obstacle(found.obstacle, found.busy, settings)
                )

    def _start(self, found: Plan, load: Load) -> None:
        settings = self.settings
        name = f"rebalance-{self.reign[:20]}-{int(load.as_of * 1000)}"
        patience = PATIENCE_HEARTBEATS * settings.heartbeat_seconds
        closing = CLOSING_HEARTBEATS * settings.heartbeat_seconds if found.sheds else 0.0
        work = Work(
            id=name,
            started_at=self.now,
            deadline=self.now
            + patience
            + closing
            + 2 * found.clients / max(settings.reconnects_per_second, 1),
            moves=tuple(Moving(move=move, left=move.members, seen_at=load.as_of) for move in found.moves),
            sheds=tuple(Shedding(shed=shed, id=f"{name}.{place}") for place, shed in enumerate(found.sheds)),
            closed=frozenset(found.closed),
            clients=found.clients,
            misplaced=misplaced_of(load, settings.measure),
            cut_short=found.obstacle is None and found.after > AIM * settings.threshold,
        )
        number = len(found.moves) + len(found.sheds)
        self._remember(
            work=self._next_moves(work, load),
            last=Result(planned=number, spread_before=found.before, at=self.wall),
            last_request=self.request or self.state.last_request,
        )
        asked = ", as tableforge.io/rebalance asks" if self.request is not None else ""
        what = "to move" if found.moves else "to send clients elsewhere"
        self._tell(
            "Normal",
            "RebalanceStarted",
            f"{words.moved(number, settings)} {what}, with {words.count(found.clients, 'client')}{asked}: "
            f"spread {found.before:.2f}, {found.after:.2f} expected.",
        )
        self.request = None

    # What to say.

    def _serve(self, why: str, *, blocked: bool = False) -> None:
        """Answers a request for which there is nothing to do."""
        if self.request is None:
            return
        self._remember(last_request=self.request)
        message = f"Nothing is moved, though tableforge.io/rebalance asks: {why}"
        if blocked:
            self._tell("Warning", "RebalanceBlocked", message)
        else:
            self._tell("Normal", "RebalanceNotNeeded", message)
        self.request = None

    def _report(self, load: Load) -> Turn:
        state, settings = self.state, self.settings
        if state.work is not None:
            work = state.work
            if work.stopped:
                return self._done("Rebalancing", "False", "Rebalancing", words.called_off(work))
            message = (
                f"{words.moved(len(work.parts), settings)} "
                f"{'to move' if work.moves else 'to send clients elsewhere'}, "
                f"{words.count(work.clients, 'client')}: load differed by {state.last.spread_before:.2f} of "
                "the mean."
            )
            return self._done("Rebalancing", "False", "Rebalancing", message)
        uneven = words.uneven(self._spread(load), settings)
        if self.sight.leaving and (state.balanced is False or self.request is not None):
            known: Literal["True", "False", "Unknown"] = (
                "Unknown" if state.balanced is None else "True" if state.balanced else "False"
            )
            waits = ", though tableforge.io/rebalance asks" if self.request is not None else ""
            message = f"{uneven}. Nothing is planned while {self.sight.leaving}{waits}."
            return self._done("Idle", known, "InstancesLeave", message)
        if state.balanced is None:
            message = "Load is being measured: it counts once instances have told it twice."
            return self._done("Idle", "Unknown", "Measuring", message)
        if state.balanced:
            return self._done("Idle", "True", "WithinThreshold", f"{uneven}.")
        if state.obstacle is not None:
            why = words.obstacle(state.obstacle, state.busy, settings)
            return self._done("Blocked", "False", state.obstacle, f"{uneven}. {why}")
        if state.fruitless and state.last.failed > state.last.done:
            message = (
                f"{uneven}. Of the last plan {state.last.failed} of {state.last.planned} failed; the "
                f"next one waits for {settings.interval_seconds * (1 << state.fruitless):g} seconds."
            )
            return self._done("Idle", "False", "ClientsStay", message)
        if not self._all_known(load) and self._spread(load) <= settings.threshold:
            message = f"{uneven}. It counts as even once instances have told it anew."
            return self._done("Idle", "False", "Measuring", message)
        return self._done("Idle", "False", "AboveThreshold", f"{uneven}; it is mended where it lasts.")

    def _done(
        self, phase: Phase, balanced: Literal["True", "False", "Unknown"], reason: Reason, message: str
    ) -> Turn:
        state = self.state
        work, last = state.work, state.last
        done, failed = last.done, last.failed
        if work is not None:
            fates = [one.fate for one in work.parts]
            done, failed = fates.count("done"), fates.count("failed")
        load = self.sight.load
        return Turn(
            state=state,
            commands=(*state.cancels, *(work.unanswered if work is not None else ())),
            closed=work.closed if work is not None else frozenset(),
            report=Report(
                phase=phase,
                balanced=balanced,
                reason=reason,
                message=message,
                moves_planned=last.planned,
                moves_done=done,
                moves_failed=failed,
                spread_before=round(last.spread_before, 2),
                spread=round(self._spread(load), 2) if load is not None else None,
                last_plan_at=last.at,
                last_request=state.last_request,
            ),
            news=tuple(self.news),
            finished=self.finished,
            again_in_seconds=self._again(),
        )

    def _all_known(self, load: Load) -> bool:
        return all(one.name in self.state.averages.of for one in load.instances if one.takes_part)

    def _spread(self, load: Load) -> float:
        """What decides, where it is known; else that of the moment."""
        if self.state.work is None and self._all_known(load):
            return self.state.averages.spread()
        return spread_of(load, self.settings.measure)

    def _again(self) -> float:
        heartbeat = self.settings.heartbeat_seconds
        work = self.state.work
        if work is not None and any(one.fate == "planned" for one in work.moves):
            return min(max(work.next_at - self.now, 1.0), LOOK_SECONDS, heartbeat)
        if work is not None or self.state.cancels:
            return min(LOOK_SECONDS, heartbeat)
        if self.state.balanced is False and self.settings.enabled and not self.sight.leaving:
            return min(max(self._waits_until() - self.now, 1.0), heartbeat)
        return heartbeat

    def _remember(self, **changes: object) -> None:
        self.state = dataclasses.replace(self.state, **changes)  # type: ignore[arg-type]

    def _tell(self, kind: Literal["Normal", "Warning"], reason: NewsReason, message: str) -> None:
        self.news.append(News(kind, reason, message))


def _clients(command: Command) -> int:
    """How many it makes move."""
    if isinstance(command, ShedClients):
        return command.connections
    return sum(move.members for move in command.moves)
