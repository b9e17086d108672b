"""With the lease as it ships another operator leads within 15 s of a leader's last word, whenever that came.

By a clock that leaps: every moment at which the standby may have looked is tried, with the longest pauses
that it may make.
"""

import asyncio
import copy
import random
from typing import Any, cast

import pytest

from tableforge_operator.kube import ConflictError, Kube, NotFoundError
from tableforge_operator.leader import LEASE_SECONDS, RETRY_SECONDS, Leader
from tests.support.forward import leap

PROMISED_SECONDS = 15.0
CALL_SECONDS = 0.2
"""How long the API server takes for each call."""
STEPS = 44
STEP_SECONDS = 0.05
"""All of them together are more than a standby's longest pause: every moment in between is tried."""


class Server:
    """Keeps one Lease."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None
        self.renewed_at = 0.0
        """When it was written last."""
        self.written = asyncio.Event()

    async def get(self, *_: object) -> dict[str, Any]:
        await asyncio.sleep(CALL_SECONDS / 2)
        found = copy.deepcopy(self.lease)
        await asyncio.sleep(CALL_SECONDS / 2)
        if found is None:
            raise NotFoundError("there is none")
        return found

    async def create(self, obj: dict[str, Any]) -> dict[str, Any]:
        return await self._write(obj, "0")

    async def replace(self, obj: dict[str, Any], *, timeout_seconds: float) -> dict[str, Any]:
        return await self._write(obj, obj["metadata"]["resourceVersion"])

    async def _write(self, obj: dict[str, Any], expected: str) -> dict[str, Any]:
        await asyncio.sleep(CALL_SECONDS / 2)
        version = "0" if self.lease is None else self.lease["metadata"]["resourceVersion"]
        if version != expected:
            raise ConflictError("somebody was faster")
        metadata = {**obj["metadata"], "resourceVersion": str(int(version) + 1)}
        self.lease = {**obj, "metadata": metadata}
        self.renewed_at = asyncio.get_running_loop().time()
        self.written.set()
        await asyncio.sleep(CALL_SECONDS / 2)
        return copy.deepcopy(self.lease)


def contender(server: Server, identity: str) -> Leader:
    """One with the numbers that ship."""
    return Leader(cast("Kube", server), namespace="ns", name="lease", identity=identity)


async def taken_over_after(step: int) -> float:
    """Kill a leader right after a renewal; in how many seconds of that another one leads."""
    loop = asyncio.get_running_loop()
    server = Server()
    one, two = contender(server, "one"), contender(server, "two")
    await one.acquire()
    holding = asyncio.create_task(one.hold())
    await asyncio.sleep(STEP_SECONDS * step)
    waiting = asyncio.create_task(two.acquire())
    await asyncio.sleep(3 * RETRY_SECONDS)
    server.written.clear()
    await server.written.wait()
    holding.cancel()  # and nothing is released, as with kill -9
    last = server.renewed_at
    await waiting
    return loop.time() - last


async def test_another_leads_within_fifteen_seconds_of_the_last_renewal_and_not_before_the_lease_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    leap(monkeypatch)
    monkeypatch.setattr(random, "uniform", lambda _, most: most)
    took = [await taken_over_after(step) for step in range(STEPS)]
    assert STEPS * STEP_SECONDS > RETRY_SECONDS
    assert max(took) < PROMISED_SECONDS, took
    assert max(took) - min(took) > RETRY_SECONDS / 2, "the moments differ"
    assert min(took) > LEASE_SECONDS, took


async def test_who_renews_is_not_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    leap(monkeypatch)
    server = Server()
    one, two = contender(server, "one"), contender(server, "two")
    await one.acquire()
    holding, waiting = asyncio.create_task(one.hold()), asyncio.create_task(two.acquire())
    await asyncio.sleep(10 * LEASE_SECONDS)
    assert one.holds
    assert not holding.done()
    assert not waiting.done()
    for task in (holding, waiting):
        task.cancel()
