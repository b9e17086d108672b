"""Starts a cluster's programs in order, watches them, ends them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from devcluster.controlplane import bootstrap, commands, credentials
from devcluster.controlplane.api import Api, ApiError, tls_context
from devcluster.controlplane.volumes import VolumeProvisioner
from devcluster.errors import DevclusterError, StartFailed
from devcluster.network import Network, claim_network, free_port
from devcluster.toolchain import Binaries

from . import messages
from .component import Component
from .folders import Place, register
from .process import become_subreaper, children, start_time

START_TIMEOUT_SECONDS = 180.0
"""For each step. A step takes seconds; a machine that is busy building takes its time."""
POLL_SECONDS = 0.05
BOUND_LOGS_SECONDS = 60.0
STATE_FILE = "devcluster.json"

# How long each may take to end when asked to; what it still had to do is of no use when the cluster goes
# away.
AGENT_GRACE_SECONDS = 15.0
PROGRAM_GRACE_SECONDS = 3.0

log = logging.getLogger(__name__)


class Supervisor:
    """One cluster."""

    def __init__(self, order: messages.Order, place: Place, network: Network) -> None:
        self._order = order
        self._place = place
        self._network = network
        self._components: list[Component] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._held = contextlib.AsyncExitStack()
        self._api: Api | None = None
        self._api_server: tuple[Component, list[str]] | None = None
        self._wanted_anew = asyncio.Event()
        self._environment = {**os.environ, "DEVCLUSTER_ID": place.id}

    @property
    def components(self) -> list[Component]:
        """What has been started, in that order."""
        return self._components

    def _start(self, name: str, command: list[str]) -> Component:
        component = Component(
            name, command, log=self._place.layout.logs / f"{name}.log", environment=self._environment
        )
        self._components.append(component)
        self._place.started(name, component.pid)
        return component

    async def start(self) -> messages.Ready:
        """Start everything. Raises StartFailed, with nothing stopped yet."""
        order, network, layout = self._order, self._network, self._place.layout
        binaries = Binaries(Path(order.etcd), Path(order.kube_apiserver), Path(order.kube_controller_manager))
        ports = commands.Ports(
            etcd_client=free_port(network.etcd_address, preferred=2379),
            etcd_peer=free_port(network.etcd_address, preferred=2380),
            api_server=free_port(network.api_address, preferred=6443),
            controller_manager=free_port(network.controller_manager_address, preferred=10257),
        )
        api_url = f"https://{network.api_address}:{ports.api_server}"
        kubeconfig = Path(order.kubeconfig) if order.kubeconfig else layout.kubeconfig
        made = credentials.create(
            layout.certificates,
            network=network,
            api_url=api_url,
            node_name=order.node_name,
            admin_kubeconfig=kubeconfig,
        )
        files = commands.Files(layout.etcd, layout.audit_policy, layout.audit_log, layout.certificates)
        files.audit_policy.write_text(commands.AUDIT_POLICY)
        layout.images.write_bytes(msgspec.json.encode(order.images))

        tell(messages.Starting("etcd"))
        etcd = self._start("etcd", commands.etcd(binaries, network, ports, files, made))
        async with _etcd_health(network, ports, made) as healthy:
            await self._until(healthy, "etcd is healthy", etcd)

        tell(messages.Starting("kube-apiserver"))
        command = commands.api_server(binaries, network, ports, files, made)
        server = self._start("kube-apiserver", command)
        self._api_server = server, command
        api = await self._held.enter_async_context(
            Api(api_url, authority=made.cluster_ca.certificate, client=made.supervisor)
        )
        self._api = api
        await self._until(api.ready, "the API server is ready", server)

        tell(messages.Starting("kube-controller-manager"))
        manager = self._start(
            "kube-controller-manager", commands.controller_manager(binaries, network, ports, files, made)
        )
        await self._until(lambda: bootstrap.objects_are_applied(api), "the first objects are applied", server)
        self._tasks.append(asyncio.create_task(VolumeProvisioner(api, layout.volumes).run()))
        self._tasks.append(asyncio.create_task(self._bound_logs()))
        agent = self._start("agent", self._agent_command(made)) if order.agent else None
        await self._until(
            lambda: bootstrap.pods_are_admitted(api), "namespaces have service accounts", manager
        )
        if agent is not None:
            tell(messages.Starting("node agent"))
            node = order.node_name
            await self._until(lambda: bootstrap.node_is_ready(api, node), "the node is ready", agent)

        return messages.Ready(
            id=self._place.id,
            supervisor_pid=os.getpid(),
            supervisor_start_time=start_time(os.getpid()) or 0,
            network_number=network.number,
            api_url=api_url,
            kubeconfig=str(kubeconfig),
            data_dir=str(layout.root),
            logs_dir=str(layout.logs),
            audit_log=str(layout.audit_log),
            agent=order.agent,
        )

    def _agent_command(self, made: credentials.Credentials) -> list[str]:
        order, network, layout = self._order, self._network, self._place.layout
        return [
            sys.executable,
            "-m",
            "devcluster.agent",
            f"--kubeconfig={made.agent_kubeconfig}",
            f"--node-name={order.node_name}",
            f"--node-ip={network.node_address}",
            f"--pod-cidr={network.pod_cidr}",
            f"--service-cidr={network.service_cidr}",
            f"--data-dir={layout.agent}",
            f"--images={layout.images}",
            f"--port={free_port(network.node_address, preferred=10250)}",
            f"--tls-cert={made.agent_server.certificate}",
            f"--tls-key={made.agent_server.key}",
            f"--client-ca={made.kubelet_client_ca}",
            f"--front-proxy-ca={made.front_proxy_ca}",
            f"--hide={layout.root}",
            *order.agent_arguments,
        ]

    async def _until(self, holds: Callable[[], Awaitable[bool]], what: str, component: Component) -> None:
        """Wait for a condition. Raises StartFailed when a component dies first, or it takes too long.

        A call that fails meanwhile is no reason to give up: a machine under load takes its time.
        """
        trouble = ""
        try:
            async with asyncio.timeout(START_TIMEOUT_SECONDS):
                while True:
                    try:
                        if await holds():
                            return
                    except ApiError as error:
                        trouble = f" ({error})"
                    if dead := next((one for one in self._components if one.ended.done()), None):
                        raise StartFailed(obituary(dead))
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            raise StartFailed(
                f"After {START_TIMEOUT_SECONDS:.0f} s it is still not so that {what}{trouble}. "
                f"The end of the log of {component.name}:\n{component.tail()}"
            ) from None

    def restart_api_server(self) -> None:
        """Have it killed, and started anew with what etcd has; `watch` does it."""
        self._wanted_anew.set()

    async def watch(self, *, until: asyncio.Future[bool]) -> str | None:
        """Wait until something goes wrong, and answer what; None when `until` is done before."""
        while True:
            wanted = asyncio.create_task(self._wanted_anew.wait())
            ends: list[asyncio.Future[Any]] = [until, *(one.ended for one in self._components), *self._tasks]
            await asyncio.wait([*ends, wanted], return_when=asyncio.FIRST_COMPLETED)
            wanted.cancel()
            for component in self._components:
                if component.ended.done():
                    return obituary(component)
            for task in self._tasks:
                if task.done():
                    # These end by a bug only: it shows with its traceback.
                    task.result()
            if until.done():
                return None
            self._wanted_anew.clear()
            anew = asyncio.create_task(self._start_api_server_anew())
            first: list[asyncio.Future[Any]] = [until, anew]
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            if not anew.done():
                anew.cancel()
                await asyncio.wait([anew])
                return None
            try:
                anew.result()
            except StartFailed as error:
                return str(error)
            tell(messages.Restarted())

    async def _start_api_server_anew(self) -> None:
        if self._api is None or self._api_server is None:
            raise AssertionError("the cluster has been started")
        old, command = self._api_server
        old.kill()
        await old.ended
        self._components.remove(old)
        server = self._start(old.name, command)
        self._components.remove(server)
        # where it was: they are ended in the reverse of this order
        self._components.insert(1, server)
        self._api_server = server, command
        await self._until(self._api.ready, "the API server is ready again", server)

    async def _bound_logs(self) -> None:
        while True:
            await asyncio.sleep(BOUND_LOGS_SECONDS)
            for component in self._components:
                component.bound_log()

    async def stop(self) -> None:
        """End everything in good order: etcd last, since its loss keeps an API server busy for a minute."""
        await self._let_go()
        for component in reversed(self._components):
            grace = AGENT_GRACE_SECONDS if component.name == "agent" else PROGRAM_GRACE_SECONDS
            await component.stop(grace_seconds=grace)

    async def close(self) -> None:
        """Kill what still runs, whatever it is, and let go of everything."""
        kill_all(self._components)
        await self._let_go()

    async def _let_go(self) -> None:
        # Open watches of its own would keep the API server from ending.
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        await self._held.aclose()


def obituary(component: Component) -> str:
    """What to tell about a component that has ended."""
    status = component.ended.result()
    how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
    return f"{component.name} {how}. The end of its log:\n{component.tail()}"


def tell(event: messages.Event) -> None:
    """Say something to the owner, if it still listens."""
    with contextlib.suppress(BrokenPipeError):
        os.write(sys.stdout.fileno(), messages.encode(event) + b"\n")


@contextlib.asynccontextmanager
async def _etcd_health(
    network: Network, ports: commands.Ports, made: credentials.Credentials
) -> AsyncIterator[Callable[[], Awaitable[bool]]]:
    url = f"https://{network.etcd_address}:{ports.etcd_client}/health"
    connector = aiohttp.TCPConnector(ssl=tls_context(made.etcd_ca, made.etcd_client))
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=5)) as session:

        async def healthy() -> bool:
            try:
                async with session.get(url) as answer:
                    return answer.status == 200
            except (aiohttp.ClientError, OSError):
                return False

        yield healthy


def kill_all(known: list[Component]) -> None:
    """Kill every descendant. As orphans become this process's children, the loop ends when there are none."""
    for component in known:
        component.kill()
    with contextlib.suppress(ChildProcessError):
        while True:
            for pid in children(os.getpid()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            # Whichever ends first: the first process of a PID namespace ends only after those that entered
            # it from outside, a probe's command for one, have been waited for.
            os.waitpid(-1, 0)


def _reap_orphans(supervisor: Supervisor) -> None:
    own = {component.pid for component in supervisor.components}
    for pid in children(os.getpid()):
        if pid not in own:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


class _Owner:
    """What the owner wants: above all that the cluster ends, because it says so or has died."""

    def __init__(self) -> None:
        self.ending: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        """True: in good order. False: at once, nobody waits for it any more."""
        self.on_restart: Callable[[], None] | None = None
        self._said = b""

    def end(self, orderly: bool) -> None:
        if not self.ending.done():
            self.ending.set_result(orderly)

    def listen_to_life(self, owner: int) -> None:
        loop = asyncio.get_running_loop()
        handle = os.pidfd_open(owner)
        loop.add_reader(handle, self._died, handle)

    def listen_to_pipe(self) -> None:
        asyncio.get_running_loop().add_reader(sys.stdin.fileno(), self._pipe_spoke)

    def leave_pipe(self) -> None:
        """From here on nobody at the other end is needed."""
        asyncio.get_running_loop().remove_reader(sys.stdin.fileno())

    def _died(self, handle: int) -> None:
        asyncio.get_running_loop().remove_reader(handle)
        os.close(handle)
        self.end(orderly=False)

    def _pipe_spoke(self) -> None:
        said = os.read(sys.stdin.fileno(), 4096)
        *lines, self._said = (self._said + said).split(b"\n")
        for line in lines:
            if line == b"restart" and self.on_restart is not None:
                self.on_restart()
            if line == b"stop":
                self.leave_pipe()
                self.end(orderly=True)
                return
        if not said:
            self.leave_pipe()
            self.end(orderly=False)


async def supervise(order: messages.Order) -> messages.Event:
    """Run a cluster from its start to its end; answers how it ended."""
    loop = asyncio.get_running_loop()
    owner = _Owner()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, owner.end, True)
    owner.listen_to_pipe()
    if order.owner_pid is not None:
        try:
            owner.listen_to_life(order.owner_pid)
        except ProcessLookupError:
            return messages.Stopped()
    kubeconfig = Path(order.kubeconfig) if order.kubeconfig else None
    if kubeconfig is not None and kubeconfig.exists() and credentials.server_of(kubeconfig) is None:
        raise DevclusterError(f"{kubeconfig} is not a devcluster's and would be lost; name another file.")
    with register(Path(order.data_dir) if order.data_dir else None) as place:
        _log_to(place.layout.logs / "supervisor.log")
        claim = claim_network()
        supervisor = Supervisor(order, place, claim.network)
        loop.add_signal_handler(signal.SIGCHLD, _reap_orphans, supervisor)
        try:
            return await _run(supervisor, order, owner)
        finally:
            loop.remove_signal_handler(signal.SIGCHLD)
            await supervisor.close()
            if kubeconfig is not None:
                _remove_own(kubeconfig, claim.network)
            claim.release()


