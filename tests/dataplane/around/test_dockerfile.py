"""Dockerfile.dataplane without a Docker engine: what it runs is run, in folders of the test.

The RUN lines are executed as they stand, with `/build`, `/opt/tableforge` and `/wheels` moved below a
temporary folder and the build context made of what `.dockerignore` lets through; then the image's ENTRYPOINT,
CMD and HEALTHCHECK are executed. What a real engine adds, the base image and the layers, is not tested here.
"""

import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def instructions() -> list[tuple[str, str]]:
    """Instruction and argument of each line, continuation lines joined."""
    text = re.sub(r"(?m)^#.*\n", "", (ROOT / "Dockerfile.dataplane").read_text()).replace("\\\n", " ")
    lines = [line.split(None, 1) for line in text.splitlines() if line.strip()]
    return [(name, re.sub(r"\s+", " ", argument)) for name, argument in lines]


def arguments(name: str) -> list[str]:
    return [argument for found, argument in instructions() if found == name]


def final_stage() -> list[tuple[str, str]]:
    everything = instructions()
    last = max(index for index, (name, _) in enumerate(everything) if name == "FROM")
    return everything[last:]


def test_it_runs_as_nobody_in_exec_form_with_a_health_check() -> None:
    stage = dict(final_stage())
    user = stage["USER"]
    assert re.fullmatch(r"[1-9][0-9]+:[1-9][0-9]+", user)  # numeric: runAsNonRoot cannot check a name
    assert json.loads(stage["ENTRYPOINT"]) == ["tableforge-dataplane"]
    assert json.loads(stage["CMD"]) == ["serve"]
    options, _, command = stage["HEALTHCHECK"].partition("CMD ")
    assert json.loads(command) == ["tableforge-dataplane", "healthcheck"]
    assert "--interval=" in options
    assert "RUN" not in stage  # nothing needs a shell where it runs


def test_every_package_comes_with_its_hash() -> None:
    installs = [
        line for run in arguments("RUN") for line in run.split("&&") if "pip" in line and "install" in line
    ]
    assert len(installs) == 3
    for line in installs:
        assert "--require-hashes" in line or "--no-index" in line
    lock = (ROOT / "requirements-dataplane.lock").read_text()
    names = set(re.findall(r"(?m)^([a-z0-9.-]+)==", lock))
    assert {
        "aiohttp",
        "hiredis",
        "msgspec",
        "prometheus-client",
        "pyjwt",
        "redis",
        "uvloop",
        "websockets",
    } <= names
    assert not names & {"kopf", "kubernetes", "pytest", "mypy", "ruff"}
    assert "index-url" not in lock


def context(target: Path) -> None:
    """Copy what `.dockerignore` lets into the build: here all is excluded but the lines with `!`."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    kept = [line[1:] for line in lines if line.startswith("!")]
    for pattern in kept:
        for found in ROOT.glob(pattern):
            destination = target / found.relative_to(ROOT)
            destination.parent.mkdir(parents=True, exist_ok=True)
            if found.is_dir():
                shutil.copytree(found, destination, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(found, destination)


@pytest.mark.timeout(600)
def test_its_commands_build_an_installation_that_serves(tmp_path: Path) -> None:
    source = tmp_path / "src"
    source.mkdir()
    context(source)
    assert not any(fnmatch.fnmatch(path.name, "*.pyc") for path in source.rglob("*"))
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "VIRTUAL_ENV", "TABLEFORGE_", "REDIS_", "WS_", "JWT_"))
    }
    binaries = tmp_path / "bin"
    binaries.mkdir()
    # the base image's `python`
    (binaries / "python").symlink_to(Path(sys.executable).resolve())
    environ |= {"PATH": f"{binaries}:{environ['PATH']}", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    for run in arguments("RUN"):
        moved = re.sub(r"(?<![\w./])/(build|opt|wheels)\b", lambda found: f"{tmp_path}/{found[1]}", run)
        assert str(tmp_path) in moved
        (tmp_path / "opt").mkdir(exist_ok=True)
        done = subprocess.run(["sh", "-ec", moved], cwd=source, env=environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]

    installed = tmp_path / "opt" / "tableforge"
    environ["PATH"] = f"{installed / 'bin'}:{environ['PATH']}"
    environ["PYTHONDONTWRITEBYTECODE"] = "1"

    def run_image(*command: str, **more: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            command, cwd=tmp_path, env={**environ, **more}, capture_output=True, text=True, timeout=60
        )

    [entrypoint] = json.loads(dict(final_stage())["ENTRYPOINT"])
    where = shutil.which(entrypoint, path=environ["PATH"])
    assert where is not None
    assert Path(where).is_relative_to(installed)
    shown = run_image(entrypoint, "--version")
    assert shown.returncode == 0, shown.stderr
    # every module is there with all it needs, Lua scripts included
    imported = run_image(
        str(installed / "bin" / "python"),
        "-c",
        "import tableforge_dataplane.server as server; print(server.__file__)",
    )
    assert imported.returncode == 0, imported.stderr
    package = Path(imported.stdout.strip()).parent
    assert package.is_relative_to(installed)
    sources = ROOT / "dataplane" / "tableforge_dataplane"
    scripts = {path.relative_to(sources) for path in sources.rglob("*.lua")}
    assert scripts == {path.relative_to(package) for path in package.rglob("*.lua")}
    refused = run_image(entrypoint, *json.loads(dict(final_stage())["CMD"]), WS_PORT="nonsense")
    assert refused.returncode == 2
    assert "WS_PORT='nonsense'" in refused.stderr
    _, _, check = dict(final_stage())["HEALTHCHECK"].partition("CMD ")
    unhealthy = run_image(*json.loads(check), WS_HOST="127.0.0.1", WS_PORT="1")
    assert unhealthy.returncode == 1
    assert "does not answer" in unhealthy.stderr
