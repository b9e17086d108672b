"""Nothing outlives its owner, nothing collides, nothing dies unnoticed."""

import asyncio
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from devcluster import ComponentDied, Devcluster, DevclusterError, StartFailed, detached
from devcluster.controlplane.api import ApiError
from devcluster.network import Network
from devcluster.supervision import folders, messages, supervisor
from devcluster.supervision.component import Component
from devcluster.supervision.process import children, start_time
from tests.devcluster.agent.workloads import eventually
from tests.support.kubectl import Kubectl

WAIT_SECONDS = 120.0


def recorded(register: Path) -> dict[str, int]:
    """The pids of the one cluster in a register, by name."""
    [record] = register.glob("devcluster-*/*/record.json")
    return {process["name"]: process["pid"] for process in json.loads(record.read_text())["processes"]}


class Watched:
    """Processes whose end is to be seen, held by handles that no reused pid can confuse."""

    def __init__(self, pids: list[int]) -> None:
        self._handles = [os.pidfd_open(pid) for pid in pids]

    def all_end(self) -> bool:
        """Whether all of them end within the time."""
        waiting = list(self._handles)
        while waiting:
            ended, _, _ = select.select(waiting, [], [], WAIT_SECONDS)
            if not ended:
                return False
            waiting = [handle for handle in waiting if handle not in ended]
        return True

    def close(self) -> None:
        for handle in self._handles:
            os.close(handle)


