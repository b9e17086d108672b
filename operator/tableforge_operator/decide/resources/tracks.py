"""The two tracks of instances, as far as a rollout decides about them."""

import dataclasses
from typing import Final

from tableforge_operator.decide.resources.metadata import TRACK, Track


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instances:
    """One track's Deployment."""

    track: Track = TRACK
    replicas: int | None = None
    """How many; None: what the spec says, or the autoscaler."""
    min_ready_seconds: int = 0
    """How long a new instance is ready before the next old one goes."""
    replaces: str = ""
    """Hash of the template whose instances these are to replace; empty once they have."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tracks:
    """What is to be applied: a Deployment that isn't here is left as it is."""

    selected: Track = TRACK
    """The track that the client Service points to."""
    applied: tuple[Instances, ...] = (Instances(),)
    accepting: bool = True
    """Whether the client Service leaves out instances that take no new clients."""


ONE_TRACK: Final = Tracks()
"""A cluster that has never had another one."""
