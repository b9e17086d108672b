"""Events about pods and the node, as `kubectl describe` shows them.

A repeated event counts up the first one's `count`, as a kubelet's does. Events are news, not state: where the
API server does not take one, or too many are waiting, it is dropped.
"""

import asyncio
import collections
import dataclasses
import hashlib
from typing import Literal

from devcluster.agent import clock, journal
from devcluster.agent.api import MERGE, Api, ApiError, Object, path_of

QUEUE_LIMIT = 1000
REMEMBERED_LIMIT = 2000
MESSAGE_LIMIT = 1000


@dataclasses.dataclass(frozen=True)
class _News:
    about: Object
    kind: str
    reason: str
    message: str
    component: str
    moment: str


class EventRecorder:
    """Writes events in the order they were recorded."""

    def __init__(self, api: Api, node_name: str) -> None:
        self._api = api
        self._node_name = node_name
        self._queue: asyncio.Queue[_News] = asyncio.Queue(QUEUE_LIMIT)
        self._known: collections.OrderedDict[tuple[str, ...], tuple[str, int]] = collections.OrderedDict()

    def record(
        self,
        item: Object,
        kind: Literal["Normal", "Warning"],
        reason: str,
        message: str,
        *,
        container: str | None = None,
        component: str = "kubelet",
    ) -> None:
        """Record an event about an object; returns at once."""
        metadata = item["metadata"]
        about = {
            "apiVersion": item.get("apiVersion", "v1"),
            "kind": item.get("kind", "Pod"),
            "name": metadata["name"],
            "uid": metadata["uid"],
        }
        if "namespace" in metadata:
            about["namespace"] = metadata["namespace"]
        if container is not None:
            about["fieldPath"] = f"spec.containers{{{container}}}"
        news = _News(about, kind, reason, message[:MESSAGE_LIMIT], component, clock.stamp(clock.now()))
        try:
            self._queue.put_nowait(news)
        except asyncio.QueueFull:
            journal.warning("event_dropped", reason=reason, message=message)

    async def run(self) -> None:
        """Write what is recorded until cancelled."""
        while True:
            news = await self._queue.get()
            try:
                await self._write(news)
            except ApiError as error:
                # A namespace that is being deleted takes no events: expected, and nobody would read them.
                if error.status not in (403, 404):
                    journal.warning("event_not_written", reason=news.reason, error=str(error))

    async def _write(self, news: _News) -> None:
        namespace = news.about.get("namespace", "default")
        key = (news.about["uid"], news.about.get("fieldPath", ""), news.kind, news.reason, news.message)
        if known := self._known.get(key):
            name, count = known[0], known[1] + 1
            try:
                await self._api.patch(
                    path_of("events", namespace, name), {"count": count, "lastTimestamp": news.moment}, MERGE
                )
            except ApiError as error:
                if error.status != 404:
                    raise
            else:
                self._remember(key, name, count)
                return
        digest = hashlib.sha256("\0".join([*key, news.moment]).encode()).hexdigest()[:16]
        name = f"{news.about['name'][:200]}.{digest}"
        await self._api.create(
            path_of("events", namespace),
            {
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": {"name": name, "namespace": namespace},
                "involvedObject": news.about,
                "type": news.kind,
                "reason": news.reason,
                "message": news.message,
                "count": 1,
                "firstTimestamp": news.moment,
                "lastTimestamp": news.moment,
                "source": {"component": news.component, "host": self._node_name},
                "reportingComponent": news.component,
                "reportingInstance": self._node_name,
            },
        )
        self._remember(key, name, 1)

    def _remember(self, key: tuple[str, ...], name: str, count: int) -> None:
        self._known[key] = (name, count)
        self._known.move_to_end(key)
        while len(self._known) > REMEMBERED_LIMIT:
            self._known.popitem(last=False)
