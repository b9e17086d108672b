"""What is special about some rooms: a list of patterns with options, and what it says of one room.

    [{"pattern": "cursor:**", "volatile": true, "presence": false},
     {"pattern": "news:*", "publish": "server", "logMaxMessages": 100}]

The longest pattern that matches a room decides for it, alone; what it leaves out is as the settings say.
"""

import dataclasses
from typing import Any, Final, Literal

import msgspec

from tableforge_dataplane.contract.patterns import Pattern, matches, parse_pattern
from tableforge_dataplane.contract.settings import RoomSettings, specs

MAX_OPTIONS: Final = 1000
MAX_PATTERN_CHARACTERS: Final = 256

PERSONAL: Final = "@"
"""What the name of a user's personal log begins with; no room's does."""

Publishers = Literal["all", "authenticated", "server", "nobody"]
"""`all`: whom a token, or doing without, allows; `authenticated`: only with one; `server`: only the server
API."""

Joiners = Literal["all", "authenticated", "nobody"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LogLimits:
    """How far a log reaches."""

    max_messages: int
    max_bytes: int
    max_age_ms: int

    @classmethod
    def of_rooms(cls, settings: RoomSettings) -> "LogLimits":
        """Of a room without options of its own."""
        return cls(
            max_messages=settings.log_max_messages,
            max_bytes=settings.log_max_bytes,
            max_age_ms=round(settings.log_max_age_seconds * 1000),
        )

    @classmethod
    def of_personal_logs(cls, settings: RoomSettings) -> "LogLimits":
        """Of a user's personal log."""
        return cls(
            max_messages=settings.personal_max_messages,
            max_bytes=settings.personal_max_bytes,
            max_age_ms=round(settings.personal_max_age_seconds * 1000),
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RoomOptions:
    """What holds for one room."""

    log: LogLimits
    volatile: bool = False
    """Messages are delivered to who is there and never kept."""
    presence: bool = True
    join: Joiners = "all"
    publish: Publishers = "all"
    see_presence: Publishers = "all"

    def may_join(self, *, guest: bool) -> bool:
        """Whether a client whose token allows it may be a member."""
        return self.join == "all" or (self.join == "authenticated" and not guest)

    def may_publish(self, *, guest: bool) -> bool:
        """Whether a client whose token allows it may publish."""
        return self.publish == "all" or (self.publish == "authenticated" and not guest)

    def may_see_presence(self, *, guest: bool) -> bool:
        """Whether a client whose token allows it may see who is there."""
        return self.presence and (
            self.see_presence == "all" or (self.see_presence == "authenticated" and not guest)
        )


class RoomOptionsError(ValueError):
    """Options that can't be used. `problems` has a sentence each, with the path of the field."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class _Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel", kw_only=True):
    """An entry of the list as it is written."""

    pattern: str
    log_max_messages: int | None = None
    log_max_bytes: int | None = None
    log_max_age: int | None = None
    """Milliseconds."""
    volatile: bool | None = None
    presence: bool | None = None
    join: Joiners | None = None
    publish: Publishers | None = None
    see_presence: Publishers | None = None


class RoomRules:
    """Every room's options. Immutable."""

    def __init__(self, settings: RoomSettings, rules: list[tuple[Pattern, RoomOptions]]) -> None:
        self._default = _options(_Rule(pattern="**"), settings)
        self._personal = RoomOptions(
            log=LogLimits.of_personal_logs(settings), presence=False, publish="nobody", see_presence="nobody"
        )
        self._rules = sorted(rules, key=lambda rule: _length(rule[0]), reverse=True)

    @property
    def shortest_age_ms(self) -> int:
        """Of all logs."""
        return min(
            self._default.log.max_age_ms,
            self._personal.log.max_age_ms,
            *(options.log.max_age_ms for _, options in self._rules),
        )

    def __len__(self) -> int:
        return len(self._rules)

    def of(self, room: str) -> RoomOptions:
        """What holds for `room`, or for a personal log."""
        if room[:1] == PERSONAL:
            return self._personal
        if self._rules:
            segments = room.split(":")
            for pattern, options in self._rules:
                if matches(pattern, segments):
                    return options
        return self._default


def parse_room_options(
    text: str, settings: RoomSettings, *, max_payload_bytes: int, live: bool = False
) -> RoomRules:
    """`text` is the JSON list, or empty. Raises RoomOptionsError with every problem.

    A `logMaxBytes` below `max_payload_bytes` is one, unless the options are `live`: then it counts as that
    many, since the limit that it was written for may be one that the instance has yet to be replaced for.
    """
    if not text.strip():
        return RoomRules(settings, [])
    try:
        entries = msgspec.json.decode(text, type=list[msgspec.Raw])
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise RoomOptionsError([f"must be a JSON list of objects ({error})"]) from None
    if len(entries) > MAX_OPTIONS:
        raise RoomOptionsError([f"has {len(entries)} entries, {MAX_OPTIONS} are allowed"])
    problems: list[str] = []
    rules: dict[Pattern, RoomOptions] = {}
    places: dict[Pattern, int] = {}
    for index, entry in enumerate(entries):
        try:
            rule = msgspec.json.decode(entry, type=_Rule)
        except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
            what, _, path = str(error).partition(" - at `$")
            problems.append(f"[{index}]{path.rstrip('`')}: {what[:1].lower()}{what[1:]}")
            continue
        if len(rule.pattern) > MAX_PATTERN_CHARACTERS or not rule.pattern:
            problems.append(f"[{index}].pattern: must be 1 to {MAX_PATTERN_CHARACTERS} characters long")
            continue
        try:
            pattern = parse_pattern(rule.pattern)
        except ValueError as error:
            problems.append(f"[{index}].pattern: {error}")
            continue
        if pattern in rules:
            problems.append(f"[{index}].pattern: [{places[pattern]}] has the same one already")
            continue
        if live and rule.log_max_bytes is not None:
            rule = msgspec.structs.replace(rule, log_max_bytes=max(rule.log_max_bytes, max_payload_bytes))
        found = _problems_of(rule, max_payload_bytes)
        problems += [f"[{index}]{problem}" for problem in found]
        places[pattern] = index
        rules[pattern] = _options(rule, settings)
    if problems:
        raise RoomOptionsError(problems)
    return RoomRules(settings, list(rules.items()))


def _problems_of(rule: _Rule, max_payload_bytes: int) -> list[str]:
    problems: list[str] = []
    known = specs()
    for name in ("log_max_messages", "log_max_bytes", "log_max_age"):
        value = getattr(rule, name)
        if value is None:
            continue
        written = "".join([name.split("_")[0], *(part.title() for part in name.split("_")[1:])])
        spec, _ = known["rooms." + ("log_max_age_seconds" if name == "log_max_age" else name)]
        low, high = int(spec.minimum or 0), int(spec.maximum or 0)
        if name == "log_max_bytes":
            low = max(low, max_payload_bytes)  # or the log could not hold the room's newest message
        if not low <= value <= high:
            problems.append(f".{written}: must be {spec.unit.value} from {low} to {high}, and is {value}")
        elif rule.volatile:
            problems.append(f".{written}: a volatile room has no log: leave it out")
    if rule.presence is False and rule.see_presence not in (None, "nobody"):
        problems.append(".seePresence: there is no presence to see: leave it out")
    return problems


def _options(rule: _Rule, settings: RoomSettings) -> RoomOptions:
    log: dict[str, Any] = {
        "max_messages": rule.log_max_messages,
        "max_bytes": rule.log_max_bytes,
        "max_age_ms": rule.log_max_age,
    }
    rest: dict[str, Any] = {
        name: getattr(rule, name) for name in ("volatile", "presence", "join", "publish", "see_presence")
    }
    rest = {"presence": settings.presence} | {
        name: value for name, value in rest.items() if value is not None
    }
    return RoomOptions(
        log=dataclasses.replace(
            LogLimits.of_rooms(settings), **{name: value for name, value in log.items() if value is not None}
        ),
        **rest,
    )


def _length(pattern: Pattern) -> tuple[int, int, tuple[int, ...]]:
    """What makes one pattern win over another: more segments, then more that are no wildcards, then those
    further to the left."""
    weights = tuple({"**": 0, "*": 1}.get(segment, 2) for segment in pattern)
    return sum(weight > 0 for weight in weights), weights.count(2), weights
