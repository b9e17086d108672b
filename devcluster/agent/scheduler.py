"""Binds pods to the node. With one node there is nothing to choose, only reasons to wait."""

import asyncio

from devcluster.agent import clock, journal
from devcluster.agent.api import Api, ApiError, Object, path_of
from devcluster.agent.events import EventRecorder
from devcluster.agent.watch import Reflector

RETRY_SECONDS = 2.0
SCHEDULER = "default-scheduler"


def tolerates(pod: Object, taint: Object) -> bool:
    """Whether one of the pod's tolerations covers a taint."""
    for one in pod["spec"].get("tolerations") or []:
        if one.get("effect") and one["effect"] != taint.get("effect"):
            continue
        if not one.get("key") and one.get("operator") == "Exists":
            return True
        if one.get("key") == taint["key"] and (
            one.get("operator") == "Exists" or one.get("value", "") == taint.get("value", "")
        ):
            return True
    return False


def obstacle(pod: Object, node: Object, claims: dict[str, Object | None]) -> str | None:
    """Why a pod cannot run on the node now, in the scheduler's words; None where it can.

    Looked at are node selector, taints (a cordon is one) and claims; resources and affinities are not.
    """
    spec = pod["spec"]
    labels = node["metadata"].get("labels") or {}
    prefix = "0/1 nodes are available: 1 "
    if any(labels.get(key) != value for key, value in (spec.get("nodeSelector") or {}).items()):
        return prefix + "node(s) didn't match Pod's node affinity/selector."
    taints = list(node["spec"].get("taints") or [])
    if node["spec"].get("unschedulable"):
        taints.append({"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"})
    for taint in taints:
        if taint.get("effect") in ("NoSchedule", "NoExecute") and not tolerates(pod, taint):
            if taint["key"] == "node.kubernetes.io/unschedulable":
                return prefix + "node(s) were unschedulable."
            return prefix + f"node(s) had untolerated taint(s) {{{taint['key']}: {taint.get('value', '')}}}."
    for name, claim in claims.items():
        if claim is None:
            return f'0/1 nodes are available: persistentvolumeclaim "{name}" not found.'
        if claim["metadata"].get("deletionTimestamp"):
            return f'0/1 nodes are available: persistentvolumeclaim "{name}" is being deleted.'
        if (claim.get("status") or {}).get("phase") != "Bound":
            return "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims."
    return None


class Scheduler:
    """Binds pending pods, in the order in which they came."""

    def __init__(
        self, api: Api, events: EventRecorder, pods: Reflector, nodes: Reflector, node_name: str
    ) -> None:
        self._api = api
        self._events = events
        self._pods = pods
        self._nodes = nodes
        self._node_name = node_name
        self._work = asyncio.Event()
        self._told: dict[str, str] = {}

    def changed(self) -> None:
        """A pod, the node or a claim has changed."""
        self._work.set()

    async def run(self) -> None:
        """Bind what can be bound until cancelled."""
        while True:
            waiting = False
            self._work.clear()
            for pod in self._pods.items():
                if not self._is_mine(pod):
                    continue
                try:
                    waiting |= not await self._schedule(pod)
                except ApiError as error:
                    if error.status not in (404, 409):
                        journal.warning("pod_not_bound", pod=pod["metadata"]["name"], error=str(error))
                        waiting = True
            try:
                async with asyncio.timeout(RETRY_SECONDS if waiting else None):
                    await self._work.wait()
            except TimeoutError:
                continue

    @staticmethod
    def _is_mine(pod: Object) -> bool:
        spec = pod["spec"]
        return (
            not spec.get("nodeName")
            and not pod["metadata"].get("deletionTimestamp")
            and spec.get("schedulerName", SCHEDULER) == SCHEDULER
            and not spec.get("schedulingGates")
        )

    async def _schedule(self, pod: Object) -> bool:
        metadata = pod["metadata"]
        node = self._nodes.get("", self._node_name)
        if node is None:
            return False
        claims = {}
        for volume in pod["spec"].get("volumes") or []:
            if one := volume.get("persistentVolumeClaim"):
                name = one["claimName"]
                path = path_of("persistentvolumeclaims", metadata["namespace"], name)
                claims[name] = await self._api.get_or_none(path)
        why = obstacle(pod, node, claims)
        if why is not None:
            await self._tell(pod, why)
            return False
        self._told.pop(metadata["uid"], None)
        await self._api.create(
            path_of("pods", metadata["namespace"], metadata["name"], "binding"),
            {
                "apiVersion": "v1",
                "kind": "Binding",
                "metadata": {"name": metadata["name"], "uid": metadata["uid"]},
                "target": {"apiVersion": "v1", "kind": "Node", "name": self._node_name},
            },
        )
        where = f"{metadata['namespace']}/{metadata['name']}"
        message = f"Successfully assigned {where} to {self._node_name}"
        self._events.record(pod, "Normal", "Scheduled", message, component=SCHEDULER)
        return True

    async def _tell(self, pod: Object, why: str) -> None:
        """Write why a pod waits, once for each reason."""
        metadata = pod["metadata"]
        if self._told.get(metadata["uid"]) == why:
            return
        condition = {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": why,
            "lastTransitionTime": clock.stamp(clock.now()),
        }
        await self._api.patch(
            path_of("pods", metadata["namespace"], metadata["name"], "status"),
            {"metadata": {"uid": metadata["uid"]}, "status": {"conditions": [condition]}},
        )
        self._told[metadata["uid"]] = why
        self._events.record(pod, "Warning", "FailedScheduling", why, component=SCHEDULER)

    def forget(self, uid: str) -> None:
        """A pod is gone."""
        self._told.pop(uid, None)
