"""Which address to try next and when: full jitter, bounds, and what a server asked for. No I/O, no clock."""

import dataclasses
import ipaddress
import random
from collections.abc import Sequence
from typing import Final
from urllib.parse import SplitResult, urljoin, urlsplit

LONGEST_ASKED_SECONDS: Final = 300.0
"""The most that a server's `Retry-After` is believed."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the end of a connection, or a refused one, means."""

    again: bool
    """Whether to connect again at all."""
    at_least_seconds: float = 0.0
    """Not before this."""
    everywhere: bool = False
    """Whether that holds for every address, not only for this one."""
    new_token: bool = False
    """Whether it needs another token."""


_STOP: Final = Verdict(again=False)
_AGAIN: Final = Verdict(again=True)
_NEW_TOKEN: Final = Verdict(again=True, new_token=True)

# 1001 is what a browser says when a page goes; from a server it means that the server goes.
_BY_CODE: Final = {
    1000: _STOP,
    1002: _STOP,
    1003: _STOP,
    1007: _STOP,
    1009: _STOP,
    1013: Verdict(again=True, at_least_seconds=1.0),
    4400: _STOP,
    4401: _NEW_TOKEN,
    4403: _STOP,
    4429: Verdict(again=True, at_least_seconds=60.0, everywhere=True),
}


def after_close(code: int) -> Verdict:
    """What a close code says; 1006 stands for a connection that broke without one. Unknown ones: try
    again."""
    return _BY_CODE.get(code, _AGAIN)


def after_status(status: int, *, retry_after: str | None, was_connected: bool) -> Verdict:
    """What an HTTP answer instead of a WebSocket says.

    `was_connected`: a 404 on an address that worked before is a route being changed, not a wrong address.
    """
    if status == 401:
        return _NEW_TOKEN
    if status in (429, 503):
        return Verdict(
            again=True, at_least_seconds=_seconds(retry_after, otherwise=1.0), everywhere=status == 429
        )
    if status >= 500 or status == 408 or (status == 404 and was_connected):
        return _AGAIN
    return _STOP


def _seconds(text: str | None, *, otherwise: float) -> float:
    if text is None or not text.strip().isdigit():  # the date form of Retry-After: not sent by our servers
        return otherwise
    return min(float(text), LONGEST_ASKED_SECONDS)


def is_local(host: str) -> bool:
    """Whether it is this machine itself, under whatever name."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def destination(asked: str, *, present: str, urls: Sequence[str], allowed_hosts: Sequence[str]) -> str | None:
    """Where a server's `migrate` leads: `asked` is a path on the host that is connected to, or a whole URL.

    None where it must not be followed: another host than the application named, or from `wss` to `ws`. A
    query that the present address has goes along to the same host, where the asked one has none.
    """
    try:
        found, here = urlsplit(urljoin(present, asked)), urlsplit(present)
        named = [urlsplit(url) for url in urls]
        if not (found.scheme == "wss" or (found.scheme == "ws" and here.scheme == "ws")):
            return None
        known = any(_same_host(found, one) for one in [here, *named])
        if not known and not {found.hostname, found.netloc} & {*allowed_hosts}:
            return None
    except ValueError:
        return None
    if not found.query and _same_host(found, here):
        found = found._replace(query=here.query)
    return found._replace(fragment="").geturl()


def _same_host(one: SplitResult, other: SplitResult) -> bool:
    if one.hostname is None or other.hostname is None:
        return False
    return one.hostname == other.hostname or (is_local(one.hostname) and is_local(other.hostname))


class Routes:
    """The addresses of one service, each with its failures. Times are any clock's seconds."""

    def __init__(
        self, urls: Sequence[str], *, base_seconds: float, longest_seconds: float, rng: random.Random
    ) -> None:
        self._base_seconds = base_seconds
        self._longest_seconds = longest_seconds
        self._rng = rng
        self._failures = dict.fromkeys(urls, 0)
        self._not_before = dict.fromkeys(urls, 0.0)
        self._none_before = 0.0

    def choose(self, now: float) -> tuple[str, float]:
        """The address to try next, and how many seconds to wait before: one that may be tried soonest."""
        soonest = min(self._not_before.values())
        # all that are free already are equally good: a random one spreads clients over them
        bound = max(soonest, now)
        url = self._rng.choice([url for url, time in self._not_before.items() if time <= bound])
        return url, max(0.0, self._not_before[url] - now, self._none_before - now)

    def failed(self, url: str, now: float, verdict: Verdict) -> None:
        """An attempt failed."""
        ceiling = min(self._longest_seconds, self._base_seconds * 2 ** min(self._failures[url], 30))
        self._failures[url] += 1
        self._not_before[url] = now + verdict.at_least_seconds + self._rng.uniform(0, ceiling)
        if verdict.everywhere:
            self._none_before = max(self._none_before, self._not_before[url])

    def lost(self, url: str, now: float, verdict: Verdict) -> None:
        """A connection that had been welcomed ended.

        Everybody who was on that instance is on the way to the others now, so even the first try is spread.
        """
        self.failed(url, now, verdict)
        self._none_before = max(self._none_before, now + self._rng.uniform(0, self._base_seconds))

    def lost_elsewhere(self, now: float, verdict: Verdict) -> None:
        """A connection to another address, where a server had sent this client, ended or could not be made.

        None of these is to blame for that.
        """
        wait_seconds = self._rng.uniform(0, self._base_seconds)
        if verdict.everywhere:
            wait_seconds += verdict.at_least_seconds
        self._none_before = max(self._none_before, now + wait_seconds)

    def wait_seconds(self, now: float) -> float:
        """How long nothing is to be tried, whatever its address."""
        return max(0.0, self._none_before - now)

    def renewed(self, url: str) -> None:
        """Only the token was wrong: the address may be tried at once."""
        self._not_before[url] = 0.0
        self._none_before = 0.0

    def stable(self, url: str) -> None:
        """A connection has lasted: what went wrong before is forgotten. (It may be to another address.)"""
        if url not in self._failures:
            return
        self._failures[url] = 0
        self._not_before[url] = 0.0
