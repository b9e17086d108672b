"""Find the programs, or have them built."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from . import versions
from .progress import Progress

PROGRAMS = tuple(versions.PACKAGES)


@dataclass(frozen=True, slots=True)
class Binaries:
    """Absolute paths of the three programs."""

    etcd: Path
    kube_apiserver: Path
    kube_controller_manager: Path


def cache_folder() -> Path:
    """The user's: `$XDG_CACHE_HOME/devcluster`, or `~/.cache/devcluster`."""
    configured = os.environ.get("XDG_CACHE_HOME", "")
    # The specification says that a relative path is to be ignored.
    base = Path(configured) if configured.startswith("/") else Path.home() / ".cache"
    return base / "devcluster"


def program_folder() -> Path:
    """Where built programs of the pinned versions are kept."""
    return cache_folder() / versions.key()


def find(program: str) -> Path | None:
    """Where the program is, from `$KUBEBUILDER_ASSETS` or the cache; None where it must be built."""
    assets = os.environ.get("KUBEBUILDER_ASSETS", "")
    folders = [Path(assets).absolute()] if assets else []
    for folder in (*folders, program_folder()):
        candidate = folder / program
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return candidate
    return None


def obtain(progress: Progress | None = None) -> Binaries:
    """All three programs; builds what is missing, which takes minutes the first time.

    Raises ToolchainUnavailable when that is impossible.
    """
    missing = [program for program in PROGRAMS if find(program) is None]
    if missing:
        from .build import build

        build(missing, folder=program_folder(), progress=progress or Progress())
    found = {program: find(program) for program in PROGRAMS}
    etcd, api_server, controller_manager = (found[program] for program in PROGRAMS)
    if etcd is None or api_server is None or controller_manager is None:
        raise AssertionError(f"built, but not found: {found}")
    return Binaries(etcd, api_server, controller_manager)
