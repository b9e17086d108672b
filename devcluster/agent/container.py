"""One container's life: start, probes, hooks, end, and start again after a back-off."""

import asyncio
import contextlib
import dataclasses
import datetime as dt
import os
import signal
import sys
import time
import uuid
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol

from devcluster.agent import clock, journal, probes, sandbox
from devcluster.agent.api import Object
from devcluster.agent.context import NodeContext
from devcluster.agent.env import ConfigError, container_variables, service_variables
from devcluster.agent.env import expand as expand_variables
from devcluster.agent.images import Found
from devcluster.agent.logs import ContainerLog, pump
from devcluster.agent.sandbox import Mount, SandboxError, SandboxProcess, SandboxSpec
from devcluster.agent.status import ContainerView, Role, Running, State, Terminated, Waiting

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CONFIG_RETRY_SECONDS = 5.0
STEADY_AFTER_SECONDS = 600.0
"""A container that ran this long starts its back-off anew, as with a kubelet."""
SHORTEST_GRACE_SECONDS = 2.0
"""What a kubelet leaves a container between SIGTERM and SIGKILL at least."""
LOG_DRAIN_SECONDS = 2.0
TERMINATION_MESSAGE_BYTES = 4096
FALLBACK_LOG_LINES, FALLBACK_LOG_BYTES = 80, 2048
KEPT_LOGS = 2
PROJECT = Path(__file__).resolve().parents[2]

RestartPolicy = Literal["Always", "OnFailure", "Never"]


class PodSide(Protocol):
    """What a container needs from its pod."""

    @property
    def pod(self) -> Object:
        """The pod as last seen."""

    @property
    def pod_ip(self) -> str:
        """Its address."""

    @property
    def directory(self) -> Path:
        """Its directory on the host."""

    @property
    def grace_seconds(self) -> float:
        """How long its containers may take to end."""

    def mounts(self, container: Object, variables: dict[str, str]) -> list[Mount]:
        """The container's volumes and the pod's `/etc/hosts`."""

    def changed(self) -> None:
        """A container's view is another one now."""


@dataclasses.dataclass(frozen=True)
class _Prepared:
    """A container that could be started."""

    spec: SandboxSpec
    found: Found
    termination_log: Path
    variables: dict[str, str] = dataclasses.field(repr=False)


