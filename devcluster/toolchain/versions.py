"""What is pinned: read from `go.mod`, so that there is one place to change."""

from __future__ import annotations

import functools
import hashlib
import platform
import re
from pathlib import Path

MODULE_FOLDER = Path(__file__).parent
GO_LOCK = MODULE_FOLDER / "go.lock"
"""The Go wheel for machines without Go: a requirements file with hashes."""

PACKAGES = {
    "etcd": "go.etcd.io/etcd/server/v3",
    "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
    "kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
}
"""The Go package of each program."""

_VERSION_VARIABLES = "k8s.io/component-base/version"


@functools.cache
def _go_mod() -> str:
    return (MODULE_FOLDER / "go.mod").read_text()


def required(module: str) -> str:
    """The version of a module in `go.mod`, such as `v1.37.2`."""
    found = re.search(rf"^\t{re.escape(module)} (v\S+)", _go_mod(), re.MULTILINE)
    if not found:
        raise LookupError(f"{module} is not in {MODULE_FOLDER / 'go.mod'}")
    return found[1]


def go_version() -> tuple[int, int]:
    """The oldest Go that `go.mod` allows."""
    found = re.search(r"^go (\d+)\.(\d+)", _go_mod(), re.MULTILINE)
    if not found:
        raise LookupError(f"no go line in {MODULE_FOLDER / 'go.mod'}")
    return int(found[1]), int(found[2])


def linker_flags() -> str:
    """Without debug information; with the version that `kubectl version` shows (a plain build has none)."""
    version = required("k8s.io/kubernetes")
    major, minor, _ = version.removeprefix("v").split(".", 2)
    values = {
        "gitVersion": version,
        "gitMajor": major,
        "gitMinor": minor,
        "gitCommit": "",
        "gitTreeState": "clean",
    }
    return " ".join(["-s -w", *(f"-X {_VERSION_VARIABLES}.{name}={value}" for name, value in values.items())])


@functools.cache
def key() -> str:
    """Names the folder of the cache: another pin, flag or machine type is another folder."""
    digest = hashlib.sha256()
    for content in (_go_mod(), (MODULE_FOLDER / "go.sum").read_text(), linker_flags()):
        digest.update(content.encode())
    kubernetes, etcd = required("k8s.io/kubernetes"), required("go.etcd.io/etcd/server/v3")
    return f"kubernetes-{kubernetes}-etcd-{etcd}-{platform.machine()}-{digest.hexdigest()[:8]}"
