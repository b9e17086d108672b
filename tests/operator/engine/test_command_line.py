"""The command line: help, mistakes, and the container's health check."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tableforge_operator.__main__ import _parser
from tableforge_operator.health import HealthServer


def run(*arguments: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("KUBE", "POD_"))}
    return subprocess.run(
        [sys.executable, "-m", "tableforge_operator", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**kept, **environ},
    )


def test_help_and_version_need_nothing() -> None:
    done = run("run", "--help")
    assert done.returncode == 0
    for word in ("--namespace", "--kubeconfig", "--health-port", "POD_NAMESPACE"):
        assert word in done.stdout
    assert run("--version").stdout.strip() == "0.1.0"


def test_a_mistake_is_named() -> None:
    done = run("run", "--health-port=http")
    assert done.returncode == 2
    assert "'http' is no port: give a number from 0 to 65535" in done.stderr
    assert run().returncode == 2


@pytest.mark.parametrize(
    ("arguments", "environ", "namespaces"),
    [
        ((), "", None),
        ((), "a,b", ("a", "b")),
        (("--namespace=a",), "other", ("a",)),
        (("--namespace=a", "--namespace=b", "--namespace=a"), "", ("a", "b")),
        (("--namespaces=a, b", "--namespace=c"), "", ("a", "b", "c")),
    ],
)
def test_namespaces_are_one_several_or_all(
    arguments: tuple[str, ...], environ: str, namespaces: tuple[str, ...] | None
) -> None:
    parsed = _parser({"TABLEFORGE_OPERATOR_NAMESPACES": environ}).parse_args(["run", *arguments])
    assert (tuple(dict.fromkeys(parsed.namespaces)) or None) == namespaces


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--namespace=tables-*", "'tables-*' is no name of a namespace: give names, not patterns"),
        ("--namespace=../kube-system", "is no name of a namespace"),
        ("--api-calls-per-second=0", "'0' is no rate: give a number from 1 to 10000"),
        ("--api-calls-per-second=nan", "'nan' is no rate"),
    ],
)
def test_a_mistaken_value_is_named(option: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        _parser({}).parse_args(["run", option])
    assert said in capsys.readouterr().err


def test_without_credentials_it_says_so_in_one_line_and_ends(tmp_path: Path) -> None:
    done = run("run", "--health-port=0", "--health-host=127.0.0.1", HOME=str(tmp_path))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    logged = json.loads(line)
    assert (logged["level"], logged["event"]) == ("error", "no access to an API server")
    assert ".kube/config" in logged["error"]


@pytest.mark.parametrize(("problem", "status"), [(None, 0), ("the lease was not renewed in time", 1)])
async def test_the_health_check_tells_by_its_exit_status(problem: str | None, status: int) -> None:
    import asyncio

    server = HealthServer(host="127.0.0.1", port=0, problem=lambda: problem, leading=lambda: False)
    await server.start()
    try:
        done = await asyncio.to_thread(
            run, "healthcheck", f"--health-port={server.port}", TABLEFORGE_OPERATOR_HEALTH_HOST="127.0.0.1"
        )
    finally:
        await server.stop()
    assert done.returncode == status


def test_the_health_check_fails_where_nothing_runs() -> None:
    done = run("healthcheck", "--health-port=1")
    assert done.returncode == 1
    assert "does not answer" in done.stderr
