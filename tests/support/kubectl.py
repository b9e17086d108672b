"""The real `kubectl`, as a user runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

KUBECTL = Path(sys.executable).parent / "kubectl"
"""From the wheel that `make setup` installed."""


class KubectlError(Exception):
    """kubectl ended with an error; the text is what it said."""


class Kubectl:
    """kubectl with one kubeconfig, optionally in one namespace."""

    def __init__(self, kubeconfig: Path, *, namespace: str | None = None) -> None:
        self.kubeconfig = kubeconfig
        self.namespace = namespace

    def __call__(self, *arguments: str, stdin: str | None = None, timeout_seconds: float = 180.0) -> str:
        """What it prints. Raises KubectlError."""
        scope = [] if self.namespace is None else ["--namespace", self.namespace]
        answer = subprocess.run(
            [KUBECTL, *scope, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_seconds,
            env={**os.environ, "KUBECONFIG": str(self.kubeconfig)},
        )
        if answer.returncode != 0:
            raise KubectlError(f"kubectl {' '.join(arguments)}: {answer.stderr.strip()}")
        return answer.stdout

    def get(self, *arguments: str) -> Any:
        """An object or a list, parsed."""
        return json.loads(self("get", *arguments, "--output=json"))

    def apply(self, manifest: str | dict[str, Any], *arguments: str) -> str:
        """Apply a manifest, YAML text or one object."""
        text = manifest if isinstance(manifest, str) else json.dumps(manifest)
        return self("apply", "--filename=-", *arguments, stdin=text)
