"""How many connections an address or a user has, here and on the other instances.

Each instance keeps a short summary in Redis, hashes with counts, that lives no longer than a few of its lease
renewals; every instance reads the others'. Nothing is counted up and down in Redis, so a crash leaves nothing
behind, and addresses and users are hashed with a secret of the cluster, so that a summary names nobody.
"""

import asyncio
import hashlib
import heapq
import operator
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import RedisError

from tableforge_dataplane.registry.connection import refusal_in
from tableforge_dataplane.registry.keys import RegistryKeys

ENTRIES_IN_ALL: Final = 16_384
"""Of all instances' summaries together, 10 bytes each: who has most connections comes first."""

FEWEST_ENTRIES: Final = 64
"""Of one summary, however many instances there are."""

SMALL_FLEET: Final = 16
"""Up to so many instances single connections are told to the others too; beyond, only two and more."""

KEPT_FOR_BEATS: Final = 3
"""A summary that was not renewed for so long is gone; what was read before that counts for nothing."""

SOONEST_SECONDS: Final = 1.0
"""The summaries are read again at once where one of them decides against a client, but not more often."""

SALT_KEPT_SECONDS: Final = 86_400

_HASH_BYTES: Final = 8
_ENTRY_BYTES: Final = _HASH_BYTES + 2


class Headcount:
    """Connections by key (`a:` and an address, `u:` and a user); 0.3 µs to count one."""

    def __init__(self) -> None:
        self._here: dict[str, int] = {}
        self._elsewhere: dict[bytes, int] = {}
        self._salt = secrets.token_bytes(16)
        self.doubted = asyncio.Event()
        """Set where what the others said is about to turn somebody away: it may be old."""

    def enter(self, key: str) -> None:
        """One more here."""
        self._here[key] = self._here.get(key, 0) + 1

    def leave(self, key: str) -> None:
        """One less here."""
        left = self._here[key] - 1
        if left:
            self._here[key] = left
        else:
            del self._here[key]

    def here(self, key: str) -> int:
        """How many there are on this instance."""
        return self._here.get(key, 0)

    def elsewhere(self, key: str) -> int:
        """How many the other instances last told of."""
        return self._elsewhere.get(self._hash(key), 0) if self._elsewhere else 0

    def use_salt(self, salt: bytes) -> None:
        """The cluster's; another one than before makes nonsense of what the others told."""
        if salt != self._salt:
            self._salt = salt
            self._elsewhere = {}

    def summary(self, *, instances: int) -> bytes:
        """What the others are told, where there are so many instances."""
        most = max(FEWEST_ENTRIES, ENTRIES_IN_ALL // max(1, instances))
        fewest = 1 if instances <= SMALL_FLEET else 2
        told = heapq.nlargest(
            most,
            ((key, count) for key, count in self._here.items() if count >= fewest),
            operator.itemgetter(1),
        )
        return b"".join(self._hash(key) + min(count, 65_535).to_bytes(2) for key, count in told)

    def learn(self, summaries: Iterable[bytes]) -> None:
        """What all others tell now."""
        found: dict[bytes, int] = {}
        for summary in summaries:
            for at in range(0, len(summary) - _ENTRY_BYTES + 1, _ENTRY_BYTES):
                hashed = summary[at : at + _HASH_BYTES]
                count = int.from_bytes(summary[at + _HASH_BYTES : at + _ENTRY_BYTES])
                found[hashed] = found.get(hashed, 0) + count
        self._elsewhere = found

    def _hash(self, key: str) -> bytes:
        text = key.encode("utf-8", "surrogatepass")
        return hashlib.blake2b(text, key=self._salt, digest_size=_HASH_BYTES).digest()


class HeadcountExchange:
    """Tells the others of a `Headcount` and learns theirs, once a lease renewal."""

    def __init__(
        self,
        headcount: Headcount,
        *,
        redis: Redis,
        call: Callable[[Awaitable[Any]], Awaitable[Any]],
        keys: RegistryKeys,
        instance: str,
        boot: str,
        interval_seconds: float,
        draining: Callable[[], bool],
    ) -> None:
        self._headcount = headcount
        self._redis = redis
        self._call = call
        self._keys = keys
        self._instance = instance
        self._boot = boot.encode()
        self._interval = interval_seconds
        self._draining = draining
        self._learnt_at = -float("inf")
        self._told: bytes | None = None

    async def wait(self) -> None:
        """Until it is time again: a beat, or sooner where somebody doubts."""
        await asyncio.sleep(min(SOONEST_SECONDS, self._interval))
        try:
            async with asyncio.timeout(max(0.0, self._interval - SOONEST_SECONDS)):
                await self._headcount.doubted.wait()
        except TimeoutError:
            pass
        self._headcount.doubted.clear()

    def failed(self) -> None:
        """Redis did not answer: what the others said gets old, and then only the count here holds."""
        self._told = None
        if time.monotonic() - self._learnt_at > KEPT_FOR_BEATS * self._interval:
            self._headcount.learn(())

    async def exchange(self) -> None:
        """Tell and learn. Raises what redis-py does."""
        pipeline = self._redis.pipeline(transaction=False)
        lifetime_ms = SALT_KEPT_SECONDS * 1000
        pipeline.set(self._keys.salt, secrets.token_bytes(16), nx=True, px=lifetime_ms)
        pipeline.get(self._keys.salt)
        pipeline.pexpire(self._keys.salt, lifetime_ms)
        pipeline.hkeys(self._keys.records)
        _, salt, _, fields = _checked(await self._call(pipeline.execute(raise_on_error=False)))
        if salt is not None:
            self._headcount.use_salt(salt)
        others = [name for field in fields if (name := field.decode("utf-8", "replace")) != self._instance]

        pipeline = self._redis.pipeline(transaction=False)
        # a leaving instance's clients are on their way to the others: they must not count twice there
        summary = b"" if self._draining() else self._headcount.summary(instances=len(others) + 1)
        own, kept_ms = self._keys.headcount(self._instance), round(KEPT_FOR_BEATS * self._interval * 1000)
        if not summary:
            pipeline.delete(own)
        elif summary == self._told:
            pipeline.pexpire(own, kept_ms)
        else:
            pipeline.set(own, self._boot + summary, px=kept_ms)
        if others:
            pipeline.mget([self._keys.lease(name) for name in others])
            pipeline.mget([self._keys.headcount(name) for name in others])
        written, *read = _checked(await self._call(pipeline.execute(raise_on_error=False)))
        self._told = summary if written else None
        leases, summaries = read if others else ([], [])
        self._headcount.learn(
            text[len(boot) :]
            for boot, text in zip(leases, summaries, strict=True)
            if boot is not None and text is not None and text.startswith(boot)
        )
        self._learnt_at = time.monotonic()


def _checked(answers: list[Any]) -> list[Any]:
    """Answers to a pipeline. Where Redis refuses writes, and nothing else, None stands in their place."""
    checked: list[Any] = []
    for answer in answers:
        if isinstance(answer, RedisError) and refusal_in(answer) is None:
            raise answer
        checked.append(None if isinstance(answer, RedisError) else answer)
    return checked
