"""Addresses of Redis servers, and how one gets in there: user, password, TLS."""

import re
import ssl
from pathlib import Path
from typing import Final, NamedTuple

from tableforge_dataplane.contract.settings import RedisSettings, Secret

SENTINEL_PORT: Final = 26379
REDIS_PORT: Final = 6379


class Node(NamedTuple):
    """One server's address."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class NodeUnknownError(ConnectionError):
    """Nobody says at the moment which server to connect to. The text is a sentence."""


class CredentialsMissingError(Exception):
    """The file that holds a password is not there or empty. The text is a sentence."""


def parse_nodes(text: str, *, default_port: int) -> list[Node]:
    """`host:port,host,[::1]:port` as nodes. `text` matches the setting's pattern."""
    nodes = []
    for part in text.split(","):
        found = re.fullmatch(r"(\[[^\]]+\]|[^:]*)(?::([0-9]+))?", part)
        if found is not None:
            nodes.append(Node(found[1].strip("[]"), int(found[2] or default_port)))
    return nodes


def credentials(username: str, password: Secret, *, variable: str) -> tuple[str, ...]:
    """What AUTH takes: nothing, (password,) or (user, password). The file is read anew each time.

    Raises CredentialsMissingError.
    """
    if not password.configured:
        return ()
    try:
        secret = password.read()
    except (OSError, UnicodeDecodeError) as error:
        raise CredentialsMissingError(
            f"{variable}_FILE={password.file} cannot be read: {error}: mend the Secret it comes from."
        ) from None
    if secret is None:
        raise CredentialsMissingError(
            f"{variable}_FILE={password.file} is not there or empty: create the Secret it comes from."
        )
    return (username, secret) if username else (secret,)


def tls_context(settings: RedisSettings) -> ssl.SSLContext | None:
    """A fresh context, so that certificates rotated since the last connect count; None without TLS.

    Raises OSError where a file is missing or is no such certificate (ssl.SSLError is one).
    """
    if not settings.tls:
        return None
    for file in (settings.tls_ca_file, settings.tls_cert_file, settings.tls_key_file):
        if file and not Path(file).is_file():
            # ssl itself says only "No such file or directory", not which
            raise FileNotFoundError(f"{file} is not there: mount the Secret with Redis's TLS files")
    context = ssl.create_default_context(cafile=settings.tls_ca_file or None)
    if settings.tls_cert_file:
        context.load_cert_chain(settings.tls_cert_file, settings.tls_key_file)
    return context


def tls_arguments(settings: RedisSettings, host: str) -> dict[str, object]:
    """What asyncio's connecting functions take for TLS; empty without. Raises OSError."""
    context = tls_context(settings)
    if context is None:
        return {}
    return {"ssl": context, "server_hostname": settings.tls_server_name or host}
