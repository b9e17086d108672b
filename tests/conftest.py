"""Fixtures for all tests: a Redis and data-plane processes of one's own."""

import os
import signal
from collections.abc import AsyncIterator, Generator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from demo.images import image_table
from tests.support.gateway import Traefik
from tests.support.processes import DataplaneFleet
from tests.support.redis import RedisServer, redis_image

# `control_plane` and `devcluster`: a Kubernetes cluster that a session's tests share.
pytest_plugins = ["devcluster.pytest_plugin"]

# Property tests try the same inputs in every run: one that is red is red again. What they have not tried yet
# `TABLEFORGE_EXPLORE=1 make test` looks for.
settings.register_profile("tableforge", derandomize=not os.environ.get("TABLEFORGE_EXPLORE"), deadline=None)
settings.load_profile("tableforge")


def pytest_configure() -> None:
    """Programs under test must hear an interrupt.

    What a shell starts in the background ignores SIGINT, and hands that on to everything it starts.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


WITH_CLUSTERS = ("tests/e2e/", "tests/operator/engine/", "tests/devcluster/", "tests/operator/model/")
"""Folders whose tests start clusters. Even idle a cluster takes a share of the machine, so they come late;
those whose files take minutes first: of several processes none should be left alone with one."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Folders without clusters, then those; within a folder as ever."""

    def place(item: pytest.Item) -> int:
        folders = (place for place, folder in enumerate(WITH_CLUSTERS) if item.nodeid.startswith(folder))
        return next(folders, -1)

    items.sort(key=place)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test shows what its processes printed: the cause is mostly there."""
    report = yield
    if report.when == "call" and report.failed:
        for name, value in getattr(item, "funcargs", {}).items():
            if isinstance(value, RedisServer | DataplaneFleet | Traefik) and (output := value.output()):
                report.sections.append((f"{name}: its processes' last lines", output))
    return report


@pytest.fixture
async def redis_server(tmp_path: Path) -> AsyncIterator[RedisServer]:
    """A running Valkey with `appendfsync always`, without a password."""
    async with RedisServer(tmp_path / "redis") as server:
        yield server


@pytest.fixture
async def dataplane(tmp_path: Path) -> AsyncIterator[DataplaneFleet]:
    """Starts data-plane processes: `one, two = await dataplane(redis_server, 2, AUTH_REQUIRED="true")`."""
    fleet = DataplaneFleet(tmp_path / "dataplane")
    try:
        yield fleet
    finally:
        await fleet.stop()


@pytest.fixture(scope="session")
def devcluster_images() -> Mapping[str, Any]:
    """What the shared devcluster can run: the product's images as `make demo` runs them, and two versions of
    Redis to change between.
    """
    return {**image_table(), "test/redis-7.4": redis_image("redis7"), "test/redis-8": redis_image("redis8")}
