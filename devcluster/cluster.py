"""`Devcluster`: a cluster for as long as an `async with` block runs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from .errors import ComponentDied, DevclusterError, StartFailed, ToolchainUnavailable, Unsupported
from .network import Network
from .supervision import folders, messages
from .supervision.process import die_with_parent
from .toolchain import PROGRAMS, Binaries, find, obtain

DEFAULT_NODE_NAME = "devcluster"
STOP_TIMEOUT_SECONDS = 60.0
"""The supervisor needs at most 15 s for the agent and 5 s for each program; after that it is killed."""
SUPERVISOR = (sys.executable, "-m", "devcluster.supervision")
LINE_LIMIT_BYTES = 1024 * 1024
"""Of what a supervisor says: the end of a log, at most."""


class Devcluster:
    """A Kubernetes cluster on this machine: real API server, etcd and controllers, pods as local processes.

    Args:
        images: the agent's image table (see `devcluster.agent.images`): a mapping, or a JSON file with it.
        data_dir: where its data goes; None is a temporary folder. What a given one holds afterwards is logs.
        agent: False starts the control plane alone: the whole API, but no pod ever runs.
        kubeconfig: where the admin's kubeconfig goes; None is in the data folder. It is removed at the stop.
            A file that is no devcluster's is refused.
        node_name: the name of the only node.
        agent_arguments: more arguments for `python -m devcluster.agent`.
        on_step: called with each step of the start, for a person who waits.

    A Devcluster is started once. It ends with the process that started it, however that one ends.
    """

    def __init__(
        self,
        *,
        images: Mapping[str, Any] | Path | None = None,
        data_dir: Path | None = None,
        agent: bool = True,
        kubeconfig: Path | None = None,
        node_name: str = DEFAULT_NODE_NAME,
        agent_arguments: Sequence[str] = (),
        on_step: Callable[[str], None] | None = None,
    ) -> None:
        self._images = images
        self._data_dir = data_dir
        self._agent = agent
        self._kubeconfig = kubeconfig
        self._node_name = node_name
        self._agent_arguments = tuple(agent_arguments)
        self._on_step = on_step
        self._supervisor: asyncio.subprocess.Process | None = None
        self._ready: messages.Ready | None = None
        self._failure: DevclusterError | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.stop()
        except ComponentDied as death:
            if error is None:
                raise
            # It explains what went wrong in the block, and must not replace it.
            if error is not death:
                error.add_note(str(death))

    async def start(self) -> None:
        """Start the cluster; builds its programs first where that was never done.

        Raises Unsupported, ToolchainUnavailable or StartFailed, with nothing left running.
        """
        if self._supervisor is not None:
            raise RuntimeError("a Devcluster is started once")
        check_platform()
        binaries = await obtain_binaries()
        order = make_order(
            binaries,
            images=read_images(self._images),
            agent=self._agent,
            node_name=self._node_name,
            agent_arguments=self._agent_arguments,
            data_dir=self._data_dir,
            kubeconfig=self._kubeconfig,
            state_dir=None,
            owner_pid=os.getpid(),
        )
        self._supervisor = await spawn_supervisor(order)
        try:
            self._ready = await until_ready(reader(self._supervisor), self._on_step)
        except BaseException:
            await self._end(orderly=False)
            raise

    async def wait(self) -> None:
        """Wait until the cluster has ended. Raises ComponentDied when a part of it died."""
        supervisor = self._started_supervisor()
        while line := await reader(supervisor).readline():
            event = messages.decode_event.decode(line)
            if isinstance(event, messages.Failed):
                self._failure = ComponentDied(event.text)
        status = await supervisor.wait()
        if self._failure is None and status != 0:
            self._failure = ComponentDied(f"The supervisor itself ended with status {status}.")
        if status < 0:
            # It was killed: the kernel has ended its children, the rest is done here.
            await asyncio.to_thread(folders.clear_leftovers)
        if self._failure is not None:
            raise self._failure

    async def restart_api_server(self) -> None:
        """Kill the API server, start it anew with what etcd has, and wait until it answers.

        Every connection and watch breaks, and meanwhile nobody answers at its address. Not beside `wait`, and
        not again after it was cancelled.
        Raises ComponentDied when a part of the cluster died, then or before.
        """
        supervisor = self._started_supervisor()
        # Where it has ended already, what it said tells why.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            writer(supervisor).write(b"restart\n")
            await writer(supervisor).drain()
        while line := await reader(supervisor).readline():
            event = messages.decode_event.decode(line)
            if isinstance(event, messages.Restarted):
                return
            if isinstance(event, messages.Failed):
                self._failure = ComponentDied(event.text)
        await self.wait()

    async def stop(self) -> None:
        """End the cluster and wait until nothing of it is left.

        Raises ComponentDied when a part of it had died before.
        """
        if self._supervisor is not None:
            await self._end(orderly=True)

    async def _end(self, *, orderly: bool) -> None:
        supervisor = self._started_supervisor()
        lifeline = writer(supervisor)
        if orderly and supervisor.returncode is None:
            try:
                lifeline.write(b"stop\n")
                await lifeline.drain()
            except (BrokenPipeError, ConnectionResetError):
                pass  # It has ended already; `wait` tells why.
        lifeline.close()
        try:
            async with asyncio.timeout(STOP_TIMEOUT_SECONDS):
                await self.wait()
        except TimeoutError:
            supervisor.kill()
            await self.wait()
        except ComponentDied:
            if orderly:
                raise

    def _started_supervisor(self) -> asyncio.subprocess.Process:
        if self._supervisor is None:
            raise RuntimeError("the Devcluster has not been started")
        return self._supervisor

    @property
    def description(self) -> messages.Ready:
        """Everything there is to know about the running cluster."""
        if self._ready is None:
            raise RuntimeError("the Devcluster has not been started")
        return self._ready

    @property
    def kubeconfig(self) -> Path:
        """The admin's; its context is `devcluster`."""
        return Path(self.description.kubeconfig)

    @property
    def api_url(self) -> str:
        return self.description.api_url

    @property
    def audit_log(self) -> Path:
        """One JSON object a line for every request that was answered: who, what, which object, no bodies."""
        return Path(self.description.audit_log)

    @property
    def logs_dir(self) -> Path:
        """A log for each program, the agent and the supervisor."""
        return Path(self.description.logs_dir)

    @property
    def network(self) -> Network:
        """Its slice of the loopback network."""
        return Network(self.description.network_number)


