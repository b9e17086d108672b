"""Limits over a clock that the test holds."""

import dataclasses

from tableforge_dataplane.contract.settings import SecuritySettings
from tableforge_dataplane.session.limits import BAD_FRAMES, BadFrames, ByteBudget, ByteBudgets, CommandRate

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
    assert budget.take(1000, 50.1) == 1.0


def test_a_user_has_one_budget_whatever_the_number_of_connections() -> None:
    budgets = ByteBudgets(SETTINGS)
    assert budgets.of("ada") is budgets.of("ada")
    assert budgets.of("ada") is not budgets.of("bob")


def test_bad_frames_are_forgiven_after_a_minute() -> None:
    bad = BadFrames()
    assert not any(bad.add(10.0) for _ in range(BAD_FRAMES))
    assert not bad.add(70.0)
    assert not any(bad.add(70.0) for _ in range(BAD_FRAMES - 1))
    assert bad.add(70.0)
