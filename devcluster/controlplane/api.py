"""A few calls to the API server, enough for a supervisor: get, create, apply, delete, follow."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

from .certificates import KeyPair

FIELD_MANAGER = "devcluster"
CALL_TIMEOUT_SECONDS = 15.0
# The server ends watches by itself after 5 to 10 minutes unless told otherwise.
WATCH_SECONDS = 300
RETRY_SECONDS = 1.0


class ApiError(Exception):
    """The API server refused a call, or did not answer it (`status` 0)."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text[:500]}" if status else text)
        self.status = status


def tls_context(authority: Path, client: KeyPair) -> ssl.SSLContext:
    """Trust this authority only; be this client."""
    context = ssl.create_default_context(cafile=str(authority))
    context.load_cert_chain(client.certificate, client.key)
    return context


class Api:
    """An async context manager over one connection pool."""

    def __init__(self, url: str, *, authority: Path, client: KeyPair) -> None:
        self._url = url
        self._tls = tls_context(authority, client)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._tls),
            timeout=aiohttp.ClientTimeout(total=CALL_TIMEOUT_SECONDS),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def ready(self) -> bool:
        """Whether the server says that it is ready."""
        try:
            await self._call("GET", "/readyz")
        except ApiError:
            return False
        return True

    async def get(self, path: str) -> dict[str, Any] | None:
        """An object or a list; None where there is none. Raises ApiError."""
        try:
            found: dict[str, Any] = json.loads(await self._call("GET", path))
        except ApiError as error:
            if error.status == 404:
                return None
            raise
        return found

    async def create(self, path: str, body: Mapping[str, Any]) -> None:
        """Create an object; one that is there already is fine. Raises ApiError."""
        try:
            await self._call("POST", path, body=body, parameters={"fieldManager": FIELD_MANAGER})
        except ApiError as error:
            if error.status != 409:
                raise

    async def apply(self, path: str, body: Mapping[str, Any]) -> None:
        """Server-side apply. Raises ApiError."""
        await self._call(
            "PATCH",
            path,
            body=body,
            content_type="application/apply-patch+yaml",
            parameters={"fieldManager": FIELD_MANAGER, "force": "true"},
        )

    async def merge(self, path: str, body: Mapping[str, Any]) -> None:
        """Merge a part into an object. Raises ApiError."""
        await self._call("PATCH", path, body=body, content_type="application/merge-patch+json")

    async def delete(self, path: str) -> None:
        """Delete an object; one that is gone already is fine. Raises ApiError."""
        try:
            await self._call("DELETE", path)
        except ApiError as error:
            if error.status != 404:
                raise

    async def follow(self, path: str) -> AsyncIterator[dict[str, Any]]:
        """Every object of a collection as it is now and whenever it changes; never ends by itself."""
        session = self._opened()
        while True:
            try:
                listed = await self.get(path)
                if listed is None:
                    raise ApiError(404, path)
                for item in listed["items"]:
                    yield item
                parameters = {
                    "watch": "true",
                    "resourceVersion": listed["metadata"]["resourceVersion"],
                    "timeoutSeconds": str(WATCH_SECONDS),
                }
                async with session.get(
                    self._url + path,
                    params=parameters,
                    timeout=aiohttp.ClientTimeout(total=2 * WATCH_SECONDS),
                ) as answer:
                    # By hand, because a line may be longer than what aiohttp's readline takes.
                    rest = b""
                    async for chunk in answer.content.iter_any():
                        *lines, rest = (rest + chunk).split(b"\n")
                        for line in lines:
                            event = json.loads(line)
                            if event["type"] == "ERROR":
                                raise ApiError(event["object"].get("code", 500), str(event["object"]))
                            if event["type"] in {"ADDED", "MODIFIED"}:
                                yield event["object"]
            except (ApiError, aiohttp.ClientError, OSError):
                # Whatever it was, the next list starts from the truth.
                await asyncio.sleep(RETRY_SECONDS)

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("use it as an async context manager")
        return self._session

    async def _call(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
        parameters: Mapping[str, str] | None = None,
    ) -> bytes:
        try:
            async with self._opened().request(
                method,
                self._url + path,
                params=parameters,
                data=None if body is None else json.dumps(body),
                headers={"Content-Type": content_type},
            ) as answer:
                content = await answer.read()
        except (aiohttp.ClientError, OSError) as error:
            raise ApiError(0, f"{method} {path}: {error or type(error).__name__}") from error
        if answer.status >= 300:
            raise ApiError(answer.status, content.decode(errors="replace"))
        return content
