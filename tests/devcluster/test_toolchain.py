"""Where the control plane's programs come from, without a real build: a script stands for Go."""

import fcntl
import io
import os
import re
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from devcluster import ToolchainUnavailable
from devcluster.toolchain import PROGRAMS, find, locate, obtain, versions
from devcluster.toolchain.progress import Progress

# Behaves as Go does towards the build: says its version, lists packages, names what it compiles, writes files
GO = """#!/bin/sh
echo "$@" >> {calls}
case "$1" in
env) echo go{version} ;;
list)
  echo "go: downloading k8s.io/kubernetes v1.37.2" >&2
  echo '{{"ImportPath": "one", "Stale": true}}'
  echo '{{"ImportPath": "two", "Stale": true}}' ;;
build)
  echo one >&2; echo two >&2
  {build}
  while [ "$1" != -o ]; do shift; done
  echo '#!/bin/sh' > "$2"; chmod +x "$2" ;;
esac
"""


class Machine:
    """An empty cache, an assets folder and a Go on PATH."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.assets = root / "assets"
        self.calls = root / "calls"
        self._bin = root / "bin"
        for folder in (self.assets, self._bin):
            folder.mkdir()
        monkeypatch.setenv("KUBEBUILDER_ASSETS", str(self.assets))
        monkeypatch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        monkeypatch.setenv("PATH", f"{self._bin}:/usr/bin:/bin")
        # The wheel of Go must not come from anywhere: these tests use no network.
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")

    def has_go(self, version: str = "1.26.1", *, build: str = ":") -> None:
        self._program(self._bin / "go", GO.format(calls=self.calls, version=version, build=build))

    def has_asset(self, program: str) -> Path:
        return self._program(self.assets / program, "#!/bin/sh\n")

    def has_cached(self, program: str) -> Path:
        return self._program(locate.program_folder() / program, "#!/bin/sh\n")

    def built(self) -> list[str]:
        """What Go was told to build, in order."""
        calls = self.calls.read_text().splitlines() if self.calls.exists() else []
        return [call.split()[-1] for call in calls if call.startswith("build")]

    @staticmethod
    def _program(path: Path, text: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
        return path


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_every_staging_module_is_pinned_to_the_release() -> None:
    go_mod = (versions.MODULE_FOLDER / "go.mod").read_text()
    minor = versions.required("k8s.io/kubernetes").removeprefix("v1.")
    replaced = dict(re.findall(r"^\t(k8s\.io/\S+) => \1 (\S+)$", go_mod, re.MULTILINE))
    assert len(replaced) > 30
    assert set(replaced.values()) == {f"v0.{minor}"}
    staging = set(re.findall(r"^\t(k8s\.io/\S+) v0\.0\.0\b(?!-)", go_mod, re.MULTILINE))
    assert staging
    assert staging <= set(replaced)


def test_assets_come_before_the_cache(machine: Machine) -> None:
    machine.has_cached("etcd")
    asset = machine.has_asset("etcd")
    assert find("etcd") == asset


def test_the_cache_has_what_the_assets_lack(machine: Machine) -> None:
    machine.has_asset("etcd")
    machine.has_asset("kube-apiserver")
    cached = machine.has_cached("kube-controller-manager")
    binaries = obtain()
    assert binaries.kube_controller_manager == cached
    assert binaries.etcd.parent == machine.assets


def test_an_asset_that_cannot_run_does_not_count(machine: Machine) -> None:
    machine.has_asset("etcd").chmod(0o644)
    assert find("etcd") is None


def test_only_what_is_missing_is_built_and_the_scratch_folder_goes(machine: Machine) -> None:
    machine.has_go()
    asset = machine.has_asset("kube-apiserver")
    shown = io.StringIO()
    binaries = obtain(Progress(shown))
    assert binaries.kube_apiserver == asset
    assert machine.built() == [versions.PACKAGES["etcd"], versions.PACKAGES["kube-controller-manager"]]
    assert sorted(path.name for path in locate.program_folder().iterdir()) == [
        "etcd",
        "kube-controller-manager",
    ]
    assert not (locate.cache_folder() / "building").exists()
    assert "Fetching modules: 1 of at most" in shown.getvalue()
    assert "etcd is built" in shown.getvalue()

    obtain()
    assert len(machine.built()) == 2


def test_the_version_is_linked_in(machine: Machine) -> None:
    machine.has_go()
    obtain(Progress(io.StringIO()))
    builds = [call for call in machine.calls.read_text().splitlines() if call.startswith("build")]
    assert len(builds) == len(PROGRAMS)
    for build in builds:
        assert "-X k8s.io/component-base/version.gitVersion=v1.37.2" in build
        assert "-trimpath" in build


def test_an_interrupted_build_goes_on_with_what_is_missing(machine: Machine) -> None:
    machine.has_go(build='case "$*" in *apiserver*) exit 7;; esac')
    with pytest.raises(ToolchainUnavailable, match="building kube-apiserver failed"):
        obtain(Progress(io.StringIO()))
    # Go's cache stays for the next attempt.
    assert (locate.cache_folder() / "building").exists()

    machine.has_go()
    obtain(Progress(io.StringIO()))
    assert machine.built().count(versions.PACKAGES["etcd"]) == 1
    assert not (locate.cache_folder() / "building").exists()


def test_a_failed_build_shows_what_go_said(machine: Machine) -> None:
    machine.has_go(build="echo 'main.go:3: undefined: nonsense' >&2; exit 1")
    with pytest.raises(ToolchainUnavailable, match="undefined: nonsense"):
        obtain(Progress(io.StringIO()))


@pytest.mark.parametrize("version", [None, "1.25.9"])
def test_without_go_and_without_its_wheel_it_says_what_to_do(machine: Machine, version: str | None) -> None:
    if version is not None:
        machine.has_go(version)
    with pytest.raises(ToolchainUnavailable) as refused:
        obtain(Progress(io.StringIO()))
    reason = f"Go on PATH is {version[:4]}" if version else "Go is not installed"
    assert reason in str(refused.value)
    assert "Install Go 1.26 or newer" in str(refused.value)
    assert "KUBEBUILDER_ASSETS" in str(refused.value)
    assert machine.built() == []


def test_a_second_build_waits_for_the_first_and_says_so(machine: Machine) -> None:
    machine.has_go()
    locate.cache_folder().mkdir(parents=True)
    lock = (locate.cache_folder() / "building.lock").open("w")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("4711")
        lock.flush()
        with subprocess.Popen(
            [sys.executable, "-m", "devcluster", "build"],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as second:
            assert second.stderr is not None
            assert "Process 4711 is building already" in second.stderr.readline()
            for program in PROGRAMS:
                machine.has_cached(program)
            # The first one clears up after itself before it lets the next one in.
            shutil.rmtree(locate.cache_folder() / "building", ignore_errors=True)
            fcntl.flock(lock, fcntl.LOCK_UN)
            paths, _ = second.communicate(timeout=120)
    assert second.returncode == 0
    assert paths.split() == [str(locate.program_folder() / program) for program in PROGRAMS]
    assert machine.built() == []


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=["interrupt", "terminate", "kill"]
)
def test_go_ends_with_the_build(machine: Machine, tmp_path: Path, number: signal.Signals) -> None:
    pid_file = tmp_path / "go.pid"
    os.mkfifo(pid_file)
    machine.has_go(build=f"echo $$ > {pid_file}; exec sleep 600")
    with subprocess.Popen([sys.executable, "-m", "devcluster", "build"], stderr=subprocess.DEVNULL) as build:
        go = os.pidfd_open(int(pid_file.read_text()))
        build.send_signal(number)
        build.wait(120)
    assert select.select([go], [], [], 120)[0]
    os.close(go)


def test_progress_in_a_log_is_whole_lines(machine: Machine) -> None:
    machine.has_go()
    shown = io.StringIO()
    obtain(Progress(shown))
    assert "\r" not in shown.getvalue()
    assert all(re.match(r"\[\d+:\d\d] ", line) for line in shown.getvalue().splitlines())
