"""kopf: watches the WebSocketClusters and says which one something happened to. Nothing else.

With `kopf.on.event` as the only handler kopf writes nothing: no finalizer, no annotation, no Event.

It runs in a thread of its own. When it ends, for want of a permission or because the CRD is gone, it cancels
every task of its event loop that is younger than itself, and may take ten seconds over it; so it gets a loop
where there is nothing else, and is started again. It ends as a whole where it loses one namespace; so each
namespace gets one of its own.
"""

import asyncio
import concurrent.futures
import functools
import logging
import threading
from typing import Any, Final, Protocol

import kopf

from tableforge_operator import metrics
from tableforge_operator.api import names
from tableforge_operator.decide import status as verdict
from tableforge_operator.kube import CLUSTERS, ApiError, Kube

RESTART_SECONDS: Final = (1.0, 2.0, 5.0, 10.0)
STEADY_SECONDS: Final = 15.0
"""Who has watched for so long was let in: longer than kopf takes to end where it was not."""
STOP_SECONDS: Final = 3.0
"""How long a stop waits for kopf; its thread ends with the process all the same."""


class OnEvent(Protocol):
    """What is called for everything that happens to a cluster."""

    def __call__(self, key: tuple[str, str], resource_version: str | None, /, *, urgent: bool) -> object:
        """Gets namespace and name, and the resource version where the object still exists.

        `urgent`: somebody waits for it.
        """


log = logging.getLogger(__name__)


class ClusterWatch:
    """Calls `on_event`, in the event loop that runs `run`, for everything that happens to a cluster."""

    def __init__(self, kube: Kube, namespace: str | None, *, on_event: OnEvent) -> None:
        """`namespace` None: all of them."""
        self._kube = kube
        self._namespace = namespace
        self._on_event = on_event
        self._failures = 0
        self._problem: str | None = None
        """What was told last, so that it is told once."""

    def __str__(self) -> str:
        return f"{CLUSTERS.plural} in {self._namespace or 'all namespaces'}"

    async def run(self) -> None:
        """Watch until cancelled; start kopf again whenever it ends."""
        while True:
            try:
                # kopf would go on without a kind that it does not find, and never look again.
                await self._kube.list(CLUSTERS, self._namespace)
                await self._run_kopf()
                self._is_down("kopf stopped by itself")
            except ApiError as error:
                self._is_down(error.message)
            except _KopfFailedError as error:
                self._is_down(str(error))
            self._failures += 1
            await asyncio.sleep(RESTART_SECONDS[min(self._failures, len(RESTART_SECONDS)) - 1])

    def _is_up(self) -> None:
        metrics.WATCH_UP.labels(CLUSTERS.plural, self._namespace or "").set(1)
        if self._problem is not None:
            log.info("watch restored", extra={"resource": str(self)})
        self._failures, self._problem = 0, None

    def _is_down(self, reason: str) -> None:
        metrics.WATCH_UP.labels(CLUSTERS.plural, self._namespace or "").set(0)
        if reason != self._problem:
            log.error("cannot watch", extra={"resource": str(self), "error": reason})
        self._problem = reason

    async def _run_kopf(self) -> None:
        loop = asyncio.get_running_loop()
        stop = _Stop()
        ended: concurrent.futures.Future[None] = concurrent.futures.Future()

        def main() -> None:
            try:
                asyncio.run(stop.watch(self._operator(loop, stop)))
            except Exception as error:  # noqa: BLE001 - whatever ends kopf is told and it is started again
                # The API server's refusals have a message, and the whole answer after it.
                what = error.args[0] if error.args else ""
                ended.set_exception(_KopfFailedError(f"{type(error).__name__}: {what}"))
            else:
                ended.set_result(None)

        thread = threading.Thread(target=main, name="kopf", daemon=True)
        thread.start()
        waiting = asyncio.wrap_future(ended)
        try:
            await asyncio.wait([waiting], timeout=STEADY_SECONDS)
            if not waiting.done():
                self._is_up()
            await asyncio.shield(waiting)
        except asyncio.CancelledError:
            stop.set()
            await asyncio.wait([waiting], timeout=STOP_SECONDS)
            if waiting.done() and not waiting.cancelled():
                waiting.exception()
            raise

    async def _operator(self, loop: asyncio.AbstractEventLoop, stop: "_Stop") -> None:
        registry = kopf.OperatorRegistry()

        @kopf.on.login(registry=registry)
        async def login(**_: Any) -> kopf.ConnectionInfo:
            return await _connection(self._kube)

        @kopf.on.event(names.GROUP, names.VERSION, names.PLURAL, registry=registry)
        async def changed(
            type: str | None,  # noqa: A002 - kopf's name
            namespace: str | None,
            name: str,
            body: kopf.Body,
            **_: Any,
        ) -> None:
            version = None if type == "DELETED" else body.metadata.get("resourceVersion")
            if namespace is not None:
                told = functools.partial(
                    self._on_event,
                    (namespace, name),
                    version,
                    urgent=type is not None or not verdict.judged(body),
                )
                loop.call_soon_threadsafe(told)

        await kopf.operator(
            registry=registry,
            settings=_settings(),
            clusterwide=self._namespace is None,
            namespaces=() if self._namespace is None else (self._namespace,),
            stop_flag=stop.flag(),
        )


class _KopfFailedError(Exception):
    """kopf ended with an error."""


class _Stop:
    """A stop flag that is set from another thread, perhaps before kopf's loop runs."""

    def __init__(self) -> None:
        self._wanted = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._flag: asyncio.Event | None = None

    def set(self) -> None:
        self._wanted.set()
        if self._loop is not None and self._flag is not None:
            try:
                self._loop.call_soon_threadsafe(self._flag.set)
            except RuntimeError:
                return  # the loop is closed already

    def flag(self) -> asyncio.Event:
        assert self._flag is not None  # noqa: S101 - `watch` runs first
        return self._flag

    async def watch(self, operator: Any) -> None:
        self._loop, self._flag = asyncio.get_running_loop(), asyncio.Event()
        if self._wanted.is_set():
            self._flag.set()
        await operator


def _settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.peering.standalone = True
    # The CRD and the namespaces are known; observing them would need permissions of its own.
    settings.scanning.disabled = True
    settings.watching.server_timeout = 300
    settings.watching.connect_timeout = 10
    settings.networking.request_timeout = 30
    # It repeats what is forbidden, too; who starts it again says so, and asks for longer.
    settings.networking.error_backoffs = (0.5, 1.0)
    settings.queueing.exit_timeout = 1
    settings.queueing.idle_timeout = 1
    settings.process.ultimate_exiting_timeout = None
    return settings


async def _connection(kube: Kube) -> kopf.ConnectionInfo:
    configuration = kube.configuration
    authorization = await kube.authorization()
    scheme, _, token = (authorization or "").partition(" ")
    return kopf.ConnectionInfo(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert,
        insecure=not configuration.verify_ssl,
        scheme="Bearer" if scheme.lower() == "bearer" else scheme or None,
        token=token or None,
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
    )
