"""One client's session: from its first command to its end, and its commands in order."""

import asyncio
import time
from typing import Final

from tableforge_dataplane.protocol.commands import (
    Auth,
    Command,
    Direct,
    History,
    Join,
    Leave,
    Ping,
    Presence,
    Publish,
    Received,
    Refused,
)
from tableforge_dataplane.protocol.events import Authenticated, Error, Pong, Welcome
from tableforge_dataplane.rooms.outlet import Outlet
from tableforge_dataplane.security.tokens import Identity, TokenError
from tableforge_dataplane.session.client import Client, room_of, type_of
from tableforge_dataplane.session.directs import Directs
from tableforge_dataplane.session.histories import Histories
from tableforge_dataplane.session.limits import BadFrames, CommandRate
from tableforge_dataplane.session.looking import presence
from tableforge_dataplane.session.membership import Membership
from tableforge_dataplane.session.publishing import Publishing
from tableforge_dataplane.session.surroundings import RETRY_AFTER_SECONDS, Surroundings, Voice

FURTHEST_TIMER_SECONDS: Final = 86_400.0
"""Event loops don't like timers that are years away."""


class Session(Client):
    """The whole of a client; `membership` and `publishing` are its larger parts."""

    __slots__ = (
        "_bad",
        "_directs",
        "_entered_as",
        "_histories",
        "_membership",
        "_nonsense_bytes",
        "_now",
        "_publish",
        "_publishing",
        "_rate",
        "_timer",
        "turned_away",
    )

    def __init__(self, surroundings: Surroundings, *, outlet: Outlet, voice: Voice) -> None:
        super().__init__(surroundings, outlet=outlet, voice=voice)
        self._now = surroundings.clock
        self._rate = CommandRate(surroundings.settings.security)
        self._bad: BadFrames | None = None
        self._membership = Membership(self)
        self._publishing = Publishing(self, self._membership)
        # few clients need these
        self._directs: Directs | None = None
        self._histories: Histories | None = None
        self._publish = self._publishing.publish
        self._membership.carry_out = self._carry_out
        self._membership.release = self._publishing.release
        self._membership.on_quiet_copy = self._publishing.on_quiet_copy
        self._timer: asyncio.TimerHandle | None = None
        self._entered_as: str | None = None
        """As whom it is counted."""
        self._nonsense_bytes = 0
        self.turned_away = False
        """Whether it is closed for no fault of its own: its user has too many connections."""

    @property
    def membership(self) -> Membership:
        """Its rooms."""
        return self._membership

    # Beginning and end

    def begin(self, identity: Identity | None, *, guest: bool = False) -> None:
        """The connection stands. Without an identity the first frame has to bring a token."""
        if identity is not None:
            self._enter(identity, guest=guest)
            return
        timeout = self.around.settings.websocket.auth_timeout_seconds
        self._timer = self.around.loop.call_later(
            timeout,
            self._refuse_and_close,
            "unauthorized",
            f"No token came within {timeout:g} s: send one in an `auth` frame first.",
            4401,
        )

    def end(self) -> None:
        """The connection is gone or about to be closed: out of all rooms."""
        if self.closed:
            return
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.identity is not None:
            self.around.roster.discard(self.identity.user, self)
        if self._entered_as is not None:
            self.around.users.user_left(self._entered_as)
        self._membership.end()
        self._publishing.end()
        if self._directs is not None:
            self._directs.end()
        if self._histories is not None:
            self._histories.end()
        self.outlet.close()

    def put_out(self, room: str) -> bool:
        """Out of `room`, without having asked for it; False where the client was not in it."""
        return self._membership.put_out(room)

    def close(self, code: int, reason: str) -> None:
        """End the session and close the connection."""
        if not self.closed:
            self.outlet.flush()
            self.end()
            self.voice.finish(code, reason)

    def refuse_and_close(self, code: str, message: str, close_code: int, retry_after: float | None) -> None:
        """Say `error`, then close."""
        self.send(Error(code=code, message=message, retry_after=retry_after))
        self.close(close_code, code)

    def _refuse_and_close(self, code: str, message: str, close_code: int) -> None:
        self._timer = None
        self.refuse_and_close(code, message, close_code, None)

    def _enter(self, identity: Identity, *, guest: bool) -> None:
        if not guest and self._too_many(identity.user):
            return
        self._become(identity, guest=guest)
        websocket = self.around.settings.websocket
        self.send(
            Welcome(
                instance=self.around.instance,
                session=self.name,
                user=identity.user,
                time=round(time.time(), 3),
                ping_interval=websocket.ping_interval_seconds,
                max_payload_bytes=websocket.max_payload_bytes,
            )
        )

    def _become(self, identity: Identity, *, guest: bool) -> None:
        before = self.user
        if before != identity.user:
            if before is not None:
                self.around.roster.discard(before, self)
            self.around.roster.add(identity.user, self)
            if not guest:
                self.around.users.user_entered(identity.user)
                self._entered_as = identity.user
        self.become(identity, guest=guest)
        self._rate.user = None if guest else self.budget.commands
        self._watch_expiry()

    def renew_limits(self) -> None:
        """The settings' limits have changed: they hold for this client too, from now on."""
        self._rate.renew(self.around.settings.security)
        if self.identity is not None:
            # one that was forgotten while its user stayed is in no table
            self.around.budgets.adapt(self.budget)
            self._rate.user = None if self.guest else self.budget.commands

    def _too_many(self, user: str) -> bool:
        """Whether `user` has its connections elsewhere; then this one is closed."""
        found = self.around.users.user_may_not(user)
        if found is None:
            return False
        self.turned_away = True
        self.refuse_and_close("rate_limited", found.message, 4429, round(found.retry_after, 3))
        return True

    def _watch_expiry(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        identity = self.identity
        if identity is None or identity.expires_at == float("inf"):
            return
        left = max(0.0, identity.expires_at - time.time())
        self._timer = self.around.loop.call_later(min(left, FURTHEST_TIMER_SECONDS), self._may_have_expired)

    def _may_have_expired(self) -> None:
        if self.identity is not None and self.identity.expires_at > time.time():
            self._watch_expiry()
            return
        message = "The token has expired: renew it with `auth` before it does."
        self._refuse_and_close("unauthorized", message, 4401)

    def clock_jumped(self) -> None:
        """The wall clock goes on from elsewhere: its token expires sooner or later than the timer says."""
        if self.identity is not None and not self.closed:
            self._watch_expiry()

    # Commands

    def handle(self, command: Command | Refused) -> None:
        """Carry out one command. `publish`, of which there are thousands, has a path of its own."""
        now = self._now()
        wait = self._rate.take(now)
        if wait is not None:
            self._too_often(command, wait)
            return
        if type(command) is Publish:
            if self.identity is not None:
                self._publish(command, now)
            else:
                self._unauthenticated(command)
            return
        self._handle_other(command, now)

    def _handle_other(self, command: Command | Refused, now: float) -> None:
        if isinstance(command, Refused):
            self._meaningless(command, now)
        elif isinstance(command, Auth):
            self._authenticate(command)
        elif self.identity is None:
            self._unauthenticated(command)
        elif isinstance(command, Join):
            self._membership.join(command)
        elif isinstance(command, Leave):
            self._membership.leave(command)
        elif isinstance(command, Direct | Received):
            if self._directs is None:
                self._directs = Directs(self)
            if isinstance(command, Direct):
                self._directs.send(command, now)
            else:
                self._directs.received(command)
        elif isinstance(command, History):
            if self._histories is None:
                self._histories = Histories(self)
            self._histories.ask(command, now)
        elif isinstance(command, Presence):
            presence(self, command)
        elif isinstance(command, Ping):
            self.send(Pong(id=command.id, time=round(time.time(), 3)))

    def _carry_out(self, command: Command) -> None:
        """What has waited; it was counted when it came."""
        if isinstance(command, Publish):
            self._publish(command, self._now())
        else:
            self._handle_other(command, self._now())

    def _meaningless(self, refused: Refused, now: float) -> None:
        self.error(refused.code, refused.message, refused.id, refused.type, refused.room)
        if self._bad is None:
            self._bad = BadFrames()
        size, self._nonsense_bytes = self._nonsense_bytes, 0
        if self._bad.add(now, size):
            self.close(4400, "too many bad frames")

    def large_nonsense(self, size_bytes: int) -> None:
        """The next frame means nothing and is large: it counts for more than one."""
        self._nonsense_bytes = size_bytes

    def _too_often(self, command: Command | Refused, wait: float) -> None:
        if self._rate.hopeless:
            self.refuse_and_close("rate_limited", "The rate limit was broken again and again.", 4429, 60.0)
            return
        security = self.around.settings.security
        self.limited(
            command,
            f"At most {security.max_messages_per_second} commands a second and "
            f"{security.max_messages_per_minute} a minute are taken.",
            wait,
        )

    def _unauthenticated(self, command: Command) -> None:
        self.error(
            "unauthorized",
            "The first frame must be `auth` with a token.",
            command.id,
            type_of(command),
            room_of(command),
        )
        self.close(4401, "unauthorized")

    def _authenticate(self, command: Auth) -> None:
        try:
            identity = self.around.verifier.verify(command.token)
        except TokenError as error:
            unavailable = error.code == "unavailable"
            wait = RETRY_AFTER_SECONDS if unavailable else None
            self.error(error.code, error.message, command.id, "auth", retry_after=wait)
            if self.identity is None:
                self.close(1013 if unavailable else 4401, error.code)
            return
        current = self.identity
        if current is None:
            self._enter(identity, guest=False)
            return
        if current.user != identity.user and not (self.guest and not self._membership.rooms):
            self.error(
                "forbidden",
                "The token is another user's: a connection stays one user's, open a second one.",
                command.id,
                "auth",
            )
            return
        if self.guest and self._too_many(identity.user):
            return
        self._become(identity, guest=False)
        self.send(Authenticated(id=command.id, user=identity.user, expires_at=identity.expires_at))
        self._membership.check_rights()
