"""Who is declared dead: decisions without a Redis, with clocks that the test moves."""

from hypothesis import given
from hypothesis import strategies as st

from tableforge_dataplane.registry.liveness import Liveness, Verdict

TIMEOUT = 30.0
THRESHOLD = 120.0


class Clocked:
    """A `Liveness` whose Redis has answered every 5 s for as long as it took, if asked to."""

    def __init__(self, *, settled: bool = True) -> None:
        self.liveness = Liveness(failover_timeout_seconds=TIMEOUT, inactive_threshold_seconds=THRESHOLD)
        self.now = 1000.0
        if settled:
            self.wait(TIMEOUT)

    def wait(self, seconds: float, *, answering: bool = True) -> None:
        end = self.now + seconds
        if answering:
            self.liveness.redis_answered(monotonic=self.now)
            while self.now + 5 < end:
                self.now += 5
                self.liveness.redis_answered(monotonic=self.now)
        self.now = end

    def judge(self, known: str, leased: str, *, silent: str = "", redis_time: float | None = None) -> Verdict:
        return self.liveness.judge(
            known=frozenset(known),
            leased=frozenset(leased),
            silent=frozenset(silent),
            redis_time=self.now if redis_time is None else redis_time,
            monotonic=self.now,
        )


def names(found: frozenset[str]) -> str:
    return "".join(sorted(found))


def test_without_a_lease_an_instance_is_dead() -> None:
    verdict = Clocked().judge("abc", "ab")
    assert (names(verdict.alive), names(verdict.dead), names(verdict.died)) == ("ab", "c", "c")
    assert verdict.withheld is None


def test_a_death_is_news_once() -> None:
    clocked = Clocked()
    clocked.judge("abc", "ab")
    verdict = clocked.judge("abc", "ab")
    assert (names(verdict.dead), names(verdict.died)) == ("c", "")


def test_nobody_dies_until_redis_has_answered_for_a_whole_timeout() -> None:
    clocked = Clocked(settled=False)
    assert clocked.judge("abc", "ab").withheld == "redis_answers_too_briefly"
    clocked.wait(TIMEOUT - 0.1)
    assert not clocked.judge("abc", "ab").dead
    clocked.wait(0.1)
    assert names(clocked.judge("abc", "ab").dead) == "c"


def test_a_failed_call_starts_the_wait_again() -> None:
    clocked = Clocked()
    clocked.liveness.redis_failed()
    assert clocked.judge("abc", "ab").withheld == "redis_answers_too_briefly"
    clocked.wait(TIMEOUT)
    assert names(clocked.judge("abc", "ab").dead) == "c"


def test_an_instance_that_slept_itself_starts_the_wait_again() -> None:
    # SIGSTOP, a suspended laptop: nothing failed, but nobody knows what Redis did meanwhile
    clocked = Clocked()
    clocked.wait(TIMEOUT, answering=False)
    assert clocked.judge("abc", "ab").withheld == "redis_answers_too_briefly"


def test_over_half_missing_kills_nobody() -> None:
    clocked = Clocked()
    assert clocked.judge("abcd", "a").withheld == "over_half_missing"
    assert names(clocked.judge("abcd", "ab").dead) == "cd"


def test_who_fell_silent_together_is_judged_together() -> None:
    # their leases run out one after the other: each alone would be a third of the fleet, then half
    clocked = Clocked()
    assert clocked.judge("abc", "ab", silent="b").withheld == "over_half_missing"
    verdict = clocked.judge("abc", "a")
    assert (verdict.withheld, names(verdict.alive), names(verdict.dead)) == ("over_half_missing", "ab", "")
    assert names(clocked.judge("abc", "ab").dead) == "c"


def test_a_lease_with_half_its_time_gone_is_a_silent_ones() -> None:
    liveness = Clocked().liveness
    assert liveness.is_silent(TIMEOUT / 2)
    assert not liveness.is_silent(TIMEOUT * 5 / 6)


