"""One message on its way into a room's log: what it is, who waits for it, and the command that stores it."""

import random
import time
from collections.abc import Sequence
from typing import Final, Literal, Protocol

import msgspec

from tableforge_dataplane.broker.addresses import RoomAddress
from tableforge_dataplane.broker.connection import pack
from tableforge_dataplane.broker.scripts import Script

TAG_BITS: Final = 52

RefusalCode = Literal["unavailable", "unknown_key", "internal"]

_LENGTHS: Final = tuple(b"\r\n$%d\r\n" % length for length in range(2048))
"""What stands between a command's arguments, by the length of the next one. (Joining these takes a third of
what a format with as many parts does.)"""

_ASKING: Final = pack(b"ASKING")

# seeded by the system; its own generator would be a system call a message, and tags are no secrets
_getrandbits = random.Random().getrandbits  # noqa: S311


def new_tag() -> bytes:
    """52 random bits in decimal: they stay exact in Lua's and JavaScript's numbers."""
    return b"%d" % _getrandbits(TAG_BITS)


class PublicationOwner(Protocol):
    """Who waits for what becomes of a publication."""

    @property
    def abandoned(self) -> bool:
        """Whether nobody waits any more: the connection over which it came has ended."""

    def published(self, publication: "Publication", seq: int, tag: bytes, duplicate: bool) -> None:
        """Redis has it, as safely as was asked: this is what an acknowledgement stands on."""

    def refused(
        self, publication: "Publication", code: RefusalCode, message: str, retry_after: float | None
    ) -> None:
        """It was not stored, or nobody can say whether it was (`unknown_key`)."""


class Publication(msgspec.Struct, kw_only=True, eq=False):
    """One message on its way into a room's log. (A struct: they are made fast. Owners extend it.)"""

    head: bytes
    """`Publisher.head` of its room."""
    tag: bytes
    """From `new_tag`."""
    origin: bytes
    """The session; `!` in front where the sender wants no copy. No spaces."""
    key: bytes
    """The idempotency key's field in the room's meta."""
    body: bytes
    owner: PublicationOwner
    since: bytes = b""
    """The position a resend by the client names; empty on its first attempt."""
    base_seq: int = -1
    """With `base_tag`, the room's position here when it was first sent: what own retries name as `since`."""
    base_tag: bytes = b""
    channel: bytes = b""
    """Set for a volatile message: it goes to the channel alone, and is not worth waiting for Redis."""
    others_may_send_it: bool = False
    """The client named the key, so that it may have sent the same over another instance meanwhile."""
    retried: bool = False
    number: int = 0
    """Its place among all that this instance took for a Redis Cluster: they come back from several nodes."""


class Publishes(Protocol):
    """Where publications go: one shard's publisher, or whichever serves the room."""

    @property
    def depth(self) -> int:
        """Publications that wait or are under way."""

    @property
    def fenced(self) -> bool:
        """Whether a message may be delivered before it is as safe as was asked: then a copy acknowledges
        nothing."""

    def head(self, address: RoomAddress) -> bytes:
        """The part of the command that is the same for all of a room's messages."""

    def publish(self, publication: Publication) -> None:
        """Send it. The owner hears what became of it."""

    async def settled(self) -> None:
        """Wait until nothing of what is here now waits or is under way, whatever comes meanwhile."""


def head_of(address: RoomAddress, *, script: Script, publish_command: bytes) -> bytes:
    """The part of the command that is the same for all of a room's messages."""
    constant = pack(
        b"EVALSHA",
        script.sha,
        2,
        address.meta,
        address.log,
        address.channel,
        publish_command,
        address.limits.max_messages,
        address.limits.max_bytes,
        address.limits.max_age_ms,
    )
    # without its last line's end, which `_LENGTHS` begin with
    return b"*15" + constant[constant.index(b"\r\n") : -2]


def commands(batch: Sequence[Publication], volatile_command: bytes) -> bytes:
    """The commands for these, in their order. `volatile_command`: what publishes without a log."""
    out: list[bytes] = []
    for publication in batch:
        if publication.channel:
            out.append(_volatile(publication, volatile_command))
            continue
        since = _since(publication) if publication.retried else publication.since
        tag, origin, key, body = publication.tag, publication.origin, publication.key, publication.body
        try:
            out += (
                publication.head,
                _LENGTHS[len(tag)],
                tag,
                _LENGTHS[len(origin)],
                origin,
                _LENGTHS[len(key)],
                key,
                _LENGTHS[len(since)],
                since,
                _LENGTHS[len(body)],
                body,
                b"\r\n",
            )
        except IndexError:
            # something of it, as a rule the body, is longer
            out.append(publication.head)
            for argument in (tag, origin, key, since, body):
                out += (b"\r\n$%d\r\n" % len(argument), argument)
            out.append(b"\r\n")
    return b"".join(out)


def asking(publication: Publication, volatile_command: bytes) -> bytes:
    """The same for one, to a shard that is about to get its slot. It has two replies."""
    return _ASKING + commands((publication,), volatile_command)


def _volatile(publication: Publication, command: bytes) -> bytes:
    payload = b"0 0 0 %.3f %b %b" % (time.time(), publication.origin, publication.body)
    return pack(command, publication.channel, payload)


def _since(publication: Publication) -> bytes:
    """The position that a resend names, by the client or by this instance."""
    if publication.retried and not publication.since and publication.base_seq >= 0:
        return b"%d-%b" % (publication.base_seq, publication.base_tag)
    return publication.since
