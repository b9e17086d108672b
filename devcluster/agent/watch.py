"""A copy of a collection that follows the API server: list, watch, and list again where the watch broke.

A list replaces the copy, so what was deleted while nobody watched is noticed. A name that now belongs to
another object (another uid) is told as a deletion and an addition.
"""

import asyncio
import random
from collections.abc import Callable, Iterable

from devcluster.agent import journal
from devcluster.agent.api import Api, ApiError, Object

Key = tuple[str, str]
"""Namespace (empty for what has none) and name."""

Listener = Callable[[Object | None, Object | None], None]
"""Told the old and the new object; None where there is none."""

RETRY_FIRST_SECONDS = 0.2
RETRY_LIMIT_SECONDS = 5.0
PAGE = 500


def key_of(item: Object) -> Key:
    """The key of an object."""
    metadata = item["metadata"]
    return metadata.get("namespace", ""), metadata["name"]


class Reflector:
    """Follows one collection, or a selection of it."""

    def __init__(self, api: Api, path: str, *, field_selector: str = "") -> None:
        self._api = api
        self._path = path
        self._query = {"fieldSelector": field_selector} if field_selector else {}
        self._items: dict[Key, Object] = {}
        self._listeners: list[Listener] = []
        self.synced = asyncio.Event()
        """Set once the first list is in."""

    def listen(self, listener: Listener) -> None:
        """Be told of every change from now on."""
        self._listeners.append(listener)

    def get(self, namespace: str, name: str) -> Object | None:
        """The object as last seen; not to be changed."""
        return self._items.get((namespace, name))

    def items(self) -> Iterable[Object]:
        """All objects as last seen."""
        return list(self._items.values())

    async def run(self) -> None:
        """Follow the collection until cancelled."""
        delay = RETRY_FIRST_SECONDS
        while True:
            try:
                version = await self._list()
                delay = RETRY_FIRST_SECONDS
                while True:
                    version = await self._watch(version)
            except ApiError as error:
                if error.status not in (410, 0) or delay > 1:
                    journal.warning("watch_broken", path=self._path, error=str(error))
            await asyncio.sleep(delay * random.uniform(0.8, 1.2))  # noqa: S311 -- jitter
            delay = min(delay * 2, RETRY_LIMIT_SECONDS)

    async def _list(self) -> str:
        found: dict[Key, Object] = {}
        query = {**self._query, "limit": str(PAGE)}
        while True:
            page = await self._api.get(self._path, **query)
            for item in page.get("items") or []:
                found[key_of(item)] = item
            if not (more := page["metadata"].get("continue")):
                break
            query["continue"] = more
        for key in [key for key in self._items if key not in found]:
            self._set(key, None)
        for key, item in found.items():
            self._set(key, item)
        self.synced.set()
        version: str = page["metadata"]["resourceVersion"]
        return version

    async def _watch(self, version: str) -> str:
        async for change in self._api.watch(self._path, version, **self._query):
            item = change["object"]
            version = item["metadata"]["resourceVersion"]
            if change["type"] != "BOOKMARK":
                self._set(key_of(item), None if change["type"] == "DELETED" else item)
        return version

    def _set(self, key: Key, new: Object | None) -> None:
        old = self._items.get(key)
        if new is None:
            self._items.pop(key, None)
        else:
            new["metadata"].pop("managedFields", None)
            self._items[key] = new
        if old is not None and new is not None:
            if old["metadata"]["uid"] != new["metadata"]["uid"]:
                self._tell(old, None)
                self._tell(None, new)
                return
            if old["metadata"]["resourceVersion"] == new["metadata"]["resourceVersion"]:
                return
        if old is not None or new is not None:
            self._tell(old, new)

    def _tell(self, old: Object | None, new: Object | None) -> None:
        for listener in self._listeners:
            listener(old, new)
