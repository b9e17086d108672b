"""Lists and watches the children, kind by kind, and keeps the store like what the API server has."""

import asyncio
import contextlib
import logging
import random
from collections.abc import Collection, Iterable, Sequence
from typing import Final, Literal

from tableforge_operator import metrics
from tableforge_operator.api import names
from tableforge_operator.kube import (
    CLAIMS,
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
CLAIM_SELECTOR: Final = f"{names.CLUSTER_LABEL},app.kubernetes.io/component=redis"
"""Of claims, whose labels are those of the template they were made from, which never changes."""
RESYNC_SECONDS: Final = 600.0
"""How often everything is listed anew, give or take a fifth: a watch that loses events shows nowhere."""
BACKOFF_SECONDS: Final = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
ABSENT_SECONDS: Final = 20.0
"""How often it is asked for a kind whose CRD is not installed: one cheap call that is answered with 404."""
STEADY_SECONDS: Final = 30.0
"""What was followed for longer and then breaks has failed for the first time."""
FIRST_LIST_SECONDS: Final = 30.0
"""How long the start waits for the first list of a kind before it counts as one that cannot be watched."""

log = logging.getLogger(__name__)


class Reflector:
    """One task per kind and namespace. One that fails is started again; none takes another down."""

    def __init__(
        self,
        kube: Kube,
        store: Store,
        resources: Iterable[Resource],
        namespaces: Sequence[str] | None,
        *,
        optional: Collection[str] = (),
    ) -> None:
        """`optional` are the kinds that the API server may not know."""
        self._kube = kube
        self._store = store
        self._optional = frozenset(optional)
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
            reason = "failed"
            try:
                reason = await self._follow(source)
                failures = 0
            except NotFoundError as error:
                if source.resource.kind in self._optional:
                    self._note_absent(source)
                    failures = 0
                    await asyncio.sleep(ABSENT_SECONDS * random.uniform(0.5, 1.0))  # noqa: S311
                    continue
                reason = "denied"
                self._degrade(source, error.message)
                failures = max(failures + 1, len(BACKOFF_SECONDS) - 3)
            except (ForbiddenError, UnauthorizedError) as error:
                reason = "denied"
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
            metrics.WATCH_RESTARTS.labels(source.resource.plural, reason).inc()
            if failures:
                base = BACKOFF_SECONDS[min(failures, len(BACKOFF_SECONDS)) - 1]
                await asyncio.sleep(base * random.uniform(0.5, 1.0))  # noqa: S311

    async def _follow(self, source: "_Source") -> Literal["resync", "gone"]:
        """List, then watch until it is time to list again; gives why it is."""
        items, version = await self._kube.list(
            source.resource, source.namespace, label_selector=source.selector
        )
        self._store.replace(source.resource.kind, source.namespace, items, version)
        if self._store.set_absent(source.resource.kind, source.namespace, False):
            log.info("kind appeared", extra={"resource": str(source)})
            self._wake_all()
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
            return "resync"
        except GoneError:
            return "gone"

    async def _watch(self, source: "_Source", version: str) -> str:
        events = self._kube.watch(
            source.resource, source.namespace, resource_version=version, label_selector=source.selector
        )
        async for event in events:
            version = event.object["metadata"].get("resourceVersion", version)
            if event.type == "DELETED":
                self._store.remove(event.object)
            elif event.type != "BOOKMARK":
                self._store.put(event.object)
        return version

    def _note_absent(self, source: "_Source") -> None:
        kind, namespace = source.resource.kind, source.namespace
        # Nothing to watch is nothing to be alarmed about.
        with contextlib.suppress(KeyError):
            metrics.WATCH_UP.remove(source.resource.plural, namespace or "")
        self._store.set_blind(kind, namespace, None)
        if self._store.set_absent(kind, namespace, True):
            log.info("kind not installed", extra={"resource": str(source)})
            # Its objects went with it.
            self._store.forget(kind, namespace)
            self._wake_all()
        source.settled.set()

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
        self.selector = CLAIM_SELECTOR if resource == CLAIMS else LABEL_SELECTOR

    def __str__(self) -> str:
        return f"{self.resource.plural} in {self.namespace or 'all namespaces'}"
