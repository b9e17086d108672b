"""A Redis whose power fails: it comes back with what it had synced to its disk, and nothing else.

`kill -9` alone loses nothing that reached the kernel. So the server runs with a small preloaded library that
notes the size of each file at each `fsync`; a power cut is SIGKILL, and each append-only file cut down to the
size that was last synced.
"""

import os
from pathlib import Path
from typing import Any, Final

from tests.support.c_compiler import shared_library
from tests.support.redis import RedisServer

_SOURCE: Final = Path(__file__).with_name("syncs.c")


class PoweredRedis(RedisServer):
    """A `RedisServer` that can lose its power."""

    def __init__(self, directory: Path, **options: Any) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        library = directory / "syncs.so"
        shared_library(_SOURCE, library)
        self._log = directory / "synced.log"
        environ = {"LD_PRELOAD": str(library), "SYNC_LOG": str(self._log)}
        super().__init__(directory, environ=environ, **options)

    def synced(self) -> dict[Path, int]:
        """The size up to which each file has been synced."""
        sizes: dict[Path, int] = {}
        if self._log.exists():
            for line in self._log.read_text().splitlines():
                size, _, name = line.partition(" ")
                sizes[Path(name)] = int(size)
        return sizes

    async def lose_power(self) -> int:
        """SIGKILL, and what was not synced is gone: so many bytes. `start()` brings it back."""
        await self.kill9()
        synced, lost = self.synced(), 0
        for file in (self.directory / "data").rglob("*.aof"):
            kept = synced.get(file.resolve(), 0)
            lost += file.stat().st_size - kept
            os.truncate(file, kept)
        return lost
