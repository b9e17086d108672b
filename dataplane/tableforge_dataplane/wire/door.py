"""What an instance remembers of who came: by address and by user, whatever becomes of each connection.

Admission asks here, connections and sessions report here. An address counts only where it can be a client's:
behind a balancer that nobody named, all clients would share one.
"""

import asyncio
import functools
from collections.abc import Callable
from typing import Final, NamedTuple

from tableforge_dataplane.contract.settings import SecuritySettings, Settings
from tableforge_dataplane.observability.logging import EventLog
from tableforge_dataplane.observability.metrics import Metrics
from tableforge_dataplane.registry.headcount import Headcount
from tableforge_dataplane.security.addresses import Address, ClientAddresses, client_key, parse_address
from tableforge_dataplane.security.floods import ArrivalRate, Penalties

MOST_ARRIVING: Final = 1000
"""Sockets that may be in their handshakes at once; more are dropped as soon as they are accepted."""

MOST_ARRIVING_FROM_ONE: Final = 100
"""Of those, from one address."""

HOLD_SECONDS: Final = 1.0
"""Who comes too often hears so a second later: one that tries again at once then does so once a second, at a
thousandth of what its attempts would cost."""

MOST_HELD: Final = 500
MOST_HELD_FROM_ONE: Final = 20
"""So many wait for that at once. Further ones from such an address are dropped as they are accepted, where
it is known then, or answered at once."""

OFFENCES: Final = frozenset((1002, 1003, 1007, 1009, 4400, 4429))
"""Close codes of connections that were closed for what the client sent."""

COME_AGAIN_SECONDS: Final = 10.0

_log = EventLog("door")


class TooMany(NamedTuple):
    """Why somebody is turned away for now; `reason` is the metric's label."""

    reason: str
    message: str
    retry_after: float
    held: bool = False
    """Whether the answer is to wait for a moment."""


class Visitor:
    """One connection as the door sees it."""

    __slots__ = ("arriving_from", "arriving_in_all", "counted", "key", "peer", "proxy_expected")

    def __init__(self, peer: Address | None) -> None:
        self.peer = peer
        """Who connected, or whom a trusted balancer's PROXY header named."""
        self.key: str | None = None
        """What its address counts as; None where that isn't (yet) known to be a client's."""
        self.proxy_expected = False
        """Whether a PROXY header has to come from this peer and hasn't."""
        self.arriving_in_all = False
        self.arriving_from: str | None = None
        self.counted: str | None = None


