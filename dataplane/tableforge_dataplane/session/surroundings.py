"""What a session needs of its connection, and what all sessions of an instance share."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from tableforge_dataplane.broker.publications import Publishes
from tableforge_dataplane.contract.settings import Settings
from tableforge_dataplane.observability.metrics import Metrics
from tableforge_dataplane.protocol.events import Event
from tableforge_dataplane.rooms.hub import Hub
from tableforge_dataplane.rooms.presence import Presence
from tableforge_dataplane.security.access import Rights
from tableforge_dataplane.security.tokens import Identity
from tableforge_dataplane.session.limits import ByteBudgets
from tableforge_dataplane.session.roster import Roster

if TYPE_CHECKING:
    from tableforge_dataplane.session.membership import Membership

RETRY_AFTER_SECONDS: Final = 5.0
"""Told to whom this instance can't let in, or whose token it can't judge, at the moment."""


class Voice(Protocol):
    """What a session needs of its connection."""

    def encode(self, event: Event) -> bytes:
        """A whole frame for this client."""

    def finish(self, code: int, reason: str) -> None:
        """Begin the closing handshake."""


class Verifier(Protocol):
    """Judges tokens."""

    @property
    def default_rights(self) -> Rights:
        """Of who needs no token."""

    def verify(self, token: str) -> Identity:
        """Raises TokenError."""


class TooMany(Protocol):
    """Why a user gets no further connection."""

    @property
    def message(self) -> str: ...

    @property
    def retry_after(self) -> float: ...


class Users(Protocol):
    """Counts each user's connections."""

    def user_may_not(self, user: str) -> TooMany | None:
        """Why there is no further one now."""

    def user_entered(self, user: str) -> None:
        """A session has become this user's."""

    def user_left(self, user: str) -> None:
        """That session has ended."""


class Surroundings:
    """What all sessions of an instance share."""

    def __init__(
        self,
        *,
        settings: Settings,
        instance: str,
        hub: Hub,
        publisher: Publishes,
        verifier: Verifier,
        metrics: Metrics,
        users: Users,
        presence: Presence,
        redis_trouble: Callable[[], str],
    ) -> None:
        """`redis_trouble`: why Redis did not do what it was asked for, a sentence."""
        self.settings = settings
        self.instance = instance
        self.hub = hub
        self.publisher = publisher
        self.verifier = verifier
        self.metrics = metrics
        self.presence = presence
        self.redis_trouble = redis_trouble
        self.roster = Roster()
        self.users = users
        self.budgets = ByteBudgets(settings.security)
        self.loop = asyncio.get_running_loop()
        self.clock: Callable[[], float] = self.loop.time
        self.on_rooms: Callable[[Membership], None] = _nobody_cares
        """Called when a client has got into a room or out of one, or is gone."""

    def renew(self, settings: Settings) -> None:
        """Hold sessions to these settings from now on; each has to be told of its limits (`renew_limits`)."""
        before, self.settings = self.settings, settings
        if settings.security != before.security:
            self.budgets.renew(settings.security)


def _nobody_cares(_membership: "Membership") -> None:
    return None
