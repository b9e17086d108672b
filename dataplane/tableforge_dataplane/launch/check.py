"""`tableforge-dataplane check`: settings, keys, this machine and Redis, with advice."""

import asyncio
import json
import resource
import time
from collections.abc import Mapping
from typing import Any, Final

from tableforge_dataplane.contract.auth import is_loopback
from tableforge_dataplane.contract.settings import Settings
from tableforge_dataplane.launch.advice import Finding, about_files, about_redis
from tableforge_dataplane.launch.embedded import is_wanted
from tableforge_dataplane.launch.probe import probe
from tableforge_dataplane.security.tokens import TokenVerifier

FETCH_SECONDS: Final = 6.0
"""For an identity provider's keys."""

EXIT_FAILED: Final = 1


class _Silent:
    """What is found is printed, not logged."""

    def info(self, event: str, **fields: Any) -> None:
        pass

    def warning(self, event: str, **fields: Any) -> None:
        pass


def check(settings: Settings, environ: Mapping[str, str], *, as_json: bool) -> int:
    """Print a line for each finding; the exit code is 1 where one of them is a failure."""
    found = [Finding("warn", "settings", warning) for warning in settings.warnings]
    found += asyncio.run(_about_tokens(settings))
    found.append(about_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0], settings))
    if is_wanted(environ):
        text = "none is configured and none answers on localhost:6379: `serve` would start one of its own."
        found.append(Finding("ok", "redis", text))
    else:
        found += about_redis(probe(settings.redis), settings)
    failed = any(finding.level == "fail" for finding in found)
    if as_json:
        findings = [
            {"level": finding.level, "topic": finding.topic, "message": finding.message} for finding in found
        ]
        print(json.dumps({"ok": not failed, "findings": findings}, ensure_ascii=False, indent=2))
    else:
        for finding in found:
            print(f"{finding.level:4}  {finding.topic}: {finding.message}")
    return EXIT_FAILED if failed else 0


async def _about_tokens(settings: Settings) -> list[Finding]:
    auth = settings.auth
    if not (auth.jwt_secret.configured or auth.public_key.configured or auth.jwks_url):
        if is_loopback(settings.websocket.host):
            return [Finding("ok", "tokens", "none is needed, and only this machine can connect.")]
        text = (
            f"whoever reaches {settings.websocket.host}:{settings.websocket.port} gets in: set AUTH_REQUIRED."
        )
        return [Finding("warn", "tokens", text)]
    verifier = TokenVerifier(auth, log=_Silent())
    verifier.start()
    try:
        ends = time.monotonic() + FETCH_SECONDS
        # the provider's answer comes in a task of the verifier's own
        while verifier.problems() and auth.jwks_url and time.monotonic() < ends:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        problems = verifier.problems()
    finally:
        await verifier.stop()
    found = [Finding("warn" if verifier.available else "fail", "tokens", problem) for problem in problems]
    if not auth.required:
        found.append(
            Finding(
                "warn", "tokens", "keys are configured, but nobody needs a token: AUTH_REQUIRED is false."
            )
        )
    return found or [Finding("ok", "tokens", "there is a key to check tokens with.")]
