"""Limits over a clock that the test holds."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tableforge_dataplane.contract.settings import SecuritySettings
from tableforge_dataplane.session.limits import (
    BAD_FRAMES,
    BadFrames,
    ByteBudget,
    ByteBudgets,
    CommandRate,
    UserRate,
)
from tests.dataplane.path.instances import HeldClock, Instances, Peers
from tests.support.redis import RedisServer

SETTINGS = dataclasses.replace(SecuritySettings(), max_messages_per_second=10, max_messages_per_minute=50)


def test_so_many_commands_a_second() -> None:
    rate = CommandRate(SETTINGS)
    assert [rate.take(100.0) for _ in range(10)] == [None] * 10
    assert rate.take(100.25) == 0.75
    assert rate.take(101.0) is None


def test_so_many_commands_a_minute() -> None:
    rate = CommandRate(SETTINGS)
    taken = [rate.take(100.0 + second) for second in range(5) for _ in range(10)]
    assert taken == [None] * 50
    assert rate.take(105.0) == 55.0
    assert rate.take(160.0) is None


def test_who_breaks_the_limit_again_and_again_is_hopeless() -> None:
    rate = CommandRate(SETTINGS)
    for second in range(11):
        assert not rate.hopeless
        for _ in range(11):
            rate.take(100.0 + second)
    assert rate.hopeless


def test_who_breaks_it_now_and_then_is_not() -> None:
    rate = CommandRate(SETTINGS)
    for minute in range(20):
        for _ in range(11):
            rate.take(100.0 + minute * 61)
        assert not rate.hopeless


def test_a_flood_is_hopeless_at_once() -> None:
    rate = CommandRate(SETTINGS)
    for _ in range(101):
        rate.take(100.0)
    assert rate.hopeless


def test_a_budget_fills_as_fast_as_it_may_be_spent() -> None:
    budget = ByteBudget(1000)
    assert budget.take(1000, 50.0) is None
    assert budget.take(500, 50.0) == 0.5
    assert budget.take(500, 50.5) is None
    assert budget.take(1000, 500.0) is None
    assert budget.take(1, 500.0) == 0.001


def test_a_message_larger_than_the_whole_budget_waits_for_all_of_it() -> None:
    budget = ByteBudget(1000)
    assert budget.take(100, 50.0) is None
    assert budget.take(5000, 50.0) == 0.1
    assert budget.take(5000, 50.1) is None
    assert budget.take(1000, 50.1) == 5.0, "what it had too much is owed"


def test_a_user_has_one_budget_whatever_the_number_of_connections() -> None:
    budgets = ByteBudgets(SETTINGS)
    assert budgets.of("ada") is budgets.of("ada")
    assert budgets.of("ada") is not budgets.of("bob")
    assert isinstance(budgets.of("ada").commands, UserRate)


async def test_guests_leave_no_budget_behind(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server, security={"max_bytes_per_second": 1024})
    HeldClock(one)
    guest = await peers(one)
    await guest.join("lobby")
    await guest.published("lobby", "x" * 700)
    await guest.publish("lobby", "x" * 700)
    assert (await guest.until("error"))["code"] == "rate_limited"
    assert not one.surroundings.budgets._budgets, "nobody has a guest's name again"


def test_a_users_connections_share_what_one_may_send() -> None:
    shared = UserRate(SETTINGS)
    one, two = CommandRate(SETTINGS), CommandRate(SETTINGS)
    one.user = two.user = shared
    assert [rate.take(100.0) for _ in range(5) for rate in (one, two)] == [None] * 10
    assert one.take(100.25) == two.take(100.25) == 0.75
    assert one.take(101.0) is None
    for second in range(101, 106):
        for _ in range(8):
            one.take(float(second))
            two.take(float(second))
    assert two.take(130.0) == 30.0
    assert two.take(160.0) is None


def test_without_rate_limiting_nothing_is_limited() -> None:
    off = dataclasses.replace(SETTINGS, enable_rate_limiting=False, max_bytes_per_second=1024)
    rate, budgets = CommandRate(off), ByteBudgets(off)
    assert not any(rate.take(1.0) for _ in range(1000))
    assert not rate.hopeless
    assert budgets.of("ada").commands is None
    assert not any(budgets.of("ada").take(100_000, 1.0) for _ in range(1000))


def test_a_large_frame_without_a_meaning_counts_for_more() -> None:
    bad = BadFrames()
    assert not any(bad.add(10.0, 100_000) for _ in range(2))
    assert bad.add(10.0, 100_000)


def test_bad_frames_are_forgiven_after_a_minute() -> None:
    bad = BadFrames()
    assert not any(bad.add(10.0) for _ in range(BAD_FRAMES))
    assert not bad.add(70.0)
    assert not any(bad.add(70.0) for _ in range(BAD_FRAMES - 1))
    assert bad.add(70.0)


@given(
    kind=st.sampled_from([CommandRate, UserRate]),
    pauses=st.lists(st.sampled_from([0.0, 0.01, 0.4, 0.9, 1.0, 1.1, 7.3]), max_size=400),
)
def test_whatever_comes_when_no_window_has_more_than_its_own(
    kind: type[CommandRate] | type[UserRate], pauses: list[float]
) -> None:
    rate, now, accepted = kind(SETTINGS), 100.0, list[float]()
    for pause in pauses:
        now += pause
        wait = rate.take(now)
        if wait is None:
            accepted.append(now)
        else:
            assert 0 < wait <= 60 + 1, "a client told to come back in no time comes back in vain"
    # windows follow one another, so that at worst the end of one meets the beginning of the next
    for first in accepted:
        assert sum(first <= one < first + 1.0 for one in accepted) <= 2 * SETTINGS.max_messages_per_second
        assert sum(first <= one < first + 60.0 for one in accepted) <= 2 * SETTINGS.max_messages_per_minute


@pytest.mark.parametrize("kind", [CommandRate, UserRate])
def test_a_minute_that_ends_within_a_second_says_when_that_one_ends(
    kind: type[CommandRate] | type[UserRate],
) -> None:
    rate = kind(dataclasses.replace(SETTINGS, max_messages_per_minute=10))
    for _ in range(9):
        assert rate.take(100.0) is None
    assert rate.take(159.5) is None
    assert rate.take(160.25) == 0.25
    assert rate.take(160.5) is None


@given(takes=st.lists(st.tuples(st.integers(1, 3000), st.floats(0, 2)), max_size=100))
def test_a_budget_never_gives_more_than_a_second_ahead(takes: list[tuple[int, float]]) -> None:
    budget, now, spent = ByteBudget(1000), 50.0, 0
    for size, pause in takes:
        now += pause
        wait = budget.take(size, now)
        if wait is None:
            spent += size
        else:
            assert wait > 0
        # one message larger than the whole budget may be on top
        assert spent <= 1000 + (now - 50.0) * 1000 + 3000
