"""The bodies of calls, read up to a bound."""

from aiohttp import web

from tableforge_dataplane.http.answers import CallError


async def read_body(request: web.Request, limit_bytes: int) -> bytes:
    """The body. Raises CallError where it has more than `limit_bytes`."""
    parts: list[bytes] = []
    size = 0
    async for part in request.content.iter_any():
        size += len(part)
        if size > limit_bytes:
            raise too_large(limit_bytes)
        parts.append(part)
    return b"".join(parts)


def too_large(limit_bytes: int) -> CallError:
    """The body has more than it may."""
    return CallError("too_large", f"The body may have {limit_bytes} bytes.")
