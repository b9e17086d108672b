"""What the API server says against many WebSocketClusters, asked in one go: one kubectl each is slow."""

import re
from collections.abc import Mapping
from typing import Any

from tests.operator.model import expected
from tests.operator.model.conftest import Kubectl


def refusals(kubectl: Kubectl, specs: Mapping[str, dict[str, Any]]) -> dict[str, str]:
    """By the case's name (a valid object name) what was said; empty where the spec was taken."""
    objects = [expected.cr(spec, name=name) for name, spec in specs.items()]
    answer = kubectl("create", "--dry-run=server", "-f", "-", stdin=objects)
    taken = set(re.findall(r"^websocketcluster\.tableforge\.io/(\S+) created", answer.out, re.MULTILINE))
    parts = re.split(r'WebSocketCluster(?:\.tableforge\.io)? "([^"]+)" is invalid', answer.err)
    said = dict(zip(parts[1::2], parts[2::2], strict=True))
    assert taken | set(said) == set(specs), answer.err
    return {name: said.get(name, "") for name in specs}
