"""All rooms that Redis knows, a page at a time."""

import asyncio
import re
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import msgspec

from tableforge_dataplane.broker.connection import Reply, ReplyError, pack

KEYS_LOOKED_AT: Final = 1000
"""In one SCAN: about 0.3 ms of Redis's time."""

MOST_SCANS: Final = 20
"""For one page, which is then shorter than asked for: among many other keys rooms may be far apart."""

_CURSOR: Final = re.compile(r"([0-9]{1,4})\.([0-9]{1,20})")


class BadCursorError(ValueError):
    """A cursor that no page ever gave."""


class ListedRoom(msgspec.Struct, frozen=True, rename="camel", omit_defaults=False):
    """One room."""

    room: str
    seq: int
    """Of its newest message."""
    users: int
    """Who is there, where presence is kept."""
    home: str | None = None
    """The instance where it lives, where rooms have homes; filled in by who knows it."""


class RoomsPage(msgspec.Struct, frozen=True, rename="camel"):
    """Some rooms. A room that is there throughout is on at least one page, and may be on two.

    Unless another server serves it meanwhile, as after a failover: SCAN's places mean something to one only.
    """

    rooms: list[ListedRoom]
    cursor: str | None
    """Where the next page begins; None on the last one."""


class Commands(Protocol):
    """One shard's commands, as far as this needs them."""

    def send(self, packed: bytes, callback: Callable[[Reply], None]) -> None: ...


class RoomListing:
    """Looks through the shards' keys for rooms. No index is kept for it."""

    def __init__(self, *, key_prefix: str, shards: Callable[[], Sequence[Commands]]) -> None:
        """`shards`: all there are, in an order that lasts."""
        self._head = f"tf:{key_prefix}:{{".encode()
        self._tail = b"}:meta"
        self._pattern = self._head + b"*" + self._tail
        self._shards = shards

    async def page(self, *, cursor: str, limit: int) -> RoomsPage:
        """About `limit` rooms from `cursor` ("" at the beginning) on.

        Raises BadCursorError, ConnectionError where Redis doesn't answer, and what it refuses with.
        """
        shards = self._shards()
        if not shards:
            raise ConnectionError
        found = _CURSOR.fullmatch(cursor or "0.0")
        if found is None or int(found[1]) >= len(shards) or int(found[2]) >= 1 << 64:
            raise BadCursorError
        shard, position = int(found[1]), int(found[2])
        rooms: list[ListedRoom] = []
        count = max(10, limit)
        for _ in range(MOST_SCANS):
            upcoming, keys = await _asked(
                shards[shard], b"SCAN", position, b"MATCH", self._pattern, b"COUNT", count
            )
            rooms += await self._described(
                shards[shard], [key for key in dict.fromkeys(keys) if self._is_room(key)]
            )
            position = int(upcoming)
            if position == 0:
                shard += 1
                if shard >= len(shards):
                    return RoomsPage(rooms=rooms, cursor=None)
            if len(rooms) >= limit:
                break
            # where rooms are far apart among other keys, longer strides
            count = KEYS_LOOKED_AT if not rooms else max(10, limit - len(rooms))
        return RoomsPage(rooms=rooms, cursor=f"{shard}.{position}")

    def _is_room(self, key: bytes) -> bool:
        # a user's personal log is nobody else's business
        return key[len(self._head) : len(self._head) + 1] != b"@"

    async def _described(self, shard: Commands, keys: list[bytes]) -> list[ListedRoom]:
        answers = await asyncio.gather(
            *(_asked(shard, b"HGET", key, b"s") for key in keys),
            *(_asked(shard, b"HLEN", key[: -len(b"meta")] + b"presence") for key in keys),
        )
        return [
            ListedRoom(
                room=key[len(self._head) : -len(self._tail)].decode("utf-8", "replace"),
                seq=int(seq),
                users=max(0, fields - 1),
            )
            for key, seq, fields in zip(keys, answers[: len(keys)], answers[len(keys) :], strict=True)
            if seq is not None  # it expired a moment ago
        ]


async def _asked(shard: Commands, *parts: bytes | int) -> Any:
    done: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
    shard.send(pack(*parts), lambda reply: None if done.done() else done.set_result(reply))
    reply = await done
    if isinstance(reply, ReplyError):
        raise reply
    if reply is None and parts[0] != b"HGET":
        raise ConnectionError
    return reply
