"""What the objects of a cluster depend on besides the cluster itself."""

import dataclasses
from typing import Final

from tableforge_operator.decide.resources.kinds import OPTIONAL_KINDS

DEFAULT_OPERATOR_NAMESPACE: Final = "tableforge-system"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Surroundings:
    """Where the operator runs, and what this Kubernetes cluster has."""

    operator_namespace: str = DEFAULT_OPERATOR_NAMESPACE
    """The operator's own namespace: its pods ask the instances' internal port."""
    absent_kinds: frozenset[str] = OPTIONAL_KINDS
    """Those of OPTIONAL_KINDS that the API server does not know, as far as anybody has looked."""
