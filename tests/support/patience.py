"""How long a test may take."""

from collections.abc import Iterable
from pathlib import Path

import pytest

CLUSTER_SECONDS = 600
"""For one with a cluster: its waits guard against hanging only, and may add up on a busy machine."""


def be_patient(items: Iterable[pytest.Item], folder: Path) -> None:
    """Give the tests with clusters in a folder their time, where they name none themselves."""
    for item in items:
        with_cluster = item.path.is_relative_to(folder) and item.get_closest_marker("cluster") is not None
        if with_cluster and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(CLUSTER_SECONDS))
