"""The API server, as the agent uses it: plain JSON over one aiohttp session.

Objects are dictionaries as the API server sends them: the agent passes most of them through.
"""

import asyncio
import base64
import contextlib
import os
import ssl
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, urlsplit

import aiohttp
import msgspec
import yaml

Object = dict[str, Any]

CALL_TIMEOUT_SECONDS = 30.0
WATCH_SECONDS = 300
STRATEGIC_MERGE = "application/strategic-merge-patch+json"
MERGE = "application/merge-patch+json"

_GROUPS = {"leases": "/apis/coordination.k8s.io/v1", "storageclasses": "/apis/storage.k8s.io/v1"}


class ApiError(Exception):
    """The API server answered with an error, or not at all (`status` 0)."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message


def path_of(resource: str, namespace: str | None = None, name: str | None = None, *sub: str) -> str:
    """The path of a resource such as `pods`: a collection, an object or a subresource of it."""
    parts = [_GROUPS.get(resource, "/api/v1")]
    if namespace:
        parts += ["namespaces", quote(namespace, safe="")]
    parts.append(resource)
    if name:
        parts.append(quote(name, safe=""))
    return "/".join([*parts, *sub])


class Api:
    """A connection to one API server."""

    def __init__(
        self,
        *,
        server: str,
        context: ssl.SSLContext,
        headers: dict[str, str],
        tls_name: str | None = None,
        authority: str = "",
    ) -> None:
        self.server = server
        """Its URL, without a path."""
        self.authority = authority
        """Who signed its certificate: PEM in base64, as Kubernetes' objects carry it."""
        self._tls_name = tls_name
        self._context = context
        self._headers = headers
        self._session: aiohttp.ClientSession | None = None

    @classmethod
    def from_kubeconfig(cls, file: Path) -> Self:
        """Read the current context of a kubeconfig. Raises OSError, KeyError or ValueError."""
        config = yaml.safe_load(file.read_text(encoding="utf-8"))

        def named(section: str, kind: str, name: str) -> Object:
            for entry in config[section]:
                if entry["name"] == name:
                    found: Object = entry[kind]
                    return found
            raise ValueError(f"{file}: no {kind} is called {name!r}")

        context = named("contexts", "context", config["current-context"])
        cluster, user = (
            named("clusters", "cluster", context["cluster"]),
            named("users", "user", context["user"]),
        )

        def bytes_of(entry: Object, key: str) -> bytes | None:
            if f"{key}-data" in entry:
                return base64.b64decode(entry[f"{key}-data"])
            return (file.parent / entry[key]).read_bytes() if key in entry else None

        ca = bytes_of(cluster, "certificate-authority")
        tls = ssl.create_default_context(cadata=ca.decode() if ca else None)
        certificate, key = bytes_of(user, "client-certificate"), bytes_of(user, "client-key")
        if certificate and key:
            descriptor, name = tempfile.mkstemp()
            try:
                with os.fdopen(descriptor, "wb") as stream:
                    stream.write(certificate + b"\n" + key)
                tls.load_cert_chain(name)
            finally:
                os.unlink(name)
        headers = {"Authorization": f"Bearer {user['token']}"} if "token" in user else {}
        tls_name = cluster.get("tls-server-name")
        return cls(
            server=cluster["server"].rstrip("/"),
            context=tls,
            headers=headers,
            tls_name=tls_name,
            authority=base64.b64encode(ca or b"").decode(),
        )

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the API server."""
        url = urlsplit(self.server)
        return url.hostname or "127.0.0.1", url.port or 443

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._context, limit=0),
            headers={**self._headers, "User-Agent": "devcluster-agent"},
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def get(self, path: str, **query: str) -> Object:
        """GET an object or a collection. Raises ApiError, as all calls do."""
        return await self._call("GET", path, query=query)

    async def get_or_none(self, path: str) -> Object | None:
        """GET an object that may not exist."""
        try:
            return await self.get(path)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def create(self, path: str, body: Object) -> Object:
        """POST an object."""
        return await self._call("POST", path, body=body)

    async def replace(self, path: str, body: Object) -> Object:
        """PUT an object."""
        return await self._call("PUT", path, body=body)

    async def patch(self, path: str, body: Object, kind: str = STRATEGIC_MERGE) -> Object:
        """PATCH an object."""
        return await self._call("PATCH", path, body=body, content_type=kind)

    async def delete(self, path: str, body: Object) -> Object:
        """DELETE an object with DeleteOptions."""
        return await self._call("DELETE", path, body=body)

    async def _call(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, str] | None = None,
        body: Object | None = None,
        content_type: str = "application/json",
    ) -> Object:
        try:
            async with self._open().request(
                method,
                self.server + path,
                params=query,
                data=None if body is None else msgspec.json.encode(body),
                headers={"Content-Type": content_type},
                server_hostname=self._tls_name,
                timeout=aiohttp.ClientTimeout(total=CALL_TIMEOUT_SECONDS),
            ) as response:
                raw = await response.read()
                if response.status >= 400:
                    raise _error(response.status, raw)
                answer: Object = msgspec.json.decode(raw)
                return answer
        except (aiohttp.ClientError, TimeoutError, OSError, msgspec.DecodeError) as error:
            raise ApiError(0, "Unreachable", f"{method} {path}: {error or type(error).__name__}") from error

    async def watch(self, path: str, resource_version: str, **query: str) -> AsyncIterator[Object]:
        """The changes after a resource version; ends when the server ends the watch. Raises ApiError."""
        params = {
            **query,
            "watch": "true",
            "resourceVersion": resource_version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_SECONDS),
        }
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=WATCH_SECONDS + 30)
        try:
            async with self._open().get(
                self.server + path, params=params, timeout=timeout, server_hostname=self._tls_name
            ) as response:
                if response.status >= 400:
                    raise _error(response.status, await response.read())
                rest = b""
                async for chunk in response.content.iter_any():
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        change: Object = msgspec.json.decode(line)
                        if change["type"] == "ERROR":
                            status = change["object"]
                            raise ApiError(
                                status.get("code", 500), status.get("reason", ""), status.get("message", "")
                            )
                        yield change
        except (aiohttp.ClientError, TimeoutError, OSError, msgspec.DecodeError) as error:
            raise ApiError(0, "Unreachable", f"watch {path}: {error or type(error).__name__}") from error

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("the API connection is used before it is entered")
        return self._session


def _error(status: int, raw: bytes) -> ApiError:
    answer: Object = {}
    with contextlib.suppress(msgspec.DecodeError):
        decoded = msgspec.json.decode(raw)
        answer = decoded if isinstance(decoded, dict) else {}
    return ApiError(
        status, answer.get("reason", ""), answer.get("message", raw[:500].decode(errors="replace"))
    )


async def wait_until_reachable(api: Api, seconds: float) -> None:
    """Wait for the API server to answer. Raises ApiError where it does not in time."""
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        try:
            await api.get("/version")
        except ApiError:
            if asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(0.2)
        else:
            return