def check_platform() -> None:
    """Raises Unsupported where there is no Linux, or one too old."""
    if sys.platform != "linux":
        raise Unsupported(
            "devcluster runs on Linux only. Elsewhere use a cluster in containers, for example kind "
            "(https://kind.sigs.k8s.io), and point KUBECONFIG at it."
        )
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        raise Unsupported(f"devcluster needs Linux 5.3 or newer (pidfd_open: {error.strerror}).") from error


async def obtain_binaries() -> Binaries:
    """The programs; built first where that was never done, with progress on standard error.

    Raises ToolchainUnavailable.
    """
    if any(find(program) is None for program in PROGRAMS):
        # A process of its own, because a thread could not be stopped by a Ctrl-C.
        builder = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "devcluster", "build"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            env=own_environment(),
            preexec_fn=die_with_parent(os.getpid()),
        )
        try:
            status = await builder.wait()
        except BaseException:
            if builder.returncode is None:
                builder.terminate()
                await builder.wait()
            raise
        if status != 0:
            raise ToolchainUnavailable("The programs of the control plane could not be built; see above.")
    return obtain()


def own_environment() -> dict[str, str]:
    """This process's environment, so that another one finds this package wherever it was imported from."""
    here = str(Path(__file__).parent.parent)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))}


def read_images(images: Mapping[str, Any] | Path | None) -> dict[str, Any]:
    """The image table as JSON data. Raises DevclusterError where the file cannot be used."""
    if images is None:
        return {}
    if isinstance(images, Path):
        try:
            return msgspec.json.decode(images.read_bytes(), type=dict[str, Any])
        except (OSError, msgspec.DecodeError) as error:
            raise DevclusterError(f"image table {images}: {error}") from error
    table: dict[str, Any] = msgspec.to_builtins(dict(images))
    return table


def make_order(
    binaries: Binaries,
    *,
    images: dict[str, Any],
    agent: bool,
    node_name: str,
    agent_arguments: Sequence[str],
    data_dir: Path | None,
    kubeconfig: Path | None,
    state_dir: Path | None,
    owner_pid: int | None,
) -> messages.Order:
    """The order with absolute paths: the supervisor works elsewhere."""

    def absolute(path: Path | None) -> str | None:
        return None if path is None else str(path.absolute())

    return messages.Order(
        etcd=str(binaries.etcd),
        kube_apiserver=str(binaries.kube_apiserver),
        kube_controller_manager=str(binaries.kube_controller_manager),
        images=images,
        agent=agent,
        node_name=node_name,
        agent_arguments=list(agent_arguments),
        data_dir=absolute(data_dir),
        kubeconfig=absolute(kubeconfig),
        state_dir=absolute(state_dir),
        owner_pid=owner_pid,
    )


async def spawn_supervisor(order: messages.Order) -> asyncio.subprocess.Process:
    """Start a supervisor and give it its order."""
    supervisor = await asyncio.create_subprocess_exec(
        *SUPERVISOR,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=own_environment(),
        start_new_session=True,
        limit=LINE_LIMIT_BYTES,
    )
    writer(supervisor).write(messages.encode(order) + b"\n")
    await writer(supervisor).drain()
    return supervisor


def reader(supervisor: asyncio.subprocess.Process) -> asyncio.StreamReader:
    """What the supervisor says."""
    if supervisor.stdout is None:
        raise AssertionError("its standard output is a pipe")
    return supervisor.stdout


def writer(supervisor: asyncio.subprocess.Process) -> asyncio.StreamWriter:
    """What the supervisor is told."""
    if supervisor.stdin is None:
        raise AssertionError("its standard input is a pipe")
    return supervisor.stdin


async def until_ready(events: asyncio.StreamReader, on_step: Callable[[str], None] | None) -> messages.Ready:
    """Follow the start. Raises StartFailed."""
    while line := await events.readline():
        event = messages.decode_event.decode(line)
        match event:
            case messages.Starting():
                if on_step is not None:
                    on_step(event.step)
            case messages.Ready():
                return event
            case messages.Failed():
                raise StartFailed(event.text)
            case messages.Stopped():
                raise StartFailed("The cluster was told to end before it was ready.")
    raise StartFailed("The supervisor ended before the cluster was ready.")
