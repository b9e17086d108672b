"""Host names of a test's own, and an authority that its clients believe."""

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest


def resolve(patch: pytest.MonkeyPatch, names: Mapping[str, str]) -> None:
    """Host names that this process resolves to these addresses; all others as ever."""
    known = dict(names)
    ask = socket.getaddrinfo

    def getaddrinfo(host: Any, *arguments: Any, **options: Any) -> Any:
        return ask(known.get(host, host), *arguments, **options)

    patch.setattr(socket, "getaddrinfo", getaddrinfo)
    # A proxy of the environment knows none of them.
    patch.setenv("no_proxy", ",".join(known))
    patch.setenv("NO_PROXY", ",".join(known))


def trust(patch: pytest.MonkeyPatch, certificate: Path) -> None:
    """TLS contexts that this process makes from now on trust this certificate, and no other."""
    patch.setenv("SSL_CERT_FILE", str(certificate))
    patch.setenv("SSL_CERT_DIR", str(certificate.parent / "none"))
