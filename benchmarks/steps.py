"""What each step of a message's way costs by itself, in µs of one core: `python -m benchmarks.steps`.

No sockets and no Redis: the steps are called as the loop calls them, with replies made up. Figures in the
code's comments come from here; `python -m benchmarks` has what it all costs together.
"""

import asyncio
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any, cast

import uvloop

from tableforge_dataplane.broker.addresses import RoomAddress
from tableforge_dataplane.broker.publications import Publication, RefusalCode, new_tag
from tableforge_dataplane.broker.publisher import Publisher
from tableforge_dataplane.broker.state import ServerFacts
from tableforge_dataplane.contract.room_options import LogLimits, parse_room_options
from tableforge_dataplane.contract.settings import PerformanceSettings, RoomSettings, SecuritySettings
from tableforge_dataplane.homes.guide import Guide
from tableforge_dataplane.observability.metrics import Metrics
from tableforge_dataplane.protocol import payload
from tableforge_dataplane.protocol.native import Native
from tableforge_dataplane.rooms.hub import Hub
from tableforge_dataplane.rooms.outlet import Turn
from tableforge_dataplane.session.limits import CommandRate

LIMITS = LogLimits.of_rooms(RoomSettings())
TIMES = 20_000
REPEATS = 5
DATA = b'"' + b"x" * 126 + b'"'
FRAME = b'{"type":"publish","id":1,"room":"room-1","event":"chat","data":%b}' % DATA


def show(name: str, step: Callable[[], object], *, messages: int = 1) -> None:
    """Median of some runs."""
    costs = []
    for _ in range(REPEATS):
        began = time.process_time()
        for _ in range(TIMES // messages):
            step()
        costs.append((time.process_time() - began) / (TIMES // messages * messages) * 1e6)
    print(f"{name}: {statistics.median(costs):.2f} µs")


class Nobody:
    """Owns publications and listens to nothing."""

    abandoned = False

    def published(self, publication: Publication, seq: int, tag: bytes, duplicate: bool) -> None:
        """As the publisher calls it."""

    def refused(
        self, publication: Publication, code: RefusalCode, message: str, retry_after: float | None
    ) -> None:
        """As the publisher calls it."""


class Nowhere:
    """A connection to Redis, a set of channels and a reader of logs that do nothing."""

    receive: Callable[[Any], None]

    async def ask(self, *_parts: bytes | int) -> None:
        """As the publisher calls it."""

    def write(self, _data: bytes) -> None:
        """As the publisher calls it."""

    def subscribe(self, _channel: bytes) -> None:
        """As the hub calls it."""

    def unsubscribe(self, channel: bytes) -> None:
        """As the hub calls it."""

    def join(self, *_args: object) -> None:
        """As the hub calls it."""


async def publisher(batch: int) -> Callable[[], None]:
    """A step that publishes a batch, sends it, and takes the replies."""
    one, nowhere, nobody = (
        Publisher(performance=PerformanceSettings(), queue_size=1000),
        Nowhere(),
        Nobody(),
    )
    await one.on_up(cast("Any", nowhere), ServerFacts(product="", version="", compatible=(7, 2)))
    head = one.head(RoomAddress.of("bench", "room-1", LIMITS))
    reply = [1, b"1234567890123456", 0]

    def step() -> None:
        for _ in range(batch):
            one.publish(
                Publication(head=head, tag=new_tag(), origin=b"o", key=b"i:1", body=DATA, owner=nobody)
            )
        one._on_turn()
        for _ in range(batch):
            nowhere.receive(reply)
        one._after_replies()

    return step


def hub() -> Callable[[], None]:
    """A step that takes messages of a room whose members are elsewhere: what does not grow with them."""
    one, nowhere = Hub(settings=RoomSettings(), metrics=Metrics(), turn=Turn()), Nowhere()
    one.attach(
        channels=nowhere,
        reader=cast("Any", nowhere),
        address=lambda room: RoomAddress.of("bench", room, LIMITS),
        publish_head=lambda _address: b"",
        rules=lambda: parse_room_options("", RoomSettings(), max_payload_bytes=0),
    )
    room = one._open("room-1")
    room.seq, room.tag = 0, b"1"
    channel = room.address.channel
    body = b'{"event":"chat","from":"ada","data":%b}' % DATA

    def step() -> None:
        one.on_message(channel, b"%d 1 1 1764000000.123 o %b" % (room.seq + 1, body))
        one.on_messages_end()

    return step


class Everywhere:
    """Homes of rooms: all at one place."""

    this = "here"

    def home_of(self, _room: str) -> str:
        """As the guide calls it."""
        return "here"

    def address_of(self, _instance: str) -> None:
        """As the guide calls it."""


class Guest:
    """A client in ten rooms."""

    closed = False
    rooms = tuple(f"room-{number}" for number in range(10))

    def shared_rooms(self) -> Iterable[str]:
        """As the guide calls it."""
        return self.rooms

    def tell(self, _event: object) -> None:
        """As the guide calls it."""


def guide() -> Guide:
    """A guide that finds everybody at home."""
    return Guide(
        Everywhere(),
        budget=cast("Any", None),
        metrics=Metrics(),
        members=lambda _room: [],
        everybody=list,
        whole_look_every_seconds=3600.0,
    )


async def run() -> None:
    """All steps."""
    loop = asyncio.get_running_loop()
    rate = CommandRate(SecuritySettings(max_messages_per_second=10**9, max_messages_per_minute=10**9))
    show("checking data of 128 bytes", lambda: payload.check(DATA, 63))
    show("decoding a publish, its data checked", lambda: Native().decode(FRAME))
    show("counting a command", lambda: rate.take(loop.time()))
    show("publisher, a message alone", await publisher(1))
    show("publisher, in batches of 20", await publisher(20), messages=20)
    show("hub, a message, without its recipients", hub())
    one, guest = guide(), Guest()
    show("guide, told of a join", lambda: one.look_at(guest))
    show("guide, a look at a client in 10 rooms", lambda: one.look_at_one(guest))


if __name__ == "__main__":
    uvloop.run(run())
