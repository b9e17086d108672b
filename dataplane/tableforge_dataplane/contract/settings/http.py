"""`Settings.http`."""

import dataclasses

from tableforge_dataplane.contract.settings.declaration import setting
from tableforge_dataplane.contract.settings.secret import Secret


@dataclasses.dataclass(frozen=True, kw_only=True)
class HttpSettings:
    """The internal port: metrics and the fleet's view. Never exposed by a public Service."""

    port: int = setting(
        3002, "TABLEFORGE_HTTP_PORT", "Port of the internal HTTP server.", minimum=0, maximum=65535
    )
    fleet_key: Secret = setting(
        Secret,
        "TABLEFORGE_HTTP_FLEET_KEY",
        "Bearer key of `/fleet`; TABLEFORGE_HTTP_FLEET_KEY_FILE names a file "
        "that holds it. Without one `/fleet` is off.",
    )
    api_key: Secret = setting(
        Secret,
        "TABLEFORGE_HTTP_API_KEY",
        "Bearer key of the server API, `/stats` and `/rooms`; TABLEFORGE_HTTP_API_KEY_FILE names a file "
        "that holds it. Without one they are off.",
    )
