"""A Redis Cluster as one broker: each room's publishes, channel and reads go to the shard that serves it."""

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

from tableforge_dataplane.broker.addresses import RoomAddress
from tableforge_dataplane.broker.connection import Reply, ReplyError
from tableforge_dataplane.broker.detours import Detour, Load
from tableforge_dataplane.broker.publications import Publication
from tableforge_dataplane.broker.publisher import RETRY_AFTER_SECONDS, WAITING_BYTES, Publisher
from tableforge_dataplane.broker.recovery import Callback, Commands
from tableforge_dataplane.broker.shard import Shard
from tableforge_dataplane.broker.subscriber import SHARDED_SINCE, Subscriber
from tableforge_dataplane.topology.nodes import Node
from tableforge_dataplane.topology.slots import SLOTS, Redirection, slot_of

SETTLED_LOOKS_SECONDS: Final = 0.01

_SPUBLISH: Final = b"*3\r\n$8\r\nSPUBLISH\r\n"
_PUBLISH: Final = b"*3\r\n$7\r\nPUBLISH\r\n"


class Shards(Protocol):
    """The shards by slot and by address; the broker has them."""

    def shard_of(self, slot: int) -> Shard | None:
        """Who serves it, as far as is known."""

    def shard_at(self, node: Node) -> Shard:
        """The connections to this node, made where there are none."""

    def look_again(self) -> None:
        """The slots should be asked for anew."""


def room_of(publication: Publication) -> bytes:
    """The hash tag of its room."""
    text = publication.channel or publication.head
    start = text.index(b"{") + 1
    return text[start : text.index(b"}", start)]


