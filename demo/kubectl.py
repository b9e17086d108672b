"""The real kubectl, run for the demo and the end-to-end tests."""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any


class KubectlError(RuntimeError):
    """kubectl ended with an error; the message is what it printed."""


class Kubectl:
    """kubectl against one cluster. `screen`, where given, shows every command of `show` and its output."""

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig
        self._program = str(Path(sys.prefix) / "bin" / "kubectl")

    async def __call__(self, *words: str, stdin: str | None = None, timeout_seconds: float = 120.0) -> str:
        """Run it and return what it printed. Raises KubectlError."""
        out, err = await self._run(*words, stdin=stdin, timeout_seconds=timeout_seconds)
        # Warnings of the API server belong to what a user sees.
        return err + out

    async def _run(self, *words: str, stdin: str | None, timeout_seconds: float) -> tuple[str, str]:
        process = await asyncio.create_subprocess_exec(
            self._program,
            *words,
            stdin=asyncio.subprocess.PIPE if stdin is not None else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "KUBECONFIG": str(self.kubeconfig)},
        )
        try:
            async with asyncio.timeout(timeout_seconds):
                out, err = await process.communicate(stdin.encode() if stdin is not None else None)
        except TimeoutError:
            process.kill()
            await process.wait()
            raise KubectlError(f"kubectl {' '.join(words)}: no end after {timeout_seconds:.0f} s") from None
        if process.returncode != 0:
            raise KubectlError(f"kubectl {' '.join(words)}: {(err + out).decode().strip()}")
        return out.decode(), err.decode()

    async def json(self, *words: str) -> Any:
        """Run it with `-o json` and return the decoded answer."""
        out, _ = await self._run(*words, "-o", "json", stdin=None, timeout_seconds=120.0)
        return json.loads(out)