@pytest.fixture
def stray() -> Iterator[subprocess.Popen[bytes]]:
    """A process that nobody looks after."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def leave_record(register: Path, *, pid: int, born: int) -> Path:
    """What a cluster leaves whose supervisor was killed."""
    folder = register / f"devcluster-{os.getuid()}" / "0badcafe"
    data = folder / "data"
    (data / "etcd").mkdir(parents=True)
    folder.parent.chmod(0o700)
    (data / "etcd" / "member").write_text("data")
    (data / "etcd").chmod(0o500)
    (folder / "lock").touch()
    record = {
        "id": "0badcafe",
        "data_dir": str(data),
        "processes": [{"name": "etcd", "pid": pid, "start_time": born}],
    }
    (folder / "record.json").write_text(json.dumps(record))
    return folder


@pytest.mark.cluster
async def test_two_clusters_run_side_by_side(own_register: Path, tmp_path: Path) -> None:
    one, other = Devcluster(agent=False), Devcluster(agent=False, data_dir=tmp_path / "other")
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(one.start())
        tasks.create_task(other.start())
    try:
        assert one.network != other.network
        Kubectl(one.kubeconfig)("create", "configmap", "here")
        names = Kubectl(other.kubeconfig)("get", "configmaps", "--output=name").split()
        assert "configmap/here" not in names
    finally:
        await one.stop()
        await other.stop()
    assert [path.name for path in next(own_register.iterdir()).iterdir()] == [".lock"]
    # A data folder that was given keeps its logs, and nothing that could be used.
    assert sorted(path.name for path in (tmp_path / "other").iterdir()) == [".devcluster.lock", "logs"]
    assert (tmp_path / "other" / "logs" / "audit.log").stat().st_size > 0


@pytest.mark.cluster
async def test_nothing_survives_the_supervisors_kill_and_the_next_start_clears(
    own_register: Path, tmp_path: Path
) -> None:
    state = await detached.up(tmp_path / "state", agent=False)
    watched = Watched(list(recorded(own_register).values()))
    os.kill(state.supervisor_pid, signal.SIGKILL)
    assert watched.all_end()
    watched.close()
    [left] = own_register.glob("devcluster-*/*/record.json")
    assert detached.status(tmp_path / "state") is None

    async with Devcluster(agent=False):
        assert not left.exists()
    assert not (tmp_path / "state" / "data" / "certificates").exists()


@pytest.mark.cluster
async def test_an_owner_learns_that_its_supervisor_was_killed(own_register: Path) -> None:
    cluster = Devcluster(agent=False)
    await cluster.start()
    os.kill(recorded(own_register)["supervisor"], signal.SIGKILL)
    with pytest.raises(ComponentDied, match="supervisor"):
        await cluster.wait()
    assert [path.name for path in next(own_register.iterdir()).iterdir()] == [".lock"]
    with pytest.raises(ComponentDied):
        await cluster.stop()


@pytest.mark.cluster
async def test_a_component_that_dies_is_told_with_the_end_of_its_log(own_register: Path) -> None:
    cluster = Devcluster(agent=False)
    await cluster.start()
    pids = recorded(own_register)
    watched = Watched(list(pids.values()))
    os.kill(pids["kube-controller-manager"], signal.SIGKILL)
    with pytest.raises(ComponentDied, match="kube-controller-manager was killed by SIGKILL") as death:
        await cluster.wait()
    assert "Caches are synced" in str(death.value)
    assert watched.all_end()
    watched.close()


@pytest.mark.cluster
async def test_a_cluster_that_is_cancelled_while_it_starts_leaves_nothing(own_register: Path) -> None:
    under_way = asyncio.Event()
    start = asyncio.create_task(Devcluster(agent=False, on_step=lambda _: under_way.set()).start())
    await under_way.wait()
    watched = Watched(list(recorded(own_register).values()))
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert watched.all_end()
    watched.close()
    assert [path.name for path in next(own_register.iterdir()).iterdir()] == [".lock"]


def failing_programs(folder: Path) -> Path:
    """A folder with programs that do not run."""
    for program in ("etcd", "kube-apiserver", "kube-controller-manager"):
        script = folder / "assets" / program
        script.parent.mkdir(exist_ok=True)
        script.write_text("#!/bin/sh\necho no space left on device >&2; exit 3\n")
        script.chmod(0o755)
    return folder / "assets"


async def test_a_start_that_fails_says_why(
    own_register: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(failing_programs(tmp_path)))
    with pytest.raises(StartFailed, match=r"etcd ended with status 3(.|\n)*no space left on device"):
        await Devcluster(agent=False).start()
    assert [path.name for path in next(own_register.iterdir()).iterdir()] == [".lock"]


async def test_a_kubeconfig_of_somebody_else_is_neither_overwritten_nor_removed(
    own_register: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(failing_programs(tmp_path)))
    kubeconfig = tmp_path / "config"
    kubeconfig.write_text("clusters: [{name: production, cluster: {server: https://example.com}}]")
    before = kubeconfig.read_text()
    with pytest.raises(StartFailed, match="config is not a devcluster's and would be lost"):
        await Devcluster(agent=False, kubeconfig=kubeconfig).start()
    assert kubeconfig.read_text() == before

    # One that a crash left, on the other hand, is no obstacle; and what a cluster wrote goes with it.
    kubeconfig.write_text("clusters: [{name: devcluster, cluster: {server: 'https://127.250.128.1:6443'}}]")
    with pytest.raises(StartFailed, match="etcd ended"):
        await Devcluster(agent=False, kubeconfig=kubeconfig).start()
    assert not kubeconfig.exists()


async def test_a_start_outlasts_calls_that_fail_and_tells_the_last_one_when_it_gives_up(
    own_register: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = messages.Order(
        etcd="",
        kube_apiserver="",
        kube_controller_manager="",
        images={},
        agent=False,
        node_name="n",
        agent_arguments=[],
        data_dir=None,
        kubeconfig=None,
        state_dir=None,
        owner_pid=None,
    )
    answers: list[bool | ApiError] = [ApiError(0, "timed out"), False, True]

    async def holds() -> bool:
        answer = answers.pop(0) if answers else ApiError(503, "busy")
        if isinstance(answer, ApiError):
            raise answer
        return answer

    with folders.register(None) as place:
        starting = supervisor.Supervisor(order, place, Network(20))
        component = Component("server", ["echo", "why"], log=place.layout.logs / "log", environment={})
        await component.ended
        await starting._until(holds, "it holds", component)
        monkeypatch.setattr(supervisor, "START_TIMEOUT_SECONDS", 0.2)
        with pytest.raises(StartFailed, match=r"not so that it holds \(503: busy\)(.|\n)*why"):
            await starting._until(holds, "it holds", component)


@pytest.mark.cluster
async def test_up_stays_and_down_ends_it(own_register: Path, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    command = [sys.executable, "-m", "devcluster"]
    up = subprocess.run(
        [*command, "up", "--no-agent", "--state-dir", folder], capture_output=True, text=True, check=True
    )
    assert f"export KUBECONFIG={folder}/kubeconfig" in up.stdout
    running = detached.status(folder)
    assert running is not None
    assert "default" in Kubectl(folder / "kubeconfig")("get", "namespaces")
    assert await detached.up(folder, agent=False) == running

    with pytest.raises(StartFailed, match="is the data folder of a devcluster that is running"):
        await Devcluster(agent=False, data_dir=folder / "data").start()

    watched = Watched(list(recorded(own_register).values()))
    subprocess.run([*command, "down", "--state-dir", folder], check=True)
    assert watched.all_end()
    watched.close()
    assert detached.status(folder) is None
    assert sorted(path.name for path in folder.iterdir()) == ["data"]


@pytest.mark.cluster
def test_an_up_that_is_killed_leaves_nothing(own_register: Path, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "devcluster", "up", "--no-agent", "--state-dir", tmp_path / "state"],
        stdout=subprocess.PIPE,
        text=True,
    ) as up:
        assert up.stdout is not None
        for line in up.stdout:
            if "kube-apiserver" in line:
                break
        watched = Watched(list(recorded(own_register).values()))
        up.kill()
        assert watched.all_end()
        watched.close()
    assert detached.status(tmp_path / "state") is None


def test_a_stray_process_of_a_dead_cluster_is_killed(
    own_register: Path, stray: subprocess.Popen[bytes]
) -> None:
    born = start_time(stray.pid)
    assert born is not None
    folder = leave_record(own_register, pid=stray.pid, born=born)
    folders.clear_leftovers()
    assert stray.wait(WAIT_SECONDS) == -signal.SIGKILL
    assert not folder.exists()


def test_a_process_that_got_a_dead_ones_pid_is_left_alone(
    own_register: Path, stray: subprocess.Popen[bytes]
) -> None:
    born = start_time(stray.pid)
    assert born is not None
    folder = leave_record(own_register, pid=stray.pid, born=born - 1)
    folders.clear_leftovers()
    assert stray.poll() is None
    assert not folder.exists()


class Registered:
    """A process with an entry in the register, as a supervisor has one."""

    PROGRAM = """
