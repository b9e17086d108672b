"""How much a client may send. Plain arithmetic over a clock that is passed in."""

import sys
from typing import Final

from tableforge_dataplane.contract.settings import SecuritySettings

MINUTE_SECONDS: Final = 60.0

STRIKES: Final = 10
"""So many seconds with a broken limit within a minute, and the connection is closed."""

FLOOD_FACTOR: Final = 10
"""So many times the limit of a second at once, and the connection is closed too."""

BAD_FRAMES: Final = 20
"""So many frames without a meaning within a minute, and the connection is closed."""

BAD_FRAME_BYTES: Final = 16_384
"""A large one counts as one more for each of these: finding out that it means nothing takes as long."""

TOLD_EVERY_SECONDS: Final = 1.0
"""Who breaks a limit hears so this often; a command with an `id` always has its answer."""

MOST_BUDGETS: Final = 10_000
"""Users whose budget is remembered after they left; the oldest are forgotten first."""


class UserRate:
    """Commands of one user over all connections to this instance, by the second and by the minute."""

    __slots__ = ("_in_minute", "_in_second", "_minute_ends", "_per_minute", "_per_second", "_second_ends")

    def __init__(self, settings: SecuritySettings) -> None:
        self._in_second = 0
        self._in_minute = 0
        self._second_ends = 0.0
        self._minute_ends = 0.0
        self.renew(settings)

    def renew(self, settings: SecuritySettings) -> None:
        """Other limits from now on; what was counted stays."""
        self._per_second = settings.max_messages_per_second
        self._per_minute = settings.max_messages_per_minute

    def take(self, now: float) -> float | None:
        """Count a command that its connection may send (0.1 µs). What is refused here costs nothing."""
        if now >= self._second_ends:
            self._second_ends = now + 1.0
            self._in_second = 0
            if now >= self._minute_ends:
                self._minute_ends = now + MINUTE_SECONDS
                self._in_minute = 0
        if self._in_minute >= self._per_minute:
            # a minute ends with the second in which it is over
            return max(self._minute_ends, self._second_ends) - now
        if self._in_second >= self._per_second:
            return self._second_ends - now
        self._in_second += 1
        self._in_minute += 1
        return None


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
        "user",
    )

    def __init__(self, settings: SecuritySettings) -> None:
        self.user: UserRate | None = None
        """What all connections of its user may send together; guests have none in common."""
        self._in_second = 0
        self._in_minute = 0
        self._second_ends = 0.0
        self._minute_ends = 0.0
        self._strikes = 0
        self._struck = False
        self.renew(settings)

    def renew(self, settings: SecuritySettings) -> None:
        """Other limits from the next second on.

        What was counted under the old ones is forgotten: it might be far beyond the new ones, and nobody is
        closed for what was allowed.
        """
        limited = settings.enable_rate_limiting
        self._per_second = settings.max_messages_per_second if limited else sys.maxsize
        self._per_minute = settings.max_messages_per_minute if limited else sys.maxsize
        self._in_second = self._in_minute = 0

    def take(self, now: float) -> float | None:
        """Count one command (0.2 µs: `benchmarks/steps.py`).

        None where it may be carried out, else in how many seconds one may.
        """
        if now >= self._second_ends:
            self._begin_second(now)
        self._in_second += 1
        self._in_minute += 1
        if self._in_second <= self._per_second and self._in_minute <= self._per_minute:
            user = self.user
            if user is None or (wait := user.take(now)) is None:
                return None
            self._strike()
            return wait
        self._strike()
        if self._in_minute > self._per_minute:
            # a minute ends with the second in which it is over
            return max(self._minute_ends, self._second_ends) - now
        return self._second_ends - now

    @property
    def hopeless(self) -> bool:
        """Whether the limits were broken again and again."""
        return self._strikes > STRIKES or self._in_second > FLOOD_FACTOR * self._per_second

    def _strike(self) -> None:
        if not self._struck:
            self._struck = True
            self._strikes += 1

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

    __slots__ = ("_filled_at", "_left", "_per_second", "commands")

    def __init__(self, per_second: int) -> None:
        self.commands: UserRate | None = None
        """The same user's commands."""
        self._per_second = per_second
        self._left = float(per_second)
        self._filled_at = 0.0

    def renew(self, per_second: int) -> None:
        """Another bucket from now on, full: a smaller one holds less of what is left."""
        self._per_second = per_second
        self._left = float(per_second)

    def take(self, size_bytes: int, now: float) -> float | None:
        """Spend `size_bytes`. None where there were as many, else in how many seconds there are."""
        left = self._left + (now - self._filled_at) * self._per_second
        left = min(left, self._per_second)
        self._filled_at = now
        if size_bytes <= left:
            self._left = left - size_bytes
            return None
        self._left = left
        # what is larger than the whole bucket goes when it is full, and the rest of it is owed
        if size_bytes > self._per_second and left >= self._per_second:
            self._left = left - size_bytes
            return None
        return (min(size_bytes, self._per_second) - left) / self._per_second

    def owe(self, size_bytes: int, now: float) -> None:
        """Spend what was not known before, even where less is left: later spending waits for it."""
        left = min(self._left + (now - self._filled_at) * self._per_second, self._per_second)
        self._filled_at = now
        self._left = left - size_bytes

    def debt_seconds(self, now: float) -> float:
        """In how many seconds nothing is owed any more; 0 where nothing is."""
        return max(0.0, -(self._left + (now - self._filled_at) * self._per_second) / self._per_second)


class ByteBudgets:
    """The budgets of all users here; reconnecting gives nobody a new one."""

    def __init__(self, settings: SecuritySettings) -> None:
        self._settings = settings
        self._per_second = settings.max_bytes_per_second if settings.enable_rate_limiting else sys.maxsize
        self._budgets: dict[str, ByteBudget] = {}

    def renew(self, settings: SecuritySettings) -> None:
        """Other limits for everybody from now on."""
        self._settings = settings
        self._per_second = settings.max_bytes_per_second if settings.enable_rate_limiting else sys.maxsize
        for budget in self._budgets.values():
            self.adapt(budget)

    def adapt(self, budget: ByteBudget) -> None:
        """Give a budget the limits of now."""
        budget.renew(self._per_second)
        if not self._settings.enable_rate_limiting:
            budget.commands = None
        elif budget.commands is None:
            budget.commands = UserRate(self._settings)
        else:
            budget.commands.renew(self._settings)

    def of(self, user: str) -> ByteBudget:
        """The budget of `user`, shared by all of the user's connections to this instance."""
        budget = self._budgets.pop(user, None)
        if budget is None:
            while len(self._budgets) >= MOST_BUDGETS:
                del self._budgets[next(iter(self._budgets))]
            budget = ByteBudget(self._per_second)
            self.adapt(budget)
        self._budgets[user] = budget
        return budget

    def of_guest(self) -> ByteBudget:
        """The budget of a guest. Nobody has its name again, so that it is not remembered."""
        return ByteBudget(self._per_second)


class BadFrames:
    """Frames of one connection that meant nothing."""

    __slots__ = ("_count", "_ends")

    def __init__(self) -> None:
        self._count = 0
        self._ends = 0.0

    def add(self, now: float, size_bytes: int = 0) -> bool:
        """Count one; True where there were too many."""
        if now >= self._ends:
            self._ends = now + MINUTE_SECONDS
            self._count = 0
        self._count += 1 + size_bytes // BAD_FRAME_BYTES
        return self._count > BAD_FRAMES
