"""The objects that a cluster should own: a builder per file, pure functions from the cluster to plain dicts.

What they return is what server-side apply is given: the fields we decide and no others.
"""

from tableforge_operator.decide.resources.children import Children, children, template_of
from tableforge_operator.decide.resources.kinds import (
    OPTIONAL_KINDS,
    OWNED_KINDS,
    REPLICA_SET,
    SECRET,
    VOLUME_CLAIM,
    WITHDRAWN_KINDS,
    Kind,
)
from tableforge_operator.decide.resources.metadata import TRACK, redis_name, scale_selector
from tableforge_operator.decide.resources.secrets import DerivedSecrets, derive
from tableforge_operator.decide.resources.surroundings import Surroundings

__all__ = [
    "OPTIONAL_KINDS",
    "OWNED_KINDS",
    "REPLICA_SET",
    "SECRET",
    "TRACK",
    "VOLUME_CLAIM",
    "WITHDRAWN_KINDS",
    "Children",
    "DerivedSecrets",
    "Kind",
    "Surroundings",
    "children",
    "derive",
    "redis_name",
    "scale_selector",
    "template_of",
]
