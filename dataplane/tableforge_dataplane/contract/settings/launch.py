"""`Settings.launch`."""

import dataclasses

from tableforge_dataplane.contract.settings.declaration import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class LaunchSettings:
    """Running without Kubernetes."""

    data_dir: str = setting(
        "",
        "TABLEFORGE_DATA_DIR",
        "Folder in which `serve` keeps the data of the Valkey that it starts where no Redis is configured "
        "and none answers on localhost. Empty: `tableforge` below XDG_DATA_HOME or ~/.local/share.",
        pattern=r"[^\x00-\x1f]{0,1000}",
    )
