"""A C compiler for the small libraries that are preloaded into a server: the machine's, or Zig's."""

import fcntl
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

_ZIG: Final = "ziglang==0.17.1"
_HASHES: Final = (
    "ea6cc5d87b033cf0aedfbc8f9549a908cae6c50ac31f1698188fa48a74524b54",  # x86_64
    "b7c5f02fccd40f89b999ee16a1f5ddced56e6182370f8affe494bcf8a28cf07e",  # aarch64
)
_FOLDER: Final = Path(__file__).parents[2] / ".zig"


def shared_library(source: Path, library: Path) -> None:
    """Compile `source`, C, into a library that a process can preload."""
    command = [*_compiler(), "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"]
    made = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if made.returncode:
        raise RuntimeError(f"{source.name} cannot be compiled: {made.stdout}")


def _compiler() -> list[str]:
    found = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    return [found] if found else [str(_zig()), "cc"]


def _zig() -> Path:
    """Zig's compiler, installed into `.zig` of the checkout at the first call (100 MB)."""
    zig = _FOLDER / "ziglang" / "zig"
    _FOLDER.mkdir(exist_ok=True)
    with (_FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not zig.exists():
            requirements = _FOLDER / "requirements.txt"
            requirements.write_text(" ".join((_ZIG, *(f"--hash=sha256:{digest}" for digest in _HASHES))))
            pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "-q"]
            options = ["--no-deps", "--require-hashes", "--target", str(_FOLDER), "-r", str(requirements)]
            subprocess.run([*pip, *options], check=True)
    return zig
