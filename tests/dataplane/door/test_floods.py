"""Rates and penalties over a clock that the test holds."""

from hypothesis import given
from hypothesis import strategies as st

from tableforge_dataplane.security.floods import (
    BURST_SECONDS,
    FORGIVEN_AFTER_SECONDS,
    FREE_OFFENCES,
    LONGEST_PENALTY_SECONDS,
    ArrivalRate,
    Penalties,
)


def test_a_burst_comes_at_once_and_then_so_many_a_second() -> None:
    rate = ArrivalRate(10)
    burst = int(10 * BURST_SECONDS)
    assert [rate.take("a", 100.0) for _ in range(burst)] == [None] * burst
    wait = rate.take("a", 100.0)
    assert wait is not None
    assert 0 < wait <= 0.1
    assert rate.take("b", 100.0) is None
    assert rate.take("a", 100.15) is None
    assert rate.take("a", 100.15) is not None


@given(st.lists(st.floats(0, 2), max_size=200))
def test_never_more_than_the_rate_and_a_burst(gaps: list[float]) -> None:
    rate, now, taken = ArrivalRate(5), 50.0, 0
    for gap in gaps:
        now += gap
        taken += rate.take("a", now) is None
    assert taken <= 5 * (now - 50.0) + 5 * BURST_SECONDS + 1e-6


def test_addresses_without_end_take_no_memory_without_end() -> None:
    rate = ArrivalRate(10, most=100)
    penalties = Penalties(most=100)
    for number in range(1000):
        rate.take(f"a{number}", 1.0)
        penalties.add(f"a{number}", 1.0)
    assert len(rate) == len(penalties) == 100


def test_who_is_seen_all_the_time_is_not_forgotten_for_those_who_come_once() -> None:
    rate = ArrivalRate(1, most=100)
    taken = 0
    for number in range(1000):
        rate.take(f"a{number}", 1.0)
        taken += rate.take("flood", 1.0) is None
    assert taken == BURST_SECONDS


def test_the_first_offences_cost_nothing_and_then_each_twice_as_much() -> None:
    penalties = Penalties()
    waits = []
    for _ in range(FREE_OFFENCES + 4):
        penalties.add("a", 10.0)
        waits.append(penalties.wait("a", 10.0))
    assert waits == [*[None] * FREE_OFFENCES, 1.0, 2.0, 4.0, 8.0]
    assert penalties.wait("a", 17.5) == 0.5
    assert penalties.wait("a", 18.0) is None
    assert penalties.wait("b", 10.0) is None


def test_a_penalty_has_an_end() -> None:
    penalties = Penalties()
    for _ in range(200):
        penalties.add("a", 10.0)
    assert penalties.wait("a", 10.0) == LONGEST_PENALTY_SECONDS


def test_who_behaves_for_a_while_is_forgiven() -> None:
    penalties = Penalties()
    for _ in range(FREE_OFFENCES + 1):
        penalties.add("a", 10.0)
    penalties.add("a", 11.0 + FORGIVEN_AFTER_SECONDS)
    assert penalties.wait("a", 11.0 + FORGIVEN_AFTER_SECONDS) is None
