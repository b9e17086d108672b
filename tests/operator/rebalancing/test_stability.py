"""The planner before a model of a fleet: it settles, and then it rests."""

import bisect
import itertools

import pytest

from benchmarks.rebalancing import scenarios
from benchmarks.rebalancing.model import Model
from benchmarks.rebalancing.scenarios import ALL, MINUTE, Scenario
from tableforge_operator.decide.rebalancing.state import Settings

BY_NAME = {one.name: one for one in ALL}
CYCLES = 10_000


def spread_at(model: Model, minutes: float) -> float:
    return next(spread for at, spread in model.spreads if at >= minutes * MINUTE)


@pytest.fixture(scope="module")
def noisy() -> scenarios.Noise:
    return scenarios.noise(CYCLES)


def test_load_that_jumps_by_a_fifth_moves_next_to_nothing(noisy: scenarios.Noise) -> None:
    assert noisy.model.now == CYCLES * noisy.model.settings.interval_seconds
    # It does settle at first.
    assert len(noisy.model.moved) - noisy.after_settling > 10
    assert noisy.model.spreads[-1][1] <= 0.3
    # One move a thousand cycles, of which most have none.
    assert noisy.after_settling <= CYCLES / 1000


def test_no_room_moves_twice_within_its_cooldown(noisy: scenarios.Noise) -> None:
    assert noisy.back_too_soon == 0
    ways = {(one.room, one.source, one.target) for one in noisy.model.moved}
    back = [way for way in ways if (way[0], way[2], way[1]) in ways]
    assert len(back) <= 2


def test_a_threshold_alone_would_not_do() -> None:
    """So the noise is loud enough to be worth the test above."""
    moves = scenarios.without_averages(100)
    assert moves[-1][1] > 10 * scenarios.noise(100).moves[-1][1] or moves[-1][1] > 200


@pytest.mark.parametrize("mode", ["Gateway", "Service"])
@pytest.mark.parametrize("seed", range(5))
def test_it_rests_under_any_noise(mode: str, seed: int) -> None:
    found = scenarios.noise(300, seed=seed, mode=mode)  # type: ignore[arg-type]
    plans = [one for one in found.model.news if one.reason == "RebalanceStarted"]
    assert 1 <= len(plans) <= 5
    assert found.model.spreads[-1][1] <= 0.35


@pytest.mark.parametrize("name", ["skew", "shed", "stubborn", "late"])
def test_a_skewed_fleet_becomes_even(name: str) -> None:
    model = BY_NAME[name].run()
    assert model.spreads[0][1] > 2
    assert model.spreads[-1][1] <= model.settings.threshold
    assert model.report is not None
    assert (model.report.phase, model.report.balanced) == ("Idle", "True")


def test_bursts_and_pods_that_come_and_go_are_answered() -> None:
    burst = BY_NAME["burst"].run()
    assert max(spread for at, spread in burst.spreads if at > 10 * MINUTE) > 0.5
    assert spread_at(burst, 30) <= 0.3
    assert burst.spreads[-1][1] <= 0.3
    pods = BY_NAME["pods"].run()
    assert spread_at(pods, 10.5) > 1
    assert spread_at(pods, 29) <= 0.3
    assert pods.spreads[-1][1] <= 0.3


def test_load_that_follows_the_moves_is_not_chased() -> None:
    """Plans that come to nothing come ever more seldom: in four hours there is time for 240."""
    model = BY_NAME["chase"].run()
    started = [one for one in model.news if one.reason == "RebalanceStarted"]
    assert len(started) <= 20


def test_members_who_come_and_go_move_little() -> None:
    model = BY_NAME["churn"].run()
    later = [one for one in model.moved if one.at > 20 * MINUTE]
    assert len(later) <= 24


@pytest.mark.parametrize("scenario", ALL, ids=lambda one: one.name)
def test_bounds_hold_in_every_scenario(scenario: Scenario) -> None:
    model = scenario.run()
    settings = model.settings
    for _, moves in itertools.groupby(
        model.moved, key=lambda one: bisect.bisect_right(model.planned, one.at)
    ):
        cycle = list(moves)
        assert len(cycle) <= settings.most_moves
        assert sum(one.members for one in cycle) <= settings.most_clients
    assert 0 < model.most_sent_in_a_second <= settings.reconnects_per_second
    last: dict[str, float] = {}
    for one in model.moved:
        assert one.at - last.get(one.room, -1e9) >= settings.cooldown_seconds
        last[one.room] = one.at
    assert all(one.connections <= one.capacity for one in model.instances.values())
    assert not any(one.closed for one in model.instances.values())


def test_the_same_seed_is_the_same_story() -> None:
    first, second = (BY_NAME["stubborn"].run() for _ in range(2))
    assert (first.moved, first.spreads, first.news) == (second.moved, second.spreads, second.news)


def test_a_request_moves_at_once() -> None:
    model = Model(Settings(mode="Gateway"), seed=1)
    scenarios.skewed(model)
    heartbeat = model.settings.heartbeat_seconds
    for _ in model.run(heartbeat):
        assert not model.moved
    model.request = "now"
    next(iter(model.run(10)))
    assert model.moved
    assert model.now < model.settings.interval_seconds
