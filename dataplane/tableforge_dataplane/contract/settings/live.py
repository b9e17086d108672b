"""`Settings.live`."""

import dataclasses

from tableforge_dataplane.contract.settings.declaration import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class LiveSettings:
    """What may change while an instance runs."""

    file: str = setting(
        "",
        "TABLEFORGE_LIVE_SETTINGS_FILE",
        "A file with settings that may change while an instance runs: a JSON object of variables and their "
        "values, all of them texts, which win over those of the environment. It is read again when it "
        "changes, as a whole; one that cannot be used changes nothing, and shows at `/health`. With it, a "
        "log's limit in bytes below TABLEFORGE_WEBSOCKET_MAX_PAYLOAD_BYTES counts as that many and is no "
        "mistake.",
        pattern=r"[^\x00-\x1f]{0,1000}",
    )
