"""The command line: commands, options, and the help that lists every setting."""

import argparse
import re
from importlib import metadata
from pathlib import Path
from typing import Final

from tableforge_dataplane.contract import environment
from tableforge_dataplane.contract.endpoints import LIVE_PATH
from tableforge_dataplane.contract.settings import Secret, Settings, Unit, specs

TERMINATION_LOG: Final = Path("/dev/termination-log")
"""Where Kubernetes looks for a container's last words; `kubectl describe pod` shows them."""

MAX_INSTANCES: Final = 64
"""That `serve --instances` starts; beyond it the machine is the limit."""

_DURATION: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

_EXAMPLES: Final = """\
examples:
  tableforge-dataplane serve                     one instance on port 3001; without a Redis it brings its own
  tableforge-dataplane serve --instances 3       three, on ports 3001, 3002 and 3003
  tableforge-dataplane check                     is everything as it should be, Redis included?
  tableforge-dataplane token --user ada          a token to try things with
"""

_SERVE_EXAMPLES: Final = """\
examples:
  tableforge-dataplane serve --host 127.0.0.1
  REDIS_HOST=redis.example.com tableforge-dataplane serve --instances 3 --port 4000
  tableforge-dataplane serve --print-config

Where no Redis is configured and none answers on localhost:6379, a Valkey is started that keeps its
data in --data-dir and ends with this process. With --instances, each is called INSTANCE_ID-<number>;
clients' ports and internal ports follow one another: with --instances 3, 3001 to 3003 and 3004 to 3006
unless TABLEFORGE_HTTP_PORT says where the latter begin. With TABLEFORGE_ROUTING_MODE=Gateway each has
its own port as the address that clients of its rooms are guided to.
"""

_CHECK_EXAMPLES: Final = """\
examples:
  tableforge-dataplane check
  tableforge-dataplane check --json | jq '.findings[] | select(.level != "ok")'

exit code: 0 nothing failed, 1 something did, 2 the settings cannot be used.
"""

_MINT_EXAMPLES: Final = """\
examples:
  tableforge-dataplane token --user ada
  tableforge-dataplane token --user ada --expires 15m --join 'table:*' --publish 'table:1'
  tableforge-dataplane token --user bot --join '**' --publish '**' --presence '**' --direct '**'
"""


def version() -> str:
    """Of the distribution."""
    return metadata.version("tableforge")


def parser() -> argparse.ArgumentParser:
    """Everything that can be said on the command line."""
    top = argparse.ArgumentParser(
        prog="tableforge-dataplane",
        description="A room-based WebSocket service. It is configured by its environment:",
        epilog=f"{_EXAMPLES}\n{_environment_help()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"tableforge-dataplane {version()}")
    commands = top.add_subparsers(dest="command", required=True, metavar="command")
    serve = _command(
        commands,
        "serve",
        "run instances until SIGTERM or SIGINT",
        f"{_SERVE_EXAMPLES}\n{_environment_help()}",
    )
    serve.add_argument("--host", metavar="ADDRESS", help="address to listen on, as WS_HOST")
    serve.add_argument(
        "--port", metavar="PORT", help="port for clients, as WS_PORT; the internal port follows"
    )
    serve.add_argument(
        "--instances",
        type=_count,
        default=1,
        metavar="N",
        help="how many, each a process of its own that is watched and started again",
    )
    serve.add_argument(
        "--data-dir", metavar="FOLDER", help="where an embedded Valkey keeps its data, as TABLEFORGE_DATA_DIR"
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
    check = _command(commands, "check", "look at the settings and at Redis, with advice", _CHECK_EXAMPLES)
    check.add_argument("--json", action="store_true", help="for programs: one JSON object")
    _command(
        commands,
        "healthcheck",
        f"ask the instance on WS_HOST and WS_PORT for {LIVE_PATH}: exit code 0 or 1",
        "example:\n  WS_PORT=3002 tableforge-dataplane healthcheck\n",
    )
    token = _command(
        commands, "token", "make a token for development, signed with JWT_SECRET(_FILE)", _MINT_EXAMPLES
    )
    token.add_argument("--user", required=True, help="the user's id, 1 to 128 characters")
    token.add_argument(
        "--expires",
        type=_duration,
        metavar="1h",
        help="lifetime: 30s, 15m, 1h, 7d (default: TABLEFORGE_AUTH_TOKEN_EXPIRY, a day)",
    )
    for right, deed in (
        ("join", "rooms the user may join"),
        ("publish", "rooms the user may publish to"),
        ("presence", "rooms whose members the user may see"),
        ("direct", "users the user may send direct messages to"),
    ):
        token.add_argument(
            f"--{right}",
            action="append",
            metavar="PATTERN",
            help=f"{deed}, repeatable; with none of these four the default rights hold",
        )
    return top


def _command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, text: str, epilog: str
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _count(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,3}", text) or not 1 <= int(text) <= MAX_INSTANCES:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a number from 1 to {MAX_INSTANCES}")
    return int(text)


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
