"""What the API server says against many WebSocketClusters, asked in one go: one kubectl each is slow."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tests.operator.model import expected
from tests.operator.model.conftest import Kubectl

AT_ONCE = 100
"""Objects given to one kubectl."""


def refusals(kubectl: Kubectl, specs: Mapping[str, dict[str, Any]]) -> dict[str, str]:
    """By the case's name (a valid object name) what was said; empty where the spec was taken."""
    return answers(kubectl, [expected.cr(spec, name=name) for name, spec in specs.items()], "create")


def answers(kubectl: Kubectl, objects: Sequence[dict[str, Any]], *verb: str) -> dict[str, str]:
    """Likewise for WebSocketClusters as they are, and another verb than `create`."""
    found: dict[str, str] = {}
    for first in range(0, len(objects), AT_ONCE):
        some = list(objects[first : first + AT_ONCE])
        answer = kubectl(*verb, "--dry-run=server", "-f", "-", stdin=some)
        taken = re.findall(r"^websocketcluster\.tableforge\.io/(\S+) \w+", answer.out, re.MULTILINE)
        parts = re.split(r'WebSocketCluster(?:\.tableforge\.io)? "([^"]+)" is invalid', answer.err)
        said = dict.fromkeys(taken, "") | dict(zip(parts[1::2], parts[2::2], strict=True))
        assert set(said) == {obj["metadata"]["name"] for obj in some}, answer.err
        found |= said
    return found
