"""Creates and applies a cluster's children, and never takes over what belongs to somebody else."""

import asyncio
import dataclasses
import logging
from typing import Any, Final, Literal, cast

from tableforge_operator import metrics
from tableforge_operator.act import handover
from tableforge_operator.act.memory import Memory
from tableforge_operator.api import names
from tableforge_operator.decide import advice, changes, ownership, repairs
from tableforge_operator.decide.changes import Apply
from tableforge_operator.decide.findings import legible
from tableforge_operator.decide.leftovers import named_by
from tableforge_operator.decide.reasons import RefusalReason
from tableforge_operator.decide.resources import OPTIONAL_KINDS
from tableforge_operator.decide.resources.kinds import CONFIG_MAP, STATEFUL_SET
from tableforge_operator.decide.rollout import Scale
from tableforge_operator.decide.snapshot import Applied, ChildKey, Object, Refusal
from tableforge_operator.decide.storage import Growth
from tableforge_operator.kube import (
    CLAIMS,
    FIELD_MANAGER,
    PODS,
    REPLICA_SETS,
    AlreadyExistsError,
    ApiError,
    ConflictError,
    ForbiddenError,
    InvalidError,
    Kube,
    NamespaceTerminatingError,
    NotFoundError,
    ServerError,
    resource_of,
)
from tableforge_operator.observe.store import Store, cluster_of
from tableforge_operator.pace import Pace

Result = Literal["created", "changed", "repaired", "unchanged", "withdrawn", "refused"]

ADOPTIONS_PER_SECOND: Final = 40.0
"""How fast a restarted operator applies what it finds, so that a start with many clusters is no storm."""
ADOPTIONS_BURST: Final = 80

_HEAD: Final = frozenset({"apiVersion", "kind", "metadata"})
_SET_BACK_MANAGER: Final = f"{FIELD_MANAGER}-set-back"
_SCALE_MANAGER: Final = f"{FIELD_MANAGER}-scale"

