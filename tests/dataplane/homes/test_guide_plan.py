"""Who would be better off elsewhere, and when each is told: no sockets, no clock."""

import itertools
import random

from hypothesis import given
from hypothesis import strategies as st

from tableforge_dataplane.homes.astray import (
    FIRST_AFTER_SECONDS,
    FOLLOW_WITHIN_SECONDS,
    PAUSES_SECONDS,
    Astray,
    best_home,
)

HOMES = {"a1": "a", "a2": "a", "a3": "a", "b1": "b", "b2": "b", "c1": "c"}


def best(*rooms: str, this: str = "a", leaves: bool = False) -> str | None:
    return best_home(rooms, HOMES.get, this=this, leaves=leaves)


def test_a_client_belongs_where_most_of_its_rooms_live() -> None:
    assert best("b1", "b2", "a1") == "b"
    assert best("b1", "a1", "a2") is None


def test_it_stays_where_elsewhere_is_no_better() -> None:
    assert best("a1", "b1") is None
    assert best("a1", "a2", "b1", "b2", "c1") is None
    assert best() is None
    assert best("nobody-knows", "nor-this") is None


def test_rooms_without_a_home_count_for_nobody() -> None:
    assert best("nobody-knows", "nor-this", "b1") == "b"


def test_of_two_better_places_it_is_that_of_the_room_it_joined_first() -> None:
    assert best("c1", "b1") == "c"
    assert best("b1", "c1") == "b"


def test_who_has_to_go_goes_to_the_best_of_the_others() -> None:
    assert best("a1", "a2", "b1", leaves=True) == "b"
    assert best("a1", leaves=True) is None


@given(st.lists(st.sampled_from([*HOMES, "nobody-knows"]), max_size=12), st.sampled_from("abcd"))
def test_there_it_never_wants_to_go_on_anywhere_else(rooms: list[str], this: str) -> None:
    home = best(*rooms, this=this)
    assert home is None or (home != this and best(*rooms, this=home) is None)


def test_nobody_is_told_before_it_has_had_time_to_join_its_rooms() -> None:
    astray: Astray[str] = Astray()
    astray.stray("ada", now=100.0)
    assert astray.next_due() == 100.0 + FIRST_AFTER_SECONDS
    assert astray.due(most=10, now=100.0) == 0
    assert astray.take(10, now=100.0) == []
    assert astray.take(10, now=101.0) == ["ada"]


def test_who_does_not_go_is_told_a_few_times_with_growing_pauses_and_then_left_alone() -> None:
    astray: Astray[str] = Astray()
    now = 0.0
    told_at: list[float] = []
    astray.stray("ada", now=now)
    while (due := astray.next_due()) is not None:
        assert astray.take(1, now=due - 0.001) == []
        assert astray.take(1, now=due) == ["ada"]
        told_at.append(due)
        astray.stray("ada", now=due + 0.5)  # it is looked at again and again
    assert [later - earlier for earlier, later in itertools.pairwise(told_at)] == list(PAUSES_SECONDS)
    assert sorted(PAUSES_SECONDS) == list(PAUSES_SECONDS)
    astray.at_home("ada")
    astray.stray("ada", now=told_at[-1] + 100_000)
    assert astray.next_due() is None


def test_a_home_that_comes_and_goes_gives_nobody_more_hints() -> None:
    astray: Astray[str] = Astray()
    astray.stray("ada", now=0.0)
    assert astray.take(1, now=1.0) == ["ada"]
    for moment in range(2, 16):
        astray.at_home("ada")
        assert astray.next_due() is None
        astray.stray("ada", now=float(moment))
        assert astray.take(1, now=float(moment)) == []
    assert astray.take(1, now=1.0 + PAUSES_SECONDS[0]) == ["ada"]


def test_who_was_at_home_for_a_moment_waits_behind_nobody_who_was_told_later() -> None:
    astray: Astray[str] = Astray()
    astray.stray("ada", now=0.0)
    assert astray.take(1, now=1.0) == ["ada"]
    astray.stray("ben", now=10.0)
    assert astray.take(1, now=11.0) == ["ben"]
    astray.at_home("ada")
    astray.stray("ada", now=12.0)
    assert astray.next_due() == 1.0 + PAUSES_SECONDS[0]
    assert astray.due(most=10, now=1.0 + PAUSES_SECONDS[0]) == 1
    assert astray.take(10, now=1.0 + PAUSES_SECONDS[0]) == ["ada"]
    assert astray.take(10, now=11.0 + PAUSES_SECONDS[0]) == ["ben"]


def test_who_was_never_told_comes_first() -> None:
    astray: Astray[str] = Astray()
    astray.stray("again", now=0.0)
    assert astray.take(1, now=1.0) == ["again"]
    astray.stray("new", now=20.0)
    assert astray.due(most=10, now=21.0) == 2
    assert astray.due(most=1, now=21.0) == 1
    assert astray.take(1, now=21.0) == ["new"]
    assert astray.take(1, now=21.0) == ["again"]


def test_who_was_told_follows_for_a_while_or_until_it_is_gone() -> None:
    astray: Astray[str] = Astray()
    for name in ("goes", "stays"):
        astray.stray(name, now=0.0)
    astray.take(2, now=1.0)
    assert astray.following(now=1.0) == 2
    astray.gone("goes")
    assert astray.following(now=1.0) == 1
    assert astray.following(now=1.0 + FOLLOW_WITHIN_SECONDS) == 0


@given(st.integers(0, 2**32))
def test_nothing_is_kept_of_who_is_gone_and_nobody_is_told_too_often(seed: int) -> None:
    rng = random.Random(seed)
    astray: Astray[int] = Astray()
    now = 0.0
    told: dict[int, int] = {}
    here = set(range(20))
    for _ in range(300):
        now += rng.choice([0.1, 1.0, 20.0])
        one = rng.randrange(20)
        match rng.randrange(4):
            case 0 | 1:
                if one in here:
                    astray.stray(one, now=now)
            case 2:
                astray.at_home(one)
            case 3:
                if rng.random() < 0.1:
                    astray.gone(one)
                    here.discard(one)
        for chosen in astray.take(rng.randrange(5), now=now):
            assert chosen in here
            told[chosen] = told.get(chosen, 0) + 1
    assert all(times <= len(PAUSES_SECONDS) + 1 for times in told.values())
    for one in range(20):
        astray.gone(one)
    assert astray.next_due() is None
    assert astray.following(now=0.0) == 0
    assert not astray._clients
    assert not any(astray._queues)
