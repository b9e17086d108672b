"""A minute of `benchmarks/soak.py`; an hour of it is run by hand."""

import pytest

from benchmarks.soak import SHORT, grown, soak


def test_growth_is_seen() -> None:
    flat = [100_000_000] * 30
    assert grown(flat, seconds=60) is None
    warm = [number * 10_000_000 for number in range(1, 10)] + flat * 3
    assert grown(warm, seconds=60) is None, "it warms up"
    assert grown([100_000_000 + number * 1_000_000 for number in range(60)], seconds=60) is not None
    assert grown([*flat[:20], *[100_000_000 + SHORT.spare_bytes] * 10], seconds=60) is None


def test_a_long_run_stays_still_after_its_first_third() -> None:
    still = [75_000_000 + 600_000 * (number % 2) for number in range(2400)]
    assert grown([*range(40_000_000, 75_000_000, 29_200), *still], seconds=3600) is None
    # three megabytes an hour
    leaking = [75_000_000 + number * 3_000_000 // 3600 for number in range(3600)]
    assert grown(leaking, seconds=3600) is not None
    assert grown(leaking, seconds=60) is None


@pytest.mark.timeout(150)
async def test_memory_stays_flat_while_clients_come_and_go() -> None:
    assert await soak(60.0, 40) is None
