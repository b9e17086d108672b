"""The Dockerfiles without a Docker engine: what they run is run, in folders of the test.

The RUN lines are executed as they stand, with `/build`, `/opt/tableforge` and `/wheels` moved below a
temporary folder and the build context made of what `.dockerignore` lets through; then the image's ENTRYPOINT,
CMD and HEALTHCHECK are executed. What a real engine adds, the base image and the layers, is not tested here.
"""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Image:
    """One of the images, and how it shows that it works."""

    name: str
    command: str
    package: str
    wrong: dict[str, str]
    """Settings with which it must not start."""
    complaint: str
    nobody_there: dict[str, str]
    """Settings under which its health check finds nobody."""

    def instructions(self) -> list[tuple[str, str]]:
        """Instruction and argument of each line, continuation lines joined."""
        text = re.sub(r"(?m)^#.*\n", "", (ROOT / f"Dockerfile.{self.name}").read_text()).replace("\\\n", " ")
        lines = [line.split(None, 1) for line in text.splitlines() if line.strip()]
        return [(name, re.sub(r"\s+", " ", argument)) for name, argument in lines]

    def runs(self) -> list[str]:
        return [argument for name, argument in self.instructions() if name == "RUN"]

    def final_stage(self) -> dict[str, str]:
        everything = self.instructions()
        last = max(index for index, (name, _) in enumerate(everything) if name == "FROM")
        return dict(everything[last:])

    def health_check(self) -> list[str]:
        found: list[str] = json.loads(self.final_stage()["HEALTHCHECK"].partition("CMD ")[2])
        return found


DATAPLANE = Image(
    name="dataplane",
    command="serve",
    package="tableforge_dataplane.server",
    wrong={"WS_PORT": "nonsense"},
    complaint="WS_PORT='nonsense'",
    nobody_there={"WS_HOST": "127.0.0.1", "WS_PORT": "1"},
)
OPERATOR = Image(
    name="operator",
    command="run",
    package="tableforge_operator.reconcile",
    wrong={"TABLEFORGE_OPERATOR_HEALTH_PORT": "nonsense"},
    complaint="nonsense",
    nobody_there={"TABLEFORGE_OPERATOR_HEALTH_HOST": "127.0.0.1", "TABLEFORGE_OPERATOR_HEALTH_PORT": "1"},
)
both = pytest.mark.parametrize("image", [DATAPLANE, OPERATOR], ids=lambda image: image.name)


@both
def test_it_runs_as_nobody_in_exec_form_with_a_health_check(image: Image) -> None:
    stage = image.final_stage()
    assert re.fullmatch(r"[1-9][0-9]+:[1-9][0-9]+", stage["USER"])  # numeric: runAsNonRoot can't check a name
    program = f"tableforge-{image.name}"
    assert json.loads(stage["ENTRYPOINT"]) == [program]
    assert json.loads(stage["CMD"]) == [image.command]
    assert image.health_check() == [program, "healthcheck"]
    assert "--interval=" in stage["HEALTHCHECK"]
    assert "RUN" not in stage  # nothing needs a shell where it runs


@both
def test_every_package_comes_with_its_hash(image: Image) -> None:
    installs = [
        line for run in image.runs() for line in run.split("&&") if "pip" in line and "install" in line
    ]
    assert len(installs) == 3
    for line in installs:
        assert "--require-hashes" in line or "--no-index" in line


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


@both
@pytest.mark.timeout(600)
def test_its_commands_build_an_installation_that_runs(image: Image, tmp_path: Path) -> None:
    source = tmp_path / "src"
    source.mkdir()
    context(source)
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "VIRTUAL_ENV", "TABLEFORGE_", "REDIS_", "WS_", "JWT_", "KUBE"))
    }
    binaries = tmp_path / "bin"
    binaries.mkdir()
    # the base image's `python`
    (binaries / "python").symlink_to(Path(sys.executable).resolve())
    environ |= {"PATH": f"{binaries}:{environ['PATH']}", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    (tmp_path / "opt").mkdir()
    for run in image.runs():
        moved = re.sub(r"(?<![\w./])/(build|opt|wheels)\b", lambda found: f"{tmp_path}/{found[1]}", run)
        assert str(tmp_path) in moved
        done = subprocess.run(["sh", "-ec", moved], cwd=source, env=environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]

    installed = tmp_path / "opt" / "tableforge"
    environ["PATH"] = f"{installed / 'bin'}:{environ['PATH']}"
    environ["PYTHONDONTWRITEBYTECODE"] = "1"

    def run_image(*command: str, **more: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            command, cwd=tmp_path, env={**environ, **more}, capture_output=True, text=True, timeout=120
        )

    [entrypoint] = json.loads(image.final_stage()["ENTRYPOINT"])
    where = shutil.which(entrypoint, path=environ["PATH"])
    assert where is not None
    assert Path(where).is_relative_to(installed)
    shown = run_image(entrypoint, "--version")
    assert shown.returncode == 0, shown.stderr
    # every module is there with all it needs, files that are no modules included
    imported = run_image(
        str(installed / "bin" / "python"), "-c", f"import {image.package} as found; print(found.__file__)"
    )
    assert imported.returncode == 0, imported.stderr
    package = Path(imported.stdout.strip()).parent
    assert package.is_relative_to(installed)
    sources = ROOT / image.name / f"tableforge_{image.name}"
    files = {
        path.relative_to(sources) for path in sources.rglob("*") if path.suffix in (".py", ".lua", ".typed")
    }
    assert files == {
        path.relative_to(package) for path in package.rglob("*") if path.suffix in (".py", ".lua", ".typed")
    }
    refused = run_image(entrypoint, *json.loads(image.final_stage()["CMD"]), **image.wrong)
    assert refused.returncode == 2
    assert image.complaint in refused.stderr
    unhealthy = run_image(*image.health_check(), **image.nobody_there)
    assert unhealthy.returncode == 1
    assert "does not answer" in unhealthy.stderr