class Container:
    """A container of a pod. `run` lives as long as it may run again; `view` is what it looks like now."""

    def __init__(
        self,
        context: NodeContext,
        side: PodSide,
        spec: Object,
        *,
        role: Role,
        restart: RestartPolicy,
        previous: Object | None,
    ) -> None:
        """`previous` is its status from before the agent was restarted."""
        self._context = context
        self._side = side
        self._spec = spec
        self._restart = restart
        self.view = ContainerView(
            name=spec["name"],
            role=role,
            image=spec["image"],
            state=Waiting(
                "PodInitializing"
                if role == "main" and side.pod["spec"].get("initContainers")
                else "ContainerCreating"
            ),
        )
        if previous is not None and previous.get("containerID"):
            self._resume(previous)
        self.logs: deque[ContainerLog] = deque()
        """Of the runs so far, the newest last."""
        self.idle = asyncio.Event()
        """Set while no process of it runs."""
        self.idle.set()
        self.started_or_ended = asyncio.Event()
        """Set once it has started, or will never run again."""
        self._runs = self.view.restart_count + (1 if self.view.last else 0)
        self._backoff_seconds = 0.0
        self._stopping = False
        self._ending = False
        self._wake = asyncio.Event()
        self._process: SandboxProcess | None = None
        self._prepared: _Prepared | None = None
        self._kill_timer: asyncio.Handle | None = None
        self._kill_at = 0.0
        """When it fires, by the loop's clock: uvloop's handles don't tell where that is now."""
        self._probe_tasks: list[asyncio.Task[None]] = []
        self._ending_task: asyncio.Task[None] | None = None
        self._bug: BaseException | None = None

    def _resume(self, previous: Object) -> None:
        state = previous.get("state") or {}
        ended = state.get("terminated")
        now = clock.now()
        started = (ended or state.get("running") or {}).get("startedAt")
        last = Terminated(
            exit_code=ended["exitCode"] if ended else 137,
            reason=ended["reason"] if ended else "ContainerStatusUnknown",
            message="" if ended else "The container's process ended with the node agent that ran it",
            started_at=clock.parse(started) if started else now,
            finished_at=clock.parse(ended["finishedAt"]) if ended and ended.get("finishedAt") else now,
            container_id=previous["containerID"],
        )
        state_now: State = self.view.state
        if self._restart == "Never" or (self._restart == "OnFailure" and last.exit_code == 0):
            state_now = last
        self._set(
            state=state_now,
            last=last,
            restart_count=previous.get("restartCount", 0),
            container_id=previous["containerID"],
            image_id=previous.get("imageID", ""),
            tell=False,
        )

    @property
    def pid(self) -> int | None:
        """The host's id of its first process, from which all its others descend; None while none runs."""
        process = self._process
        return process.pid if process is not None and process.running else None

    def _set(self, *, tell: bool = True, **fields: Any) -> None:
        self.view = dataclasses.replace(self.view, **fields)
        if tell:
            self._side.changed()

    # --- the life ---------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run it, again and again where its restart policy says so; ends when it will not run any more."""
        try:
            if not isinstance(self.view.state, Terminated):
                await self._run_until_done()
        finally:
            self.started_or_ended.set()

    async def _run_until_done(self) -> None:
        while not self._stopping:
            ended = await self._run_once()
            if ended is None:
                continue
            again = self._restart == "Always" or (self._restart == "OnFailure" and ended.exit_code != 0)
            if not again:
                return
            if not self._stopping:
                await self._back_off(ended)

    async def _run_once(self) -> Terminated | None:
        """One run, or None where it could not be tried."""
        prepared = await self._prepare()
        if prepared is None or self._stopping:
            return None
        container_id = f"devcluster://{uuid.uuid4().hex}{uuid.uuid4().hex}"
        started_at = clock.now()
        count = self._runs
        try:
            log = self._new_log(count)
        except OSError as error:
            await self._not_created(error)
            return None
        self._runs += 1
        try:
            process = await sandbox.start(prepared.spec)
        except SandboxError as error:
            log.close()
            self._event("Warning", "Failed", f"Error: {error}")
            ended = Terminated(128, "StartError", started_at, clock.now(), str(error), container_id)
            self._set(
                state=ended, container_id=container_id, restart_count=count, image_id=prepared.found.image_id
            )
            return ended
        self._process, self._prepared = process, prepared
        self.idle.clear()
        self._event("Normal", "Created", f"Container created: {self.view.name}")
        self._event("Normal", "Started", f"Container started: {self.view.name}")
        self._set(
            state=Running(started_at),
            container_id=container_id,
            restart_count=count,
            image_id=prepared.found.image_id,
            ready=False,
            started=False,
        )
        journal.info(
            "container_started", pod=self._where, container=self.view.name, pid=process.pid, restarts=count
        )
        code = await self._attend(process, log)
        ended = self._ended(code, started_at, container_id, prepared, log)
        self._set(state=ended, ready=False, started=False)
        journal.info("container_ended", pod=self._where, container=self.view.name, exit_code=code)
        return ended

    async def _attend(self, process: SandboxProcess, log: ContainerLog) -> int:
        """Be there while the process runs; its exit code."""
        pumps = [
            asyncio.create_task(pump(process.stdout, "stdout", log, time.time_ns)),
            asyncio.create_task(pump(process.stderr, "stderr", log, time.time_ns)),
        ]
        life = asyncio.create_task(self._after_start())
        for helper in (*pumps, life):
            helper.add_done_callback(self._helper_ended)
        try:
            if self._stopping:
                process.kill()
            code = await process.wait()
            await asyncio.wait(pumps, timeout=LOG_DRAIN_SECONDS)
            if self._bug is not None:
                raise self._bug
            return code
        finally:
            process.kill()
            if self._kill_timer is not None:
                self._kill_timer.cancel()
                self._kill_timer = None
            self._process = None
            self.idle.set()
            await probes.stop(life, *self._probe_tasks, *pumps)
            self._probe_tasks = []
            if self._ending_task is not None and self._ending_task is not asyncio.current_task():
                await probes.stop(self._ending_task)
                self._ending_task = None
            self._ending = False
            log.close()

    def _helper_ended(self, task: "asyncio.Task[None]") -> None:
        """A helper that fails by a bug must be heard of: a probe would look no more, a log would end."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._bug = error
            self.kill_now()

    def _ended(
        self,
        code: int,
        started_at: dt.datetime,
        container_id: str,
        prepared: _Prepared,
        log: ContainerLog,
    ) -> Terminated:
        try:
            with prepared.termination_log.open("rb") as stream:
                message = stream.read(TERMINATION_MESSAGE_BYTES).decode(errors="replace")
        except OSError:
            message = ""
        if (
            not message
            and code != 0
            and self._spec.get("terminationMessagePolicy") == "FallbackToLogsOnError"
        ):
            message = log.text_tail(FALLBACK_LOG_LINES, FALLBACK_LOG_BYTES)
        reason = "Completed" if code == 0 else "Error"
        return Terminated(code, reason, started_at, clock.now(), message, container_id)

    async def _back_off(self, ended: Terminated) -> None:
        settings = self._context.settings
        if (ended.finished_at - ended.started_at).total_seconds() >= STEADY_AFTER_SECONDS:
            self._backoff_seconds = 0.0
        if self._backoff_seconds == 0.0:
            self._backoff_seconds = settings.backoff_initial_seconds
            self._set(last=ended, tell=False)
            return
        delay = self._backoff_seconds
        self._backoff_seconds = min(delay * 2, settings.backoff_limit_seconds)
        metadata = self._side.pod["metadata"]
        pod = f"{metadata['name']}_{metadata['namespace']}({metadata['uid']})"
        self._event(
            "Warning", "BackOff", f"Back-off restarting failed container {self.view.name} in pod {pod}"
        )
        self._set(
            last=ended,
            state=Waiting(
                "CrashLoopBackOff",
                f"back-off {delay:g}s restarting failed container={self.view.name} pod={pod}",
            ),
        )
        await self._pause(delay, until_nudged=False)

    async def _pause(self, seconds: float, *, until_nudged: bool) -> None:
        """Wait; ends early when the container is to stop, or when something it refers to changed."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while not self._stopping and (left := deadline - loop.time()) > 0:
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._wake.wait()
                if until_nudged:
                    return

    def nudge(self) -> None:
        """Something the container may refer to has changed."""
        self._wake.set()

    # --- before the start -------------------------------------------------------------------------------

    async def _prepare(self) -> _Prepared | None:
        """Everything for a start; None, after a pause, where something is missing."""
        name = self._spec["image"]
        found = self._context.find_image(name)
        if found is None:
            await self._image_missing(name)
            return None
        try:
            return await self._assemble(found)
        except (ConfigError, OSError) as error:
            await self._not_created(error)
            return None

    async def _not_created(self, error: ConfigError | OSError) -> None:
        """Say why it cannot be made now, and wait: something it refers to, disk space or descriptors lack."""
        if self._stopping:
            return
        reason = "CreateContainerConfigError" if isinstance(error, ConfigError) else "CreateContainerError"
        self._event("Warning", "Failed", f"Error: {error}")
        self._set(state=Waiting(reason, str(error)))
        await self._pause(CONFIG_RETRY_SECONDS, until_nudged=True)

    async def _image_missing(self, name: str) -> None:
        settings = self._context.settings
        table = settings.images
        message = f'no program for image "{name}": the image table {table} has no entry for it'
        self._event("Warning", "Failed", f'Failed to pull image "{name}": {message}')
        self._event("Warning", "Failed", "Error: ErrImagePull")
        self._set(state=Waiting("ErrImagePull", message))
        delay = max(self._backoff_seconds, settings.backoff_initial_seconds)
        await self._pause(min(1.0, delay / 2), until_nudged=False)
        if self._stopping:
            return
        self._event("Normal", "BackOff", f'Back-off pulling image "{name}"')
        self._set(
            state=Waiting("ImagePullBackOff", f'Back-off pulling image "{name}": ErrImagePull: {message}')
        )
        await self._pause(delay, until_nudged=False)

    async def _assemble(self, found: Found) -> _Prepared:
        pod, image = self._side.pod, found.image
        metadata, spec = pod["metadata"], pod["spec"]
        self._event("Normal", "Pulled", f'Container image "{self._spec["image"]}" already present on machine')
        hostname = spec.get("hostname") or metadata["name"]
        identity = {
            "POD_IP": self._side.pod_ip,
            "POD_NAME": metadata["name"],
            "POD_NAMESPACE": metadata["namespace"],
        }
        services = service_variables(
            self._context.services(),
            metadata["namespace"],
            links=spec.get("enableServiceLinks", True),
            api_server=self._context.api_server,
        )
        wanted = await container_variables(
            pod,
            self._spec,
            self._context.lookup,
            services=services,
            pod_ip=self._side.pod_ip,
            host_ip=self._context.settings.node_ip,
        )
        variables = {
            "PATH": ":".join([*image.path, PATH]),
            "HOME": "/root",
            "HOSTNAME": hostname,
            **{key: expand_variables(value, {**identity, **wanted}) for key, value in image.env.items()},
            **wanted,
        }
        argv = image.argv(self._spec.get("command"), self._spec.get("args"), {**identity, **variables})
        if not argv:
            raise ConfigError(
                f"no command specified: neither the pod nor image {self._spec['image']} has one"
            )
        own = self._side.directory / "containers" / self.view.name
        own.mkdir(parents=True, exist_ok=True)
        termination_log = own / f"termination-{self._runs}"
        termination_log.write_bytes(b"")
        termination_log.chmod(0o666)
        message_path = self._spec.get("terminationMessagePath") or "/dev/termination-log"
        mounts = [
            *self._side.mounts(self._spec, variables),
            Mount(str(termination_log), _resolved(message_path)),
        ]
        settings = self._context.settings
        security = self._spec.get("securityContext") or {}
        sandbox_spec = SandboxSpec(
            argv=argv,
            env=variables,
            working_dir=self._spec.get("workingDir") or image.working_dir,
            hostname=hostname,
            root=own / "root",
            mounts=mounts,
            keep=[*image.host_paths(), sys.prefix, sys.base_prefix, str(PROJECT)],
            hidden=[str(settings.data_dir), *(str(path) for path in settings.hide)],
            read_only_root=bool(security.get("readOnlyRootFilesystem")),
        )
        return _Prepared(sandbox_spec, found, termination_log, {**identity, **variables})

    def _new_log(self, number: int) -> ContainerLog:
        file = self._side.directory / "logs" / self.view.name / f"{number}.log"
        log = ContainerLog(file, limit_bytes=self._context.settings.log_file_bytes)
        self.logs.append(log)
        while len(self.logs) > KEPT_LOGS:
            self.logs.popleft().remove()
        return log

    # --- while it runs ----------------------------------------------------------------------------------

    async def _after_start(self) -> None:
        """The postStart hook, then the probes."""
        if hook := (self._spec.get("lifecycle") or {}).get("postStart"):
            outcome = await probes.look(hook, self._target(), self._side.grace_seconds)
            if not outcome.success:
                self._event("Warning", "FailedPostStartHook", f"PostStartHook failed: {outcome.message}")
                self._end_in_background(self._side.grace_seconds, "FailedPostStartHook")
                return
        if self._spec.get("startupProbe"):
            self._start_probe("Startup", self._startup_verdict)
        else:
            self._has_started()

    def _has_started(self) -> None:
        self._set(started=True, ready=not self._spec.get("readinessProbe"))
        self.started_or_ended.set()
        if self._spec.get("livenessProbe"):
            self._start_probe("Liveness", self._liveness_verdict)
        if self._spec.get("readinessProbe"):
            self._start_probe("Readiness", self._readiness_verdict)

    def _start_probe(self, kind: probes.Kind, on_verdict: Callable[[bool], None]) -> None:
        probe = self._spec[f"{kind.lower()}Probe"]
        target = self._target()
        loop = probes.probe_until_cancelled(
            probe,
            lambda handler, timeout: probes.look(handler, target, timeout),
            initially=kind == "Liveness",
            on_failure=lambda message: self._event("Warning", "Unhealthy", f"{kind} probe failed: {message}"),
            on_verdict=on_verdict,
        )
        task = asyncio.create_task(loop)
        task.add_done_callback(self._helper_ended)
        self._probe_tasks.append(task)

    def _startup_verdict(self, success: bool) -> None:
        if success and not self.view.started:
            self._probe_tasks.pop(0).cancel()
            self._has_started()
        elif not success:
            self._failed_probe("startup")

    def _liveness_verdict(self, success: bool) -> None:
        if not success:
            self._failed_probe("liveness")

    def _readiness_verdict(self, success: bool) -> None:
        if success != self.view.ready:
            self._set(ready=success)

    def _failed_probe(self, kind: str) -> None:
        if self._stopping or self._ending:
            return
        probe = self._spec[f"{kind}Probe"]
        grace = probe.get("terminationGracePeriodSeconds", self._side.grace_seconds)
        self._end_in_background(grace, f"Container {self.view.name} failed {kind} probe, will be restarted")

    def _end_in_background(self, grace_seconds: float, message: str) -> None:
        self._ending_task = asyncio.create_task(self._end_process(grace_seconds, message))
        self._ending_task.add_done_callback(self._helper_ended)

    def _target(self) -> probes.Target:
        process, prepared = self._process, self._prepared
        if process is None or prepared is None:
            raise RuntimeError("a container that does not run has nothing to look at")

        async def run(argv: list[str]) -> SandboxProcess:
            program = prepared.found.image.program(argv, prepared.variables)
            return await sandbox.start_inside(process, program, prepared.spec.env, prepared.spec.working_dir)

        return probes.Target(self._side.pod_ip, self._spec, run, self._context.probe_http)

    # --- its end ----------------------------------------------------------------------------------------

    async def stop(self, grace_seconds: float) -> None:
        """End it for good: preStop, SIGTERM, and SIGKILL when the grace is over. `run` ends soon after."""
        self._stopping = True
        self._wake.set()
        if self._ending:
            self.kill_within(grace_seconds)
        elif self._process is not None:
            await self._end_process(grace_seconds, f"Stopping container {self.view.name}")

    async def _end_process(self, grace_seconds: float, message: str) -> None:
        process = self._process
        if process is None or self._ending:
            return
        self._ending = True
        self._event("Normal", "Killing", message)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + grace_seconds
        hook = (self._spec.get("lifecycle") or {}).get("preStop")
        if hook and grace_seconds > 0:
            outcome = await probes.look(hook, self._target(), grace_seconds)
            if not outcome.success:
                self._event("Warning", "FailedPreStopHook", f"PreStopHook failed: {outcome.message}")
        process.send(signal.SIGTERM)
        self.kill_within(max(deadline - loop.time(), SHORTEST_GRACE_SECONDS))

    def kill_within(self, seconds: float) -> None:
        """Have SIGKILL sent after some time, or earlier where that was settled before."""
        process = self._process
        if process is None:
            return
        when = asyncio.get_running_loop().time() + seconds
        if self._kill_timer is not None:
            when = min(when, self._kill_at)
            self._kill_timer.cancel()
        self._kill_timer, self._kill_at = asyncio.get_running_loop().call_at(when, process.kill), when

    def terminate_now(self) -> None:
        """SIGTERM at once, without hooks: the node goes down. It will not be started again."""
        self._stopping = True
        self._wake.set()
        if self._process is not None:
            self._process.send(signal.SIGTERM)

    def kill_now(self) -> None:
        """SIGKILL at once. It will not be started again."""
        self._stopping = True
        self._wake.set()
        if self._process is not None:
            self._process.kill()

    def settle(self) -> None:
        """What never ran, or waits to run again, counts as ended now that the pod goes away."""
        if isinstance(self.view.state, Waiting):
            if self.view.last is not None:
                self._set(state=self.view.last, tell=False)
            else:
                now = clock.now()
                self._set(
                    state=Terminated(137, "ContainerStatusUnknown", now, now, "The container never started"),
                    tell=False,
                )

    # --- telling ----------------------------------------------------------------------------------------

    @property
    def _where(self) -> str:
        metadata = self._side.pod["metadata"]
        return f"{metadata['namespace']}/{metadata['name']}"

    def _event(self, kind: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        self._context.events.record(self._side.pod, kind, reason, message, container=self.view.name)


def _resolved(path: str) -> str:
    return os.path.realpath(os.path.normpath("/" + path))
