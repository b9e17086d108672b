"""How fast calls go: a burst, then a rate, and nobody during a hold."""

import asyncio
import itertools

import pytest

from tableforge_operator.pace import HOLD_LIMIT_SECONDS, Pace
from tests.support.forward import forward


async def test_a_burst_goes_at_once_and_the_rest_at_the_rate() -> None:
    pace = Pace(per_second=1000, burst=5)
    assert [await pace.wait() for _ in range(5)] == [0.0] * 5
    waits = await asyncio.gather(*(pace.wait() for _ in range(100)))
    # Each is at most a millisecond behind the one before: less where the machine was late.
    assert 0 < max(waits) <= 0.1 + 1e-6
    assert all(after - before <= 0.001 + 1e-6 for before, after in itertools.pairwise(waits))


async def test_what_is_not_used_is_saved_up_to_the_burst(monkeypatch: pytest.MonkeyPatch) -> None:
    pace = Pace(per_second=1000, burst=5)
    forward(monkeypatch, 0.1)
    loop = asyncio.get_running_loop()
    started = loop.time()
    for _ in range(55):
        await pace.wait()
    assert loop.time() - started >= 0.045


async def test_nobody_goes_during_a_hold_and_there_is_no_burst_after_it() -> None:
    pace = Pace(per_second=1000, burst=50)
    loop = asyncio.get_running_loop()
    started = loop.time()
    pace.hold(0.2)
    pace.hold(0.1)  # a shorter one takes nothing back
    await pace.wait()
    assert loop.time() - started >= 0.2
    waits = [await pace.wait() for _ in range(3)]
    assert loop.time() - started >= 0.2 or any(waits)


async def test_a_hold_is_bounded() -> None:
    pace = Pace(per_second=1000, burst=1)
    pace.hold(1e9)
    assert pace._next - asyncio.get_running_loop().time() <= HOLD_LIMIT_SECONDS
