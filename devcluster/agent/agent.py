"""The agent as a whole: what watches what, who is told, and how everything ends."""

import asyncio
import contextlib
import shutil
from collections.abc import Iterator
from typing import Any, Literal

from devcluster.agent import journal, metrics_api, probes
from devcluster.agent.addresses import PodAddresses
from devcluster.agent.api import Api, Object, path_of
from devcluster.agent.container import Container
from devcluster.agent.context import NodeContext
from devcluster.agent.events import EventRecorder
from devcluster.agent.hosts import service_lines
from devcluster.agent.images import Found, ImageTable, ImageTableError
from devcluster.agent.node import Node
from devcluster.agent.pod import PodRunner
from devcluster.agent.proxy import ServiceProxy, may_listen_on
from devcluster.agent.scheduler import Scheduler
from devcluster.agent.server import KubeletServer
from devcluster.agent.settings import AgentSettings
from devcluster.agent.usage import Process, UsageSampler
from devcluster.agent.watch import Reflector

HOSTS_SETTLE_SECONDS = 0.02
API_PORT = 443
"""Of the Service `kubernetes`, which an ordinary user may not listen on."""


class Images:
    """The image table as its file has it now."""

    def __init__(self, settings: AgentSettings) -> None:
        """Raises ImageTableError where the table cannot be used."""
        self._file = settings.images
        self._read_at = self._file.stat().st_mtime_ns if self._file.exists() else 0
        self._table = ImageTable.load(self._file)

    def find(self, name: str) -> Found | None:
        """An image by the name a pod uses. A table that became unreadable leaves the last one in force."""
        with contextlib.suppress(OSError):
            changed = self._file.stat().st_mtime_ns
            if changed != self._read_at:
                self._read_at = changed
                try:
                    self._table = ImageTable.load(self._file)
                except ImageTableError as error:
                    journal.warning("image_table_not_read", error=str(error))
        return self._table.find(name)


