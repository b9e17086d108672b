"""One program that the supervisor runs."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from .process import die_with_parent

TAIL_BYTES = 4000
LOG_LIMIT_BYTES = 64 * 1024 * 1024


class Component:
    """A running program with its log. Must be made in the main thread, with the event loop running."""

    def __init__(
        self, name: str, command: Sequence[str], *, log: Path, environment: Mapping[str, str]
    ) -> None:
        self.name = name
        self._log = log
        loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[int] = loop.create_future()
        """Its exit status, negative for a signal, once it has ended."""
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                cwd="/",
                # A terminal's Ctrl-C is for the owner, who stops things in order.
                start_new_session=True,
                preexec_fn=die_with_parent(os.getpid()),  # noqa: PLW1509 -- the supervisor forks from its main thread
            )
        self.pid = self._process.pid
        self._handle = os.pidfd_open(self.pid)
        loop.add_reader(self._handle, self._on_end)

    def _on_end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._handle)
        os.close(self._handle)
        self.ended.set_result(self._process.wait())

    def kill(self) -> None:
        """End it now."""
        if not self.ended.done():
            self._process.kill()

    async def stop(self, *, grace_seconds: float) -> None:
        """Ask it to end, and end it when it takes longer than the grace."""
        if self.ended.done():
            return
        self._process.send_signal(signal.SIGTERM)
        done, _ = await asyncio.wait([self.ended], timeout=grace_seconds)
        if not done:
            self._process.kill()
            await self.ended

    def tail(self) -> str:
        """The end of its log."""
        with self._log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            text = file.read().decode(errors="replace")
        lines = text.splitlines()
        # The first one is cut where the log is longer.
        return "\n".join(lines[1:] if size > TAIL_BYTES else lines)

    def bound_log(self) -> None:
        """Empty a log that has grown past its limit; it is written in append mode, so that this is safe."""
        if self._log.stat().st_size > LOG_LIMIT_BYTES:
            os.truncate(self._log, 0)
