"""Sends commands to a fleet, in the name of this operator's reign."""

import asyncio
import logging
import secrets
from typing import Final, Protocol

from tableforge_dataplane.contract.fleet import FleetAnswer, Forget, Move, Orders, RoomMove, Shed
from tableforge_operator import metrics
from tableforge_operator.act.memory import Memory
from tableforge_operator.decide.orders import FORGET_EACH_SECONDS, Word
from tableforge_operator.decide.rebalancing.state import Command, ShedClients
from tableforge_operator.decide.snapshot import Sent
from tableforge_operator.kube import PODS, ApiError, Kube
from tableforge_operator.observe.fleet import Addressees, CommandNotTakenError, FleetReader
from tableforge_operator.observe.store import ClusterKey

FIRST_RETRY_SECONDS: Final = 2.0
LONGEST_RETRY_SECONDS: Final = 60.0
TOLD_AFTER: Final = 3
"""After how many failures in a row the status says so: one that is lost is no news."""

log = logging.getLogger(__name__)


class Reign(Protocol):
    """Whether and since when this operator is the one that gives commands."""

    @property
    def holds(self) -> bool: ...

    @property
    def transitions(self) -> int:
        """The number that commands carry: one that is older than the latest is refused."""
        ...

    def raise_above(self, fence: int) -> bool:
        """Have a number above `fence` before long; gives whether that can be."""
        ...


class Commands:
    """Gives commands to the fleets of all clusters."""

    def __init__(self, kube: Kube, fleets: FleetReader, reign: Reign) -> None:
        self._kube = kube
        self._fleets = fleets
        self._reign = reign

    async def carry(
        self, key: ClusterKey, word: Word, *, whom: Addressees, fleet_key: str, memory: Memory
    ) -> None:
        """Tell the fleet. What it does not take is remembered, and tried again later; nothing is raised."""
        try:
            if word.gone:
                await self._forget(key, word, whom=whom, fleet_key=fleet_key, memory=memory)
            if word.orders:
                await self._order(word, whom=whom, fleet_key=fleet_key, memory=memory)
            for wanted in word.commands:
                command = self._command(wanted)
                answer = await self._fleets.command(addressees=whom, fleet_key=fleet_key, command=command)
                self._accepted(answer)
                memory.answers.append((wanted.id, {move.room: move.outcome for move in answer.moves}))
                metrics.COMMANDS.labels("move" if isinstance(command, Move) else "shed", "taken").inc()
        except CommandNotTakenError as error:
            self._failed(key, str(error), memory)
        except ApiError as error:
            self._failed(key, error.message, memory)
        else:
            memory.command_failures, memory.command_refused, memory.command_retry_at = 0, "", 0.0

    async def _order(self, word: Word, *, whom: Addressees, fleet_key: str, memory: Memory) -> None:
        boots = (
            {record.instance: record.boot for record in memory.fleet.fleet.instances}
            if memory.fleet.fleet
            else {}
        )
        command = Orders(fence=self._fence(), id=secrets.token_hex(8), instances=list(word.orders))
        self._accepted(await self._fleets.command(addressees=whom, fleet_key=fleet_key, command=command))
        now = asyncio.get_running_loop().time()
        for order in word.orders:
            memory.orders_sent[order.instance] = Sent(order=order, boot=boots.get(order.instance, ""), at=now)
        metrics.COMMANDS.labels("instances", "taken").inc()

    async def _forget(
        self, key: ClusterKey, word: Word, *, whom: Addressees, fleet_key: str, memory: Memory
    ) -> None:
        gone = []
        memory.forget_at = asyncio.get_running_loop().time() + FORGET_EACH_SECONDS * len(word.gone)
        for name in word.gone:
            # The watch may be behind, and a pod without its labels is out of its sight.
            found, _ = await self._kube.list(PODS, key[0], field_selector=f"metadata.name={name}")
            if not any(_runs(pod) for pod in found):
                gone.append(name)
        memory.forgotten.update(set(word.gone) - set(gone))
        if not gone:
            return
        command = Forget(fence=self._fence(), id=secrets.token_hex(8), instances=gone)
        self._accepted(await self._fleets.command(addressees=whom, fleet_key=fleet_key, command=command))
        memory.forgotten.update(gone)
        metrics.COMMANDS.labels("forget", "taken").inc()
        log.info("instances forgotten", extra={"cluster": "/".join(key), "instances": " ".join(gone)})

    def _command(self, wanted: Command) -> Move | Shed:
        if isinstance(wanted, ShedClients):
            return Shed(
                fence=self._fence(),
                id=wanted.id,
                instance=wanted.instance,
                connections=wanted.connections,
            )
        moves = [RoomMove(room=one.room, source=one.source, target=one.target) for one in wanted.moves]
        return Move(fence=self._fence(), id=wanted.id, moves=moves)

    def _fence(self) -> int:
        if not self._reign.holds:
            raise CommandNotTakenError("another operator leads")
        return self._reign.transitions

    def _accepted(self, answer: FleetAnswer) -> FleetAnswer:
        """The answer, where it is one. Raises CommandNotTakenError where a later operator has spoken."""
        if not answer.stale:
            return answer
        why = f"another operator has given commands since, in reign {answer.fence}"
        # The Lease was made anew, or lay elsewhere: who holds it is the later one all the same.
        raises = answer.fence >= self._reign.transitions and self._reign.holds
        if raises and not self._reign.raise_above(answer.fence):
            why += ", a number that is out of bounds: clear the fence in its Redis"
        raise CommandNotTakenError(why)

    def _failed(self, key: ClusterKey, why: str, memory: Memory) -> None:
        memory.command_failures += 1
        delay = min(FIRST_RETRY_SECONDS * 2.0 ** (memory.command_failures - 1), LONGEST_RETRY_SECONDS)
        memory.command_retry_at = asyncio.get_running_loop().time() + delay
        if memory.command_failures >= TOLD_AFTER:
            memory.command_refused = why.rstrip(".")
        metrics.COMMANDS.labels("any", "failed").inc()
        log.warning(
            "command not taken",
            extra={"cluster": "/".join(key), "error": why, "delay_seconds": round(delay, 1)},
        )


def _runs(pod: dict[str, object]) -> bool:
    state = pod.get("status")
    return not isinstance(state, dict) or state.get("phase") not in ("Failed", "Succeeded")
