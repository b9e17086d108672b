"""Who is dead. Plain decisions over what was read from Redis; the caller brings the clocks."""

import dataclasses
from typing import Final, Literal

Withheld = Literal["redis_answers_too_briefly", "over_half_missing"]

_LONGEST_GAP: Final = 0.5
"""Answers of Redis further apart than this share of the failover timeout are not one period of answering:
leases are renewed six times per timeout, so at least two answers were missed."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is made of one reading."""

    alive: frozenset[str]
    """Who counts as alive: whoever holds a lease; while a judgement is withheld, also who did before, or,
    where nobody is known to have held one, who has a record."""
    dead: frozenset[str]
    """Who is declared dead."""
    died: frozenset[str]
    """Those among `dead` who were not at the last reading."""
    expired: frozenset[str]
    """Those among `dead` whose records have been kept long enough."""
    withheld: Withheld | None
    """Why nobody new is declared dead."""


class Liveness:
    """Judges one reading after another.

    Nobody is declared dead until Redis has answered for a whole failover timeout: after it was away,
    everybody's lease has run out and everybody needs time to renew it. Nor while over half the fleet is
    missing or silent: then what is broken is more likely the network, Redis's clock or this instance. The
    silent count because leases of those who fell silent together run out one after the other.
    """

    def __init__(self, *, failover_timeout_seconds: float, inactive_threshold_seconds: float) -> None:
        self._failover_timeout = failover_timeout_seconds
        self._inactive_threshold = inactive_threshold_seconds
        self._answering_since: float | None = None
        self._answered_at = 0.0
        self._alive: frozenset[str] = frozenset()
        self._dead: frozenset[str] = frozenset()
        self._missing_since: dict[str, float] = {}

    def redis_answered(self, *, monotonic: float) -> None:
        """Redis answered anything, at this instant of the instance's monotonic clock (seconds)."""
        gap = monotonic - self._answered_at
        if self._answering_since is None or gap > self._failover_timeout * _LONGEST_GAP:
            self._answering_since = monotonic
        self._answered_at = monotonic

    def redis_failed(self) -> None:
        """A call failed or the connection was made anew: what was missed meanwhile, nobody knows."""
        self._answering_since = None

    def answering(self, *, monotonic: float) -> bool:
        """Whether Redis has answered for a whole failover timeout: who lives has renewed its lease by now."""
        return self._answering_since is not None and (
            monotonic - self._answering_since >= self._failover_timeout
        )

    def is_silent(self, lease_seconds_left: float) -> bool:
        """Whether who holds a lease with so much left has missed its renewals: there are six per timeout."""
        return lease_seconds_left <= self._failover_timeout / 2

    def judge(
        self,
        *,
        known: frozenset[str],
        leased: frozenset[str],
        silent: frozenset[str] = frozenset(),
        redis_time: float,
        monotonic: float,
    ) -> Verdict:
        """`known`: who has a record. `leased`: who holds a lease, and `silent` who of them doesn't renew it.

        `redis_time`: Redis's clock, seconds.
        """
        self.redis_answered(monotonic=monotonic)
        missing = known - leased
        self._missing_since = {name: self._missing_since.get(name, redis_time) for name in missing}
        before = self._dead & missing
        absent = missing - before | known & silent
        withheld = self._withheld(known=known - before, absent=absent, monotonic=monotonic)
        dead = before if withheld else missing
        alive = leased
        if withheld:
            # who is new and finds nobody with a lease came while Redis takes no writes, for one
            believed = self._alive if leased or self._alive else known
            alive = leased | (known & believed - dead)
        verdict = Verdict(
            alive=alive,
            dead=dead,
            died=dead - before,
            expired=frozenset(
                name for name in dead if redis_time - self._missing_since[name] >= self._inactive_threshold
            ),
            withheld=withheld,
        )
        self._alive, self._dead = alive, dead
        return verdict

    def _withheld(
        self, *, known: frozenset[str], absent: frozenset[str], monotonic: float
    ) -> Withheld | None:
        if not self.answering(monotonic=monotonic):
            return "redis_answers_too_briefly"
        return "over_half_missing" if len(absent) * 2 > len(known) else None