def _remove_own(kubeconfig: Path, network: Network) -> None:
    """Remove it unless it has become another's meanwhile."""
    if (credentials.server_of(kubeconfig) or "").startswith(f"https://{network.api_address}:"):
        kubeconfig.unlink(missing_ok=True)


async def _run(supervisor: Supervisor, order: messages.Order, owner: _Owner) -> messages.Event:
    start = asyncio.create_task(supervisor.start())
    first: list[asyncio.Future[Any]] = [start, owner.ending]
    await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
    if not start.done():
        start.cancel()
        await asyncio.wait([start])
        if owner.ending.result():
            await supervisor.stop()
        return messages.Stopped()
    try:
        ready = start.result()
    except StartFailed as error:
        return messages.Failed(started=False, text=str(error))
    if order.owner_pid is None:
        owner.leave_pipe()
    owner.on_restart = supervisor.restart_api_server
    with _state_file(order, ready):
        tell(ready)
        trouble = await supervisor.watch(until=owner.ending)
        if trouble is not None:
            return messages.Failed(started=True, text=trouble)
        if owner.ending.result():
            await supervisor.stop()
    return messages.Stopped()


@contextlib.contextmanager
def _state_file(order: messages.Order, ready: messages.Ready) -> Iterator[None]:
    if order.state_dir is None:
        yield
        return
    path = Path(order.state_dir) / STATE_FILE
    unfinished = path.with_suffix(".new")
    unfinished.write_bytes(msgspec.json.format(messages.encode(ready)) + b"\n")
    unfinished.replace(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _log_to(path: Path) -> None:
    """From here on whatever this process complains about goes to its own log."""
    with path.open("ab") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")


def main() -> int:
    """Read the order, run the cluster; the exit status tells whether it ended as asked."""
    order = messages.decode_order.decode(sys.stdin.buffer.readline())
    if order.owner_pid is None and os.fork() != 0:
        # Detached: nobody's child, so that nobody has to wait for it.
        os._exit(0)
    become_subreaper()
    try:
        event = asyncio.run(supervise(order))
    except Exception as error:
        match error:
            case DevclusterError():
                text = str(error)
            case OSError():
                # Its repr would not tell the file.
                text = f"The supervisor failed: {error}"
            case _:
                text = f"The supervisor failed: {error!r}"
        tell(messages.Failed(started=False, text=text))
        raise
    tell(event)
    return 0 if isinstance(event, messages.Stopped) else 1