class Agent:
    """The node agent. `run` is all of its life."""

    def __init__(self, settings: AgentSettings, api: Api) -> None:
        self._settings = settings
        self._api = api
        self._events = EventRecorder(api, settings.node_name)
        self._images = Images(settings)
        self._pods = Reflector(api, path_of("pods"))
        self._services = Reflector(api, path_of("services"))
        self._nodes = Reflector(api, path_of("nodes"), field_selector=f"metadata.name={settings.node_name}")
        self._references: dict[str, Reflector] = {
            "configmaps": Reflector(api, path_of("configmaps")),
            "secrets": Reflector(api, path_of("secrets")),
        }
        self._scheduler = Scheduler(api, self._events, self._pods, self._nodes, settings.node_name)
        self._runners: dict[str, PodRunner] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._hosts_changed = asyncio.Event()
        self._host_lines: dict[str, list[str]] = {}
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Be the node until cancelled. Raises what made it impossible to go on."""
        settings = self._settings
        await asyncio.to_thread(shutil.rmtree, settings.data_dir, ignore_errors=True)
        settings.data_dir.mkdir(parents=True, mode=0o700)
        server = KubeletServer(settings, self._container, self._address_of)
        port = await server.start()
        sampler = UsageSampler(self._processes)
        metrics = metrics_api.MetricsServer(settings, sampler)
        metrics_port = await metrics.start()
        node = Node(self._api, settings, port)
        proxy = ServiceProxy(
            self._api,
            self._events,
            self._services,
            self._pods,
            node_ip=settings.node_ip,
            own=frozenset({(settings.node_ip, port), (settings.node_ip, metrics_port)}),
        )
        reflectors = [self._services, self._nodes, *self._references.values(), self._pods]
        async with probes.http_session() as probe_http:
            self._context = NodeContext(
                settings=settings,
                api=self._api,
                events=self._events,
                addresses=PodAddresses(settings.pod_cidr),
                lookup=self._lookup,
                find_image=self._images.find,
                services=lambda: list(self._services.items()),
                host_lines=self._lines_for,
                api_server=None if may_listen_on(API_PORT) else self._api.address,
                probe_http=probe_http,
            )
            tasks = [asyncio.create_task(self._events.run())]
            try:
                await node.join()
                await metrics_api.register(self._api, node_ip=settings.node_ip, port=metrics_port)
                self._listen(proxy)
                tasks += [asyncio.create_task(reflector.run()) for reflector in reflectors[:-1]]
                # Pods come last: their first start should already see everything else.
                await asyncio.gather(*[one.synced.wait() for one in reflectors[:-1]])
                loops = (
                    node.run,
                    self._pods.run,
                    self._scheduler.run,
                    proxy.run,
                    self._keep_hosts,
                    sampler.run,
                )
                tasks += [asyncio.create_task(loop()) for loop in loops]
                await self._pods.synced.wait()
                journal.info("node_ready", node=settings.node_name, address=settings.node_ip, port=port)
                await self._until_one_ends(tasks)
            finally:
                await self._end_pods()
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await metrics.stop()
                await server.stop()

    async def _until_one_ends(self, tasks: list[asyncio.Task[None]]) -> None:
        """A part of the agent that ends by itself is an error and ends all of it."""
        ends: list[asyncio.Future[Any]] = [self._failed, *tasks]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for end in ends:
            if end.done():
                end.result()
        raise RuntimeError("a part of the agent ended by itself")

    # --- who is told what -------------------------------------------------------------------------------

    def _listen(self, proxy: ServiceProxy) -> None:
        self._pods.listen(self._pod_changed)
        self._pods.listen(lambda _old, _new: proxy.changed())
        self._services.listen(lambda _old, _new: proxy.changed())
        self._services.listen(lambda _old, _new: self._names_changed())
        self._nodes.listen(lambda _old, _new: self._scheduler.changed())
        self._references["configmaps"].listen(
            lambda old, new: self._reference_changed("configmaps", old or new)
        )
        self._references["secrets"].listen(lambda old, new: self._reference_changed("secrets", old or new))

    def _pod_changed(self, old: Object | None, new: Object | None) -> None:
        self._names_changed()
        if new is None:
            uid = (old or {})["metadata"]["uid"]
            self._scheduler.forget(uid)
            if runner := self._runners.get(uid):
                runner.gone()
            return
        node = new["spec"].get("nodeName")
        if not node:
            self._scheduler.changed()
        elif node == self._settings.node_name:
            uid = new["metadata"]["uid"]
            runner = self._runners.get(uid)
            if runner is None:
                runner = self._runners[uid] = PodRunner(self._context, new)
                task = self._running[uid] = asyncio.create_task(runner.run(), name=f"pod {uid}")
                task.add_done_callback(lambda task, uid=uid: self._pod_done(uid, task))  # type: ignore[misc]
            runner.update(new)

    def _pod_done(self, uid: str, task: "asyncio.Task[None]") -> None:
        self._runners.pop(uid, None)
        self._running.pop(uid, None)
        if not task.cancelled() and (error := task.exception()) and not self._failed.done():
            self._failed.set_exception(error)

    def _reference_changed(self, resource: str, item: Object | None) -> None:
        if item is None:
            return
        metadata = item["metadata"]
        for runner in self._runners.values():
            if runner.pod["metadata"]["namespace"] == metadata["namespace"]:
                runner.reference_changed(resource, metadata["name"])

    def _names_changed(self) -> None:
        self._host_lines.clear()
        self._hosts_changed.set()

    def _lines_for(self, namespace: str) -> list[str]:
        if namespace not in self._host_lines:
            self._host_lines[namespace] = service_lines(self._services.items(), self._pods.items(), namespace)
        return self._host_lines[namespace]

    async def _keep_hosts(self) -> None:
        while True:
            await self._hosts_changed.wait()
            await asyncio.sleep(HOSTS_SETTLE_SECONDS)
            self._hosts_changed.clear()
            for runner in list(self._runners.values()):
                try:
                    runner.write_hosts()
                except OSError as error:
                    # A full disk, or a pod that is just going; the next change of a name tries again.
                    journal.warning("hosts_not_written", pod=runner.uid, error=str(error))

    async def _lookup(
        self, resource: Literal["configmaps", "secrets"], namespace: str, name: str
    ) -> Object | None:
        """A ConfigMap or Secret: the copy's, or where the copy may be a moment behind the API server's."""
        known = self._references[resource].get(namespace, name)
        return known or await self._api.get_or_none(path_of(resource, namespace, name))

    def _container(self, namespace: str, pod: str, name: str) -> Container | None:
        for runner in self._runners.values():
            metadata = runner.pod["metadata"]
            if (metadata["namespace"], metadata["name"]) == (namespace, pod):
                return runner.container(name)
        return None

    def _address_of(self, namespace: str, pod: str) -> str | None:
        for runner in self._runners.values():
            metadata = runner.pod["metadata"]
            if (metadata["namespace"], metadata["name"]) == (namespace, pod):
                return runner.pod_ip or None
        return None

    def _processes(self) -> Iterator[Process]:
        for runner in self._runners.values():
            for container in runner.containers:
                if (pid := container.pid) is not None:
                    view = container.view
                    yield Process(pod=runner.pod, container=view.name, run=view.container_id, pid=pid)

    # --- the end ----------------------------------------------------------------------------------------

    async def _end_pods(self) -> None:
        """End every process: SIGTERM, a short grace, SIGKILL."""
        runners = list(self._runners.values())
        for runner in runners:
            runner.terminate_now()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.shutdown_grace_seconds):
                await asyncio.gather(*[runner.processes_ended() for runner in runners])
        running = list(self._running.values())
        for runner in runners:
            runner.kill_now()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