_RETRY_SECONDS: Final[dict[RefusalReason, tuple[float, float]]] = {
    # First and longest delay; where only a read is repeated it may be soon.
    "NameConflict": (2.0, 30.0),
    "WaitingForDeletion": (0.5, 10.0),
    "Rejected": (15.0, 600.0),
    "Forbidden": (3.0, 60.0),
    "QuotaExceeded": (5.0, 60.0),
    "PolicyDenied": (15.0, 300.0),
    "StorageNotGrown": (5.0, 60.0),
    "ApiUnavailable": (1.0, 60.0),
    "NotServed": (5.0, 60.0),
}

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one child."""

    key: ChildKey
    result: Result
    of_pod: bool = False
    """Whether it leads to a single instance: such things come and go with pods, and are no news."""
    contested: bool = False
    """Whether it is set back again and again, which is told in other words."""


class Children:
    """Applies children for all clusters."""

    def __init__(self, kube: Kube, store: Store) -> None:
        self._kube = kube
        self._store = store
        self._pace = Pace(per_second=ADOPTIONS_PER_SECOND, burst=ADOPTIONS_BURST)

    async def apply(self, wanted: Apply, *, cluster: Object, memory: Memory, paced: bool = True) -> Outcome:
        """Make one child as it should be. A refusal is remembered, not raised. `paced`: nobody waits for it.

        Raises UnreachableError, TooManyRequestsError, UnauthorizedError, NamespaceTerminatingError: those are
        about no child.
        """
        key = wanted.key
        if wanted.reason == "Adopted" and paced:
            await self._pace.wait()
        try:
            live = await self._get(wanted.obj)
            if live is None and (taken := await self._foreign_claim(wanted.obj, cluster)) is not None:
                return self._refused(wanted.obj, wanted.digest, *taken, memory=memory)
            if live is None and wanted.instances_at_least is not None:
                after = await handover.create(self._kube, wanted.obj, at_least=wanted.instances_at_least)
                result: Result = "created"
            elif live is None:
                after = await self._kube.apply(wanted.obj, force=False)
                result = "created"
            elif (refusal := _not_ours(live, wanted.obj, cluster)) is not None:
                return self._refused(wanted.obj, wanted.digest, *refusal, memory=memory)
            else:
                if wanted.reason == "Missing" and _is_as_applied(memory.applied.get(key), wanted, live):
                    # It is there, without the label by which it is watched: an edit like any other.
                    wanted = dataclasses.replace(wanted, reason="Drifted")
                    repaired = memory.repairs.get(key)
                    if repaired is not None and asyncio.get_running_loop().time() < repaired.retry_at:
                        self._store.put(live, notify=False)
                        return Outcome(key=key, result="unchanged")
                after = await self._apply_over(wanted, live)
                result = _result(wanted, live, after)
        except (ConflictError, InvalidError, ForbiddenError, NotFoundError, ServerError) as error:
            if isinstance(error, NamespaceTerminatingError):
                raise
            return self._refused(wanted.obj, wanted.digest, *_refusal(error, wanted.obj), memory=memory)
        memory.refusals.pop(key, None)
        if result == "repaired" and live is not None and (before := memory.applied.get(key)) is not None:
            contested = repairs.contested(before.fields, live)
            now = asyncio.get_running_loop().time()
            if (found := repairs.after(memory.repairs.get(key), contested, now)) is not None:
                memory.repairs[key] = found
        memory.applied[key] = Applied(
            digest=wanted.digest, fields=ownership.applied_fields(after), uid=after["metadata"]["uid"]
        )
        # The watch may be behind; what it brings later and is older is passed over.
        self._store.put(after, notify=False)
        return Outcome(
            key=key,
            result=result,
            of_pod=ownership.of_pod(wanted.obj),
            contested=repairs.insists(memory.repairs.get(key)),
        )

    async def _apply_over(self, wanted: Apply, live: Object) -> dict[str, Any]:
        metadata = {**wanted.obj["metadata"], "uid": live["metadata"]["uid"]}
        obj = {**wanted.obj, "metadata": metadata}
        if wanted.instances_at_least is not None:
            return await handover.apply(self._kube, obj, live, at_least=wanted.instances_at_least)
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
            # A quota that is used up refuses also what is there; one that is gone would have left room.
            if not isinstance(error, ForbiddenError) or key[1] not in memory.secrets_doubted:
                return self._refused(
                    secret, ownership.digest(secret), *_refusal(error, secret), memory=memory
                )
            result = "unchanged"
        memory.refusals.pop(key, None)
        memory.secrets_created.add(key[1])
        return Outcome(key=key, result=result)

    async def scale(self, wanted: Scale, *, memory: Memory) -> Outcome:
        """Set how many instances a Deployment has, and nothing else of it.

        Raises like `apply`.
        """
        live = wanted.deployment
        key, metadata = changes.key_of(live), live["metadata"]
        body = {
            "apiVersion": live["apiVersion"],
            "kind": live["kind"],
            "metadata": {part: metadata[part] for part in ("name", "namespace", "uid")},
            "spec": {"replicas": wanted.replicas},
        }
        try:
            # A manager of its own: what the other one doesn't mention any more would be taken away.
            after = await self._kube.apply(body, field_manager=_SCALE_MANAGER, force=True)
        except (ConflictError, InvalidError, ForbiddenError, NotFoundError, ServerError) as error:
            if isinstance(error, NamespaceTerminatingError):
                raise
            return self._refused(live, wanted.digest, *_refusal(error, live), memory=memory)
        memory.refusals.pop(key, None)
        # Our own fields are fewer now by that one, which is no drift.
        memory.applied.pop(key, None)
        self._store.put(after, notify=False)
        return Outcome(key=key, result="changed")

    async def grow(self, wanted: Growth, *, memory: Memory) -> Outcome:
        """Ask for a larger claim, and nothing else of it.

        Raises like `apply`.
        """
        live = wanted.claim
        key, metadata = changes.key_of(live), live["metadata"]
        body = {
            "apiVersion": live["apiVersion"],
            "kind": live["kind"],
            "metadata": {part: metadata[part] for part in ("name", "namespace", "uid")},
            "spec": {"resources": {"requests": {"storage": wanted.size}}},
        }
        try:
            after = await self._kube.apply(body, force=True)
        except (ConflictError, InvalidError, ForbiddenError, NotFoundError, ServerError) as error:
            if isinstance(error, NamespaceTerminatingError):
                raise
            reason, message = _refusal(error, live)
            if isinstance(error, ForbiddenError | InvalidError):
                reason, message = "StorageNotGrown", wanted.refused(str(error))
            return self._refused(live, wanted.digest, reason, message, memory=memory)
        memory.refusals.pop(key, None)
        self._store.put(after, notify=False)
        return Outcome(key=key, result="changed")

    async def withdraw(self, live: Object, *, cluster: Object, memory: Memory) -> Outcome:
        """Delete a child of this cluster that is no longer wanted, and no other by its name.

        It is looked at once more: what the watch brought may be of some time ago. What is not this cluster's
        any more, or changes at that moment, stays, and the next turn decides anew.

        Raises like `apply`.
        """
        key = changes.key_of(live)
        metadata = live["metadata"]
        resource = resource_of(live["apiVersion"], live["kind"])
        try:
            now = await self._get(live)
            if now is not None and await self._is_needed(now, live, cluster):
                self._store.put(now, notify=False)
                return Outcome(key=key, result="unchanged")
            if now is not None:
                await self._kube.delete(
                    resource,
                    metadata["namespace"],
                    metadata["name"],
                    uid=metadata["uid"],
                    resource_version=now["metadata"]["resourceVersion"],
                )
        except ConflictError:
            return Outcome(key=key, result="unchanged")
        except NotFoundError:
            pass
        except (InvalidError, ForbiddenError, ServerError) as error:
            reason, message = _refusal(error, live, "delete")
            return self._refused(live, changes.WITHDRAWN, reason, message, memory=memory)
        memory.refusals.pop(key, None)
        memory.applied.pop(key, None)
        memory.repairs.pop(key, None)
        self._store.remove(live, notify=False)
        return Outcome(key=key, result="withdrawn")

    async def _is_needed(self, live: Object, seen: Object, cluster: Object) -> bool:
        """Whether an object that looked superfluous is somebody else's by now, or named by a pod."""
        if _not_ours(live, seen, cluster) is not None:
            return True
        if live["kind"] != CONFIG_MAP.kind:
            return False
        metadata, users = live["metadata"], []
        selector = f"{names.CLUSTER_LABEL}={cluster['metadata']['name']}"
        for resource in (REPLICA_SETS, PODS):
            users += (await self._kube.list(resource, metadata["namespace"], label_selector=selector))[0]
        return metadata["name"] in named_by(users)

    async def _foreign_claim(self, obj: Object, cluster: Object) -> tuple[RefusalReason, str] | None:
        """Why a StatefulSet may not be created: it would take over a claim, whosever that is."""
        for template in obj["spec"]["volumeClaimTemplates"] if obj["kind"] == STATEFUL_SET.kind else ():
            metadata = obj["metadata"]
            name = f"{template['metadata']['name']}-{metadata['name']}-0"
            try:
                claim = await self._kube.get(CLAIMS, metadata["namespace"], name)
            except NotFoundError:
                continue
            if not _labelled(claim, template):
                return _not_taken(claim, cluster)
        return None

    async def _get(self, obj: Object) -> Object | None:
        resource = resource_of(obj["apiVersion"], obj["kind"])
        try:
            return await self._kube.get(resource, obj["metadata"]["namespace"], obj["metadata"]["name"])
        except NotFoundError:
            return None

    def _refused(
        self, obj: Object, digest: str, reason: RefusalReason, message: str, *, memory: Memory
    ) -> Outcome:
        key = changes.key_of(obj)
        last = memory.refusals.get(key)
        attempts = 1 if last is None or (last.digest, last.reason) != (digest, reason) else last.attempts + 1
        metrics.RECONCILE_ERRORS.labels(reason).inc()
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
                "cluster": "/".join(cluster_of(obj) or ()),
                "object": " ".join(key),
                "reason": reason,
                "error": memory.refusals[key].message,
                "attempts": attempts,
            },
        )
        return Outcome(key=key, result="refused")


