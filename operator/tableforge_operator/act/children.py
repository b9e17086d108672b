"""Creates and applies a cluster's children, and never takes over what belongs to somebody else."""

import asyncio
import dataclasses
import logging
from typing import Any, Final, Literal

from tableforge_operator.act.memory import Memory
from tableforge_operator.decide import changes, ownership
from tableforge_operator.decide.changes import Apply
from tableforge_operator.decide.findings import legible
from tableforge_operator.decide.snapshot import Applied, ChildKey, Object, Refusal, RefusalReason
from tableforge_operator.kube import (
    FIELD_MANAGER,
    AlreadyExistsError,
    ConflictError,
    ForbiddenError,
    InvalidError,
    Kube,
    NamespaceTerminatingError,
    NotFoundError,
    ServerError,
    resource_of,
)
from tableforge_operator.observe.store import Store

Result = Literal["created", "changed", "repaired", "unchanged", "refused"]

ADOPTIONS_PER_SECOND: Final = 20.0
"""How fast a restarted operator applies what it finds, so that a start with many clusters is no storm."""
ADOPTIONS_BURST: Final = 40

_HEAD: Final = frozenset({"apiVersion", "kind", "metadata"})
_SET_BACK_MANAGER: Final = f"{FIELD_MANAGER}-set-back"

_RETRY_SECONDS: Final[dict[RefusalReason, tuple[float, float]]] = {
    # First and longest delay; where only a read is repeated it may be soon.
    "NameConflict": (2.0, 30.0),
    "WaitingForDeletion": (0.5, 10.0),
    "Rejected": (15.0, 600.0),
    "Forbidden": (3.0, 60.0),
    "ApiUnavailable": (1.0, 60.0),
}

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one child."""

    key: ChildKey
    result: Result


class Children:
    """Applies children for all clusters."""

    def __init__(self, kube: Kube, store: Store) -> None:
        self._kube = kube
        self._store = store
        self._pace = _Pace(ADOPTIONS_PER_SECOND, ADOPTIONS_BURST)

    async def apply(self, wanted: Apply, *, cluster: Object, memory: Memory) -> Outcome:
        """Make one child as it should be. A refusal is remembered, not raised.

        Raises UnreachableError, TooManyRequestsError, UnauthorizedError, NamespaceTerminatingError: those are
        about no child.
        """
        key = wanted.key
        if wanted.reason == "Adopted":
            await self._pace.wait()
        try:
            live = await self._get(wanted.obj)
            if live is None:
                after = await self._kube.apply(wanted.obj, force=False)
                result: Result = "created"
            elif (refusal := _not_ours(live, cluster)) is not None:
                return self._refused(wanted.obj, wanted.digest, *refusal, memory=memory)
            else:
                after = await self._apply_over(wanted, live)
                result = _result(wanted, live, after)
        except (ConflictError, InvalidError, ForbiddenError, NotFoundError, ServerError) as error:
            if isinstance(error, NamespaceTerminatingError):
                raise
            return self._refused(wanted.obj, wanted.digest, *_refusal(error, wanted.obj), memory=memory)
        memory.refusals.pop(key, None)
        memory.applied[key] = Applied(
            digest=wanted.digest, fields=ownership.applied_fields(after), uid=after["metadata"]["uid"]
        )
        # The watch may be behind; what it brings later and is older is passed over.
        self._store.put(after, notify=False)
        return Outcome(key=key, result=result)

    async def _apply_over(self, wanted: Apply, live: Object) -> dict[str, Any]:
        metadata = {**wanted.obj["metadata"], "uid": live["metadata"]["uid"]}
        obj = {**wanted.obj, "metadata": metadata}
        try:
            return await self._kube.apply(obj, force=True)
        except InvalidError:
            if wanted.reason not in ("Drifted", "Adopted"):
                raise
            # Somebody changed what an element of a list is known by, such as a port's number: it is theirs
            # now, and our own beside it makes the object invalid.
            await self._set_back_lists(obj, live)
            return await self._without_set_back(await self._kube.apply(obj, force=True))

    async def _set_back_lists(self, obj: Object, live: Object) -> None:
        """Replace what we render as a whole, lists included, as a field manager of its own."""
        rendered = {name: value for name, value in obj.items() if name not in _HEAD}
        await self._kube.merge(
            resource_of(obj["apiVersion"], obj["kind"]),
            obj["metadata"]["namespace"],
            obj["metadata"]["name"],
            {"metadata": _exactly(live), **rendered},
            field_manager=_SET_BACK_MANAGER,
        )

    async def _without_set_back(self, after: Object) -> dict[str, Any]:
        """Give up that manager's fields: later applies could else remove none of them."""
        rest = [
            entry for entry in after["metadata"]["managedFields"] if entry["manager"] != _SET_BACK_MANAGER
        ]
        return await self._kube.merge(
            resource_of(after["apiVersion"], after["kind"]),
            after["metadata"]["namespace"],
            after["metadata"]["name"],
            {"metadata": {**_exactly(after), "managedFields": rest}},
            field_manager=_SET_BACK_MANAGER,
        )

    async def create_secret(self, secret: dict[str, Any], *, memory: Memory) -> Outcome:
        """Create a Secret. One by that name that exists is as it should be: the name says what is in it.

        Raises like `apply`.
        """
        key = changes.key_of(secret)
        try:
            await self._kube.create(secret)
            result: Result = "created"
        except AlreadyExistsError:
            result = "unchanged"
        except (ConflictError, InvalidError, ForbiddenError, NotFoundError, ServerError) as error:
            if isinstance(error, NamespaceTerminatingError):
                raise
            return self._refused(secret, ownership.digest(secret), *_refusal(error, secret), memory=memory)
        memory.refusals.pop(key, None)
        memory.secrets_created.add(key[1])
        return Outcome(key=key, result=result)

    async def _get(self, obj: dict[str, Any]) -> Object | None:
        resource = resource_of(obj["apiVersion"], obj["kind"])
        try:
            return await self._kube.get(resource, obj["metadata"]["namespace"], obj["metadata"]["name"])
        except NotFoundError:
            return None

    def _refused(
        self, obj: Object, digest: str, reason: RefusalReason, message: str, *, memory: Memory
    ) -> Outcome:
        key = changes.key_of(obj)
        owner = ownership.controller(obj)
        last = memory.refusals.get(key)
        attempts = 1 if last is None or (last.digest, last.reason) != (digest, reason) else last.attempts + 1
        first, longest = _RETRY_SECONDS[reason]
        memory.refusals[key] = Refusal(
            reason=reason,
            message=legible(message),
            digest=digest,
            attempts=attempts,
            retry_at=asyncio.get_running_loop().time() + min(first * 2.0 ** (attempts - 1), longest),
        )
        log.log(
            logging.WARNING if attempts == 1 else logging.DEBUG,
            "child refused",
            extra={
                "cluster": f"{obj['metadata']['namespace']}/{owner['name'] if owner else ''}",
                "object": " ".join(key),
                "reason": reason,
                "error": memory.refusals[key].message,
                "attempts": attempts,
            },
        )
        return Outcome(key=key, result="refused")


