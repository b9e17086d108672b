"""How fast calls go: a burst, then a rate, and nobody during a hold."""

import asyncio
import itertools

import pytest

from tableforge_operator.pace import HOLD_LIMIT_SECONDS, Pace
from tests.support.forward import forward, leap


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


async def test_nobody_goes_during_a_hold_and_there_is_no_burst_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    leap(monkeypatch)
    pace = Pace(per_second=1000, burst=50)
    pace.hold(20)
    pace.hold(10)  # a shorter one takes nothing back
    waits = [await pace.wait() for _ in range(4)]
    assert waits == pytest.approx([20, 0.001, 0.001, 0.001], rel=0.01)


async def test_a_hold_is_bounded() -> None:
    pace = Pace(per_second=1000, burst=1)
    pace.hold(1e9)
    assert pace._next - asyncio.get_running_loop().time() <= HOLD_LIMIT_SECONDS


async def test_an_urgent_one_waits_for_one_other_at_most_and_the_others_have_every_second_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    leap(monkeypatch)
    pace = Pace(per_second=100, burst=1)
    order: list[str] = []

    async def call(name: str, *, urgent: bool = False) -> float:
        waited = await pace.wait(urgent=urgent)
        order.append(name)
        return waited

    await pace.wait()
    async with asyncio.TaskGroup() as tasks:
        for number in range(50):
            tasks.create_task(call(f"other {number}"))
        await asyncio.sleep(0.025)  # two of them have gone
        first = tasks.create_task(call("urgent 0", urgent=True))
        for number in range(1, 4):
            tasks.create_task(call(f"urgent {number}", urgent=True))
    assert first.result() <= 0.02
    assert order[2:10] == [
        "urgent 0", "other 2", "urgent 1", "other 3", "urgent 2", "other 4", "urgent 3", "other 5",
    ]  # fmt: skip
    assert order[10:] == [f"other {number}" for number in range(6, 50)]


async def test_those_that_wait_wait_through_a_hold_too_and_who_gives_up_costs_nobody_a_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    leap(monkeypatch)
    pace = Pace(per_second=100, burst=1)
    await pace.wait()
    loop = asyncio.get_running_loop()
    started = loop.time()
    waiting = [asyncio.create_task(pace.wait(urgent=number == 1)) for number in range(3)]
    await asyncio.sleep(0)
    waiting[1].cancel()
    pace.hold(5)
    assert await asyncio.gather(waiting[0], waiting[2]) == pytest.approx([5.0, 5.01])
    assert loop.time() - started == pytest.approx(5.01)
