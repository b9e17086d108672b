"""The command line: `python -m devcluster --help`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shlex
import signal
import sys
import time
from pathlib import Path

from . import detached
from .cluster import Devcluster, check_platform
from .errors import DevclusterError
from .supervision import messages
from .toolchain import obtain

DESCRIPTION = """\
A Kubernetes cluster on this machine without containers: the real etcd, kube-apiserver and
kube-controller-manager, and a node agent that runs pods as local processes. The first start builds the
programs once, which takes minutes.
"""
DEFAULT_STATE_DIR = Path(".devcluster")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m devcluster", description=DESCRIPTION)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    cluster = argparse.ArgumentParser(add_help=False)
    cluster.add_argument("--kubeconfig", type=Path, help="where the admin's kubeconfig is written")
    cluster.add_argument("--images", type=Path, help="JSON file: which local program stands for which image")
    cluster.add_argument("--no-agent", action="store_true", help="the control plane alone: no pod ever runs")
    state = argparse.ArgumentParser(add_help=False)
    state.add_argument(
        "--state-dir", type=Path, default=DEFAULT_STATE_DIR, help=f"default: {DEFAULT_STATE_DIR}"
    )

    run = commands.add_parser("run", parents=[cluster], help="run a cluster until Ctrl-C")
    run.add_argument("--data-dir", type=Path, help="default: a temporary folder, removed with the cluster")
    commands.add_parser("up", parents=[cluster, state], help="start a cluster and leave it running")
    commands.add_parser("status", parents=[state], help="tell about the cluster that `up` started")
    commands.add_parser("down", parents=[state], help="stop the cluster that `up` started")
    commands.add_parser("build", help="only build the programs, if they are not here yet")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Answers the exit status."""
    given = _parser().parse_args(arguments)
    try:
        match given.command:
            case "run":
                return asyncio.run(_run(given))
            case "up":
                return asyncio.run(_up(given))
            case "status":
                return _status(given.state_dir)
            case "down":
                was_running = detached.down(given.state_dir)
                logs = given.state_dir / detached.DATA / "logs"
                say(
                    f"Stopped; only its logs are left, in {logs}."
                    if was_running
                    else "No cluster is running there."
                )
                return 0
            case _:
                return _build()
    except DevclusterError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _build() -> int:
    check_platform()
    # Ended like a Ctrl-C, so that the compilers end too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    binaries = obtain()
    for path in (binaries.etcd, binaries.kube_apiserver, binaries.kube_controller_manager):
        print(path)
    return 0


async def _run(given: argparse.Namespace) -> int:
    started = time.monotonic()
    cluster = Devcluster(
        images=given.images,
        data_dir=given.data_dir,
        agent=not given.no_agent,
        kubeconfig=given.kubeconfig,
        on_step=_step,
    )
    # Also while it starts: a Ctrl-C then is the same wish.
    running = asyncio.create_task(_run_until_ended(cluster, started))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, running.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await running
    return 0


async def _run_until_ended(cluster: Devcluster, started: float) -> None:
    try:
        async with cluster:
            _introduce(cluster.description, started)
            say("Ctrl-C ends it.")
            await cluster.wait()
    finally:
        say("Ended.")


async def _up(given: argparse.Namespace) -> int:
    started = time.monotonic()
    if (running := detached.status(given.state_dir)) is not None:
        say("It is running already.")
    else:
        running = await detached.up(
            given.state_dir,
            images=given.images,
            agent=not given.no_agent,
            kubeconfig=given.kubeconfig,
            on_step=_step,
        )
    _introduce(running, started)
    say(f"It stays until: python -m devcluster down --state-dir {shlex.quote(str(given.state_dir))}")
    return 0


def _status(state_dir: Path) -> int:
    running = detached.status(state_dir)
    if running is None:
        say("No cluster is running there.")
        return 1
    print(f"pid:         {running.supervisor_pid}")
    print(f"API server:  {running.api_url}")
    print(f"kubeconfig:  {running.kubeconfig}")
    print(f"logs:        {running.logs_dir}")
    print(f"node agent:  {'yes' if running.agent else 'no'}")
    return 0


def _step(step: str) -> None:
    say(f"starting {step} …")


def _introduce(running: messages.Ready, started: float) -> None:
    say(f"The cluster answers at {running.api_url} (after {time.monotonic() - started:.1f} s).")
    say(f"export KUBECONFIG={shlex.quote(running.kubeconfig)}")


def say(text: str) -> None:
    """For a person, at once, even into a pipe."""
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
