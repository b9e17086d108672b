"""Which address is tried when: bounds, jitter, and what servers ask for. No sockets, no clock."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tableforge_client.routes import Routes, Verdict, after_close, after_status

AGAIN = Verdict(again=True)


def routes(*urls: str, seed: int = 1, base: float = 0.5, longest: float = 30.0) -> Routes:
    return Routes(urls, base_seconds=base, longest_seconds=longest, rng=random.Random(seed))


@given(st.integers(0, 2**32), st.integers(1, 60))
def test_the_nth_wait_is_random_below_a_bound_that_doubles(seed: int, failures: int) -> None:
    one = routes("a", seed=seed)
    for n in range(failures):
        one.failed("a", 1000.0, AGAIN)
        _, wait = one.choose(1000.0)
        assert 0 <= wait <= min(30.0, 0.5 * 2**n)


def test_waits_are_spread_over_the_whole_range() -> None:
    waits = []
    for seed in range(1000):
        one = routes("a", seed=seed)
        for _ in range(4):
            one.failed("a", 0.0, AGAIN)
        waits.append(one.choose(0.0)[1])
    assert min(waits) < 0.2
    assert max(waits) > 3.8
    assert 1.8 < sum(waits) / len(waits) < 2.2


def test_another_address_is_tried_at_once() -> None:
    two = routes("a", "b")
    two.failed("a", 10.0, Verdict(again=True, at_least_seconds=60))
    assert two.choose(10.0) == ("b", 0.0)


def test_everywhere_means_every_address() -> None:
    two = routes("a", "b")
    two.failed("a", 10.0, Verdict(again=True, at_least_seconds=60, everywhere=True))
    url, wait = two.choose(10.0)
    assert url == "b"
    assert wait >= 60


def test_those_who_lost_an_instance_come_to_the_others_spread() -> None:
    waits = []
    for seed in range(200):
        two = routes("a", "b", seed=seed)
        two.lost("a", 10.0, AGAIN)
        url, wait = two.choose(10.0)
        assert url == "b"
        waits.append(wait)
    assert min(waits) < 0.05
    assert 0.4 < max(waits) <= 0.5


def test_clients_are_spread_over_the_addresses() -> None:
    chosen = {routes("a", "b", "c", seed=seed).choose(5.0)[0] for seed in range(50)}
    assert chosen == {"a", "b", "c"}


def test_a_connection_that_lasted_starts_the_count_anew() -> None:
    one = routes("a")
    for _ in range(10):
        one.failed("a", 0.0, AGAIN)
    one.stable("a")
    one.failed("a", 0.0, AGAIN)
    assert one.choose(0.0)[1] <= 0.5


@pytest.mark.parametrize(
    ("code", "again"),
    [
        (1000, False), (1001, True), (1002, False), (1003, False), (1006, True), (1007, False),
        (1009, False), (1011, True), (1012, True), (1013, True), (4400, False), (4401, True),
        (4403, False), (4408, True), (4429, True), (4999, True),
    ],
)  # fmt: skip
def test_close_codes(code: int, again: bool) -> None:
    verdict = after_close(code)
    assert verdict.again is again
    assert verdict.new_token is (code == 4401)
    assert (verdict.at_least_seconds >= 60) is (code == 4429)


def test_statuses() -> None:
    assert after_status(401, retry_after=None, was_connected=False).new_token
    assert not after_status(403, retry_after=None, was_connected=True).again
    assert not after_status(404, retry_after=None, was_connected=False).again
    assert after_status(404, retry_after=None, was_connected=True).again
    assert after_status(502, retry_after=None, was_connected=False).again
    assert after_status(503, retry_after="7", was_connected=False).at_least_seconds == 7
    assert after_status(503, retry_after="999999", was_connected=False).at_least_seconds == 300
    assert after_status(503, retry_after="soon", was_connected=False).at_least_seconds == 1
    assert after_status(429, retry_after="7", was_connected=False).everywhere
