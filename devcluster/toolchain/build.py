"""The one-time build.

It can be interrupted at any moment and goes on where it was: Go's build cache lies in a folder of its own
beside the programs until the last of them is there, then it is removed (it grows to 3.6 GB).
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import json
import os
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from devcluster.errors import ToolchainUnavailable
from devcluster.supervision.process import die_with_parent

from . import golang, versions
from .progress import Progress

DISK_NEEDED_BYTES = 6 * 1024**3
"""Build cache 3.6 GB, modules 1.3 GB, programs 0.25 GB, and some air."""
ERROR_LINES_SHOWN = 30


def build(programs: Sequence[str], *, folder: Path, progress: Progress) -> None:
    """Build `programs` into `folder`. Raises ToolchainUnavailable."""
    scratch = folder.parent / "building"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _only_one(folder.parent / "building.lock", progress=progress):
        # Only now: who built before removed it.
        scratch.mkdir(exist_ok=True)
        # Another process may have built them while this one waited.
        missing = [program for program in programs if not (folder / program).exists()]
        if missing:
            _build(missing, folder=folder, scratch=scratch, progress=progress)
        _remove(scratch)


@contextlib.contextmanager
def _only_one(lock: Path, *, progress: Progress) -> Iterator[None]:
    with lock.open("a+") as holder:
        try:
            fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder.seek(0)
            progress.say(f"Process {holder.read().strip() or '?'} is building already; waiting for it …")
            while True:
                try:
                    fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    progress.update("Waiting for the other build …")
                    time.sleep(0.5)
        holder.truncate(0)
        holder.write(str(os.getpid()))
        holder.flush()
        yield


def _build(programs: Sequence[str], *, folder: Path, scratch: Path, progress: Progress) -> None:
    # What an interrupted build left counts as free.
    free = shutil.disk_usage(scratch).free + _size(scratch)
    if free < DISK_NEEDED_BYTES:
        raise ToolchainUnavailable(
            f"The build needs {DISK_NEEDED_BYTES / 1024**3:.0f} GB below {scratch.parent} for a few minutes, "
            f"{free / 1024**3:.1f} GB are free. Make room, or set XDG_CACHE_HOME to a folder elsewhere."
        )
    progress.say(
        f"Building {', '.join(programs)} (Kubernetes {versions.required('k8s.io/kubernetes')}, "
        f"etcd {versions.required('go.etcd.io/etcd/server/v3')}) once, into {folder}."
    )
    progress.say("This takes a few minutes; it can be interrupted and goes on where it was.")
    go = golang.obtain(scratch=scratch, progress=progress)
    environment = _environment(scratch)
    packages = [versions.PACKAGES[program] for program in programs]
    to_compile = _download(go, packages, environment=environment, progress=progress)
    folder.mkdir(parents=True, exist_ok=True)
    compiled = 0
    for program in programs:

        def count(package: str, program: str = program) -> None:
            nonlocal compiled
            compiled += 1
            progress.update(f"{program}: compiled {min(compiled, to_compile)} of {to_compile} ({package})")

        unfinished = scratch / program
        command = [
            str(go),
            "build",
            "-v",
            "-trimpath",
            "-buildvcs=false",
            "-ldflags",
            versions.linker_flags(),
        ]
        _run(
            [*command, "-o", str(unfinished), versions.PACKAGES[program]],
            environment=environment,
            what=f"building {program}",
            on_line=count,
        )
        unfinished.replace(folder / program)
        size = (folder / program).stat().st_size / 1024**2
        progress.say(f"{program} is built ({size:.0f} MB).")


def _environment(scratch: Path) -> dict[str, str]:
    environment = {
        name: value for name, value in os.environ.items() if name not in {"GOOS", "GOARCH", "GOBIN"}
    }
    environment |= {
        "CGO_ENABLED": "0",
        "GOCACHE": str(scratch / "go-build"),
        "GOFLAGS": "-mod=readonly -modcacherw",
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
    }
    # Not into a home that may never see Go again; who names a folder has modules there.
    environment.setdefault("GOMODCACHE", str(scratch / "modules"))
    return environment


def _download(go: Path, packages: Sequence[str], *, environment: dict[str, str], progress: Progress) -> int:
    """Fetch the modules that are not here yet; answers how many packages are to be compiled."""
    wanted = len(set(_modules()))
    fetched = 0

    def count(line: str) -> bool:
        nonlocal fetched
        if not line.startswith("go: downloading "):
            return False
        fetched += 1
        module = line.removeprefix("go: downloading ")
        progress.update(f"Fetching modules: {fetched} of at most {wanted} ({module})")
        return True

    command = [str(go), "list", "-deps", "-trimpath", "-json=ImportPath,Stale", *packages]
    listed = _run(command, environment=environment, what="fetching Go modules", accept=count)
    if fetched:
        progress.say(f"{fetched} modules are here.")
    decoder, position, stale = json.JSONDecoder(), 0, 0
    while position < len(listed):
        package, end = decoder.raw_decode(listed, position)
        stale += bool(package.get("Stale"))
        position = end + 1
    return stale


def _modules() -> Iterator[str]:
    for line in (versions.MODULE_FOLDER / "go.mod").read_text().splitlines():
        words = line.split("//")[0].split()
        if line.startswith("\t") and len(words) == 2 and words[1].startswith("v"):
            yield words[0]


def _run(
    command: Sequence[str],
    *,
    environment: dict[str, str],
    what: str,
    on_line: Callable[[str], None] | None = None,
    accept: Callable[[str], bool] | None = None,
) -> str:
    """Run Go in the module's folder; answers its standard output.

    Lines of standard error go to `on_line`; those that `accept` takes are not kept for an error message.
    """
    last: collections.deque[str] = collections.deque(maxlen=ERROR_LINES_SHOWN)
    output = Path(environment["GOCACHE"]).parent / "go-output"
    with (
        output.open("w+") as stdout,
        subprocess.Popen(
            command,
            cwd=versions.MODULE_FOLDER,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            # A group of its own, so that Go ends together with the compilers that it started.
            start_new_session=True,
            preexec_fn=die_with_parent(os.getpid()),  # noqa: PLW1509 -- no threads here
        ) as process,
    ):
        try:
            if process.stderr is None:
                raise AssertionError("a pipe was asked for")
            for line in map(str.strip, process.stderr):
                if accept is not None and accept(line):
                    continue
                last.append(line)
                if on_line is not None:
                    on_line(line)
            status = process.wait()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
        if status != 0:
            raise ToolchainUnavailable(
                f"{what} failed (status {status}):\n" + "\n".join(last) + "\n"
                "Run it again to go on where it was, or set KUBEBUILDER_ASSETS to a folder with "
                "etcd, kube-apiserver and kube-controller-manager."
            )
        stdout.seek(0)
        return stdout.read()


def _size(folder: Path) -> int:
    return sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file())


def _remove(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        # A module cache that was made without -modcacherw is read-only.
        if path.is_dir() and not path.is_symlink():
            path.chmod(path.stat().st_mode | stat.S_IRWXU)
    shutil.rmtree(folder)
