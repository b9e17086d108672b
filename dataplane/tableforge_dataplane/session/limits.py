"""How much a client may send. Plain arithmetic over a clock that is passed in."""

from typing import Final

from tableforge_dataplane.contract.settings import SecuritySettings

MINUTE_SECONDS: Final = 60.0

STRIKES: Final = 10
"""So many seconds with a broken limit within a minute, and the connection is closed."""

FLOOD_FACTOR: Final = 10
"""So many times the limit of a second at once, and the connection is closed too."""

BAD_FRAMES: Final = 20
"""So many frames without a meaning within a minute, and the connection is closed."""

MOST_BUDGETS: Final = 10_000
"""Users whose budget is remembered after they left; the oldest are forgotten first."""


class CommandRate:
    """Commands of one connection, by the second and by the minute."""

    __slots__ = (
        "_in_minute",
        "_in_second",
        "_minute_ends",
        "_per_minute",
        "_per_second",
        "_second_ends",
        "_strikes",
        "_struck",
    )

    def __init__(self, settings: SecuritySettings) -> None:
        self._per_second = settings.max_messages_per_second
        self._per_minute = settings.max_messages_per_minute
        self._in_second = 0
        self._in_minute = 0
        self._second_ends = 0.0
        self._minute_ends = 0.0
        self._strikes = 0
        self._struck = False

    def take(self, now: float) -> float | None:
        """Count one command (0.2 µs: `benchmarks/steps.py`).

        None where it may be carried out, else in how many seconds one may.
        """
        if now >= self._second_ends:
            self._begin_second(now)
        self._in_second += 1
        self._in_minute += 1
        if self._in_second <= self._per_second and self._in_minute <= self._per_minute:
            return None
        if not self._struck:
            self._struck = True
            self._strikes += 1
        return (self._minute_ends if self._in_minute > self._per_minute else self._second_ends) - now

    @property
    def hopeless(self) -> bool:
        """Whether the limits were broken again and again."""
        return self._strikes > STRIKES or self._in_second > FLOOD_FACTOR * self._per_second

    def _begin_second(self, now: float) -> None:
        self._second_ends = now + 1.0
        self._in_second = 0
        self._struck = False
        if now >= self._minute_ends:
            self._minute_ends = now + MINUTE_SECONDS
            self._in_minute = 0
            self._strikes = 0


class ByteBudget:
    """Bytes of one user: a bucket that holds a second's worth and fills as fast."""

    __slots__ = ("_filled_at", "_left", "_per_second")

    def __init__(self, per_second: int) -> None:
        self._per_second = per_second
        self._left = float(per_second)
        self._filled_at = 0.0

    def take(self, size_bytes: int, now: float) -> float | None:
        """Spend `size_bytes`. None where there were as many, else in how many seconds there are."""
        left = self._left + (now - self._filled_at) * self._per_second
        left = min(left, self._per_second)
        self._filled_at = now
        if size_bytes <= left:
            self._left = left - size_bytes
            return None
        self._left = left
        # what is larger than the whole bucket goes when it is full
        if size_bytes > self._per_second and left >= self._per_second:
            self._left = 0.0
            return None
        return (min(size_bytes, self._per_second) - left) / self._per_second


class ByteBudgets:
    """The budgets of all users here; reconnecting gives nobody a new one."""

    def __init__(self, settings: SecuritySettings) -> None:
        self._per_second = settings.max_bytes_per_second
        self._budgets: dict[str, ByteBudget] = {}

    def of(self, user: str) -> ByteBudget:
        """The budget of `user`, shared by all of the user's connections to this instance."""
        budget = self._budgets.pop(user, None)
        if budget is None:
            while len(self._budgets) >= MOST_BUDGETS:
                del self._budgets[next(iter(self._budgets))]
            budget = ByteBudget(self._per_second)
        self._budgets[user] = budget
        return budget


class BadFrames:
    """Frames of one connection that meant nothing."""

    __slots__ = ("_count", "_ends")

    def __init__(self) -> None:
        self._count = 0
        self._ends = 0.0

    def add(self, now: float) -> bool:
        """Count one; True where there were too many."""
        if now >= self._ends:
            self._ends = now + MINUTE_SECONDS
            self._count = 0
        self._count += 1
        return self._count > BAD_FRAMES
