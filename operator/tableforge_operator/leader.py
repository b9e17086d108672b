"""Which of several operators acts: the one that holds the Lease.

Time is measured here only, with a clock that never jumps: the holder's record counts as expired when it has
not changed for its whole duration by our clock, whatever its time stamps say. Who cannot renew in time stops
before anyone else may start.
"""

import asyncio
import datetime as dt
import logging
import random
from typing import Any, Final

from tableforge_operator import metrics
from tableforge_operator.kube import LEASES, ApiError, ConflictError, Kube, NotFoundError

LEASE_SECONDS: Final = 11.0
"""How long others wait for a holder that says nothing. They notice its last word up to `RETRY_SECONDS` late,
so that somebody leads again within 14 seconds."""
RENEW_DEADLINE_SECONDS: Final = 8.0
"""After this long without a renewal the holder gives up; the rest of the duration is for stopping."""
RETRY_SECONDS: Final = 2.0
FENCE_LIMIT: Final = 2**30
"""Fences that instances tell are raised above up to this. A Lease's transitions are 32 bits wide, and no
fleet must be able to use them up for all."""

log = logging.getLogger(__name__)


class LeadershipLostError(Exception):
    """The lease is somebody else's, or could not be renewed in time: stop at once."""


class Leader:
    """One contender for a Lease."""

    def __init__(
        self,
        kube: Kube,
        *,
        namespace: str,
        name: str,
        identity: str,
        lease_seconds: float = LEASE_SECONDS,
        renew_deadline_seconds: float = RENEW_DEADLINE_SECONDS,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        self._kube = kube
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._lease_seconds = lease_seconds
        self._renew_deadline_seconds = renew_deadline_seconds
        self._retry_seconds = retry_seconds
        self._lease: dict[str, Any] | None = None
        """The Lease as last seen."""
        self._seen_at = 0.0
        """When its record last changed, by our clock."""
        self._renewed_at: float | None = None
        """When the last renewal that worked was begun; None while not holding."""
        self._least = 0
        """No reign of ours has a lower number than this."""
        self.transitions = 0
        """How often the lease has changed hands: a fence for commands that must not come late."""

    @property
    def holds(self) -> bool:
        return self._renewed_at is not None

    @property
    def overdue(self) -> bool:
        """Whether we hold a lease that should have been renewed or given up by now."""
        if self._renewed_at is None:
            return False
        return asyncio.get_running_loop().time() > self._renewed_at + self._lease_seconds

    def raise_above(self, fence: int) -> bool:
        """Have more transitions than `fence` from the next renewal on; False where that is out of bounds.

        Fleets remember the highest number that they have seen. A Lease that was deleted starts from 1 again.
        """
        if not 0 <= fence < FENCE_LIMIT:
            return False
        self._least = max(self._least, fence + 1)
        return True

    async def acquire(self) -> None:
        """Wait until the lease is ours."""
        while True:
            try:
                if await self._try():
                    metrics.LEADER.set(1)
                    log.info("leading", extra={"identity": self._identity, "transitions": self.transitions})
                    return
                delay = self._until_expiry()
            except ApiError as error:
                log.warning("cannot get the lease", extra={"error": error.message})
                delay = self._retry_seconds
            # Not all at the same moment.
            await asyncio.sleep(
                min(delay, self._retry_seconds) * random.uniform(0.8, 1.0)  # noqa: S311
                + random.uniform(0.01, 0.05)  # noqa: S311
            )

    async def hold(self) -> None:
        """Renew until cancelled. Raises LeadershipLostError."""
        try:
            while True:
                await asyncio.sleep(self._retry_seconds)
                try:
                    async with asyncio.timeout_at(self._give_up_at()):
                        renewed = await self._try()
                except TimeoutError:
                    raise LeadershipLostError("the lease could not be renewed in time") from None
                except ApiError as error:
                    log.warning("cannot renew the lease", extra={"error": error.message})
                    if asyncio.get_running_loop().time() >= self._give_up_at():
                        raise LeadershipLostError("the lease could not be renewed in time") from error
                    continue
                if not renewed:
                    raise LeadershipLostError("another operator holds the lease")
        except LeadershipLostError:
            self._renewed_at = None
            metrics.LEADER.set(0)
            raise

    async def release(self) -> None:
        """Let another one lead at once, where the lease is ours. What fails is left to its expiry."""
        if self._renewed_at is None or self._lease is None:
            return
        self._renewed_at = None
        metrics.LEADER.set(0)
        lease = {
            **self._lease,
            "spec": {**self._lease["spec"], "holderIdentity": "", "leaseDurationSeconds": 1},
        }
        try:
            await self._kube.replace(lease, timeout_seconds=2.0)
            log.info("lease released", extra={"identity": self._identity})
        except ApiError as error:
            log.warning("cannot release the lease", extra={"error": error.message})

    def _until_expiry(self) -> float:
        """In how many seconds the lease that somebody else holds runs out, if nothing more is heard."""
        if self._lease is None:
            return 0.0
        return max(0.0, self._expires(self._lease) - asyncio.get_running_loop().time())

    def _expires(self, lease: dict[str, Any]) -> float:
        return self._seen_at + float(lease["spec"].get("leaseDurationSeconds") or self._lease_seconds)

    def _give_up_at(self) -> float:
        assert self._renewed_at is not None  # noqa: S101 - only called while holding
        return self._renewed_at + self._renew_deadline_seconds

    async def _try(self) -> bool:
        """Take or renew the lease; whether it is ours. Raises ApiError where that cannot be told."""
        started = asyncio.get_running_loop().time()
        lease = await self._read()
        if lease is None:
            await self._write(self._kube.create(self._record(None)), started)
            return True
        spec = lease.get("spec") or {}
        holder = spec.get("holderIdentity") or ""
        if self._lease is None or _fingerprint(self._lease) != _fingerprint(lease):
            self._seen_at = started
        self._lease = lease
        if holder not in ("", self._identity) and started < self._expires(lease):
            return False
        if holder != self._identity and self._renewed_at is not None:
            return False
        try:
            await self._write(
                self._kube.replace(self._record(lease), timeout_seconds=self._renew_deadline_seconds / 2),
                started,
            )
        except ConflictError:
            # Somebody was faster; the next look tells who.
            return self._renewed_at is not None
        return True

    async def _read(self) -> dict[str, Any] | None:
        try:
            return await self._kube.get(LEASES, self._namespace, self._name)
        except NotFoundError:
            return None

    async def _write(self, call: Any, started: float) -> None:
        lease: dict[str, Any] = await call
        self._lease = lease
        self._seen_at = self._renewed_at = started
        self.transitions = int(lease["spec"].get("leaseTransitions") or 0)
        # Whoever deletes it meanwhile does not make our commands look older than they are.
        self._least = max(self._least, self.transitions)

    def _record(self, lease: dict[str, Any] | None) -> dict[str, Any]:
        stamp = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        before = (lease or {}).get("spec") or {}
        ours = before.get("holderIdentity") == self._identity
        transitions = int(before.get("leaseTransitions") or 0)
        metadata = {"name": self._name, "namespace": self._namespace}
        return {
            "apiVersion": LEASES.api_version,
            "kind": LEASES.kind,
            "metadata": metadata if lease is None else lease["metadata"],
            "spec": {
                "holderIdentity": self._identity,
                "leaseDurationSeconds": max(1, round(self._lease_seconds)),
                "acquireTime": before.get("acquireTime") if ours else stamp,
                "renewTime": stamp,
                "leaseTransitions": max(transitions if ours else transitions + 1, self._least),
            },
        }


def _fingerprint(lease: dict[str, Any]) -> str:
    return str(lease["metadata"].get("resourceVersion"))
