"""`tableforge-operator run`: the operator. `tableforge-operator healthcheck`: whether it is well."""

import argparse
import asyncio
import dataclasses
import logging
import os
import re
import secrets
import signal
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from tableforge_operator.kube import Kube
    from tableforge_operator.leader import Leader

LEASE_NAME: Final = "tableforge-operator"

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2

log = logging.getLogger("tableforge_operator")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How the operator runs."""

    kubeconfig: Path | None
    """None: the service account of the pod it runs in."""
    namespaces: tuple[str, ...] | None
    """Where it looks after clusters; None: everywhere."""
    own_namespace: str
    """Where its lease and its master key are."""
    name: str
    """Its own name: the pod's."""
    health_host: str
    health_port: int
    log_level: str
    log_format: Literal["json", "text"]
    api_calls_per_second: float
    """What it asks of the API server at most; twice that at once."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Gives the exit status."""
    arguments = _parser(os.environ).parse_args(argv)
    if arguments.command == "healthcheck":
        return _health_check(arguments.health_host, arguments.health_port)
    from tableforge_operator import logs

    options = Options(
        kubeconfig=_kubeconfig(arguments.kubeconfig, os.environ),
        namespaces=tuple(dict.fromkeys(arguments.namespaces)) or None,
        own_namespace=arguments.operator_namespace,
        name=os.environ.get("POD_NAME") or socket.gethostname(),
        health_host=arguments.health_host,
        health_port=arguments.health_port,
        log_level=arguments.log_level,
        log_format=arguments.log_format,
        api_calls_per_second=arguments.api_calls_per_second,
    )
    logs.set_up(options.log_level, options.log_format)
    return asyncio.run(_run(options))


async def _run(options: Options) -> int:
    from kubernetes.aio.config import ConfigException

    from tableforge_operator.health import HealthServer
    from tableforge_operator.kube import ApiError, Kube
    from tableforge_operator.leader import Leader, LeadershipLostError
    from tableforge_operator.master_key import MasterKeyError

    try:
        kube = await Kube.connect(options.kubeconfig, calls_per_second=options.api_calls_per_second)
    except (ConfigException, OSError) as error:
        log.error("no access to an API server", extra={"error": str(error)})
        return EXIT_FAILED
    leader = Leader(
        kube,
        namespace=options.own_namespace,
        name=LEASE_NAME,
        # The name outlives a restart of the container; a new process must not take the old one's lease for
        # its own.
        identity=f"{options.name}_{secrets.token_hex(4)}",
    )
    health = HealthServer(
        host=options.health_host,
        port=options.health_port,
        problem=lambda: "the lease was not renewed in time" if leader.overdue else None,
        leading=lambda: leader.holds,
    )
    try:
        await health.start()
    except OSError as error:
        log.error("cannot listen", extra={"port": options.health_port, "error": str(error)})
        await kube.close()
        return EXIT_FAILED
    log.info(
        "started",
        extra={
            "version": version("tableforge"),
            "api_server": kube.configuration.host,
            "namespaces": ",".join(options.namespaces or ()) or "all",
            "health_port": health.port,
        },
    )
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    leading = asyncio.create_task(_lead(kube, leader, options), name="lead")
    stopping = asyncio.create_task(stop.wait(), name="stop")
    try:
        await asyncio.wait((leading, stopping), return_when=asyncio.FIRST_COMPLETED)
        leading.cancel()
        stopping.cancel()
        await asyncio.gather(leading, return_exceptions=True)
        if leading.cancelled():
            log.info("stopped")
            return 0
        failure = _first(leading.exception())
        if isinstance(failure, LeadershipLostError | MasterKeyError | ApiError):
            log.error("cannot go on", extra={"error": str(failure)})
        else:
            log.error("failed", exc_info=failure)
        return EXIT_FAILED
    finally:
        await leader.release()
        await health.stop()
        await kube.close()


async def _lead(kube: "Kube", leader: "Leader", options: Options) -> None:
    """Stand by, then lead until cancelled. Raises what makes it impossible to go on."""
    from tableforge_operator.decide.resources import OPTIONAL_KINDS, OWNED_KINDS, REPLICA_SET, VOLUME_CLAIM
    from tableforge_operator.handlers import ClusterWatch
    from tableforge_operator.kube import PODS, resource_of
    from tableforge_operator.master_key import master_key
    from tableforge_operator.observe.fleet import FleetReader
    from tableforge_operator.observe.reflector import Reflector
    from tableforge_operator.reconcile import Reconciler

    await leader.acquire()
    fleets = FleetReader()
    try:
        async with asyncio.TaskGroup() as tasks:
            # Before anything that takes time: who doesn't renew is taken over, and would act all the same.
            tasks.create_task(leader.hold(), name="leader")
            reconciler = Reconciler(
                kube=kube,
                fleets=fleets,
                reign=leader,
                master_key=await master_key(kube, options.own_namespace),
                namespaces=options.namespaces,
                own_namespace=options.own_namespace,
                reporter=options.name,
            )
            kinds = [
                resource_of(kind.api_version, kind.kind) for kind in (*OWNED_KINDS, REPLICA_SET, VOLUME_CLAIM)
            ]
            reflector = Reflector(
                kube, reconciler.store, [*kinds, PODS], options.namespaces, optional=OPTIONAL_KINDS
            )
            tasks.create_task(reflector.run(), name="reflector")
            for namespace in options.namespaces or (None,):
                watch = ClusterWatch(kube, namespace, on_event=reconciler.notice)
                tasks.create_task(watch.run(), name=f"watch of {watch}")
            # What is not known must not look like what is not there.
            await reflector.synced()
            tasks.create_task(reconciler.run(), name="reconciler")
    finally:
        await fleets.close()


