"""`tableforge-dataplane`: the command line of an instance.

`serve` runs instances; `check` looks at settings and Redis; `healthcheck` asks a running instance whether it
lives; `token` makes a token to try things with.
"""

import argparse
import asyncio
import errno
import gc
import http.client
import os
import re
import secrets
import signal
import socket
import ssl
import sys
import time
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tableforge_dataplane.contract import environment
from tableforge_dataplane.contract.auth import is_loopback
from tableforge_dataplane.contract.endpoints import LIVE_PATH
from tableforge_dataplane.contract.live import FILE_VARIABLE
from tableforge_dataplane.contract.settings import Settings, secrets_of
from tableforge_dataplane.launch.command_line import parser, version

if TYPE_CHECKING:
    from tableforge_dataplane.launch.embedded import EmbeddedValkey
    from tableforge_dataplane.registry.registry import ThisInstance

TERMINATION_BYTES: Final = 4096

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2

HEALTHCHECK_SECONDS: Final = 5.0

_NO_PORT: Final = (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES)
_OTHER_PORTS: Final = (
    "Clients come to WS_HOST and WS_PORT (--host, --port), /metrics and the server API are at "
    "TABLEFORGE_HTTP_PORT: choose others, or end what listens there."
)

COLLECT_EVERY: Final = (10_000, 5, 2)
"""Python's own 700 made garbage collection a quarter of what an accepted connection costs: 310 instead of
390 µs (`benchmarks/workloads.py`). An ended connection is garbage that only a collection of the oldest frees:
with (10_000, 20, 10) so much of it lay about that 6,000 that came and went left 97 MB instead of 83."""

KEEP_EVERY_SECONDS: Final = 1.0
"""How often an instance looks whether the Valkey it started still runs."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = parser().parse_args(arguments)
    environ = dict(os.environ)
    if options.command == "serve":
        environ |= _ports(options, environ)
    elif options.command == "healthcheck":
        # a file that a running instance does without, because it cannot be used, is none of its business
        environ.pop(FILE_VARIABLE, None)
    try:
        settings = environment.read(environ)
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
    if options.command == "check":
        from tableforge_dataplane.launch.check import check

        return check(settings, environ, as_json=options.json)
    if options.print_config:
        _print_config(settings)
        return 0
    return _serve(settings, environ, options)


def _ports(options: argparse.Namespace, environ: dict[str, str]) -> dict[str, str]:
    """What the options of `serve` say, as variables. The internal ports follow the clients' ports."""
    said = {"WS_HOST": options.host, "WS_PORT": options.port, "TABLEFORGE_DATA_DIR": options.data_dir}
    found: dict[str, str] = {name: value for name, value in said.items() if value is not None}
    port = found.get("WS_PORT") or environ.get("WS_PORT") or str(Settings().websocket.port)
    moved = options.port is not None or options.instances > 1
    if moved and not environ.get("TABLEFORGE_HTTP_PORT") and re.fullmatch(r"[0-9]{1,5}", port):
        found["TABLEFORGE_HTTP_PORT"] = "0" if int(port) == 0 else str(int(port) + options.instances)
    return found


def _print_config(settings: Settings) -> None:
    for name, value in environment.show(settings).items():
        print(f"{name}={value}")
    for warning in settings.warnings:
        print(f"# {warning}")


def _healthcheck(settings: Settings) -> int:
    websocket = settings.websocket
    # what an instance listens on everywhere, it listens on here too
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(websocket.host, websocket.host)  # noqa: S104
    connection: http.client.HTTPConnection
    if websocket.tls_cert_file:
        # it is ours all the same: the question is only whether it lives
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection = http.client.HTTPSConnection(
            host, websocket.port, timeout=HEALTHCHECK_SECONDS, context=context
        )
    else:
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
    from tableforge_dataplane.contract.auth import RIGHTS
    from tableforge_dataplane.security.tokens import TokenError, mint

    auth = settings.auth
    try:
        key = auth.jwt_secret.read()
    except (OSError, UnicodeDecodeError) as error:
        print(f"JWT_SECRET_FILE={auth.jwt_secret.file}: {error}", file=sys.stderr)
        return EXIT_FAILED
    if key is None:
        print("Set JWT_SECRET or JWT_SECRET_FILE to the key that the instances use.", file=sys.stderr)
        return EXIT_FAILED
    given = {right: getattr(options, right) for right in RIGHTS}
    rights = None
    if any(patterns is not None for patterns in given.values()):
        rights = {right: patterns or [] for right, patterns in given.items()}
    lifetime = auth.token_expiry_seconds if options.expires is None else options.expires
    try:
        token = mint(key, user=options.user, lifetime_seconds=lifetime, rights=rights, settings=auth)
    except TokenError as error:
        print(error.message, file=sys.stderr)
        return EXIT_FAILED
    print(token)
    return 0


