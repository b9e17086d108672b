"""`tableforge-dataplane`: the command line of an instance.

`serve` runs one; `healthcheck` asks a running one whether it lives; `token` makes a token to try things with.
"""

import argparse
import asyncio
import gc
import http.client
import os
import re
import secrets
import signal
import socket
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tableforge_dataplane.contract import environment
from tableforge_dataplane.contract.endpoints import LIVE_PATH
from tableforge_dataplane.contract.settings import (
    Secret,
    Settings,
    Unit,
    specs,
)

if TYPE_CHECKING:
    from tableforge_dataplane.registry.registry import ThisInstance

TERMINATION_LOG: Final = Path("/dev/termination-log")
"""Where Kubernetes looks for a container's last words; `kubectl describe pod` shows them."""

TERMINATION_BYTES: Final = 4096

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2

HEALTHCHECK_SECONDS: Final = 5.0

COLLECT_EVERY: Final = (10_000, 20, 10)
"""Python's own 700 made garbage collection a quarter of what an accepted connection costs: 310 instead of
390 µs (`benchmarks/rooms.py`), and the same memory after 20,000 connections came and went."""

_DURATION: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        settings = environment.read()
    except environment.SettingsError as error:
        if options.command == "serve":
            _last_words(options.termination_log, error.problems)
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return EXIT_USAGE
    if options.command == "healthcheck":
        return _healthcheck(settings)
    if options.command == "token":
        return _token(settings, options)
    if options.print_config:
        _print_config(settings)
        return 0
    return _serve(settings, options.termination_log)


def _version() -> str:
    return metadata.version("tableforge")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tableforge-dataplane",
        description="One instance of a room-based WebSocket service. It is configured by its environment:",
        epilog=_environment_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"tableforge-dataplane {_version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    serve = commands.add_parser(
        "serve",
        help="run an instance until SIGTERM or SIGINT",
        epilog=_environment_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    serve.add_argument(
        "--print-config", action="store_true", help="show the settings in force, secrets masked, and end"
    )
    serve.add_argument(
        "--termination-log",
        type=Path,
        default=TERMINATION_LOG,
        metavar="FILE",
        help=f"where the reason of a failed start is left, if the file exists (default: {TERMINATION_LOG})",
    )
    commands.add_parser(
        "healthcheck", help=f"ask the instance on WS_HOST and WS_PORT for {LIVE_PATH}: exit code 0 or 1"
    )
    token = commands.add_parser("token", help="make a token for development, signed with JWT_SECRET(_FILE)")
    token.add_argument("--user", required=True, help="the user's id, 1 to 128 characters")
    token.add_argument(
        "--expires", type=_duration, default=3600.0, metavar="1h", help="lifetime: 30s, 15m, 1h, 7d (1h)"
    )
    for right, deed in (("join", "join"), ("publish", "publish to")):
        token.add_argument(
            f"--{right}",
            action="append",
            metavar="PATTERN",
            help=f"rooms the user may {deed}, repeatable; with neither --join nor --publish: every room",
        )
    return parser


