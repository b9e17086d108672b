"""Work that goes on for as long as the instance lives: a mistake in it is told, and it begins again."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from tableforge_dataplane.observability.logging import EventLog

AGAIN_AFTER_SECONDS: Final = 1.0


async def keep_going(loop: Callable[[], Awaitable[None]], *, log: EventLog) -> None:
    """Run `loop`, which has no end, again and again.

    A task that ends by an exception says so to nobody while somebody holds it; and what one room or one
    answer did to it must not end what it does for all others. `log` gets `loop_failed`.
    """
    while True:
        try:
            await loop()
        except Exception as error:  # noqa: BLE001
            task = asyncio.current_task()
            log.error("loop_failed", error=error, loop=task.get_name() if task is not None else "")
        await asyncio.sleep(AGAIN_AFTER_SECONDS)
