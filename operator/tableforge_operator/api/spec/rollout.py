"""`spec.rollout`."""

from typing import Annotated, Literal

from tableforge_operator.api.fields import Group, default_of, duration, field, setting
from tableforge_operator.api.quantities import Duration


class Rollout(Group, frozen=True):
    """How pods are replaced."""

    strategy: Annotated[
        Literal["RollingUpdate", "BlueGreen"],
        field(
            "`RollingUpdate`: new instances take the old ones' places one by one. `BlueGreen`: as many new "
            "ones are made ready beside the old ones, then all new clients go to them and the old ones leave."
        ),
    ] = "RollingUpdate"

    drain_timeout: Annotated[
        Duration,
        setting(
            "scaling.drain_seconds",
            "Over how long a leaving instance spreads its clients' reconnects. "
            "The pods' grace period covers it.",
        ),
    ] = default_of("scaling.drain_seconds")
    max_reconnects_per_second: Annotated[
        int,
        setting(
            "rollout.max_reconnects_per_second",
            "How many clients a second the whole cluster may send elsewhere, for whatever reason; "
            "pods follow one another no faster than it allows.",
        ),
    ] = default_of("rollout.max_reconnects_per_second")
    progress_deadline: Annotated[
        Duration,
        duration(
            "How long a change may take before the cluster counts as stalled.",
            low=Duration.parse("30s"),
            high=Duration.parse("24h"),
        ),
    ] = Duration.parse("10m")