def _duration(text: str) -> float:
    found = re.fullmatch(r"([0-9]{1,9})([smhd])", text)
    if found is None or int(found[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration: write 30s, 15m, 1h or 7d")
    return float(int(found[1]) * _DURATION[found[2]])


def _environment_help() -> str:
    """Every setting with its meaning, default and bounds, from the one place that knows them."""
    defaults = environment.show(Settings())
    lines: list[str] = []
    group = ""
    for path, (spec, default) in specs().items():
        if path.split(".")[0] != group:
            group = path.split(".")[0]
            lines += ["", f"{group}:"]
        value = defaults.get(spec.env, "")
        name = f"{spec.env}, {spec.env}_FILE" if isinstance(default, Secret) else spec.env
        lines.append(f"  {name}" + (f" (default: {value})" if value else ""))
        lines.append(f"      {spec.doc}")
        if spec.minimum is not None and spec.maximum is not None:
            unit = "" if spec.unit is Unit.PLAIN else f" {spec.unit.name.lower()}"
            lines.append(f"      From {spec.minimum:.0f} to {spec.maximum:.0f}{unit}.")
    return "\n".join(["environment variables:", *lines])


def _print_config(settings: Settings) -> None:
    for name, value in environment.show(settings).items():
        print(f"{name}={value}")
    for warning in settings.warnings:
        print(f"# {warning}")


def _healthcheck(settings: Settings) -> int:
    websocket = settings.websocket
    # what an instance listens on everywhere, it listens on here too
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(websocket.host, websocket.host)  # noqa: S104
    connection = http.client.HTTPConnection(host, websocket.port, timeout=HEALTHCHECK_SECONDS)
    try:
        connection.request("GET", LIVE_PATH)
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        print(f"{host}:{websocket.port} does not answer: {error}", file=sys.stderr)
        return EXIT_FAILED
    finally:
        connection.close()
    if status != http.client.OK:
        print(f"{host}:{websocket.port}{LIVE_PATH} answered {status}", file=sys.stderr)
        return EXIT_FAILED
    return 0


def _token(settings: Settings, options: argparse.Namespace) -> int:
    from tableforge_dataplane.security.tokens import TokenError, mint

    try:
        key = settings.auth.jwt_secret.read()
    except (OSError, UnicodeDecodeError) as error:
        print(f"JWT_SECRET_FILE={settings.auth.jwt_secret.file}: {error}", file=sys.stderr)
        return EXIT_FAILED
    if key is None:
        print("Set JWT_SECRET or JWT_SECRET_FILE to the key that the instances use.", file=sys.stderr)
        return EXIT_FAILED
    rights = None
    if options.join is not None or options.publish is not None:
        rights = {"join": options.join or [], "publish": options.publish or []}
    try:
        token = mint(key, user=options.user, lifetime_seconds=options.expires, rights=rights)
    except TokenError as error:
        print(error.message, file=sys.stderr)
        return EXIT_FAILED
    print(token)
    return 0


def _serve(settings: Settings, termination_log: Path) -> int:
    import uvloop

    from tableforge_dataplane.observability import logging
    from tableforge_dataplane.registry.registry import ThisInstance, new_boot_id

    this = ThisInstance(
        instance=settings.scaling.instance_id or _made_up_name(),
        boot=new_boot_id(),
        version=_version(),
        started_at=time.time(),
    )
    logging.configure(settings.logging, instance=this.instance)
    _keep_out_of_logs(settings)
    log = logging.EventLog("main")
    for warning in settings.warnings:
        log.warning("setting_without_effect", message=warning)
    try:
        uvloop.run(_run(settings, this))
    except OSError as error:
        # most likely the port: somebody else has it
        log.error("start_failed", error=error)
        _last_words(termination_log, [f"The instance could not start: {error}"])
        return EXIT_FAILED
    return 0


async def _run(settings: Settings, this: "ThisInstance") -> None:
    from tableforge_dataplane.observability.logging import EventLog
    from tableforge_dataplane.server import Server

    log = EventLog("main")
    signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    # set before anything else: as PID 1 a process without handlers ignores these signals
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, number)
    server = Server(settings, this)
    await server.start()
    gc.freeze()  # modules and the like stay for good: nobody needs to look at them again
    gc.set_threshold(*COLLECT_EVERY)
    log.info("serving", version=this.version, boot=this.boot, pid=os.getpid())
    try:
        log.info("signal_received", signal=(await signals.get()).name)
        draining = asyncio.create_task(server.drain())
        again = asyncio.create_task(signals.get())
        await asyncio.wait({draining, again}, return_when=asyncio.FIRST_COMPLETED)
        for task in (draining, again):
            task.cancel()
        # a second signal means: no more waiting
        log.info("drained" if draining.done() and not draining.cancelled() else "drain_cut_short")
        await asyncio.gather(draining, again, return_exceptions=True)
    finally:
        await server.stop()
    log.info("stopped")


def _made_up_name() -> str:
    host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:200] or "instance"
    return f"{host}-{os.getpid()}-{secrets.token_hex(2)}"


def _keep_out_of_logs(settings: Settings) -> None:
    from tableforge_dataplane.observability.logging import REDACTION

    for secret in (settings.redis.password, settings.auth.jwt_secret, settings.http.fleet_key):
        try:
            REDACTION.add(secret.read())
        except (OSError, UnicodeDecodeError):
            continue  # what cannot be read cannot be logged; who needs it says so


def _last_words(file: Path, sentences: list[str]) -> None:
    """Only into a file that is there: outside Kubernetes there is none, and /dev is no place to make one."""
    if not file.is_file():
        return
    text = "\n".join(sentences).encode()[:TERMINATION_BYTES]
    try:
        file.write_bytes(text)
    except OSError as error:
        print(f"{file}: {error}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
