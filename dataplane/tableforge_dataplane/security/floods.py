"""Who comes too often, and who comes back after sending nonsense. Plain arithmetic over a clock passed in."""

import dataclasses
from typing import Final

MOST_REMEMBERED: Final = 10_000
"""Addresses and users in each table; the ones not seen for longest are forgotten first."""

BURST_SECONDS: Final = 4.0
"""So many seconds' worth of handshakes may come at once: a page that opens several connections, an office
behind one address whose instance has left."""

FREE_OFFENCES: Final = 3
"""So many offences cost nothing: a client with a mistake in it, or one of many behind one address."""

FIRST_PENALTY_SECONDS: Final = 1.0
LONGEST_PENALTY_SECONDS: Final = 300.0

FORGIVEN_AFTER_SECONDS: Final = 600.0
"""Without a new offence for this long, the old ones are forgotten."""


class ArrivalRate:
    """Token buckets by address (0.4 µs a handshake)."""

    def __init__(self, per_second: float, *, most: int = MOST_REMEMBERED) -> None:
        self._per_second = per_second
        self._size = max(1.0, per_second * BURST_SECONDS)
        self._most = most
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, key: str, now: float) -> float | None:
        """Count one. None where it may come, else in how many seconds one may."""
        left, filled_at = self._buckets.pop(key, (self._size, now))
        left = min(self._size, left + (now - filled_at) * self._per_second)
        wait = None
        if left >= 1.0:
            left -= 1.0
        else:
            wait = (1.0 - left) / self._per_second
        if len(self._buckets) >= self._most:
            del self._buckets[next(iter(self._buckets))]
        self._buckets[key] = (left, now)
        return wait

    def __len__(self) -> int:
        return len(self._buckets)


@dataclasses.dataclass(slots=True)
class _Record:
    offences: int = 0
    last: float = 0.0
    until: float = 0.0


class Penalties:
    """For how long those are refused whose connections had to be closed for what they sent."""

    def __init__(self, *, most: int = MOST_REMEMBERED) -> None:
        self._most = most
        self._records: dict[str, _Record] = {}

    def add(self, key: str, now: float) -> None:
        """An offence by `key`: from the fourth on it has to wait, each time twice as long."""
        record = self._records.pop(key, None)
        if record is None or now - record.last > FORGIVEN_AFTER_SECONDS:
            record = _Record()
        if len(self._records) >= self._most:
            del self._records[next(iter(self._records))]
        self._records[key] = record
        record.offences += 1
        record.last = now
        paid = record.offences - FREE_OFFENCES
        if paid > 0:
            penalty = min(LONGEST_PENALTY_SECONDS, FIRST_PENALTY_SECONDS * 2.0 ** min(paid - 1, 20))
            record.until = now + penalty

    def wait(self, key: str, now: float) -> float | None:
        """For how many more seconds `key` is refused; None where it isn't."""
        record = self._records.get(key)
        if record is None or record.until <= now:
            return None
        return record.until - now

    def __len__(self) -> int:
        return len(self._records)
