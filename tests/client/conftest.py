"""Fixtures for the client's tests."""

from collections.abc import AsyncIterator

import pytest

from tests.support.scripted_peer import ScriptedPeer


@pytest.fixture
async def peer() -> AsyncIterator[ScriptedPeer]:
    async with ScriptedPeer() as peer:
        yield peer


@pytest.fixture
async def other_peer() -> AsyncIterator[ScriptedPeer]:
    async with ScriptedPeer() as peer:
        yield peer