class ShardedPublisher:
    """Gives each publication to its shard's publisher; what is redirected goes by a detour.

    (0.5 µs a message more than one publisher takes.)
    """

    def __init__(
        self,
        shards: Shards,
        *,
        head: Callable[[RoomAddress], bytes],
        queue_size: int,
        retries: int,
        pause_seconds: float,
    ) -> None:
        """`head`: `Publisher.head` of any of the shards' publishers, which have one script."""
        self._shards = shards
        self.head = head
        self._queue_size = queue_size
        self.retries = retries
        self.pause_seconds = pause_seconds
        self._publishers: dict[Publisher, Node] = {}
        self._detours: dict[bytes, Detour] = {}
        self.load = Load()
        self._by_slot: list[Publisher | None] = [None] * SLOTS
        self._taken = 0
        """Publications ever taken, which numbers them."""

    @property
    def depth(self) -> int:
        """Publications that wait or are under way."""
        return sum(publisher.depth for publisher in self._publishers) + self.load.count

    @property
    def fenced(self) -> bool:
        """Whether a message may be delivered before it is as safe as was asked."""
        return any(publisher.fenced for publisher in self._publishers)

    def attach(self, publisher: Publisher, node: Node) -> None:
        """One more shard's."""
        self._publishers[publisher] = node
        publisher.on_redirected = lambda publication, text: self._on_redirected(publisher, publication, text)
        publisher.while_blocking = lambda: self._unblock(publisher)
        publisher.after_down = lambda: self._on_down(publisher)

    def detach(self, publisher: Publisher) -> None:
        """It serves nothing any more, and nothing waits there."""
        self._publishers.pop(publisher, None)

    def publish(self, publication: Publication) -> None:
        """As `Publisher.publish`."""
        self._taken = publication.number = self._taken + 1
        room = room_of(publication)
        if self._detours:
            detour = self._detours.get(room)
            if detour is not None:
                self._join(detour, publication)
                return
        slot = slot_of(room)
        publisher = self._by_slot[slot]
        if publisher is None:
            detour = self._begin(room, slot)
            self._join(detour, publication)
            detour.advance()
            return
        publisher.publish(publication)

    async def settled(self) -> None:
        """Wait until nothing waits or is under way."""
        while self.depth:  # noqa: ASYNC110  # only a leaving instance asks, for some seconds at most
            await asyncio.sleep(SETTLED_LOOKS_SECONDS)

    def rerouted(self) -> None:
        """The shards serve other slots than before: what waits for a slot goes along, in order.

        To be called in the same turn in which the slots changed, before anything new is published.
        """
        for slot in range(SLOTS):
            shard = self._shards.shard_of(slot)
            self._by_slot[slot] = shard.publisher if shard is not None else None
        for publisher in list(self._publishers):
            self._reroute(publisher)
        for detour in list(self._detours.values()):
            detour.advance()

    def stop(self) -> None:
        """Send nothing more."""
        for detour in self._detours.values():
            detour.stop()

    # A detour's roads

    def publisher_of(self, slot: int) -> Publisher | None:
        """From a detour."""
        return self._by_slot[slot]

    def publisher_at(self, node: Node) -> Publisher | None:
        """From a detour."""
        return self._shards.shard_at(node).publisher

    def lost_way(self) -> None:
        """From a detour."""
        self._shards.look_again()

    def arrived(self, detour: Detour) -> None:
        """From a detour."""
        if self._detours.get(detour.room) is detour:
            del self._detours[detour.room]

    # What shards give back

    def _on_redirected(self, publisher: Publisher, publication: Publication, text: str) -> None:
        asked = self._publishers[publisher]
        if isinstance(publication.owner, Detour):
            publication.owner.redirected(publication, text, asked=asked)
            return
        room = room_of(publication)
        detour = self._detours.get(room)
        if detour is None:
            detour = self._begin(room, slot_of(room))
            self._block(detour, publisher)
            for waiting in publisher.withdraw(lambda other: room_of(other) == room):
                detour.add(waiting)
        detour.add_turned_away(publication)
        detour.follow(text, asked=asked)

    def _block(self, detour: Detour, publisher: Publisher) -> None:
        detour.blocked_by = publisher
        publisher.on_overtaken = self._on_overtaken

    def _on_overtaken(self, publication: Publication) -> None:
        detour = self._detours.get(room_of(publication))
        if detour is not None and publication.owner is not detour:
            detour.overtaken()

    def _unblock(self, publisher: Publisher) -> None:
        """Detours begin once nothing older of their rooms is under way."""
        blocked = self._blocked_by(publisher)
        under_way = {room_of(publication) for publication in publisher.under_way()} if blocked else set()
        free = {room: detour for room, detour in blocked.items() if room not in under_way}
        if len(free) == len(blocked):
            publisher.on_overtaken = None
        if free:
            self._free(free, publisher)

    def _blocked_by(self, publisher: Publisher) -> dict[bytes, Detour]:
        return {room: detour for room, detour in self._detours.items() if detour.blocked_by is publisher}

    def _free(self, detours: dict[bytes, Detour], publisher: Publisher) -> None:
        """What waits at `publisher`, for its fence too, comes along."""
        for publication in publisher.withdraw(lambda other: room_of(other) in detours):
            detours[room_of(publication)].add(publication)
        for detour in detours.values():
            detour.unblock()

    def _on_down(self, publisher: Publisher) -> None:
        """What was under way has gone back to what waits there; some of it has a detour to take."""
        blocked = self._blocked_by(publisher)
        if blocked:
            publisher.on_overtaken = None
            self._free(blocked, publisher)
        self._reroute(publisher)
        self._shards.look_again()

    def _reroute(self, publisher: Publisher) -> None:
        """What waits or is under way at `publisher` and belongs elsewhere by now."""
        by_slot = self._by_slot
        slots: dict[bytes, int] = {}

        def elsewhere(publication: Publication) -> bool:
            room = room_of(publication)
            slot = slots.get(room)
            if slot is None:
                slot = slots[room] = slot_of(room)
            return by_slot[slot] is not publisher

        for publication in publisher.under_way():
            if elsewhere(publication) and not isinstance(publication.owner, Detour):
                room = room_of(publication)
                if room not in self._detours:
                    self._block(self._begin(room, slots[room]), publisher)
        for publication in publisher.withdraw(elsewhere):
            owner = publication.owner
            if isinstance(owner, Detour):
                owner.take_back(publication)
                continue
            room = room_of(publication)
            detour = self._detours.get(room)
            if detour is None:
                detour = self._begin(room, slots[room])
            detour.add(publication)

    def _begin(self, room: bytes, slot: int) -> Detour:
        detour = self._detours[room] = Detour(self, room=room, slot=slot)
        return detour

    def _join(self, detour: Detour, publication: Publication) -> None:
        full = (
            self.load.count >= self._queue_size
            or self.load.size_bytes + len(publication.body) > WAITING_BYTES
        )
        if publication.channel or full:
            publication.owner.refused(
                publication,
                "unavailable",
                "This room's part of Redis is away or moving: send this one again later.",
                RETRY_AFTER_SECONDS,
            )
            if detour.idle:
                self.arrived(detour)
            return
        detour.add(publication)


