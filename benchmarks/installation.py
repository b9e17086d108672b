"""Brings the peers into `.bench/`, from their registries, and says of each that can't be had why.

Nothing is installed outside that folder. What is there already, from the same versions, is kept.
"""

import asyncio
import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parent / ".bench"

OLDEST_NODE: Final = 20
OLDEST_GO: Final = (1, 24)

CENTRIFUGE: Final = "github.com/centrifugal/centrifuge"

TIMEOUT_SECONDS: Final = 900.0
"""Of one command: a first build of the Go server takes a minute on two cores."""

Say = Callable[[str], None]


class MissingError(RuntimeError):
    """A peer that can't be had here; the text says why, and what it needs."""


@dataclasses.dataclass(frozen=True)
class Installed:
    """What a peer's command line needs."""

    folder: Path
    version: str
    """As the tables name it."""


async def node(say: Say) -> Installed:
    """The packages of `peers/node`. Raises MissingError."""
    source, folder = HERE / "peers" / "node", ROOT / "node"
    runtime = await _version("node", "--version", needs=f"Node {OLDEST_NODE} or newer in PATH")
    if int(runtime.lstrip("v").split(".")[0]) < OLDEST_NODE:
        raise MissingError(f"Node {runtime} is too old: {OLDEST_NODE} or newer is needed")
    if _is_new(folder, source):
        say(f"installing the packages for Node {runtime} …")
        _copy(source, folder)
        await _run("npm", "ci", "--no-audit", "--no-fund", "--loglevel=error", cwd=folder)
        _remember(folder, source)
    else:
        _copy(source, folder)
    packages = ", ".join(f"{name} {version}" for name, version in node_packages(folder).items())
    return Installed(folder=folder, version=f"Node {runtime.lstrip('v')}, {packages}")


async def centrifuge(say: Say) -> Installed:
    """The Go server of `peers/centrifuge`. Raises MissingError."""
    source, folder = HERE / "peers" / "centrifuge", ROOT / "centrifuge"
    needs = f"Go {OLDEST_GO[0]}.{OLDEST_GO[1]} or newer in PATH"
    compiler = await _version("go", "env", "GOVERSION", needs=needs)
    found = tuple(int(part) for part in compiler.removeprefix("go").split(".")[:2])
    if found < OLDEST_GO:
        raise MissingError(f"{compiler} is too old: {needs} is needed")
    if _is_new(folder, source):
        say(f"building the server on the centrifuge library with {compiler} (about a minute) …")
        _copy(source, folder)
        await _run("go", "build", "-trimpath", "-o", "server", ".", cwd=folder)
        _remember(folder, source)
    library = await _run("go", "list", "-m", "-f", "{{.Version}}", CENTRIFUGE, cwd=folder)
    return Installed(
        folder=folder,
        version=f"Go {compiler.removeprefix('go')}, centrifuge {library.strip().removeprefix('v')}",
    )


async def nchan(say: Say) -> Installed:
    """Debian's nginx and its module, unpacked without being installed. Raises MissingError."""
    folder = ROOT / "nchan"
    if not (folder / ".done").exists():
        for tool in ("apt-get", "dpkg"):
            if shutil.which(tool) is None:
                raise MissingError("it comes as a Debian package, and this is no Debian or Ubuntu")
        say("fetching nginx and nchan from Debian …")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        await _run("apt-get", "download", "-q", "nginx", "libnginx-mod-nchan", cwd=folder)
        for package in sorted(folder.glob("*.deb")):
            await _run("dpkg", "-x", package.name, ".", cwd=folder)
        (folder / ".done").touch()
    found = await _run(str(folder / "usr/sbin/nginx"), "-v", cwd=folder)
    packages = sorted(folder.glob("libnginx-mod-nchan_*.deb"))
    module = packages[0].name.split("_")[1].replace("%3a", ":") if packages else "unknown"
    return Installed(folder=folder, version=f"nginx {found.rpartition('/')[2].strip()}, nchan {module}")


def node_packages(folder: Path) -> dict[str, str]:
    """What is installed of the packages that are asked for, by name."""
    wanted: dict[str, str] = json.loads((folder / "package.json").read_text())["dependencies"]
    return {
        name: json.loads((folder / "node_modules" / name / "package.json").read_text())["version"]
        for name in wanted
    }


async def _version(program: str, *arguments: str, needs: str) -> str:
    if shutil.which(program) is None:
        raise MissingError(f"there is no `{program}`: {needs} is needed")
    return (await _run(program, *arguments, cwd=HERE)).strip()


async def _run(*command: str, cwd: Path) -> str:
    """What it printed. Raises MissingError with the last lines where it failed."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=cwd,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=os.environ | {"GOTOOLCHAIN": "local"},
    )
    started = time.monotonic()
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            output, _ = await process.communicate()
    except BaseException:
        if process.returncode is None:
            process.kill()
            await process.wait()
        if time.monotonic() - started >= TIMEOUT_SECONDS:
            raise MissingError(f"`{' '.join(command)}` took more than {TIMEOUT_SECONDS:.0f} s") from None
        raise
    text = output.decode(errors="replace")
    if process.returncode:
        last = " / ".join(line.strip() for line in text.splitlines()[-3:] if line.strip())
        raise MissingError(f"`{Path(command[0]).name} {' '.join(command[1:3])}` failed: {last}")
    return text


def _copy(source: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        shutil.copy2(path, folder / path.name)


def _fingerprint(files: Sequence[Path]) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(files))).hexdigest()


def _wanted(source: Path) -> str:
    # a changed server of Node's needs no new packages
    return _fingerprint([path for path in source.iterdir() if path.suffix != ".mjs"])


def _is_new(folder: Path, source: Path) -> bool:
    done = folder / ".done"
    return not done.exists() or done.read_text() != _wanted(source)


def _remember(folder: Path, source: Path) -> None:
    (folder / ".done").write_text(_wanted(source))
