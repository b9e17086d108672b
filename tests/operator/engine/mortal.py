"""An operator that lives in the test's own event loop, and dies when it is told to, as by `kill -9`."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Self

from tableforge_operator.decide.resources import OPTIONAL_KINDS, OWNED_KINDS, REPLICA_SET, VOLUME_CLAIM
from tableforge_operator.kube import PODS, Kube, resource_of
from tableforge_operator.observe.fleet import FleetReader
from tableforge_operator.observe.reflector import Reflector
from tableforge_operator.observe.store import ClusterKey
from tableforge_operator.reconcile import Reconciler

MASTER_KEY = bytes(range(32))
_WRITES = frozenset({"apply", "patch", "create", "update", "delete"})


class Killed(BaseException):
    """The process is dead: nothing catches this, and nothing that would still be done is done."""


class MortalKube(Kube):
    """Counts its writes, and can be dead."""

    writes: list[str]
    dead = False
    after_write: Callable[[int], Awaitable[None]] | None = None
    """Called with the number of each write, from 1 on, once the API server has done it."""

    @classmethod
    async def connect(cls, kubeconfig: Path | None = None, *, calls_per_second: float = 10_000) -> Self:
        kube = await super().connect(kubeconfig, calls_per_second=calls_per_second)
        kube.writes = []
        return kube

    def kill(self) -> None:
        self.dead = True
        raise Killed

    async def _call(self, verb: str, *arguments: Any, **options: Any) -> Any:
        if self.dead:
            raise Killed
        try:
            return await super()._call(verb, *arguments, **options)
        finally:
            if self.dead:
                raise Killed
            if verb in _WRITES:
                self.writes.append(f"{verb} {arguments[1]}")
                if self.after_write is not None:
                    await self.after_write(len(self.writes))


class _Watched(Reconciler):
    """Tells of turns that wrote nothing, and makes another one at once after one that did."""

    mortal: MortalKube
    turns = 0
    """How many have begun."""
    idle = 0
    """The number of the last one that wrote nothing."""
    news: asyncio.Condition

    async def _turn(self, key: ClusterKey) -> float | None:
        self.turns += 1
        turn, before = self.turns, len(self.mortal.writes)
        delay = await super()._turn(key)
        if len(self.mortal.writes) > before:
            self.queue.add(key)
        else:
            async with self.news:
                self.idle = turn
                self.news.notify_all()
        return delay


class Life:
    """An operator for one namespace, from its start to its end."""

    def __init__(self, kube: MortalKube, reconciler: _Watched, done: "asyncio.Task[None]") -> None:
        self.kube = kube
        self.reconciler = reconciler
        self._done = done

    async def idle(self) -> bool:
        """Wait until a turn that begins from now on writes nothing, or it dies; whether it lives."""
        waiting = asyncio.ensure_future(self._idle_after(self.reconciler.turns))
        async with asyncio.timeout(120):
            await asyncio.wait((waiting, self._done), return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if self._done.done():
            self._done.result()
        return not self.kube.dead

    async def _idle_after(self, turn: int) -> None:
        async with self.reconciler.news:
            await self.reconciler.news.wait_for(lambda: self.reconciler.idle > turn)

    async def over(self) -> None:
        """Wait for its death."""
        async with asyncio.timeout(120):
            await asyncio.wait((self._done,))
        assert self.kube.dead


class FirstReign:
    """Of an operator that needs no Lease, because there is no other."""

    holds = True
    transitions = 1

    def raise_above(self, fence: int) -> bool:
        self.transitions = fence + 1
        return True


@contextlib.asynccontextmanager
async def life(
    kubeconfig: Path,
    namespace: str,
    *,
    after_write: Callable[[MortalKube, int], Awaitable[None]] | None = None,
) -> AsyncIterator[Life]:
    """An operator for as long as the block runs, or until it is killed."""
    kube = await MortalKube.connect(kubeconfig)
    if after_write is not None:
        hook = after_write
        kube.after_write = lambda number: hook(kube, number)
    fleets = FleetReader()
    reconciler = _Watched(
        kube=kube,
        fleets=fleets,
        reign=FirstReign(),
        master_key=MASTER_KEY,
        namespaces=[namespace],
        reporter="test",
    )
    reconciler.mortal, reconciler.news = kube, asyncio.Condition()
    kinds = [resource_of(kind.api_version, kind.kind) for kind in (*OWNED_KINDS, REPLICA_SET, VOLUME_CLAIM)]
    reflector = Reflector(kube, reconciler.store, [*kinds, PODS], [namespace], optional=OPTIONAL_KINDS)

    async def run() -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(reflector.run())
                await reflector.synced()
                tasks.create_task(reconciler.run())
        except BaseExceptionGroup as group:
            if group.subgroup(Killed) is None:
                raise
            raise Killed from None

    done = asyncio.create_task(_quietly(run))
    try:
        yield Life(kube, reconciler, done)
    finally:
        done.cancel()
        await asyncio.wait((done,))
        await fleets.close()
        await kube.close()


async def _quietly(run: Callable[[], Awaitable[None]]) -> None:
    # A task that ends with a BaseException of no kind asyncio knows would end the event loop.
    with contextlib.suppress(Killed):
        await run()
