"""What Redis is, what it refuses, and what that means for whoever waits for it."""

import dataclasses
import re
from typing import Final, Literal

OLDEST: Final = (6, 2)

_IN_SCRIPT: Final = re.compile(r"ERR Error running script \(.*?\): (?:@user_script: ?\d+: )+-(.*)", re.DOTALL)
"""How Redis 6.2 wraps what it refuses a script's command with; later ones say it as it is."""

Reason = Literal[
    "Connected",
    "Connecting",
    "Unreachable",
    "AuthenticationFailed",
    "OutOfMemory",
    "ReadOnly",
    "DurabilityNotMet",
    "VersionTooOld",
    "PasswordMissing",
    "PrefixClaimed",
]


class RedisRefusedError(Exception):
    """Redis cannot be used, or not for this. `message`: a sentence about what is wrong and what is right."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason
        self.message = message


@dataclasses.dataclass(frozen=True, slots=True)
class ServerFacts:
    """From `INFO server`."""

    product: str
    version: str
    """The product's own."""
    compatible: tuple[int, ...]
    """The Redis version whose commands it has."""
    run_id: str = ""
    """Of the server process: another one may hold other data."""

    @classmethod
    def of(cls, info: bytes) -> "ServerFacts":
        """Reads the text of `INFO`."""
        fields = info_fields(info)
        redis = fields.get("redis_version", "0")
        product = "Valkey" if "valkey_version" in fields else "Redis"
        return cls(
            product=product,
            version=fields.get("valkey_version", redis),
            compatible=tuple(int(number) for number in re.findall(r"\d+", redis)[:2]),
            run_id=fields.get("run_id", ""),
        )

    def refusal(self) -> RedisRefusedError | None:
        """Why this server is not enough; None where it is."""
        if self.compatible >= OLDEST:
            return None
        return RedisRefusedError(
            "VersionTooOld",
            f"{self.product} {self.version} is too old: use Redis 6.2 or newer, or Valkey.",
        )


def info_fields(info: bytes) -> dict[str, str]:
    """`INFO`'s lines as a dictionary."""
    pairs = (line.partition(":") for line in info.decode("utf-8", "replace").splitlines())
    return {name: value for name, colon, value in pairs if colon}


def refusal_in(reply: Exception) -> str:
    """The text of an error reply, which begins with its code, whatever version says it."""
    text = str(reply)
    found = _IN_SCRIPT.fullmatch(text)
    return found[1] if found else text


def judge(text: str, *, where: str) -> RedisRefusedError:
    """What an error reply means. `text` is Redis's, which never repeats a password."""
    code = text.split(" ", 1)[0]
    if code in ("NOAUTH", "WRONGPASS", "NOPERM") or "AUTH" in text.split(":", 1)[0]:
        return RedisRefusedError(
            "AuthenticationFailed",
            f"Redis at {where} refuses the password or the right to a command ({text}): "
            "give it the password that Redis has.",
        )
    if code == "OOM":
        return RedisRefusedError(
            "OutOfMemory", f"Redis at {where} is out of memory: raise its maxmemory or publish less."
        )
    if code == "NOREPLICAS":
        return RedisRefusedError(
            "ReadOnly",
            f"Redis at {where} has too few replicas to take writes (NOREPLICAS): bring them back.",
        )
    if code in ("READONLY", "MASTERDOWN"):
        return RedisRefusedError(
            "ReadOnly", f"Redis at {where} takes no writes ({code}): connect to the primary."
        )
    if code == "MISCONF":
        return RedisRefusedError(
            "ReadOnly", f"Redis at {where} cannot write to its disk (MISCONF): give it room and rights there."
        )
    if code in ("LOADING", "BUSY"):
        return RedisRefusedError("Connecting", f"Redis at {where} is busy ({text}).")
    return RedisRefusedError("Unreachable", f"Redis at {where} answers with an error: {text}")