class ShardedSubscriber:
    """Keeps each channel subscribed at the shard that serves its slot."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        self._at: dict[bytes, Subscriber | None] = {}
        """Every wanted channel, and where it is subscribed."""
        self._nodes: dict[Subscriber, Node] = {}

    @property
    def channels(self) -> int:
        """How many channels are wanted."""
        return len(self._at)

    def attach(self, subscriber: Subscriber, node: Node) -> None:
        """One more shard's."""
        self._nodes[subscriber] = node
        subscriber.on_lost = lambda channel, text: self._on_lost(subscriber, channel, text)

    def detach(self, subscriber: Subscriber) -> None:
        """It serves nothing any more."""
        self._nodes.pop(subscriber, None)

    def subscribe(self, channel: bytes) -> None:
        """As `Subscriber.subscribe`."""
        self._at[channel] = None
        self._place(channel)

    def unsubscribe(self, channel: bytes) -> None:
        """As `Subscriber.unsubscribe`."""
        subscriber = self._at.pop(channel, None)
        if subscriber is not None:
            subscriber.unsubscribe(channel)

    def rerouted(self) -> None:
        """The shards (may) serve other slots than before."""
        for channel in self._at:
            self._place(channel)

    def _place(self, channel: bytes) -> None:
        shard = self._shards.shard_of(slot_of(channel))
        subscriber = shard.subscriber if shard is not None else None
        before = self._at[channel]
        if subscriber is before:
            return
        if before is not None:
            before.unsubscribe(channel)
        self._at[channel] = subscriber
        if subscriber is not None:
            subscriber.subscribe(channel)

    def _on_lost(self, subscriber: Subscriber, channel: bytes, text: str) -> None:
        if self._at.get(channel) is not subscriber:
            return
        subscriber.unsubscribe(channel)
        redirection = Redirection.of(text, asked=self._nodes[subscriber])
        there = self._shards.shard_at(redirection.node).subscriber if redirection is not None else None
        self._at[channel] = there if there is not subscriber else None
        if there is not None and there is not subscriber:
            there.subscribe(channel)
        self._shards.look_again()


class ShardedCommands:
    """Sends each command to the shard that serves its key, and where that one points to."""

    def __init__(self, shards: Shards, *, key_prefix: str, retries: int) -> None:
        self._shards = shards
        self._retries = retries
        self._mark = f"tf:{key_prefix}:{{".encode()
        self._all: dict[Commands, Node] = {}

    @property
    def connected(self) -> bool:
        """Whether some commands are answered at the moment."""
        return any(commands.connected for commands in self._all)

    def attach(self, commands: Commands, node: Node) -> None:
        """One more shard's."""
        self._all[commands] = node

    def detach(self, commands: Commands) -> None:
        """No more."""
        self._all.pop(commands, None)

    def send(self, packed: bytes, callback: Callback) -> None:
        """As `Commands.send`; the key is found by the cluster's prefix."""
        start = packed.find(self._mark)
        slot = slot_of(packed[start + len(self._mark) - 1 :]) if start >= 0 else 0
        shard = self._shards.shard_of(slot)
        if shard is None:
            callback(None)
            return
        facts = shard.facts
        if facts is not None and facts.compatible < SHARDED_SINCE and packed.startswith(_SPUBLISH):
            packed = _PUBLISH + packed[len(_SPUBLISH) :]
        self._send(shard, packed, callback, retries=self._retries, asking=False)

    def _send(self, shard: Shard, packed: bytes, callback: Callback, *, retries: int, asking: bool) -> None:
        node = self._all.get(shard.commands, Node("", 0))

        def on_reply(reply: Reply) -> None:
            if retries > 0 and isinstance(reply, ReplyError):
                text = str(reply)
                redirection = Redirection.of(text, asked=node)
                if redirection is not None:
                    ask = text.startswith("ASK ")
                    if not ask:
                        self._shards.look_again()
                    elsewhere = self._shards.shard_at(redirection.node)
                    if elsewhere.commands.connected:
                        self._send(elsewhere, packed, callback, retries=retries - 1, asking=ask)
                        return
            callback(reply)

        if asking:
            shard.commands.send_asking(packed, on_reply)
        else:
            shard.commands.send(packed, on_reply)
