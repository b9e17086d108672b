"""Which server to connect to, now: asked at every connect, and kept fresh where it can change."""

import asyncio
import random
from collections.abc import Callable
from typing import Any, Final, Protocol

from redis.exceptions import RedisError

from tableforge_dataplane.contract.settings import RedisSettings
from tableforge_dataplane.observability.logging import EventLog
from tableforge_dataplane.topology.client import PasswordMissingError, ask_node
from tableforge_dataplane.topology.nodes import (
    REDIS_PORT,
    SENTINEL_PORT,
    Node,
    NodeUnknownError,
    parse_nodes,
)
from tableforge_dataplane.topology.slots import SlotMap

LOOKUP_SECONDS: Final = 1.0
"""How long one node may take to say what it knows; the next one is asked then."""

ASKED_AT_ONCE: Final = 5
"""So many nodes of a cluster are asked for the slots at once: one that is cut off knows an old state."""

FAILURES: Final = (RedisError, OSError, TimeoutError)

_log = EventLog("topology")


class Topology(Protocol):
    """Where Redis is."""

    @property
    def where(self) -> str:
        """For people: what was configured."""

    async def locate(self, slot: int = 0) -> Node:
        """The server that takes writes for `slot`. Raises NodeUnknownError and PasswordMissingError."""


class Standalone:
    """One server."""

    def __init__(self, settings: RedisSettings) -> None:
        self._node = Node(settings.host, settings.port)
        self.where = str(self._node)

    async def locate(self, slot: int = 0) -> Node:  # noqa: ARG002
        """Always the same."""
        return self._node


class Sentinels:
    """The primary that most of the sentinels can be asked for: the first one that answers is believed.

    That it really is one is for who connects to check (ROLE): a sentinel may be behind for a moment.
    """

    def __init__(self, settings: RedisSettings) -> None:
        self._settings = settings
        self._nodes = parse_nodes(settings.addresses, default_port=SENTINEL_PORT)
        self._name = settings.sentinel_master_name
        self.where = f"{self._name} (Sentinel)"

    async def locate(self, slot: int = 0) -> Node:  # noqa: ARG002
        """Ask one sentinel after the other; who answered is asked first next time."""
        unknown = 0
        for node in list(self._nodes):
            try:
                [answer] = await ask_node(
                    self._settings,
                    node,
                    ("SENTINEL", "get-master-addr-by-name", self._name),
                    timeout_seconds=min(LOOKUP_SECONDS, self._settings.connect_timeout_seconds),
                    sentinel=True,
                )
            except PasswordMissingError:
                raise
            except FAILURES as error:
                _log.debug("sentinel_silent", sentinel=str(node), error_text=str(error)[:200])
                continue
            if isinstance(answer, list) and len(answer) == 2:
                self._nodes.remove(node)
                self._nodes.insert(0, node)
                return Node(_text(answer[0]), int(answer[1]))
            unknown += 1
        if unknown:
            raise NodeUnknownError(
                f"no sentinel knows a primary called {self._name}: check "
                "TABLEFORGE_REDIS_SENTINEL_MASTER_NAME"
            )
        raise NodeUnknownError(
            f"none of the sentinels {', '.join(map(str, self._nodes))} answers: check "
            "TABLEFORGE_REDIS_ADDRESSES, and TABLEFORGE_REDIS_SENTINEL_PASSWORD where they want one"
        )


class Cluster:
    """The slots of a Redis Cluster and who serves them."""

    def __init__(self, settings: RedisSettings) -> None:
        self._settings = settings
        self._seeds = parse_nodes(settings.addresses, default_port=REDIS_PORT)
        self.where = f"{settings.addresses} (Cluster)"
        self.slots: SlotMap | None = None
        """The newest that is known."""
        self.problem: str | None = None
        """Why the last refresh found nothing; None where it did."""
        self.changed: Callable[[], None] = _nothing
        """Called after `slots` changed."""
        self._refreshing: asyncio.Task[None] | None = None

    async def locate(self, slot: int = 0) -> Node:
        """From the map, which is fetched where it has nobody for the slot."""
        if self.slots is None or self.slots.owners[slot] is None:
            await self.refresh()
        owner = self.slots.owners[slot] if self.slots is not None else None
        if owner is None:
            raise NodeUnknownError(self.problem or f"no node of the cluster serves slot {slot}")
        return owner

    async def refresh(self) -> None:
        """Ask for the map anew; who comes while somebody asks already gets the same answer."""
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._refresh(), name="redis-slots")
        await asyncio.shield(self._refreshing)

    async def stop(self) -> None:
        """End what is asked for."""
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.gather(self._refreshing, return_exceptions=True)

    async def _refresh(self) -> None:
        known = list(self.slots.nodes) if self.slots is not None else []
        random.shuffle(known)
        candidates = list(dict.fromkeys([*known, *self._seeds]))
        problems: list[str] = []
        for start in range(0, len(candidates), ASKED_AT_ONCE):
            found = await asyncio.gather(
                *(self._ask(node, problems) for node in candidates[start : start + ASKED_AT_ONCE])
            )
            answers = [answer for answer in found if answer is not None]
            if answers:
                _, slots = max(answers, key=lambda answer: answer[0])
                self.problem = None
                if slots != self.slots:
                    self.slots = slots
                    _log.info("slots_changed", primaries=sorted(map(str, slots.primaries)))
                    self.changed()
                return
        self.problem = problems[0] if problems else "no node of the cluster answers"

    async def _ask(self, node: Node, problems: list[str]) -> tuple[tuple[bool, int], SlotMap] | None:
        """What the node knows, and how new that is: whether it sees a working cluster, and the epoch."""
        try:
            info, answer = await ask_node(
                self._settings,
                node,
                ("CLUSTER", "INFO"),
                ("CLUSTER", "SLOTS"),
                timeout_seconds=min(LOOKUP_SECONDS, self._settings.connect_timeout_seconds),
            )
        except FAILURES as error:
            problems.append(f"{node} does not say who serves which slot: {str(error)[:200]}")
            return None
        fields = _fields(info)
        age = (fields.get("cluster_state") == "ok", int(fields.get("cluster_current_epoch", 0)))
        return age, SlotMap.of(_plain(answer), asked=node)


def topology_of(settings: RedisSettings) -> Standalone | Sentinels | Cluster:
    """The one that `TABLEFORGE_REDIS_MODE` names."""
    if settings.mode == "Cluster":
        return Cluster(settings)
    if settings.mode == "Sentinel":
        return Sentinels(settings)
    return Standalone(settings)


def _fields(info: Any) -> dict[str, str]:
    """CLUSTER INFO, which redis-py may have parsed."""
    if isinstance(info, dict):
        return {_text(name): _text(value) for name, value in info.items()}
    pairs = (line.partition(":") for line in _text(info).splitlines())
    return {name: value for name, colon, value in pairs if colon}


def _plain(answer: Any) -> list[Any]:
    return list(answer)


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _nothing() -> None:
    return None
