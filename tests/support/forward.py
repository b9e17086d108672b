"""An event loop's clock that goes on at once, so that nobody waits for it."""

import asyncio

import pytest


def forward(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """From now on the loop's clock is so much further: what was to happen until then is due at once.

    (Python's own loop; uvloop lets nobody do that.)
    """
    loop = asyncio.get_running_loop()
    before = loop.time
    monkeypatch.setattr(loop, "time", lambda: before() + seconds)
