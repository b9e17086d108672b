"""`docs/configuration.md`, written from the settings, so that it cannot drift from them.

`python -m tableforge_dataplane.contract.reference` writes it; with `--check` it only says, by its exit code,
whether the file is up to date.
"""

import argparse
import dataclasses
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, get_args

from tableforge_dataplane.contract import environment
from tableforge_dataplane.contract.guide import HERE, WITHOUT_USE
from tableforge_dataplane.contract.settings import Secret, Settings, Spec, Unit, specs

FILE: Final = Path(__file__).parents[3] / "docs" / "configuration.md"

_OPENING: Final = """\
# Configuration

Written from the code by `python -m tableforge_dataplane.contract.reference`; `make lint` says where it is
out of date.

An instance is configured by environment variables; the operator renders them from the `WebSocketCluster`,
and `tableforge-dataplane serve --print-config` shows what is in force, secrets masked. An empty variable is
one that isn't set. Durations are whole milliseconds, sizes whole bytes, flags `true` or `false`.

What cannot be used ends the process at its start, exit code 2, with every problem named at once: a value out
of its bounds, two that contradict one another, a variable `TABLEFORGE_…` that isn't a setting (with the
nearest one that is). Every secret can come by value or by file (`…_FILE`), not both. Files named here are
read again when they change. A setting marked *live* may come in `TABLEFORGE_LIVE_SETTINGS_FILE` and change
while the instance runs, without a connection lost; everything else counts from the next start on.
`tableforge-dataplane check` looks at the settings in force, at this machine and at Redis, and gives advice.
"""

_WITHOUT_USE: Final = """\
These have no use here. Their variables are accepted with a warning, so that an environment that was written
for the original still starts an instance.
"""

_TITLES: Final = {
    "redis": "Redis",
    "websocket": "The port for clients",
    "scaling": "The instance among the others",
    "performance": "Batches, queue, compression",
    "rooms": "Rooms",
    "load_balancing": "Load",
    "security": "Limits and addresses",
    "auth": "Tokens",
    "http": "The internal port",
    "monitoring": "Health and pressure",
    "rollout": "Reconnects",
    "routing": "Homes of rooms",
    "logging": "Log",
    "launch": "Without Kubernetes",
    "live": "What may change while an instance runs",
}


def text() -> str:
    """The whole page."""
    defaults = environment.show(Settings())
    guides = {setting: name for name, setting in reversed(list(HERE.items()))}
    lines = [_OPENING]
    group = ""
    for path, (spec, default) in specs().items():
        if path.partition(".")[0] != group:
            group = path.partition(".")[0]
            lines += [
                f"\n## {_TITLES[group]}\n",
                "| variable | default | from, to | what |",
                "|---|---|---|---|",
            ]
        lines.append(_row(spec, default, defaults, guides.get(path)))
    lines += ["", *_guide()]
    return "\n".join(lines) + "\n"


def _row(spec: Spec, default: Any, defaults: dict[str, str], guide: str | None) -> str:
    name = f"`{spec.env}`"
    if isinstance(default, Secret):
        name += f"<br>`{spec.env}_FILE`"
    if guide is not None and guide != spec.env:
        name += f"<br>(guide: {guide})"
    value = defaults.get(spec.env, "")
    if spec.live:
        name += "<br>*live*"
    return (
        f"| {name} | {f'`{_cell(value)}`' if value else ''} | {_bounds(spec, default)} | {_cell(spec.doc)} |"
    )


def _bounds(spec: Spec, default: Any) -> str:
    if isinstance(default, bool):
        return "`true`, `false`"
    if spec.minimum is not None and spec.maximum is not None:
        unit = {Unit.MILLISECONDS: " ms", Unit.BYTES: " bytes", Unit.PLAIN: ""}[spec.unit]
        return f"{spec.minimum:.0f} to {spec.maximum:.0f}{unit}"
    choices = _CHOICES.get(spec.env, ())
    return ", ".join(f"`{choice}`" for choice in choices)


def _choices() -> Iterator[tuple[str, tuple[str, ...]]]:
    for group in dataclasses.fields(Settings):
        if group.name == "warnings":
            continue
        group_type: Any = type(group.default)
        for field in dataclasses.fields(group_type):
            if get_args(field.type):
                yield field.metadata["spec"].env, get_args(field.type)


_CHOICES: Final = dict(_choices())


def _cell(value: str) -> str:
    return re.sub(r"\s+", " ", value).replace("|", "\\|")


def _guide() -> list[str]:
    known = specs()
    lines = [
        "## The configuration guide's names\n",
        "What each setting of the original guide is here.\n",
        "| in the guide | here |",
        "|---|---|",
    ]
    lines += [f"| `{name}` | `{known[setting][0].env}` |" for name, setting in HERE.items()]
    lines += [
        "",
        _WITHOUT_USE,
        "| in the guide | variable | why |",
        "|---|---|---|",
    ]
    lines += [
        f"| `{name}` | {f'`{variable}`' if variable else ''} | {_cell(why[:1].upper() + why[1:])} |"
        for name, (variable, why) in WITHOUT_USE.items()
    ]
    return lines


def main() -> int:
    """Write the file, or check it."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--check", action="store_true", help="only say whether the file is up to date")
    wanted = text()
    if not options.parse_args().check:
        FILE.write_text(wanted, encoding="utf-8")
        return 0
    if FILE.is_file() and FILE.read_text(encoding="utf-8") == wanted:
        return 0
    print(f"docs/{FILE.name} is out of date: run `make docs`.", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
