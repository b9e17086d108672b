"""The work queue: one entry per key, delays, back-off, never two workers on one key."""

import asyncio
import random

import pytest

from tableforge_operator.workqueue import BACKOFF_LIMIT_SECONDS, WorkQueue
from tests.support.forward import forward


async def take_now(queue: WorkQueue[str]) -> str | None:
    """What is due, without waiting for what will be."""
    try:
        async with asyncio.timeout(0.02):
            return await queue.take()
    except TimeoutError:
        return None


async def test_a_key_that_is_added_often_gets_one_turn() -> None:
    queue: WorkQueue[str] = WorkQueue()
    for _ in range(5):
        queue.add("a")
    assert len(queue) == 1
    assert await take_now(queue) == "a"
    assert await take_now(queue) is None


async def test_what_is_added_during_a_turn_makes_one_more_and_only_afterwards() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    assert await take_now(queue) == "a"
    queue.add("a")
    queue.add("a")
    assert await take_now(queue) is None
    queue.done("a")
    assert await take_now(queue) == "a"
    queue.done("a")
    assert await take_now(queue) is None


async def test_a_busy_key_does_not_hold_up_others() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    assert await take_now(queue) == "a"
    queue.add("a")
    queue.add("b")
    assert await take_now(queue) == "b"


async def test_the_earlier_of_two_delays_counts() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a", delay_seconds=60)
    queue.add("a")
    assert await take_now(queue) == "a"
    queue.done("a")
    queue.add("a")
    queue.add("a", delay_seconds=60)
    assert await take_now(queue) == "a"
    queue.done("a")
    assert len(queue) == 0


async def test_delayed_keys_come_in_the_order_they_are_due() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("late", delay_seconds=0.03)
    queue.add("soon", delay_seconds=0.01)
    assert [await queue.take(), await queue.take()] == ["soon", "late"]


async def test_failures_back_off_to_a_limit_with_jitter_and_success_ends_it() -> None:
    queue: WorkQueue[str] = WorkQueue(rng=random.Random(1))
    delays = [queue.add_after_failure("a") for _ in range(30)]
    for number, delay in enumerate(delays[:8]):
        assert 0.25 * 2**number <= delay <= 0.5 * 2**number
    assert max(delays) <= BACKOFF_LIMIT_SECONDS
    assert min(delays[-10:]) >= BACKOFF_LIMIT_SECONDS / 2
    assert len({round(delay, 6) for delay in delays[-10:]}) > 1
    queue.succeeded("a")
    assert queue.add_after_failure("a") <= 0.5


async def test_a_forgotten_key_gets_no_turn() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    queue.forget("a")
    assert len(queue) == 0
    assert await take_now(queue) is None


async def test_no_key_is_ever_worked_on_twice_at_a_time() -> None:
    queue: WorkQueue[int] = WorkQueue()
    rng = random.Random(7)
    busy: set[int] = set()
    turns = dict.fromkeys(range(5), 0)

    async def work() -> None:
        while True:
            key = await queue.take()
            assert key not in busy
            busy.add(key)
            await asyncio.sleep(rng.random() * 0.002)
            busy.discard(key)
            turns[key] += 1
            queue.done(key)

    workers = [asyncio.create_task(work()) for _ in range(4)]
    for _ in range(500):
        queue.add(rng.randrange(5), delay_seconds=rng.choice((0, 0, 0.001)))
        if rng.random() < 0.2:
            await asyncio.sleep(0)
    async with asyncio.timeout(60):
        while len(queue) or busy:
            assert not any(worker.done() for worker in workers)
            await asyncio.sleep(0.001)
    assert all(turns.values())
    for worker in workers:
        worker.cancel()
    await asyncio.gather(*workers, return_exceptions=True)


async def test_what_is_urgent_waits_for_nothing_else_where_workers_are_kept_for_it() -> None:
    queue: WorkQueue[str] = WorkQueue()
    for number in range(100):
        queue.add(f"other {number}")
    queue.add("changed", urgent=True)
    assert await queue.take(urgent_only=True) == "changed"
    assert queue.is_urgent("changed")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await queue.take(urgent_only=True)
    assert await take_now(queue) == "other 0"
    assert not queue.is_urgent("other 0")


async def test_others_take_everything_in_order_so_that_nothing_starves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("old")
    forward(monkeypatch, 0.001)
    for number in range(5):
        queue.add(f"urgent {number}", urgent=True)
    assert [await take_now(queue) for _ in range(3)] == ["old", "urgent 0", "urgent 1"]


async def test_what_was_only_due_becomes_urgent_when_somebody_asks() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    assert queue.depth() == 1
    assert await take_now(queue) == "a"
    queue.add("a")
    queue.add("b", delay_seconds=60)
    assert await take_now(queue) is None  # moved to what is due, and worked on
    queue.add("a", urgent=True)
    queue.add("b", urgent=True)
    assert await queue.take(urgent_only=True) == "b"
    queue.done("a")
    assert await queue.take(urgent_only=True) == "a"
    assert len(queue) == 0


async def test_depth_and_age_are_of_what_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("later", delay_seconds=60)
    assert (queue.depth(), queue.age_seconds()) == (0, 0)
    queue.add("now")
    forward(monkeypatch, 10.0)
    assert queue.depth() == 1
    assert 10.0 <= queue.age_seconds() < 40


async def test_overtaken_wishes_do_not_pile_up() -> None:
    queue: WorkQueue[str] = WorkQueue()
    for _ in range(2000):
        queue.add("a", delay_seconds=60)
        queue.add("a")
        assert await queue.take() == "a"
        queue.done("a")
    assert len(queue._later) < 200


async def test_a_turn_that_runs_is_urgent_from_when_somebody_asks() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    assert await queue.take() == "a"
    assert not queue.is_urgent("a")
    queue.add("a", delay_seconds=60)
    assert not queue.is_urgent("a")
    queue.add("a", urgent=True)
    assert queue.is_urgent("a")
    queue.done("a")
    assert await queue.take(urgent_only=True) == "a"
    queue.done("a")
    assert not queue.is_urgent("a")