def _serve(settings: Settings, environ: dict[str, str], options: argparse.Namespace) -> int:
    from tableforge_dataplane.launch.embedded import (
        EmbeddedError,
        EmbeddedValkey,
        NotInstalledError,
        default_folder,
        is_wanted,
    )
    from tableforge_dataplane.observability import logging

    name = settings.scaling.instance_id or _made_up_name()
    logging.configure(settings.logging, instance=name)
    log = logging.EventLog("main")
    for warning in settings.warnings:
        log.warning("setting_without_effect", message=warning)
    if not settings.auth.required and not is_loopback(settings.websocket.host):
        log.warning(
            "open_to_everybody",
            host=settings.websocket.host,
            message="Whoever reaches this port can join and publish without a token: set AUTH_REQUIRED=true "
            "and JWT_SECRET_FILE, or listen on this machine only with --host 127.0.0.1.",
        )
    embedded: EmbeddedValkey | None = None
    if is_wanted(environ):
        folder = Path(settings.launch.data_dir) if settings.launch.data_dir else default_folder(environ)
        embedded = EmbeddedValkey(folder.absolute())
        try:
            embedded.start()
        except NotInstalledError as error:
            log.warning("no_redis", message=str(error))  # it may still come: the instance waits for it
            embedded = None
        except EmbeddedError as error:
            log.error("no_redis", message=str(error))
            _last_words(options.termination_log, [str(error)])
            return EXIT_FAILED
    if embedded is not None:
        environ |= embedded.environ
        if not environ.get("TABLEFORGE_REDIS_DURABILITY"):
            environ["TABLEFORGE_REDIS_DURABILITY"] = "Disk"  # what it can give, it gives
        settings = environment.read(environ)
    _keep_out_of_logs(settings)
    try:
        if options.instances > 1:
            return _supervise(settings, environ, name, options, embedded)
        return _serve_one(settings, environ, name, options.termination_log, embedded)
    finally:
        if embedded is not None:
            embedded.stop()


def _supervise(
    settings: Settings,
    environ: dict[str, str],
    name: str,
    options: argparse.Namespace,
    embedded: "EmbeddedValkey | None",
) -> int:
    from tableforge_dataplane.launch.supervisor import Place, Supervisor, address_problem, ports_problem

    count, port, http_port = options.instances, settings.websocket.port, settings.http.port
    problem = ports_problem(port, http_port, count) or address_problem(settings.routing, count)
    if problem is not None:
        print(problem, file=sys.stderr)
        return EXIT_USAGE
    places = [
        Place(name=f"{name}-{number + 1}", port=port + number, http_port=http_port + number)
        for number in range(count)
    ]
    return asyncio.run(Supervisor(settings, places, environ=environ, embedded=embedded).run())


def _serve_one(
    settings: Settings,
    environ: Mapping[str, str],
    name: str,
    termination_log: Path,
    embedded: "EmbeddedValkey | None",
) -> int:
    import uvloop

    from tableforge_dataplane.broker.state import RedisRefusedError
    from tableforge_dataplane.observability.logging import EventLog
    from tableforge_dataplane.registry.registry import ThisInstance, new_boot_id

    this = ThisInstance(instance=name, boot=new_boot_id(), version=version(), started_at=time.time())
    try:
        uvloop.run(_run(settings, environ, this, embedded))
    except OSError as error:
        sentence = f"The instance could not start: {error}"
        if error.errno in _NO_PORT:  # nothing that a traceback would explain
            sentence += ". " + _OTHER_PORTS
            EventLog("main").error("start_failed", message=sentence)
        else:
            EventLog("main").error("start_failed", error=error)
        _last_words(termination_log, [sentence])
        return EXIT_FAILED
    except RedisRefusedError as error:
        EventLog("main").error("start_failed", error=error)
        _last_words(termination_log, [f"{error} TABLEFORGE_REDIS_LAZY_CONNECT=true would wait for it."])
        return EXIT_FAILED
    return 0


async def _run(
    settings: Settings, environ: Mapping[str, str], this: "ThisInstance", embedded: "EmbeddedValkey | None"
) -> None:
    from tableforge_dataplane.observability.logging import EventLog
    from tableforge_dataplane.server import Server

    log = EventLog("main")
    signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    # set before anything else: as PID 1 a process without handlers ignores these signals
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, number)
    server = Server(settings, this, reread=lambda: environment.read(environ))
    await server.start()
    gc.freeze()  # modules and the like stay for good: nobody needs to look at them again
    gc.set_threshold(*COLLECT_EVERY)
    log.info("serving", version=this.version, boot=this.boot, pid=os.getpid())
    keeping = asyncio.create_task(_keep(embedded)) if embedded is not None else None
    try:
        if not settings.redis.lazy_connect:
            await _unless_signalled(server.redis_answers(), signals)
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
        if keeping is not None:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
    log.info("stopped")


async def _unless_signalled(
    waiting: Coroutine[Any, Any, None], signals: "asyncio.Queue[signal.Signals]"
) -> None:
    """Wait for it, but no longer than until a signal, which stays in the queue. Raises what it raises."""
    task = asyncio.ensure_future(waiting)
    signalled = asyncio.ensure_future(signals.get())
    await asyncio.wait({task, signalled}, return_when=asyncio.FIRST_COMPLETED)
    if signalled.done():
        signals.put_nowait(signalled.result())
    signalled.cancel()
    if task.done():
        task.result()
        return
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _keep(embedded: "EmbeddedValkey") -> None:
    while True:
        embedded.keep()
        await asyncio.sleep(KEEP_EVERY_SECONDS)


def _made_up_name() -> str:
    host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:200] or "instance"
    return f"{host}-{os.getpid()}-{secrets.token_hex(2)}"


def _keep_out_of_logs(settings: Settings) -> None:
    from tableforge_dataplane.observability.logging import REDACTION

    for secret in secrets_of(settings):
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
