"""Guests at many tables, who talk all the time and count what they hear."""

import asyncio
import collections
import contextlib
from collections.abc import AsyncIterator, Callable

from demo.screen import DemoError, Screen
from demo.talk import Person
from tableforge_client import State, StateChange, connect

GUESTS = 48
TABLES = 12
LINE_EVERY_SECONDS = 0.5


class Guests:
    """All of them, some at each table."""

    def __init__(self, guests: list[Person], tables: dict[str, list[Person]], lost: list[str]) -> None:
        self._guests = guests
        self._tables = tables
        self._lost = lost
        self._said: dict[str, int] = dict.fromkeys(tables, 0)
        """The number of the last line at each table that was acknowledged."""
        self._over = asyncio.Event()

    def __len__(self) -> int:
        return len(self._guests)

    def connections(self) -> collections.Counter[str]:
        """How many of them are on each pod."""
        return collections.Counter(
            where for guest in self._guests if (where := guest.client.instance) is not None
        )

    @contextlib.asynccontextmanager
    async def talking(self) -> AsyncIterator[None]:
        """While the block runs, everybody says a line now and then; afterwards everybody has heard all."""
        talks = [
            asyncio.create_task(self._talk(guest, table))
            for table, guests in self._tables.items()
            for guest in guests
        ]
        try:
            yield
        finally:
            self._over.set()
            await asyncio.gather(*talks)
        for table, guests in self._tables.items():
            for guest in guests:
                await guest.has_heard(self._said[table])

    def check(self) -> str:
        """A sentence about what they heard. Raises DemoError where it is not all, once and in order."""
        wrong = [problem for guest in self._guests for problem in guest.gaps()]
        for table, guests in self._tables.items():
            wrong += [
                f"{guest.name} heard #{guest.heard[0].seq} to #{guest.heard[-1].seq} of {self._said[table]}"
                for guest in guests
                if (guest.heard[0].seq, guest.heard[-1].seq) != (1, self._said[table])
            ]
        resets = sum(guest.resets for guest in self._guests)
        if wrong or resets:
            raise DemoError(f"messages are missing: {wrong[:5]}, history was reset {resets} times")
        heard = sum(len(guest.heard) for guest in self._guests)
        lost = len(set(self._lost))
        return (
            f"The guests said {sum(self._said.values()):,} lines and heard {heard:,}: each line once at each "
            "place of its table, in order. "
            f"{lost or 'None'} of them noticed that {'they' if lost else 'it'} moved."
        )

    async def _talk(self, guest: Person, table: str) -> None:
        while not self._over.is_set():
            seq = await guest.say("a line")
            self._said[table] = max(self._said[table], seq)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LINE_EVERY_SECONDS):
                    await self._over.wait()


@contextlib.asynccontextmanager
async def guests(url: str, screen: Screen) -> AsyncIterator[Guests]:
    """They connect through the cluster's Service, one after the other, and sit down."""
    lost: list[str] = []

    def notice(name: str) -> Callable[[StateChange], None]:
        return lambda change: lost.append(name) if change.state is State.RECONNECTING else None

    async with contextlib.AsyncExitStack() as stack:
        everybody: list[Person] = []
        tables: dict[str, list[Person]] = {f"table:{number + 2}": [] for number in range(TABLES)}
        for number in range(GUESTS):
            name, table = f"guest {number + 1}", f"table:{number % TABLES + 2}"
            client = await stack.enter_async_context(connect(url, on_state=notice(name)))
            guest = Person(name, client, await client.join(table), screen)
            guest.quiet = True
            everybody.append(guest)
            tables[table].append(guest)
        async with _listening(everybody):
            yield Guests(everybody, tables, lost)


@contextlib.asynccontextmanager
async def _listening(people: list[Person]) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(someone.listen()) for someone in people]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