import sys
from pathlib import Path
from devcluster.supervision.folders import register
with register(Path(sys.argv[1]) if sys.argv[1:] else None) as place:
    print(place.layout.root, flush=True)
    input()
"""

    def __init__(self, *arguments: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.PROGRAM, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )
        assert self.process.stdout is not None
        self.root = Path(self.process.stdout.readline().strip())

    def leave(self) -> None:
        assert self.process.stdin is not None
        print(file=self.process.stdin, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def test_an_entry_goes_as_a_whole(own_register: Path) -> None:
    with Registered() as leaving:
        entry = leaving.root.parent
        with (entry.parent / ".lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            leaving.leave()
            # Its data goes; the entry itself must not look like a leftover to whoever has the register now.
            eventually(lambda: not (leaving.root / "etcd").exists())
            assert {"lock", "record.json"} <= {path.name for path in entry.iterdir()}
        assert leaving.process.wait(WAIT_SECONDS) == 0
        assert not entry.exists()


def test_a_living_cluster_is_left_alone_even_without_its_lock(own_register: Path) -> None:
    with Registered() as alive:
        (alive.root.parent / "lock").unlink()
        folders.clear_leftovers()
        assert (alive.root / "etcd").is_dir()
        assert alive.process.poll() is None


def test_a_data_folder_that_a_living_cluster_has_now_is_left_alone(
    own_register: Path, tmp_path: Path
) -> None:
    entry = leave_record(own_register, pid=os.getpid(), born=0)
    data = tmp_path / "data"
    record = json.loads((entry / "record.json").read_text())
    (entry / "record.json").write_text(json.dumps(record | {"data_dir": str(data)}))
    # Its new owner has another temporary folder, and so another register.
    (tmp_path / "other").mkdir()
    with Registered(str(data), TMPDIR=str(tmp_path / "other")) as alive:
        folders.clear_leftovers()
        assert not entry.exists()
        assert (alive.root / "etcd").is_dir()


@pytest.mark.parametrize("content", ["", '{"id": 1}'])
def test_a_record_that_cannot_be_read_keeps_nobody_from_starting(own_register: Path, content: str) -> None:
    entry = leave_record(own_register, pid=os.getpid(), born=0)
    (entry / "record.json").write_text(content)
    with folders.register(None):
        assert not entry.exists()


def test_a_leftover_that_cannot_be_cleared_keeps_nobody_from_starting(
    own_register: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entry = leave_record(own_register, pid=os.getpid(), born=0)
    record = json.loads((entry / "record.json").read_text())
    (entry / "record.json").write_text(json.dumps(record | {"data_dir": "/proc/self"}))
    with folders.register(None):
        assert entry.exists()
    assert "cannot be cleared" in caplog.text


def test_down_leaves_a_cluster_alone_that_is_starting(own_register: Path, tmp_path: Path) -> None:
    with Registered(str(tmp_path / "data")):
        (tmp_path / "kubeconfig").touch()
        with pytest.raises(DevclusterError, match="starting or ending"):
            detached.down(tmp_path)
        assert (tmp_path / "kubeconfig").exists()
    assert not detached.down(tmp_path)
    assert not (tmp_path / "kubeconfig").exists()


CONTAINER_WITH_VISITOR = """
import asyncio, os, sys
from pathlib import Path
from devcluster.agent import sandbox
from devcluster.supervision.process import become_subreaper
from devcluster.supervision.supervisor import kill_all