def _not_ours(live: Object, wanted: Object, cluster: Object) -> tuple[RefusalReason, str] | None:
    """Why a living object may not be applied; None where it is this cluster's, or its pod's."""
    what, owner = f"{live['kind']} {live['metadata']['name']}", ownership.controller(live)
    ours = ownership.controller(wanted)
    if owner is not None and ours is not None and owner["uid"] == ours["uid"]:
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


def _labelled(claim: Object, template: Object) -> bool:
    """Whether a claim was made for this cluster, or was meant to serve it: by what the operator finds it."""
    labels, wanted = claim["metadata"].get("labels") or {}, template["metadata"]["labels"]
    return all(labels.get(key) == wanted[key] for key in (names.CLUSTER_LABEL, names.COMPONENT_LABEL))


def _not_taken(claim: Object, cluster: Object) -> tuple[RefusalReason, str]:
    name = claim["metadata"]["name"]
    return (
        "NameConflict",
        (
            f"PersistentVolumeClaim {name} exists already and was not made for this cluster; it is left "
            "alone. Delete it, give the WebSocketCluster another name, or, if its data are this cluster's, "
            f"label it {names.CLUSTER_LABEL}={cluster['metadata']['name']} and "
            f"{names.COMPONENT_LABEL}={names.REDIS}."
        ),
    )


def _exactly(obj: Object) -> dict[str, Any]:
    metadata = obj["metadata"]
    return {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]}


def _is_as_applied(before: Applied | None, wanted: Apply, live: Object) -> bool:
    """Whether it is the object that was applied last, and nothing else is wanted of it by now."""
    return before is not None and (before.uid, before.digest) == (live["metadata"]["uid"], wanted.digest)


def _result(wanted: Apply, live: Object, after: Object) -> Result:
    if live["metadata"].get("resourceVersion") == after["metadata"].get("resourceVersion"):
        return "unchanged"
    return "repaired" if wanted.reason == "Drifted" else "changed"


def _refusal(error: ApiError, obj: Object, verb: str = "create or change") -> tuple[RefusalReason, str]:
    what = f"{obj['kind']} {obj['metadata']['name']}"
    if obj["kind"] in OPTIONAL_KINDS and error.status in (404, 405):
        return "NotServed", f"{what} could not be made: its CRD is not there, or is about to go."
    if isinstance(error, InvalidError | ForbiddenError):
        reason, fix = advice.about_refusal(obj["kind"], str(error), denied=isinstance(error, ForbiddenError))
        if reason:
            return cast("RefusalReason", reason), f"The API server does not accept {what}: {error}. {fix}."
        return "Forbidden", f"The operator may not {verb} {what}: {error}."
    return "ApiUnavailable", f"{what} could not be created or changed: {error}."
