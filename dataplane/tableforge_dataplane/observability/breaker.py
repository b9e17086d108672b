"""A circuit breaker: after failures in a row a dependency is left alone for a while, then tried once.

Plain state with a clock passed in; it neither calls nor waits. What a closed way does with an open breaker
(refuse, let wait, leave out) is its owner's business.
"""

import random
import time
from collections.abc import Callable
from typing import Final, Literal

BreakerState = Literal["closed", "half-open", "open"]

LONGEST_OPEN_SECONDS: Final = 30.0


class CircuitBreaker:
    """Closed while calls succeed; open after `threshold` failures in a row; half-open while one tries."""

    def __init__(
        self,
        *,
        threshold: int,
        open_seconds: float,
        longest_seconds: float = LONGEST_OPEN_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`open_seconds`: how long it stays open at first; doubled with each further failure, with jitter."""
        self._threshold = max(1, threshold)
        self._first_seconds = open_seconds
        self._longest_seconds = max(open_seconds, longest_seconds)
        self._clock = clock
        self._failures = 0
        self._opened = 0
        """How often in a row it opened."""
        self._until = 0.0
        self.state: BreakerState = "closed"
        self.changed: Callable[[], None] = _nothing
        """Called after `state` changed."""

    @property
    def retry_after_seconds(self) -> float:
        """How long until a call is tried again; 0 where it may be now."""
        return max(0.0, self._until - self._clock()) if self.state == "open" else 0.0

    def may_try(self) -> bool:
        """Whether a call may be made now; where it was open long enough, this is the one that tries."""
        if self.state == "open" and self._clock() >= self._until:
            self._set("half-open")
            return True
        return self.state == "closed"

    def failed(self) -> None:
        """A call failed."""
        self._failures += 1
        if self.state == "closed" and self._failures < self._threshold:
            return
        if self.state == "open" and self._clock() < self._until:
            return  # a call of before, or one that needn't ask (a connection attempt has its own delays)
        self._until = self._clock() + backoff_seconds(
            self._opened, first=self._first_seconds, longest=self._longest_seconds
        )
        self._opened += 1
        self._set("open")

    def succeeded(self) -> None:
        """A call succeeded: all is well."""
        self._failures = 0
        self._opened = 0
        self._set("closed")

    def _set(self, state: BreakerState) -> None:
        if state != self.state:
            self.state = state
            self.changed()


def backoff_seconds(attempt: int, *, first: float, longest: float) -> float:
    """The wait before attempt `attempt` (from 0): doubled with each, between half of that and all of it."""
    whole = min(longest, first * 2.0 ** min(attempt, 20))
    return random.uniform(whole / 2, whole)  # noqa: S311  # spreads load, guards nothing


def _nothing() -> None:
    return None