async def start():
    spec = sandbox.SandboxSpec(argv=["sleep", "600"], env={"PATH": os.defpath}, working_dir="/",
                               hostname="box", root=Path(sys.argv[1]))
    container = await sandbox.start(spec)
    visitor = await sandbox.start_inside(container, ["sleep", "600"], {"PATH": os.defpath}, "/")
    container.kill()
    visitor.kill()

become_subreaper()
asyncio.run(start())
kill_all([])
"""


def test_a_container_with_a_command_inside_can_be_killed_and_waited_for(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CONTAINER_WITH_VISITOR, tmp_path / "root"]
    assert subprocess.run(command, timeout=WAIT_SECONDS, check=False).returncode == 0


def test_a_register_that_others_may_write_is_refused(own_register: Path) -> None:
    folder = own_register / f"devcluster-{os.getuid()}"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(DevclusterError, match="nobody else may enter"):
        folders.clear_leftovers()


@pytest.mark.cluster
@pytest.mark.parametrize("victim", ["owner", "supervisor"])
def test_nothing_survives_a_kill(own_register: Path, tmp_path: Path, victim: str) -> None:
    images = tmp_path / "images.json"
    images.write_text(json.dumps({"busybox": {"command": ["/bin/sh"]}}))
    kubeconfig = tmp_path / "kubeconfig"
    with subprocess.Popen(
        [sys.executable, "-m", "devcluster", "run", "--images", images, "--kubeconfig", kubeconfig],
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        assert owner.stdout is not None
        for line in owner.stdout:
            if "export KUBECONFIG" in line:
                break
        kubectl = Kubectl(kubeconfig)
        # A process that leaves its session and its parent, as daemons do.
        kubectl("run", "pod", "--image=busybox", "--", "-c", "setsid sleep 601 & sleep 602")
        kubectl("wait", "--for=condition=Ready", "pod/pod", "--timeout=120s")
        pids = recorded(own_register)
        assert set(pids) == {"supervisor", "etcd", "kube-apiserver", "kube-controller-manager", "agent"}

        def all_there() -> Watched | None:
            # The pod is ready before its shell has come to it, and some processes end soon.
            below = descendants(pids["supervisor"])
            commands = [Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ") for pid in below]
            assert set(pids.values()) <= {pids["supervisor"], *below}
            visited = any(command.startswith(b"sleep 601") for command in commands)
            return Watched([pids["supervisor"], *below]) if visited else None

        watched = eventually(all_there)
        assert watched is not None
        os.kill({"owner": owner.pid, **pids}[victim], signal.SIGKILL)
        assert watched.all_end()
        watched.close()
    # The supervisor clears what is left, or the owner that it had.
    assert [path.name for path in next(own_register.iterdir()).iterdir()] == [".lock"]


def descendants(pid: int) -> list[int]:
    """Every process below one."""
    below = []
    for child in children(pid):
        below += [child, *descendants(child)]
    return below
