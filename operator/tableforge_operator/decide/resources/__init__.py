"""The objects that a cluster should own: a builder per file, pure functions from the cluster to plain dicts.

What they return is what server-side apply is given: the fields we decide and no others.
"""

from tableforge_operator.decide.resources.children import Children, children
from tableforge_operator.decide.resources.kinds import OWNED_KINDS, SECRET, Kind
from tableforge_operator.decide.resources.metadata import TRACK, scale_selector
from tableforge_operator.decide.resources.secrets import DerivedSecrets, derive

__all__ = [
    "OWNED_KINDS",
    "SECRET",
    "TRACK",
    "Children",
    "DerivedSecrets",
    "Kind",
    "children",
    "derive",
    "scale_selector",
]
