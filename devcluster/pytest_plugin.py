"""pytest fixtures: a cluster that the tests of one session share.

    pytest_plugins = ["devcluster.pytest_plugin"]    # in the top-most conftest.py

`control_plane` is the API server and its controllers, `devcluster` the same with a node agent, which runs the
images of the fixture `devcluster_images`; override that one to have your own. Both are `Devcluster` objects,
started: use `.kubeconfig`. Tests share them, so give each test a namespace of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from .cluster import Devcluster, check_platform
from .toolchain import obtain

CLUSTER_FIXTURES = {"control_plane", "devcluster"}


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build the programs before the first test, outside of its time limit and of what captures output."""
    if session.config.option.collectonly or not any(_needs_cluster(item) for item in session.items):
        return
    check_platform()
    capture = session.config.pluginmanager.getplugin("capturemanager")
    with contextlib.nullcontext() if capture is None else capture.global_and_fixture_disabled():
        obtain()


def _needs_cluster(item: pytest.Item) -> bool:
    fixtures = set(getattr(item, "fixturenames", ()))
    return bool(CLUSTER_FIXTURES & fixtures) or item.get_closest_marker("cluster") is not None


def running(cluster: Devcluster) -> Iterator[Devcluster]:
    """A cluster for as long as the generator lives, for a fixture of one's own."""
    # A loop of its own, not one of a test: the cluster outlives every test, watched by its own supervisor.
    with asyncio.Runner() as runner:
        runner.run(cluster.start())
        try:
            yield cluster
        finally:
            # Raises when a part of the cluster died meanwhile: the session must not pass then.
            runner.run(cluster.stop())


@pytest.fixture(scope="session")
def devcluster_images() -> Mapping[str, Any] | Path:
    """The image table of the fixture `devcluster`: override it."""
    return {}


@pytest.fixture(scope="session")
def control_plane() -> Iterator[Devcluster]:
    """API server, etcd and controller manager: no pod ever runs."""
    yield from running(Devcluster(agent=False))


@pytest.fixture(scope="session")
def devcluster(devcluster_images: Mapping[str, Any] | Path) -> Iterator[Devcluster]:
    """A whole cluster with a node that runs pods."""
    yield from running(Devcluster(images=devcluster_images))
