"""One pod's life: address, volumes, init containers, containers, and its graceful end.

A `PodRunner` is one coroutine, as a kubelet has one worker per pod. Beside it run the writing of the status,
which always writes the newest view, and the refreshing of volumes.
"""

import asyncio
import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from devcluster.agent import clock, journal
from devcluster.agent.addresses import AddressesExhausted
from devcluster.agent.api import ApiError, Object, path_of
from devcluster.agent.container import Container, RestartPolicy
from devcluster.agent.context import NodeContext
from devcluster.agent.hosts import hosts_file, write_in_place
from devcluster.agent.sandbox import Mount
from devcluster.agent.status import PodView, Role, pod_status
from devcluster.agent.volumes import MountError, PodVolumes

MOUNT_RETRY_FIRST_SECONDS = 0.5
MOUNT_RETRY_LIMIT_SECONDS = 5.0
REFRESH_SECONDS = 30.0
"""How often volumes are looked at without being asked to: tokens run out."""
STATUS_RETRY_SECONDS = 1.0
GONE_GRACE_SECONDS = 2.0
"""For a pod that was deleted by force: nobody waits for it any more."""


class PodRunner:
    """Runs one pod of this node, from its binding to its removal from the API."""

    def __init__(self, context: NodeContext, pod: Object) -> None:
        self._context = context
        self._pod = pod
        self.uid: str = pod["metadata"]["uid"]
        self.pod_ip = ""
        self.directory: Path = context.settings.data_dir / "pods" / self.uid
        status = pod.get("status") or {}
        started = status.get("startTime")
        self._start_time = clock.parse(started) if started else clock.now()
        self._over_before = status.get("phase") in ("Succeeded", "Failed")
        self._volumes = PodVolumes(
            directory=self.directory / "volumes",
            api=context.api,
            lookup=context.lookup,
            host_ip=context.settings.node_ip,
            pod_ip=lambda: self.pod_ip,
        )
        self._references = PodVolumes.references(pod)
        self._mounted = asyncio.Event()
        self._finished = False
        self._reason, self._message = "", ""
        self._stopping = False
        self._gone = False
        self._delete = asyncio.Event()
        self._dirty = asyncio.Event()
        self._stale = asyncio.Event()
        self._pushed: Object | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.containers = self._make_containers()

    def _make_containers(self) -> list[Container]:
        spec, status = self._pod["spec"], self._pod.get("status") or {}
        policy: RestartPolicy = spec.get("restartPolicy", "Always")
        previous = {
            one["name"]: one
            for key in ("initContainerStatuses", "containerStatuses")
            for one in status.get(key) or []
        }
        result = []
        for one in spec.get("initContainers") or []:
            sidecar = one.get("restartPolicy") == "Always"
            restart: RestartPolicy = "Always" if sidecar else "Never" if policy == "Never" else "OnFailure"
            role: Role = "sidecar" if sidecar else "init"
            result.append(
                Container(
                    self._context,
                    self,
                    one,
                    role=role,
                    restart=restart,
                    previous=previous.get(one["name"]),
                )
            )
        result += [
            Container(
                self._context, self, one, role="main", restart=policy, previous=previous.get(one["name"])
            )
            for one in spec["containers"]
        ]
        return result

    # --- what containers ask --------------------------------------------------------------------------

    @property
    def pod(self) -> Object:
        """The pod as last seen."""
        return self._pod

    @property
    def grace_seconds(self) -> float:
        """How long its containers may take to end."""
        given = self._pod["spec"].get("terminationGracePeriodSeconds")
        return 30.0 if given is None else float(given)

    def mounts(self, container: Object, variables: dict[str, str]) -> list[Mount]:
        """The container's volumes and the pod's `/etc/hosts`."""
        mounts = self._volumes.mounts(container, variables)
        if not any(one.target == "/etc/hosts" for one in mounts):
            mounts.append(Mount(str(self.directory / "etc-hosts"), "/etc/hosts"))
        return mounts

    def changed(self) -> None:
        """A container's view is another one now."""
        self._dirty.set()

    # --- what the node tells ----------------------------------------------------------------------------

    def update(self, pod: Object) -> None:
        """The API server has a newer version of the pod."""
        if int(pod["metadata"]["resourceVersion"]) < int(self._pod["metadata"]["resourceVersion"]):
            return
        old, self._pod = self._pod["metadata"], pod
        new = pod["metadata"]
        if any(old.get(key) != new.get(key) for key in ("labels", "annotations")):
            self._stale.set()
        if new.get("deletionTimestamp"):
            if self._delete.is_set() and new.get("deletionGracePeriodSeconds") != old.get(
                "deletionGracePeriodSeconds"
            ):
                for container in self.containers:
                    container.kill_within(self._deletion_grace)
            self._delete.set()
        if self._pod["spec"].get("readinessGates"):
            self._dirty.set()

    def gone(self) -> None:
        """The API server has the pod no more."""
        self._gone = True
        if self._delete.is_set():
            for container in self.containers:
                container.kill_within(GONE_GRACE_SECONDS)
        self._delete.set()

    def reference_changed(self, resource: str, name: str) -> None:
        """A ConfigMap or Secret of the pod's namespace has changed."""
        if (resource, name) in self._references:
            self._stale.set()
        for container in self.containers:
            container.nudge()

    def write_hosts(self) -> None:
        """Bring the pod's `/etc/hosts` up to date."""
        if self.pod_ip:
            lines = self._context.host_lines(self._pod["metadata"]["namespace"])
            write_in_place(self.directory / "etc-hosts", hosts_file(self._pod, self.pod_ip, lines))

    def container(self, name: str) -> Container | None:
        """A container by name."""
        return next((one for one in self.containers if one.view.name == name), None)

    # --- the life ---------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run the pod until it is gone from the API server, and leave nothing behind."""
        # One that was to go when the agent came (back) is not started any more.
        self._stopping = self._delete.is_set()
        beside = [asyncio.create_task(self._write_statuses()), asyncio.create_task(self._keep_fresh())]
        life = asyncio.create_task(self._live())
        deletion = asyncio.create_task(self._delete.wait())
        try:
            done, _ = await asyncio.wait(
                {life, deletion}, timeout=self._seconds_left(), return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                self._reason = "DeadlineExceeded"
                self._message = "Pod was active on the node longer than the specified deadline"
                self._event("Normal", "DeadlineExceeded", self._message)
                await self._terminate(self.grace_seconds)
            if not self._delete.is_set():
                await life
                await self._delete.wait()
            await self._terminate(GONE_GRACE_SECONDS if self._gone else self._deletion_grace)
            await life
            await self._leave()
        finally:
            self.kill_now()
            for task in [*beside, life, deletion, *self._tasks.values()]:
                task.cancel()
            await asyncio.gather(*beside, life, deletion, *self._tasks.values(), return_exceptions=True)
            if self.pod_ip:
                self._context.addresses.give_back(self.pod_ip)
                self.pod_ip = ""
            for container in self.containers:
                for log in container.logs:
                    log.close()
            await asyncio.to_thread(shutil.rmtree, self.directory, ignore_errors=True)

    def _seconds_left(self) -> float | None:
        limit = self._pod["spec"].get("activeDeadlineSeconds")
        if limit is None or self._over_before:
            return None
        return max(0.0, float(limit) - (clock.now() - self._start_time).total_seconds())

    @property
    def _deletion_grace(self) -> float:
        given = self._pod["metadata"].get("deletionGracePeriodSeconds")
        return self.grace_seconds if given is None else float(given)

    async def _live(self) -> None:
        if self._over_before:
            return
        await self._take_address()
        self._dirty.set()
        if not await self._prepare_volumes():
            return
        self._mounted.set()
        self._dirty.set()
        if await self._initialize():
            await asyncio.gather(*[self._start(one) for one in self._of("main")])
        if not self._stopping:
            await self._stop_sidecars(self.grace_seconds)
            self._finished = True
            self._dirty.set()

    async def _take_address(self) -> None:
        while not self._stopping:
            try:
                self.pod_ip = self._context.addresses.take()
            except AddressesExhausted as error:
                self._event("Warning", "FailedCreatePodSandBox", f"Failed to create pod sandbox: {error}")
                await asyncio.sleep(MOUNT_RETRY_LIMIT_SECONDS)
            else:
                return

    async def _prepare_volumes(self) -> bool:
        delay = MOUNT_RETRY_FIRST_SECONDS
        while not self._stopping:
            self._stale.clear()
            try:
                self.directory.mkdir(parents=True, exist_ok=True)
                self.write_hosts()
                await self._volumes.prepare(self._pod)
            except (MountError, OSError) as error:
                self._event("Warning", "FailedMount", str(error))
            except ApiError as error:
                journal.warning("volumes_not_ready", pod=self._where, error=str(error))
            else:
                return True
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._stale.wait()
            delay = min(delay * 2, MOUNT_RETRY_LIMIT_SECONDS)
        return False

    async def _initialize(self) -> bool:
        """Run the init containers in their order; whether all of them have done their work."""
        for container in self.containers:
            if self._stopping:
                return False
            if container.view.role == "init":
                await self._start(container)
                if not container.view.done:
                    return False
            elif container.view.role == "sidecar":
                self._start(container)
                await container.started_or_ended.wait()
        return not self._stopping

    def _start(self, container: Container) -> "asyncio.Task[None]":
        task = asyncio.create_task(container.run(), name=f"{self._where}/{container.view.name}")
        self._tasks[container.view.name] = task
        return task

    def _of(self, role: str) -> Iterator[Container]:
        return (one for one in self.containers if one.view.role == role)

    # --- the end ----------------------------------------------------------------------------------------

    async def _terminate(self, grace_seconds: float) -> None:
        """Stop everything: the containers together, then the sidecars, the last one first."""
        self._stopping = True
        self._stale.set()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + grace_seconds
        await asyncio.gather(
            *[self._stop(one, grace_seconds) for one in self.containers if one.view.role != "sidecar"]
        )
        await self._stop_sidecars(max(0.0, deadline - loop.time()))

    async def _stop_sidecars(self, grace_seconds: float) -> None:
        for container in reversed(list(self._of("sidecar"))):
            await self._stop(container, grace_seconds)

    async def _stop(self, container: Container, grace_seconds: float) -> None:
        await container.stop(grace_seconds)
        if task := self._tasks.get(container.view.name):
            await task

    async def _leave(self) -> None:
        """Write the last status and take the pod out of the API."""
        for container in self.containers:
            container.settle()
        self._finished = True
        path = path_of("pods", self._pod["metadata"]["namespace"], self._pod["metadata"]["name"])
        body = {"gracePeriodSeconds": 0, "preconditions": {"uid": self.uid}}
        while not self._gone:
            try:
                if not self._over_before:
                    await self._push()
                await self._context.api.delete(path, body)
            except ApiError as error:
                if error.status in (404, 409):
                    return
                journal.warning("pod_not_removed", pod=self._where, error=str(error))
                await asyncio.sleep(STATUS_RETRY_SECONDS)
            else:
                return

    def terminate_now(self) -> None:
        """SIGTERM to everything: the node goes down."""
        self._stopping = True
        for container in self.containers:
            container.terminate_now()

    def kill_now(self) -> None:
        """SIGKILL to everything."""
        self._stopping = True
        for container in self.containers:
            container.kill_now()

    async def processes_ended(self) -> None:
        """Wait until none of its containers runs any more."""
        await asyncio.gather(*[one.idle.wait() for one in self.containers])

    # --- beside it --------------------------------------------------------------------------------------

    async def _write_statuses(self) -> None:
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            if self._gone or self._over_before:
                continue
            try:
                await self._push()
            except ApiError as error:
                if error.status not in (404, 409):
                    journal.warning("status_not_written", pod=self._where, error=str(error))
                    await asyncio.sleep(STATUS_RETRY_SECONDS)
                    self._dirty.set()

    async def _push(self) -> None:
        view = PodView(
            pod=self._pod,
            containers=[one.view for one in self.containers],
            pod_ip=self.pod_ip,
            host_ip=self._context.settings.node_ip,
            start_time=self._start_time,
            volumes_ready=self._mounted.is_set(),
            finished=self._finished,
            reason=self._reason,
            message=self._message,
        )
        status = pod_status(view, clock.now())
        if status == self._pushed:
            return
        # Both lists are merged by address, and an address from before the agent's restart must go.
        replaced = {
            key: [{"$patch": "replace"}, *status[key]] for key in ("podIPs", "hostIPs") if key in status
        }
        metadata = self._pod["metadata"]
        answer = await self._context.api.patch(
            path_of("pods", metadata["namespace"], metadata["name"], "status"),
            {"metadata": {"uid": self.uid}, "status": {**status, **replaced}},
        )
        self._pushed = status
        answer["metadata"].pop("managedFields", None)
        self.update(answer)

    async def _keep_fresh(self) -> None:
        await self._mounted.wait()
        while not self._stopping:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REFRESH_SECONDS):
                    await self._stale.wait()
            self._stale.clear()
            try:
                await self._volumes.refresh(self._pod)
            except (MountError, OSError, ApiError) as error:
                journal.warning("volumes_not_refreshed", pod=self._where, error=str(error))

    @property
    def _where(self) -> str:
        metadata = self._pod["metadata"]
        return f"{metadata['namespace']}/{metadata['name']}"

    def _event(self, kind: str, reason: str, message: str) -> None:
        self._context.events.record(self._pod, "Warning" if kind == "Warning" else "Normal", reason, message)
