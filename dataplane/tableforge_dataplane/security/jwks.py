"""Public keys from an identity provider's address (a JWK Set), fetched beside the message path.

They are fetched again as they age, and early when a token names a key that isn't among them, though not more
often than every `MIN_INTERVAL_SECONDS`, whatever tokens name. What was fetched once stays in use while the
address is out of reach: an outage of the provider keeps nobody out whose key is known.
"""

import asyncio
import random
import re
import ssl
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

import aiohttp

from tableforge_dataplane.contract.settings import AuthSettings
from tableforge_dataplane.security.verification_keys import KeyProblem, VerificationKey, keys_of_set

MIN_INTERVAL_SECONDS: Final = 10.0
"""Between the beginnings of two fetches that tokens cause."""

USUAL_INTERVAL_SECONDS: Final = 300.0
"""Where the answer has no `max-age`."""

SHORTEST_AGE_SECONDS: Final = 60.0
LONGEST_AGE_SECONDS: Final = 86_400.0
"""The bounds within which `max-age` is believed."""

FIRST_RETRY_SECONDS: Final = 1.0
LONGEST_RETRY_SECONDS: Final = 60.0

FETCH_SECONDS: Final = 5.0
MAX_BODY_BYTES: Final = 256 * 1024

_MAX_AGE: Final = re.compile(r"(?:^|[,\s])max-age=\"?([0-9]{1,9})")


class Log(Protocol):
    """Where events go."""

    def info(self, event: str, **fields: Any) -> None: ...
    def warning(self, event: str, **fields: Any) -> None: ...


class _FetchError(Exception):
    """Why a fetch brought nothing; the text is a sentence's end."""


class JwksKeys:
    """The keys of `TABLEFORGE_AUTH_JWKS_URL`, kept up between `start()` and `stop()`."""

    def __init__(
        self, settings: AuthSettings, *, log: Log, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._log = log
        self._monotonic = monotonic
        self._keys: tuple[VerificationKey, ...] = ()
        self._problem: str | None = "they have not been fetched yet"
        self._began_at: float | None = None
        self._fetching = False
        self._asked = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to fetch; nothing waits for it."""
        self._task = asyncio.create_task(self._run(), name="jwks")
        self._task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        """A bug must not look like keys that are up to date."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._problem = f"they are no longer fetched ({type(error).__name__}: restart the instance)"
            self._log.warning("jwks_fetching_ended", url=self._settings.jwks_url, reason=repr(error))

    async def stop(self) -> None:
        """End it; the keys stay."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def current(self) -> tuple[VerificationKey, ...]:
        """The keys as they were last fetched."""
        return self._keys

    @property
    def problem(self) -> str | None:
        """A sentence on why the newest keys aren't there; those known before may still be in use."""
        if self._problem is None:
            return None
        return f"TABLEFORGE_AUTH_JWKS_URL={self._settings.jwks_url}: {self._problem}."

    def may_bring_more(self) -> bool:
        """Whether a key that isn't known may be, soon: asks for a fetch where one is allowed."""
        if self._fetching or self._asked.is_set() or self._problem is not None:
            return True
        if self._began_at is not None and self._monotonic() - self._began_at < MIN_INTERVAL_SECONDS:
            return False
        self._asked.set()
        return True

    async def _run(self) -> None:
        retry = FIRST_RETRY_SECONDS
        timeout = aiohttp.ClientTimeout(total=FETCH_SECONDS)
        # a connection of its own for each: they are minutes apart
        connector = aiohttp.TCPConnector(force_close=True, limit=1)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            while True:
                self._asked.clear()
                self._fetching = True
                self._began_at = self._monotonic()
                try:
                    wait = await self._fetch(session)
                except _FetchError as error:
                    if str(error) != self._problem:
                        self._log.warning("jwks_fetch_failed", url=self._settings.jwks_url, reason=str(error))
                    self._problem = str(error)
                    # all instances fetch: they should not come back as one
                    wait, retry = retry * random.uniform(0.5, 1.0), min(retry * 2, LONGEST_RETRY_SECONDS)  # noqa: S311
                else:
                    self._problem, retry = None, FIRST_RETRY_SECONDS
                finally:
                    self._fetching = False
                await self._pause(wait)

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._asked.wait()
        except TimeoutError:
            return

    async def _fetch(self, session: aiohttp.ClientSession) -> float:
        """Fetches once and gives how long the keys are good for. Raises _FetchError."""
        body, cache_control = await self._get(session)
        try:
            keys, refused = keys_of_set(body, rsa_algorithm=self._settings.rsa_algorithm)
        except KeyProblem as problem:
            raise _FetchError(f"what it answers {problem}") from None
        if not keys:
            raise _FetchError(f"there is no usable key{f': {refused[0]}' if refused else ''}")
        before = {key.kid for key in self._keys}
        if {key.kid for key in keys} != before:
            names = sorted(key.kid or "" for key in keys)
            self._log.info("jwks_fetched", url=self._settings.jwks_url, keys=names, refused=list(refused))
        self._keys = keys
        found = _MAX_AGE.search(cache_control.lower())
        age = float(found[1]) if found is not None else USUAL_INTERVAL_SECONDS
        return min(max(age, SHORTEST_AGE_SECONDS), LONGEST_AGE_SECONDS) * random.uniform(0.9, 1.0)  # noqa: S311

    async def _get(self, session: aiohttp.ClientSession) -> tuple[bytes, str]:
        url = self._settings.jwks_url
        try:
            async with session.get(
                url,
                allow_redirects=False,  # who is redirected elsewhere trusts elsewhere
                headers={"Accept": "application/jwk-set+json, application/json"},
                ssl=self._trust() if url.startswith("https:") else True,
            ) as response:
                if response.status != 200:
                    where = response.headers.get("Location", "")[:200]
                    raise _FetchError(
                        f"it answers {response.status}, and 200 is needed"
                        + (f" (name {where} itself, redirects are not followed)" if where else "")
                    )
                body = bytearray()
                async for chunk in response.content.iter_any():
                    body += chunk
                    if len(body) > MAX_BODY_BYTES:
                        raise _FetchError(f"what it answers is longer than {MAX_BODY_BYTES} bytes")
                return bytes(body), response.headers.get("Cache-Control", "")
        except TimeoutError:
            raise _FetchError(f"there was no whole answer within {FETCH_SECONDS:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _FetchError(f"it cannot be fetched ({str(error)[:200] or type(error).__name__})") from None

    def _trust(self) -> ssl.SSLContext:
        """Made for each fetch: certificates that were replaced count."""
        file = self._settings.jwks_ca_file
        try:
            return ssl.create_default_context(cafile=file or None)
        except (OSError, ssl.SSLError) as error:
            raise _FetchError(
                f"TABLEFORGE_AUTH_JWKS_CA_FILE={file} cannot be read as certificates "
                f"({getattr(error, 'strerror', None) or error})"
            ) from None
