"""What one instance asks of all of them: a channel for everybody, and one of its own for the answers.

It is Pub/Sub: who is not subscribed at that moment does not hear it. So everybody answers, and who asked is
told who didn't; what must hold beyond the moment is state elsewhere, in tokens and the registry.
"""

import asyncio
import dataclasses
import secrets
from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from tableforge_dataplane.broker.connection import Reply, ReplyError, pack
from tableforge_dataplane.observability.logging import EventLog

ANSWER_WITHIN_SECONDS: Final = 2.0
"""Who has not answered by then is reported as missing."""

MOST_QUESTIONS: Final = 1000
"""Under way at once from one instance."""

_log = EventLog("control")

Handler = Callable[[msgspec.Raw], int]
"""Does what was asked and says to how many it applied."""


class Commands(Protocol):
    """The broker's commands, as far as this needs them."""

    def send(self, packed: bytes, callback: Callable[[Reply], None]) -> None: ...


class Channels(Protocol):
    """The subscriber, as far as this needs it."""

    def subscribe(self, channel: bytes) -> None: ...


class ControlUnavailableError(Exception):
    """Redis did not take the question."""


class _Question(msgspec.Struct):
    id: str
    kind: str
    reply: str
    body: msgspec.Raw


class _Answer(msgspec.Struct):
    id: str
    instance: str
    count: int


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a question."""

    count: int
    """To how many it applied, all who answered together."""
    instances: int
    """Who answered."""
    missing: tuple[str, ...]
    """Instances that live and did not answer in time."""


class _Open:
    """A question under way."""

    __slots__ = ("answers", "done", "expected", "receivers")

    def __init__(self, expected: frozenset[str]) -> None:
        self.expected = expected
        self.receivers: int | None = None
        self.answers: dict[str, int] = {}
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def look(self) -> None:
        """Whether all have answered: the known ones, and as many as Redis says have heard it."""
        if (
            self.receivers is not None
            and len(self.answers) >= self.receivers
            and self.expected <= self.answers.keys()
            and not self.done.done()
        ):
            self.done.set_result(None)


class Control:
    """Questions to all instances and the answers to them."""

    def __init__(
        self,
        *,
        key_prefix: str,
        instance: str,
        boot: str,
        channels: Channels,
        commands: Commands,
        publish_command: bytes = b"PUBLISH",
    ) -> None:
        self._instance = instance
        # one hash tag: on a Redis Cluster who publishes and who subscribes meet on one shard
        self.everybody = f"tf:{key_prefix}:{{control}}:all".encode()
        self.own = f"tf:{key_prefix}:{{control}}:to:{boot}".encode()
        self._channels = channels
        self._commands = commands
        self._publish_command = publish_command
        self._handlers: dict[str, Handler] = {}
        self._open: dict[str, _Open] = {}
        self._question = msgspec.json.Decoder(_Question)
        self._answer = msgspec.json.Decoder(_Answer)

    def handle(self, kind: str, handler: Handler) -> None:
        """From now on questions of this kind are `handler`'s."""
        self._handlers[kind] = handler

    def start(self) -> None:
        """Listen, as soon as Redis is there."""
        self._channels.subscribe(self.everybody)
        self._channels.subscribe(self.own)

    def tell(self, kind: str, body: object) -> None:
        """Tell all instances, this one included, without waiting for anybody: what gets lost is lost."""
        question = _Question(id="", kind=kind, reply="", body=msgspec.Raw(msgspec.json.encode(body)))
        self._commands.send(
            pack(self._publish_command, self.everybody, msgspec.json.encode(question)), _answered
        )

    async def ask(self, kind: str, body: object, *, expected: frozenset[str]) -> Outcome:
        """Ask all instances, this one included. `expected`: the names of those that are known to live.

        Raises ControlUnavailableError where Redis doesn't take it.
        """
        if len(self._open) >= MOST_QUESTIONS:
            raise ControlUnavailableError
        identifier = secrets.token_hex(8)
        question = _Question(
            id=identifier, kind=kind, reply=self.own.decode(), body=msgspec.Raw(msgspec.json.encode(body))
        )
        waiting = self._open[identifier] = _Open(expected)

        def on_published(reply: Reply) -> None:
            if isinstance(reply, int):
                waiting.receivers = reply
                waiting.look()
            elif not waiting.done.done():
                waiting.done.set_exception(ControlUnavailableError())

        self._commands.send(
            pack(self._publish_command, self.everybody, msgspec.json.encode(question)), on_published
        )
        try:
            async with asyncio.timeout(ANSWER_WITHIN_SECONDS):
                await waiting.done
        except TimeoutError:
            _log.warning("control_unanswered", kind=kind, by=sorted(expected - waiting.answers.keys()))
        finally:
            del self._open[identifier]
        return Outcome(
            count=sum(waiting.answers.values()),
            instances=len(waiting.answers),
            missing=tuple(sorted(expected - waiting.answers.keys())),
        )

    def on_question(self, payload: bytes) -> None:
        """From the channel for everybody."""
        try:
            question = self._question.decode(payload)
        except msgspec.MsgspecError as error:
            _log.error("control_malformed", error)
            return
        handler = self._handlers.get(question.kind)
        if handler is None:
            # from a newer version; it hears that nobody was concerned here
            _log.warning("control_unknown", kind=question.kind)
        try:
            count = handler(question.body) if handler is not None else 0
        except msgspec.MsgspecError as error:
            _log.error("control_malformed", error, kind=question.kind)
            return
        if not question.reply:
            return
        answer = _Answer(id=question.id, instance=self._instance, count=count)
        self._commands.send(
            pack(self._publish_command, question.reply.encode(), msgspec.json.encode(answer)), _answered
        )

    def on_answer(self, payload: bytes) -> None:
        """From this instance's own channel."""
        try:
            answer = self._answer.decode(payload)
        except msgspec.MsgspecError as error:
            _log.error("control_malformed", error)
            return
        waiting = self._open.get(answer.id)
        if waiting is not None:
            waiting.answers[answer.instance] = answer.count
            waiting.look()


def _answered(reply: Reply) -> None:
    if isinstance(reply, ReplyError):
        _log.warning("control_refused", reply=str(reply))