class Door:
    """Counts and remembers; turns nobody away itself."""

    def __init__(
        self, settings: Settings, *, metrics: Metrics, headcount: Headcount, clock: Callable[[], float]
    ) -> None:
        self._metrics = metrics
        self._headcount = headcount
        self._clock = clock
        self._penalties = Penalties()
        self._arriving = 0
        self._arriving_from: dict[str, int] = {}
        self._held = 0
        self._held_from: dict[str, int] = {}
        self._warned = False
        self.renew(settings.security)

    def renew(self, security: SecuritySettings) -> None:
        """Judge by these settings from now on; who is in stays."""
        self._limits_connections = security.enable_connection_limiting
        self._protects = security.enable_ddos_protection
        self._per_address = security.max_connections_per_ip
        self._per_user = security.max_connections_per_user
        self._proxy_protocol = security.proxy_protocol
        self.addresses = ClientAddresses(security)
        self._rate = ArrivalRate(security.max_handshakes_per_second)
        self._warned = False

    # A connection's beginning and end

    def accepted(self, peername: object) -> Visitor | None:
        """A socket was accepted. None where it is to be dropped: nothing but this has been spent on it."""
        visitor = Visitor(_address_of(peername))
        peer = visitor.peer
        if self._arriving >= MOST_ARRIVING:
            self._metrics.connections_refused.add("handshakes")
            return None
        if peer is not None:
            if self.addresses.trusts(peer):
                visitor.proxy_expected = self._proxy_protocol
            elif self._protects and self.addresses.is_client(peer):
                key = client_key(peer)
                if self._held_from.get(key, 0) >= MOST_HELD_FROM_ONE:
                    self._metrics.connections_refused.add("flood")
                    return None
                if not self._arrives_from(visitor, key):
                    return None
        visitor.arriving_in_all = True
        self._arriving += 1
        return visitor

    def announced(self, visitor: Visitor, source: Address | None) -> bool:
        """Its PROXY header came. False where it is to be dropped."""
        visitor.proxy_expected = False
        if source is None:
            return True
        visitor.peer = source
        if not self._protects or self.addresses.trusts(source):
            return True
        return self._arrives_from(visitor, client_key(source))

    def _arrives_from(self, visitor: Visitor, key: str) -> bool:
        arriving = self._arriving_from.get(key, 0)
        if arriving >= MOST_ARRIVING_FROM_ONE:
            self._metrics.connections_refused.add("handshakes")
            return False
        self._arriving_from[key] = arriving + 1
        visitor.arriving_from = key
        return True

    def arrived(self, visitor: Visitor) -> None:
        """Its handshake is over, in whatever way; may be said more than once."""
        if visitor.arriving_in_all:
            visitor.arriving_in_all = False
            self._arriving -= 1
        if visitor.arriving_from is not None:
            _one_less(self._arriving_from, visitor.arriving_from)
            visitor.arriving_from = None

    def entered(self, visitor: Visitor) -> None:
        """Its connection is open and counts."""
        if visitor.key is not None and self._limits_connections and visitor.counted is None:
            visitor.counted = f"a:{visitor.key}"
            self._headcount.enter(visitor.counted)

    def left(self, visitor: Visitor) -> None:
        """It is gone."""
        if visitor.counted is not None:
            self._headcount.leave(visitor.counted)
            visitor.counted = None

    def offended(self, visitor: Visitor, code: int, user: str | None) -> None:
        """It is closed with `code`; `user` where it is one that was not made up for it."""
        if code not in OFFENCES or not self._protects:
            return
        now = self._clock()
        if visitor.key is not None:
            self._penalties.add(f"a:{visitor.key}", now)
        if user is not None:
            self._penalties.add(f"u:{user}", now)

    # Questions

    def locate(self, visitor: Visitor, lines: list[str]) -> None:
        """Find out where a client is; `lines` are the header's. Raises AddressError."""
        if visitor.peer is None:
            return
        client = self.addresses.behind(visitor.peer, lines)
        if self.addresses.trusts(client):
            self._warn(
                client,
                "This trusted proxy does not say who connected to it: let it send "
                f"{self.addresses.header}, or the PROXY protocol.",
            )
        elif self.addresses.is_client(client):
            visitor.key = client_key(client)
        elif not client.is_loopback:
            self._warn(
                client,
                "Clients seem to come through a balancer. Name its networks in "
                "TABLEFORGE_SECURITY_TRUSTED_PROXIES, or say `none` where there is none.",
            )

    def _warn(self, peer: Address, advice: str) -> None:
        if not self._warned and (self._limits_connections or self._protects):
            self._warned = True
            _log.warning("address_limits_off", peer=str(peer), advice=advice)

    def comes_too_often(self, visitor: Visitor) -> TooMany | None:
        """Counts a handshake of this address."""
        key = visitor.key
        if key is None or not self._protects:
            return None
        now = self._clock()
        wait = self._penalties.wait(f"a:{key}", now)
        if wait is not None:
            return _penalty("this address", wait)
        wait = self._rate.take(key, now)
        if wait is None:
            return None
        return TooMany(
            "handshake_rate", "Too many connections came from this address at once.", wait + 1.0, held=True
        )

    def address_is_full(self, visitor: Visitor) -> TooMany | None:
        """Whether the address has its connections, here or over the whole cluster."""
        if visitor.key is None or not self._limits_connections:
            return None
        if not self._is_full(f"a:{visitor.key}", self._per_address):
            return None
        return TooMany(
            "address_full",
            f"This address has its {self._per_address} connections: close one first.",
            COME_AGAIN_SECONDS,
        )

    def user_may_not(self, user: str) -> TooMany | None:
        """Why `user` gets no further connection now."""
        key = f"u:{user}"
        if self._protects:
            wait = self._penalties.wait(key, self._clock())
            if wait is not None:
                return _penalty("this user", wait)
        if self._limits_connections and self._is_full(key, self._per_user):
            return TooMany(
                "user_full",
                f"This user has its {self._per_user} connections: close one first.",
                COME_AGAIN_SECONDS,
            )
        return None

    def user_entered(self, user: str) -> None:
        """From a session that has become this user's."""
        self._headcount.enter(f"u:{user}")

    def user_left(self, user: str) -> None:
        """From that session at its end."""
        self._headcount.leave(f"u:{user}")

    def _is_full(self, key: str, most: int) -> bool:
        here = self._headcount.here(key)
        if here >= most:
            return True
        if here + self._headcount.elsewhere(key) < most:
            return False
        # who left another instance a moment ago may still be counted there
        self._headcount.doubted.set()
        return True

    # Those who have to wait for their answer

    def may_hold(self, visitor: Visitor) -> bool:
        """Whether there is room for one more to wait."""
        held_from = self._held_from.get(visitor.key, 0) if visitor.key is not None else 0
        return self._held < MOST_HELD and held_from < MOST_HELD_FROM_ONE

    async def hold(self, visitor: Visitor) -> None:
        """Let it wait; it doesn't count among those that arrive meanwhile."""
        key = visitor.key
        self.arrived(visitor)
        self._held += 1
        if key is not None:
            self._held_from[key] = self._held_from.get(key, 0) + 1
        try:
            await asyncio.sleep(HOLD_SECONDS)
        finally:
            self._held -= 1
            if key is not None:
                _one_less(self._held_from, key)


def _penalty(whom: str, wait: float) -> TooMany:
    return TooMany(
        "penalty",
        f"Connections of {whom} had to be closed for what they sent, again and again: wait.",
        wait,
        held=True,
    )


def _one_less(counts: dict[str, int], key: str) -> None:
    left = counts[key] - 1
    if left:
        counts[key] = left
    else:
        del counts[key]


def _address_of(peername: object) -> Address | None:
    if not isinstance(peername, tuple) or not peername:
        return None
    return _parsed(str(peername[0]))


@functools.lru_cache(maxsize=4096)
def _parsed(text: str) -> Address | None:
    try:
        return parse_address(text)
    except ValueError:
        return None
