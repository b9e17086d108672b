"""What the internal port answers with: JSON, and errors that say what was wrong and what would be right."""

from collections.abc import Mapping
from typing import Final

import msgspec
from aiohttp import web

STATUS: Final[Mapping[str, int]] = {
    "bad_frame": 400,
    "bad_event": 400,
    "bad_room": 400,
    "bad_data": 400,
    "bad_pos": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "bad_method": 405,
    "unknown_key": 409,
    "too_large": 413,
    "rate_limited": 429,
    "internal": 500,
    "unavailable": 503,
}
"""The status that goes with each of the protocol's codes."""

_encode: Final = msgspec.json.Encoder().encode
_HEADERS: Final = {"Content-Type": "application/json", "Cache-Control": "no-store"}


class CallError(Exception):
    """A call that is not carried out; `code` is the protocol's."""

    def __init__(self, code: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after = retry_after

    @property
    def body(self) -> dict[str, object]:
        """`error` as it is answered, alone or within a batch."""
        error: dict[str, object] = {"code": self.code, "message": self.message}
        if self.retry_after is not None:
            error["retryAfter"] = self.retry_after
        return {"error": error}


def answer(content: object, *, status: int = 200) -> web.Response:
    """`content` as JSON."""
    return web.Response(status=status, body=_encode(content), headers=_HEADERS)


def refusal(refused: CallError) -> web.Response:
    """The error, with the status that goes with its code."""
    headers = dict(_HEADERS)
    if refused.code == "unauthorized":
        headers["WWW-Authenticate"] = 'Bearer realm="tableforge"'
    if refused.retry_after is not None:
        headers["Retry-After"] = str(max(1, round(refused.retry_after)))
    return web.Response(status=STATUS[refused.code], body=_encode(refused.body), headers=headers)
