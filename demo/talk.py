"""People in one room on different pods, as the demo shows them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection
from itertools import pairwise

from demo.screen import DemoError, Screen
from tableforge_client import Client, Message, Reset, Room, State, StateChange, connect


class Person:
    """One client: prints what it hears, and remembers it."""

    def __init__(self, name: str, client: Client, room: Room, screen: Screen) -> None:
        self.name = name
        self.client = client
        self._room = room
        self._screen = screen
        self.heard: list[Message] = []
        self.resets = 0
        self._arrived = asyncio.Condition()
        self.quiet = False
        """Whether what it hears is left unprinted."""

    async def say(self, text: str) -> int:
        """Publish a line; returns its number in the room once it is acknowledged."""
        ack = await self._room.publish("line", {"who": self.name, "text": text})
        return ack.seq

    async def listen(self) -> None:
        """Take what arrives, until the room ends."""
        async for item in self._room:
            async with self._arrived:
                if isinstance(item, Message):
                    self.heard.append(item)
                    if not self.quiet:
                        self._screen.say(
                            f"{self.name:<5} on {self.client.instance or '(reconnecting)':<24} hears "
                            f"#{item.seq} {item.data['who']}: {item.data['text']}"
                        )
                elif isinstance(item, Reset):
                    self.resets += 1
                    self._screen.say(f"{self.name:<5} is told that history does not continue: {item.reason}")
                self._arrived.notify_all()

    async def has_heard(self, seq: int, timeout_seconds: float = 30.0) -> None:
        """Wait until the message with this number has arrived."""
        async with asyncio.timeout(timeout_seconds), self._arrived:
            await self._arrived.wait_for(lambda: bool(self.heard) and self.heard[-1].seq >= seq)

    def gaps(self) -> list[str]:
        """What is wrong with the order of what it heard; empty where every number came once and in order."""
        numbers = [message.seq for message in self.heard]
        return [
            f"{self.name}: #{after} after #{before}"
            for before, after in pairwise(numbers)
            if after != before + 1
        ]


@contextlib.asynccontextmanager
async def person(
    name: str, url: str, room: str, screen: Screen, *, elsewhere: Collection[str | None] = ()
) -> AsyncIterator[Person]:
    """A person in the room, through the cluster's Service, on none of the instances in `elsewhere`.

    The Service picks the instance, so it may take a few connections until it is another one.
    """

    away = False

    def on_state(change: StateChange) -> None:
        nonlocal away
        if change.state is State.RECONNECTING and not away:
            away = True
            screen.say(f"{name:<5} lost its connection to {change.instance}: reconnecting")
        elif change.state is State.CONNECTED and away:
            away = False
            screen.say(f"{name:<5} is back, on {change.instance}")

    for _ in range(50):
        async with connect(url, on_state=on_state) as client:
            if client.instance in elsewhere:
                continue
            someone = Person(name, client, await client.join(room), screen)
            screen.say(f"{name:<5} is connected to {client.instance}")
            listening = asyncio.create_task(someone.listen())
            try:
                yield someone
            finally:
                listening.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await listening
            return
    raise DemoError(f"{name}: 50 connections through {url} all reached {sorted(filter(None, elsewhere))}")
