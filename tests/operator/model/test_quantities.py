"""Durations and sizes as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tableforge_operator.api.quantities import Duration, mebibytes, quantity_bytes, size_bytes


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("500ms", 500),
        ("30s", 30_000),
        ("2m", 120_000),
        ("1h", 3_600_000),
        ("1h30m", 5_400_000),
        ("1m30s", 90_000),
    ],
)
def test_durations_are_read(text, milliseconds):
    assert Duration.parse(text).milliseconds == milliseconds


@pytest.mark.parametrize(
    "text", ["", "30", "s", "-1s", "1.5s", "1d", "1s 2s", "1h1m1s", "1234567s", "٣s", "1s\n"]
)
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ValueError, match="no duration"):
        Duration.parse(text)


@given(st.integers(min_value=0, max_value=999_999_000))
def test_a_duration_survives_being_written(milliseconds):
    duration = Duration(milliseconds)
    if milliseconds <= 999_999 or milliseconds % 1000 == 0:
        assert Duration.parse(str(duration)) == duration


def test_durations_compare_and_round_up():
    assert Duration.parse("60s") == Duration.parse("1m")
    assert hash(Duration.parse("60s")) == hash(Duration.parse("1m"))
    assert Duration.parse("999ms") < Duration.parse("1s")
    assert Duration.parse("1001ms").whole_seconds == 2
    assert str(Duration.parse("90s")) == "90s"


def test_memory_is_read_as_redis_reads_it():
    assert mebibytes("256mb") == 256
    assert mebibytes("2gb") == 2048
    for text in ("256", "0mb", "1.5gb", "256Mi", "256mb "):
        with pytest.raises(ValueError, match="no amount"):
            mebibytes(text)


def test_memory_is_read_as_kubernetes_reads_it():
    assert size_bytes("400Mi") == 400 * 1024 * 1024
    assert size_bytes("2Gi") == 2 * 1024 * 1024 * 1024
    for text in ("400", "0Mi", "1.5Gi", "400M", "400Mi "):
        with pytest.raises(ValueError, match="no amount"):
            size_bytes(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1Gi", 2**30),
        ("1.5Ki", 1536),
        ("1073741824", 2**30),
        ("10G", 10**10),
        ("1e3", 1000),
        ("1E", 10**18),
        ("1500m", 2),
    ],
)
def test_sizes_that_kubernetes_writes(text, size):
    assert quantity_bytes(text) == size


@pytest.mark.parametrize("text", ["", "Gi", "1 Gi", "1Xi", "-1Gi", "1e", "1GiB"])
def test_what_is_no_quantity(text):
    with pytest.raises(ValueError, match="is no quantity"):
        quantity_bytes(text)
