"""What a client told its application about its state, to be waited for."""

import asyncio

from tableforge_client import State, StateChange


class States:
    """Pass it as `on_state`."""

    def __init__(self) -> None:
        self.seen: list[StateChange] = []
        self._news: asyncio.Queue[StateChange] = asyncio.Queue()

    def __call__(self, change: StateChange) -> None:
        self.seen.append(change)
        self._news.put_nowait(change)

    async def until(self, state: State, *, within: float = 30.0) -> StateChange:
        """The next change to this state that nobody has waited for yet. Raises TimeoutError."""
        async with asyncio.timeout(within):
            while True:
                change = await self._news.get()
                if change.state is state:
                    return change
