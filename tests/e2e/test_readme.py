"""The README's commands do what it says, word for word."""

import asyncio
import contextlib
import os
import re
import sys
from pathlib import Path

import pytest
import yaml

from demo import stage
from demo.kubectl import Kubectl
from devcluster import Devcluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(500)]

README = (stage.ROOT / "README.md").read_text()
AGE = re.compile(r"\b(\d+[smhd])+$")


def commands(text: str) -> list[tuple[str, list[str]]]:
    """Each command of the indented lines, a `$` before it, with the lines that it is said to print."""
    found: list[tuple[str, list[str]]] = []
    for line in re.findall(r"^    (.*)$", text, re.MULTILINE):
        if line.startswith("$ "):
            found.append((line[2:], []))
        elif found:
            found[-1][1].append(line)
    return found


def section(title: str) -> str:
    """A section's text, down to the next one of any level."""
    return re.split(r"^##+ ", README.split(f"\n## {title}\n")[1], maxsplit=1, flags=re.MULTILINE)[0]


class Shell:
    """Runs commands as the README's reader would, kubectl being for one cluster and one namespace."""

    def __init__(self, kubeconfig: Path, *, folder: Path, namespace: str, at: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        for context in config["contexts"]:
            context["context"]["namespace"] = namespace
        own = folder / "kubeconfig"
        own.write_text(yaml.safe_dump(config))
        path = f"{Path(sys.prefix) / 'bin'}{os.pathsep}{os.environ['PATH']}"
        self._environ = {**os.environ, "KUBECONFIG": str(own), "PATH": path}
        self._at = at

    async def __call__(self, command: str) -> list[str]:
        """The lines it prints, ages made equal. Fails the test where the command fails."""
        process = await asyncio.create_subprocess_exec(
            "bash",
            "-euo",
            "pipefail",
            "-c",
            command,
            cwd=self._at,
            env=self._environ,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out, _ = await process.communicate()
        assert process.returncode == 0, f"{command}: {out.decode()}"
        return aged(out.decode().splitlines())


def aged(lines: list[str]) -> list[str]:
    """With every age the same one."""
    return [AGE.sub("AGE", line) for line in lines]


async def test_the_first_page(
    kubectl: Kubectl, devcluster: Devcluster, namespace: str, tmp_path: Path
) -> None:
    top = README.split("\n## ")[0]
    (manifest,) = re.findall(r"^```yaml\n(.*?)^```$", top, re.MULTILINE | re.DOTALL)
    (tmp_path / "tables.yaml").write_text(manifest)
    shell = Shell(devcluster.kubeconfig, folder=tmp_path, namespace=namespace, at=tmp_path)
    steps = commands(top)
    assert [command.split()[1] for command, _ in steps] == ["create", "apply", "wait", "get", "scale"]
    for command, said in steps:
        printed = await shell(command)
        # The table's numbers come from the instances, which are asked every few seconds.
        with contextlib.suppress(TimeoutError):  # what it printed last is compared, and shown, below
            async with asyncio.timeout(90):
                while command.startswith("kubectl get") and printed != aged(said):
                    await asyncio.sleep(1)
                    printed = await shell(command)
        assert printed == aged(said)


async def test_the_way_onto_a_cluster(
    kubectl: Kubectl, devcluster: Devcluster, namespace: str, tmp_path: Path
) -> None:
    lines = re.findall(r"^    (kubectl .*)$", section("On your cluster"), re.MULTILINE)
    assert lines == ["kubectl apply -k manifests/", "kubectl apply -f manifests/samples/tables.yaml"]
    shell = Shell(devcluster.kubeconfig, folder=tmp_path, namespace=namespace, at=stage.ROOT)
    again, sample = [await shell(line) for line in lines]
    assert again
    assert all(line.endswith(("created", "configured", "unchanged")) for line in again), again
    assert sample == ["websocketcluster.tableforge.io/tables created"]
    (explain,) = re.findall(r"`(kubectl\s+explain[^`]*)`", section("On your cluster"))
    fields = "\n".join(await shell(" ".join(explain.split())))
    for name in ("maxReconnectsPerSecond", "jwtSecretRef", "durability"):
        assert name in fields
    for _, target in re.findall(r"\[([^\]]*)\]\(([^)#]*)(?:#[^)]*)?\)", README):
        assert target.startswith("http") or (stage.ROOT / target).exists(), target
