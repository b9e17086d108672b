"""`POST /fleet/commands`: what the operator tells the fleet, of any instance."""

import asyncio
from collections.abc import Callable
from typing import Final

import msgspec
from aiohttp import web

from tableforge_dataplane.contract.fleet import FleetCommand
from tableforge_dataplane.homes.checks import problem
from tableforge_dataplane.homes.commanding import Commanding
from tableforge_dataplane.http.answers import CallError, answer
from tableforge_dataplane.http.body import read_body, too_large
from tableforge_dataplane.registry.connection import REDIS_FAILURES, refusal_in

MAX_COMMAND_BYTES: Final = 1_048_576

MOST_WAITING: Final = 16
"""Commands that wait for their turn; one operator sends one after the other."""

RETRY_SECONDS: Final = 1.0

_command: Final[msgspec.json.Decoder[FleetCommand]] = msgspec.json.Decoder(FleetCommand)


class FleetCommands:
    """Reads commands and has them carried out, one after the other."""

    def __init__(self, commanding: Commanding, *, barred: Callable[[], str | None]) -> None:
        """`barred`: why this instance must not write into its Redis; None: it may."""
        self._commanding = commanding
        self._barred = barred
        self._turn = asyncio.Lock()
        self._waiting = 0

    async def take(self, request: web.Request) -> web.Response:
        """The answer to a command from somebody who may give one. Raises CallError."""
        announced = request.content_length
        if announced is not None and announced > MAX_COMMAND_BYTES:
            raise too_large(MAX_COMMAND_BYTES)
        if (barred := self._barred()) is not None:
            raise CallError("unavailable", barred, RETRY_SECONDS)
        if self._waiting >= MOST_WAITING:
            raise CallError(
                "unavailable", "Many commands wait here already: send it again later.", RETRY_SECONDS
            )
        self._waiting += 1
        try:
            command = _read(await read_body(request, MAX_COMMAND_BYTES))
            async with self._turn:
                found = await self._commanding.carry_out(command)
        except REDIS_FAILURES as error:
            if isinstance(error, TimeoutError):
                raise  # the limit on all pages, which the caller above answers
            code = refusal_in(error)
            said = "does not answer" if code is None else f"refuses writes ({code})"
            raise CallError("unavailable", f"Redis {said}: send it again later.", RETRY_SECONDS) from None
        finally:
            self._waiting -= 1
        return answer(found, status=409 if found.stale else 200)


def _read(body: bytes) -> FleetCommand:
    try:
        body.decode()  # msgspec leaves what it keeps as it came
        command = _command.decode(body)
    except msgspec.ValidationError as error:
        raise CallError("bad_frame", f"{error}.") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CallError("bad_frame", f"The body must be a JSON object in UTF-8: {error}.") from None
    if (wrong := problem(command)) is not None:
        raise CallError("bad_frame", wrong)
    return command