def test_half_missing_is_not_over_half() -> None:
    assert names(Clocked().judge("ab", "a").dead) == "b"


def test_the_dead_no_longer_count_in_the_half() -> None:
    clocked = Clocked()
    assert names(clocked.judge("abcde", "abcd").dead) == "e"
    assert names(clocked.judge("abcde", "ab").dead) == "cde"
    assert names(clocked.judge("abcde", "a").dead) == "bcde"


def test_who_was_alive_counts_as_alive_while_judgement_is_withheld() -> None:
    clocked = Clocked()
    clocked.judge("abcd", "abc")
    clocked.liveness.redis_failed()
    verdict = clocked.judge("abcd", "")
    assert (names(verdict.alive), names(verdict.dead)) == ("abc", "d")


def test_a_newcomer_believes_the_leases() -> None:
    assert names(Clocked(settled=False).judge("abc", "ab").alive) == "ab"


def test_a_newcomer_who_finds_no_lease_at_all_believes_the_records() -> None:
    clocked = Clocked(settled=False)
    assert names(clocked.judge("abc", "").alive) == "abc"
    assert names(clocked.judge("abc", "a").alive) == "abc"
    clocked.wait(TIMEOUT)
    assert names(clocked.judge("abc", "ab").alive) == "ab"


def test_whoever_comes_back_lives() -> None:
    clocked = Clocked()
    clocked.judge("abc", "ab")
    verdict = clocked.judge("abc", "abc")
    assert (names(verdict.alive), names(verdict.dead)) == ("abc", "")


def test_a_record_expires_by_redis_time_after_the_threshold() -> None:
    clocked = Clocked()
    clocked.judge("abc", "ab", redis_time=5000)
    assert not clocked.judge("abc", "ab", redis_time=5000 + THRESHOLD - 0.1).expired
    assert names(clocked.judge("abc", "ab", redis_time=5000 + THRESHOLD).expired) == "c"


def test_coming_back_starts_the_threshold_again() -> None:
    clocked = Clocked()
    clocked.judge("abc", "ab", redis_time=5000)
    clocked.judge("abc", "abc", redis_time=5100)
    clocked.judge("abc", "ab", redis_time=5110)
    assert not clocked.judge("abc", "ab", redis_time=5000 + THRESHOLD).expired


def test_redis_time_that_jumps_back_expires_nobody() -> None:
    clocked = Clocked()
    clocked.judge("abc", "ab", redis_time=5000)
    assert not clocked.judge("abc", "ab", redis_time=100).expired


steps = st.lists(
    st.tuples(
        st.sampled_from(["answer", "fail", "sleep"]),
        st.floats(0, 60),
        st.frozensets(st.sampled_from("abcdef")),
        st.frozensets(st.sampled_from("abcdef")),
    ),
    max_size=30,
)


@given(steps)
def test_whatever_happens_the_rules_hold(
    history: list[tuple[str, float, frozenset[str], frozenset[str]]],
) -> None:
    clocked = Clocked(settled=False)
    last_interruption = clocked.now
    dead_before: frozenset[str] = frozenset()
    for what, seconds, known, leased in history:
        clocked.wait(seconds, answering=what != "sleep")
        if what == "fail":
            clocked.liveness.redis_failed()
        if what == "fail" or (what == "sleep" and seconds > TIMEOUT / 2):
            last_interruption = clocked.now
        verdict = clocked.judge("".join(known), "".join(leased))
        fresh = verdict.dead - dead_before
        assert verdict.died == fresh
        assert verdict.expired <= verdict.dead <= known - leased
        assert not verdict.dead & verdict.alive
        assert leased <= verdict.alive <= leased | known
        if fresh:
            assert clocked.now - last_interruption >= TIMEOUT
            assert len(fresh) * 2 <= len(known - (dead_before & known - leased))
        dead_before = verdict.dead
