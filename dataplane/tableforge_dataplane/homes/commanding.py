"""Carries out what the operator tells the fleet; any instance does it for all of them."""

from collections.abc import Callable

from tableforge_dataplane.contract.fleet import FleetAnswer, FleetCommand, Forget, Move, Orders, Shed
from tableforge_dataplane.homes.directory import Directory, StaleFenceError
from tableforge_dataplane.homes.homes import Notice
from tableforge_dataplane.observability.logging import EventLog
from tableforge_dataplane.observability.metrics import Metrics

_log = EventLog("commands")


class Commanding:
    """What a command says is written into Redis first; then everybody whom it concerns is told to look."""

    def __init__(self, *, directory: Directory, notify: Callable[[Notice], None], metrics: Metrics) -> None:
        self._directory = directory
        self._notify = notify
        self._metrics = metrics

    async def carry_out(self, command: FleetCommand) -> FleetAnswer:
        """What became of it; `command` is one that `checks.problem` finds nothing wrong with.

        Raises one of REDIS_FAILURES; sent again, it is the same.
        """
        try:
            answer = await self._carry_out(command)
        except StaleFenceError as stale:
            _log.warning("command_stale", id=command.id, fence=command.fence, latest=stale.fence)
            return FleetAnswer(stale=True, fence=stale.fence)
        _log.info("command_carried_out", id=command.id, kind=type(command).__name__, unknown=answer.unknown)
        return answer

    async def _carry_out(self, command: FleetCommand) -> FleetAnswer:
        match command:
            case Move():
                outcomes = await self._directory.move(command.fence, command.moves)
                for outcome in outcomes:
                    self._metrics.home_moves.add(outcome.outcome)
                if moved := [outcome.room for outcome in outcomes if outcome.outcome == "moved"]:
                    self._notify(Notice(rooms=moved))
                return FleetAnswer(fence=command.fence, moves=outcomes)
            case Orders():
                unknown = await self._directory.order(command.fence, command.instances)
                self._notify(Notice(instances=[order.instance for order in command.instances]))
                return FleetAnswer(fence=command.fence, unknown=unknown)
            case Shed():
                unknown = await self._directory.shed(command)
                self._notify(Notice(instances=[command.instance]))
                return FleetAnswer(fence=command.fence, unknown=unknown)
            case Forget():
                unknown = await self._directory.forget(command.fence, command.instances)
                self._notify(Notice(forgotten=list(command.instances)))
                return FleetAnswer(fence=command.fence, unknown=unknown)
