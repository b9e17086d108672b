"""An event loop's clock that goes on at once, so that nobody waits for it."""

import asyncio
from typing import Any, cast

import pytest


def forward(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """From now on the loop's clock is so much further: what was to happen until then is due at once.

    (Python's own loop; uvloop lets nobody do that.)
    """
    loop = asyncio.get_running_loop()
    before = loop.time
    monkeypatch.setattr(loop, "time", lambda: before() + seconds)


def leap(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on the loop's clock stands, and leaps to what is due next once nothing else is left to do.

    For what does no I/O: however slow the machine, everything then takes the time it asks for and no more.
    """
    loop = asyncio.get_running_loop()
    selector = cast("Any", loop)._selector
    select, now = selector.select, loop.time()

    def leaping(timeout: float | None = None) -> Any:
        nonlocal now
        if timeout is None:
            return select(None)
        now += max(0.0, timeout)
        return select(0)

    monkeypatch.setattr(selector, "select", leaping)
    monkeypatch.setattr(loop, "time", lambda: now)