def _first(error: BaseException | None) -> BaseException | None:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _health_check(host: str, port: int) -> int:
    host = "127.0.0.1" if host in ("", "0.0.0.0", "::") else host  # noqa: S104 - compared, not bound
    url = f"http://{host}:{port}/healthz"
    try:
        with urllib.request.urlopen(url, timeout=4) as answer:
            return 0 if answer.status == 200 else EXIT_FAILED
    except (urllib.error.URLError, OSError) as error:
        print(f"{url} does not answer as it should: {error}", file=sys.stderr)
        return EXIT_FAILED


def _kubeconfig(given: str, environ: Mapping[str, str]) -> Path | None:
    if given:
        return Path(given)
    if environ.get("KUBERNETES_SERVICE_HOST"):
        return None
    return Path(environ.get("KUBECONFIG") or Path.home() / ".kube" / "config")


def _parser(environ: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tableforge-operator", description="Runs WebSocketClusters on Kubernetes."
    )
    parser.add_argument("--version", action="version", version=version("tableforge"))
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser(
        "run",
        help="look after WebSocketClusters until stopped",
        description="Look after WebSocketClusters until stopped. Each option's variable is in brackets.",
    )
    run.add_argument(
        "--kubeconfig",
        metavar="FILE",
        default="",
        help="credentials for the API server; default: the pod's service account, outside a pod $KUBECONFIG "
        "or ~/.kube/config",
    )
    run.add_argument(
        "--namespace",
        "--namespaces",
        dest="namespaces",
        metavar="NAME[,NAME…]",
        action=_Names,
        type=_names,
        default=environ.get("TABLEFORGE_OPERATOR_NAMESPACES", ""),
        help="look after this namespace only, or these: it may be repeated; default: all "
        "[TABLEFORGE_OPERATOR_NAMESPACES]",
    )
    run.add_argument(
        "--operator-namespace",
        metavar="NAME",
        default=environ.get("POD_NAMESPACE") or "tableforge-system",
        help="where the operator's lease and master key are; default: %(default)s [POD_NAMESPACE]",
    )
    run.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default=environ.get("TABLEFORGE_OPERATOR_LOG_LEVEL") or "info",
        help="the least serious level that is logged; default: %(default)s [TABLEFORGE_OPERATOR_LOG_LEVEL]",
    )
    run.add_argument(
        "--log-format",
        choices=("json", "text"),
        default=environ.get("TABLEFORGE_OPERATOR_LOG_FORMAT") or "json",
        help="an object a line, or text for people; default: %(default)s [TABLEFORGE_OPERATOR_LOG_FORMAT]",
    )
    run.add_argument(
        "--api-calls-per-second",
        metavar="NUMBER",
        type=_rate,
        default=environ.get("TABLEFORGE_OPERATOR_API_CALLS_PER_SECOND") or "100",
        help="ask the API server for no more than that, and twice that at once; default: %(default)s "
        "[TABLEFORGE_OPERATOR_API_CALLS_PER_SECOND]",
    )
    check = commands.add_parser(
        "healthcheck", help="exit with 0 where a running operator is well, for a container's health check"
    )
    for command in (run, check):
        command.add_argument(
            "--health-host",
            metavar="ADDRESS",
            default=environ.get("TABLEFORGE_OPERATOR_HEALTH_HOST") or "0.0.0.0",  # noqa: S104 - probes come from outside
            help="address of /healthz, /readyz and /metrics; default: %(default)s "
            "[TABLEFORGE_OPERATOR_HEALTH_HOST]",
        )
        command.add_argument(
            "--health-port",
            metavar="PORT",
            type=_port,
            default=environ.get("TABLEFORGE_OPERATOR_HEALTH_PORT") or "8080",
            help="its port; default: %(default)s [TABLEFORGE_OPERATOR_HEALTH_PORT]",
        )
    return parser


class _Names(argparse.Action):
    """Adds names to those given before; the default is replaced by the first."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,  # noqa: ARG002 - argparse calls it so
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,  # noqa: ARG002
    ) -> None:
        assert isinstance(values, tuple)  # noqa: S101 - `type` made it
        given = getattr(namespace, f"_given_{self.dest}", ())
        setattr(namespace, f"_given_{self.dest}", (*given, *values))
        setattr(namespace, self.dest, (*given, *values))


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        if len(name) > 63 or not re.fullmatch("[a-z0-9]([a-z0-9-]*[a-z0-9])?", name):
            raise argparse.ArgumentTypeError(f"{name!r} is no name of a namespace: give names, not patterns")
    return names


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 1 <= rate <= 10_000:
        raise argparse.ArgumentTypeError(f"{text!r} is no rate: give a number from 1 to 10000")
    return rate


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: give a number from 0 to 65535")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
