"""Lists and watches the children, kind by kind, and keeps the store like what the API server has."""

import asyncio
import logging
import random
from collections.abc import Iterable, Sequence
from typing import Final

from tableforge_operator import metrics
from tableforge_operator.kube import (
    ApiError,
    ForbiddenError,
    GoneError,
    Kube,
    NotFoundError,
    Resource,
    UnauthorizedError,
)
from tableforge_operator.observe.store import Store

LABEL_SELECTOR: Final = "app.kubernetes.io/managed-by=tableforge-operator"
RESYNC_SECONDS: Final = 600.0
"""How often everything is listed anew, give or take a fifth: a watch that loses events shows nowhere."""
BACKOFF_SECONDS: Final = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
STEADY_SECONDS: Final = 30.0
"""What was followed for longer and then breaks has failed for the first time."""
FIRST_LIST_SECONDS: Final = 30.0
"""How long the start waits for the first list of a kind before it counts as one that cannot be watched."""

log = logging.getLogger(__name__)


class Reflector:
    """One task per kind and namespace. One that fails is started again; none takes another down."""

    def __init__(
        self, kube: Kube, store: Store, resources: Iterable[Resource], namespaces: Sequence[str] | None
    ) -> None:
        self._kube = kube
        self._store = store
        self._sources = [
            _Source(resource, namespace) for resource in resources for namespace in (namespaces or (None,))
        ]

    async def run(self) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for source in self._sources:
                tasks.create_task(self._supervise(source), name=f"reflector {source}")

    async def synced(self) -> None:
        """Wait until every kind was listed once, or is known not to be listable now."""
        for source in self._sources:
            try:
                async with asyncio.timeout(FIRST_LIST_SECONDS):
                    await source.settled.wait()
            except TimeoutError:
                self._degrade(source, "the API server did not answer in time")

    async def _supervise(self, source: "_Source") -> None:
        failures = 0
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            try:
                await self._follow(source)
                failures = 0
            except (ForbiddenError, NotFoundError, UnauthorizedError) as error:
                self._degrade(source, error.message)
                failures = max(failures + 1, len(BACKOFF_SECONDS) - 3)
            except ApiError as error:
                # What is in the store stays: it was true a moment ago, and every write looks first.
                log.warning("watch failed", extra={"resource": str(source), "error": error.message})
                metrics.WATCH_UP.labels(source.resource.plural, source.namespace or "").set(0)
                if loop.time() - started > STEADY_SECONDS:
                    failures = (
                        0  # a balancer that cuts every long connection is no reason to look away longer
                    )
                failures += 1
            except Exception:
                log.exception("watch crashed", extra={"resource": str(source)})
                failures += 1
            if failures:
                base = BACKOFF_SECONDS[min(failures, len(BACKOFF_SECONDS)) - 1]
                await asyncio.sleep(base * random.uniform(0.5, 1.0))  # noqa: S311

    async def _follow(self, source: "_Source") -> None:
        """List, then watch until it is time to list again."""
        items, version = await self._kube.list(
            source.resource, source.namespace, label_selector=LABEL_SELECTOR
        )
        self._store.replace(source.resource.kind, source.namespace, items, version)
        if self._store.set_blind(source.resource.kind, source.namespace, None):
            log.info("watch restored", extra={"resource": str(source)})
            self._wake_all()
        metrics.WATCH_UP.labels(source.resource.plural, source.namespace or "").set(1)
        source.settled.set()
        try:
            async with asyncio.timeout(RESYNC_SECONDS * random.uniform(0.8, 1.2)):  # noqa: S311
                while True:
                    version = await self._watch(source, version)
        except TimeoutError:
            return
        except GoneError:
            return

    async def _watch(self, source: "_Source", version: str) -> str:
        events = self._kube.watch(
            source.resource, source.namespace, resource_version=version, label_selector=LABEL_SELECTOR
        )
        async for event in events:
            version = event.object["metadata"].get("resourceVersion", version)
            if event.type == "DELETED":
                self._store.remove(event.object)
            elif event.type != "BOOKMARK":
                self._store.put(event.object)
        return version

    def _degrade(self, source: "_Source", reason: str) -> None:
        metrics.WATCH_UP.labels(source.resource.plural, source.namespace or "").set(0)
        if self._store.set_blind(source.resource.kind, source.namespace, reason):
            log.error("cannot watch", extra={"resource": str(source), "error": reason})
            self._wake_all()
        source.settled.set()

    def _wake_all(self) -> None:
        for key in self._store.clusters():
            self._store.touch(key)


class _Source:
    """A kind in a namespace (all of them: None)."""

    def __init__(self, resource: Resource, namespace: str | None) -> None:
        self.resource = resource
        self.namespace = namespace
        self.settled = asyncio.Event()

    def __str__(self) -> str:
        return f"{self.resource.plural} in {self.namespace or 'all namespaces'}"
