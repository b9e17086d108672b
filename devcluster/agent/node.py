"""The Node object and its heartbeat."""

import asyncio
import os
import platform
from typing import Any

from devcluster.agent import clock, journal
from devcluster.agent.api import MERGE, Api, ApiError, Object, path_of
from devcluster.agent.fields import machine_resources
from devcluster.agent.settings import AgentSettings

LEASE_SECONDS = 40
LEASE_RENEW_SECONDS = 10.0
STATUS_SECONDS = 60.0
JOIN_RETRY_SECONDS = 0.5
MOST_PODS = 1024
LEASE_NAMESPACE = "kube-node-lease"


class Node:
    """This machine, as the cluster's only node."""

    def __init__(self, api: Api, settings: AgentSettings, port: int) -> None:
        self._api = api
        self._settings = settings
        self._port = port
        self.object: Object = {}
        """The Node as the API server has it; empty before `register`."""

    async def register(self) -> None:
        """Create the Node or take over the one that is there, and write its status. Raises ApiError."""
        name = self._settings.node_name
        labels = {
            "kubernetes.io/hostname": name,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": {"x86_64": "amd64", "aarch64": "arm64"}.get(
                platform.machine(), platform.machine()
            ),
        }
        body = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "labels": labels},
            "spec": {"podCIDR": str(self._settings.pod_cidr), "podCIDRs": [str(self._settings.pod_cidr)]},
        }
        try:
            await self._api.create(path_of("nodes"), body)
        except ApiError as error:
            if error.status != 409:
                raise
            await self._api.patch(path_of("nodes", None, name), {"metadata": {"labels": labels}}, MERGE)
        await self._write_status()
        await self._renew()
        await self._lift_not_ready()

    async def join(self) -> None:
        """Register, until the API server takes it: one that has just started still makes its namespaces."""
        while True:
            if await self._registered():
                return
            await asyncio.sleep(JOIN_RETRY_SECONDS)

    async def _lift_not_ready(self) -> None:
        """Take off the taint with which every node is born: the controller that would is not run here."""
        path = path_of("nodes", None, self._settings.node_name)
        while True:
            taints = self.object["spec"].get("taints") or []
            left = [taint for taint in taints if taint["key"] != "node.kubernetes.io/not-ready"]
            if left == taints:
                return
            # The version makes this a conflict where somebody changes the node at the same moment.
            version = {"resourceVersion": self.object["metadata"]["resourceVersion"]}
            try:
                await self._api.patch(path, {"metadata": version, "spec": {"taints": left}}, MERGE)
            except ApiError as error:
                if error.status != 409:
                    raise
                self.object = await self._api.get(path)
            else:
                return

    async def _write_status(self) -> None:
        now = clock.stamp(clock.now())
        known = {one["type"]: one for one in (self.object.get("status") or {}).get("conditions") or []}
        conditions = []
        for kind, status, reason, message in (
            ("MemoryPressure", "False", "KubeletHasSufficientMemory", "node agent does not look at memory"),
            ("DiskPressure", "False", "KubeletHasNoDiskPressure", "node agent does not look at disks"),
            ("PIDPressure", "False", "KubeletHasSufficientPID", "node agent does not look at processes"),
            ("Ready", "True", "KubeletReady", "node agent is ready"),
        ):
            old = known.get(kind, {})
            moved = old.get("lastTransitionTime") if old.get("status") == status else None
            conditions.append(
                {
                    "type": kind,
                    "status": status,
                    "reason": reason,
                    "message": message,
                    "lastHeartbeatTime": now,
                    "lastTransitionTime": moved or now,
                }
            )
        capacity = {**machine_resources(), "pods": str(MOST_PODS)}
        system = platform.uname()
        status_body: dict[str, Any] = {
            "capacity": capacity,
            "allocatable": capacity,
            "conditions": conditions,
            "addresses": [
                {"type": "InternalIP", "address": self._settings.node_ip},
                {"type": "Hostname", "address": self._settings.node_name},
            ],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self._port}},
            "nodeInfo": {
                "architecture": system.machine,
                "bootID": "",
                "containerRuntimeVersion": "devcluster://1",
                "kernelVersion": system.release,
                "kubeProxyVersion": "",
                "kubeletVersion": "v0.0.0-devcluster",
                "machineID": "",
                "operatingSystem": "linux",
                "osImage": f"processes of this host ({os.cpu_count()} CPUs)",
                "systemUUID": "",
            },
        }
        self.object = await self._api.patch(
            path_of("nodes", None, self._settings.node_name, "status"), {"status": status_body}
        )

    async def _renew(self) -> None:
        name = self._settings.node_name
        now = clock.micro_stamp(clock.now())
        spec = {"holderIdentity": name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": now}
        path = path_of("leases", LEASE_NAMESPACE, name)
        try:
            await self._api.patch(path, {"spec": spec}, MERGE)
        except ApiError as error:
            if error.status != 404:
                raise
            body = {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": name, "namespace": LEASE_NAMESPACE},
                "spec": spec,
            }
            await self._api.create(path_of("leases", LEASE_NAMESPACE), body)

    async def run(self) -> None:
        """Keep the heartbeat until cancelled."""
        loop = asyncio.get_running_loop()
        next_status = loop.time() + STATUS_SECONDS
        while True:
            await asyncio.sleep(LEASE_RENEW_SECONDS)
            try:
                await self._renew()
                if loop.time() >= next_status:
                    await self._write_status()
                    next_status = loop.time() + STATUS_SECONDS
            except ApiError as error:
                journal.warning("heartbeat_failed", error=str(error))
                if error.status == 404:
                    await self._registered()

    async def _registered(self) -> bool:
        try:
            await self.register()
        except ApiError as error:
            journal.warning("node_not_registered", error=str(error))
            return False
        return True
