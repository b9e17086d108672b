"""The kinds of the Gateway API, standard channel: from its Go module, into a cluster.

The module is fetched once per user (2 MB) and checked against `go.sum`; its definitions of kinds are kept in
the user's cache (`tableforge-tests` in `$XDG_CACHE_HOME` or `~/.cache`). Go comes from PATH or from its
wheel, as for the programs of the devcluster.
"""

import fcntl
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from devcluster.errors import ToolchainUnavailable
from devcluster.toolchain import cache_folder, golang
from devcluster.toolchain.progress import Progress
from tests.support.kubectl import Kubectl

HERE: Final = Path(__file__).parent
MODULE: Final = "sigs.k8s.io/gateway-api"
CHANNEL: Final = "config/crd/standard"
DOWNLOAD_TIMEOUT_SECONDS: Final = 120.0


class GatewayUnavailableError(RuntimeError):
    """The gateway, or the kinds it serves, can't be had here; the text says why and what to do."""


def gateway_api_version() -> str:
    """The version that `go.mod` asks for, such as `v1.6.3`."""
    found = re.search(rf"^require {re.escape(MODULE)} (v\S+)", (HERE / "go.mod").read_text(), re.MULTILINE)
    if not found:
        raise LookupError(f"{MODULE} is not in {HERE / 'go.mod'}")
    return found[1]


def install_kinds(kubeconfig: Path) -> None:
    """Install the kinds into a cluster and wait until it serves them; nothing changes where they are there.

    Raises GatewayUnavailableError, KubectlError.
    """
    folder = _obtain()
    kubectl = Kubectl(kubeconfig)
    # The definition of HTTPRoute is too long for the annotation that a client-side apply would write.
    kubectl("apply", "--server-side", f"--filename={folder}")
    # First for the names: kubectl takes conditions that are not there yet for an error.
    for awaited in ("jsonpath={.status.acceptedNames.plural}", "condition=Established"):
        kubectl("wait", f"--for={awaited}", "--timeout=60s", f"--filename={folder}", timeout_seconds=70)


def _obtain() -> Path:
    """A folder with the definitions, one file each."""
    cache = cache_folder().parent / "tableforge-tests"
    folder = cache / f"gateway-api-{gateway_api_version()}"
    if folder.exists():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "gateway-api.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():  # another process may have fetched them while this one waited
            with tempfile.TemporaryDirectory(dir=cache, prefix="fetching-") as scratch:
                _fetch(Path(scratch)).rename(folder)
    return folder


def _fetch(scratch: Path) -> Path:
    progress = Progress()
    progress.say(f"Fetching the kinds of the Gateway API {gateway_api_version()} (once, 2 MB) …")
    try:
        go = golang.obtain(scratch=scratch, progress=progress)
    except ToolchainUnavailable as error:
        raise GatewayUnavailableError(f"The kinds of the Gateway API come as a Go module. {error}") from error
    module = scratch / "module"
    module.mkdir()
    for name in ("go.mod", "go.sum"):
        shutil.copy(HERE / name, module)
    environ = {name: value for name, value in os.environ.items() if name != "GOBIN"} | {
        "GOFLAGS": "-mod=readonly -modcacherw",
        "GOMODCACHE": str(scratch / "modules"),
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
    }
    try:
        answer = subprocess.run(
            [go, "mod", "download", "-json", MODULE],
            cwd=module,
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=DOWNLOAD_TIMEOUT_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise GatewayUnavailableError(
            f"The Go module {MODULE} was not there within {DOWNLOAD_TIMEOUT_SECONDS:.0f} s: run it again "
            "where the Go module proxy is reached."
        ) from error
    if answer.returncode != 0:
        said = "\n".join((answer.stderr + answer.stdout).strip().splitlines()[-5:])
        raise GatewayUnavailableError(f"The Go module {MODULE} can't be fetched (GOPROXY):\n{said}")
    source = Path(json.loads(answer.stdout)["Dir"]) / CHANNEL
    result = scratch / "kinds"
    result.mkdir()
    # Beside them lies a policy that guards against older kinds: a cluster of one's own needs none.
    for definition in source.glob("gateway.networking.k8s.io_*s.yaml"):
        if "\nkind: CustomResourceDefinition\n" in definition.read_text():
            shutil.copy(definition, result)
    if not any(result.iterdir()):
        raise GatewayUnavailableError(f"{MODULE} {gateway_api_version()} has no kinds in {CHANNEL}")
    return result