def _not_ours(live: Object, cluster: Object) -> tuple[RefusalReason, str] | None:
    """Why a living object may not be applied; None where it is this cluster's own."""
    what, owner = f"{live['kind']} {live['metadata']['name']}", ownership.controller(live)
    if owner is not None and owner["uid"] == cluster["metadata"]["uid"]:
        if live["metadata"].get("deletionTimestamp"):
            return "WaitingForDeletion", f"{what} is being deleted; it is created again once it is gone."
        return None
    if ownership.cluster_name(live) == cluster["metadata"]["name"]:
        return (
            "WaitingForDeletion",
            (
                f"{what} belongs to a WebSocketCluster of this name that was deleted, and goes with it; "
                "it is created again once it is gone."
            ),
        )
    whose = "belongs to nobody" if owner is None else f"belongs to {owner['kind']} {owner['name']}"
    return (
        "NameConflict",
        (
            f"{what} exists already and {whose}; it is left alone. Delete or rename it, "
            "or give the WebSocketCluster another name."
        ),
    )


def _exactly(obj: Object) -> dict[str, Any]:
    metadata = obj["metadata"]
    return {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]}


def _result(wanted: Apply, live: Object, after: Object) -> Result:
    if live["metadata"].get("resourceVersion") == after["metadata"].get("resourceVersion"):
        return "unchanged"
    return "repaired" if wanted.reason == "Drifted" else "changed"


def _refusal(error: Exception, obj: Object) -> tuple[RefusalReason, str]:
    what = f"{obj['kind']} {obj['metadata']['name']}"
    if isinstance(error, InvalidError):
        return (
            "Rejected",
            f"The API server does not accept {what}: {error}. Change the field of spec it is from.",
        )
    if isinstance(error, ForbiddenError):
        return "Forbidden", f"The operator may not create or change {what}: {error}."
    return "ApiUnavailable", f"{what} could not be created or changed: {error}."


class _Pace:
    """At most `burst` at once and `rate` a second in the long run."""

    def __init__(self, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = burst
        self._free_at = 0.0

    async def wait(self) -> None:
        now = asyncio.get_running_loop().time()
        self._free_at = max(self._free_at, now - self._burst / self._rate) + 1 / self._rate
        if self._free_at > now:
            await asyncio.sleep(self._free_at - now)
