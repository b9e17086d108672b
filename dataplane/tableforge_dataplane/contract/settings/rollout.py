"""`Settings.rollout`."""

import dataclasses

from tableforge_dataplane.contract.settings.declaration import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutSettings:
    """What all instances that make clients reconnect keep to together."""

    max_reconnects_per_second: int = setting(
        200,
        "TABLEFORGE_ROLLOUT_MAX_RECONNECTS_PER_SECOND",
        "How many clients a second the whole cluster may send elsewhere, for whatever reason.",
        minimum=1,
        maximum=1_000_000,
        live=True,
    )
