"""How pods end: with grace, with their namespace, with the agent, and with a crash of the agent."""

import asyncio
import contextlib
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from devcluster import Devcluster
from devcluster.cluster import STOP_TIMEOUT_SECONDS
from devcluster.errors import DevclusterError
from tests.devcluster.agent.conftest import IMAGES
from tests.devcluster.agent.workloads import deployment, event_messages, eventually, pod, shell, wait_ready
from tests.support.kubectl import Kubectl

pytestmark = pytest.mark.cluster

TRAP = (
    'trap "echo TERM >> /out/log; sleep 1; echo end >> /out/log; exit 0" TERM; touch /out/ready; '
    "while true; do sleep 0.1; done"
)
TRAPPED = {"exec": {"command": ["test", "-e", "/out/ready"]}, "periodSeconds": 1, "timeoutSeconds": 60}


def processes_with(mark: str) -> list[int]:
    """The processes of this machine that have a word on their command line or in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                text = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
                if mark.encode() in text:
                    found.append(int(entry.name))
    return found


def test_a_deleted_pod_sees_pre_stop_then_sigterm_then_has_its_grace(
    kubectl: Kubectl, tmp_path: Path
) -> None:
    volume = {"name": "out", "hostPath": {"path": str(tmp_path)}}
    hook = {"preStop": {"exec": {"command": ["sh", "-c", "echo preStop >> /out/log; sleep 1"]}}}
    mounts = [{"name": "out", "mountPath": "/out"}]
    container = shell(TRAP, volumeMounts=mounts, lifecycle=hook, readinessProbe=TRAPPED)
    kubectl.apply(pod("leaver", container, volumes=[volume]))
    wait_ready(kubectl, "pod/leaver")
    started = time.monotonic()
    kubectl("delete", "pod", "leaver", "--grace-period=600", "--timeout=120s")
    assert (tmp_path / "log").read_text().split() == ["preStop", "TERM", "end"]
    assert time.monotonic() - started >= 2, "preStop and the end take a second each, not the whole grace"
    assert eventually(lambda: event_messages(kubectl, "leaver", "Killing")) == ["Stopping container main"]


def test_who_ignores_sigterm_is_killed_when_the_grace_is_over(kubectl: Kubectl) -> None:
    kubectl.apply(pod("stubborn", shell('trap "" TERM; while true; do sleep 0.1; done')))
    wait_ready(kubectl, "pod/stubborn")
    started = time.monotonic()
    kubectl("delete", "pod", "stubborn", "--grace-period=3", "--timeout=120s")
    assert time.monotonic() - started >= 2.5


def test_a_sleeping_pre_stop_needs_no_shell(kubectl: Kubectl, tmp_path: Path) -> None:
    volume = {"name": "out", "hostPath": {"path": str(tmp_path)}}
    hook = {"preStop": {"sleep": {"seconds": 3}}}
    mounts = [{"name": "out", "mountPath": "/out"}]
    container = shell(TRAP, volumeMounts=mounts, lifecycle=hook, readinessProbe=TRAPPED)
    kubectl.apply(pod("sleeper", container, volumes=[volume]))
    wait_ready(kubectl, "pod/sleeper")
    started = time.monotonic()
    kubectl("delete", "pod", "sleeper", "--grace-period=600", "--timeout=120s")
    assert (tmp_path / "log").read_text().split() == ["TERM", "end"]
    assert time.monotonic() - started >= 4, "three seconds before it hears of it, and its own"


def test_a_shorter_grace_can_be_asked_for_later(kubectl: Kubectl) -> None:
    kubectl.apply(pod("slow", shell('trap "" TERM; while true; do sleep 0.1; done')))
    wait_ready(kubectl, "pod/slow")
    kubectl("delete", "pod", "slow", "--grace-period=600", "--wait=false")
    kubectl("delete", "pod", "slow", "--grace-period=1", "--timeout=120s")


def test_a_forced_deletion_ends_the_processes_too(kubectl: Kubectl) -> None:
    mark = f"mark-{kubectl.namespace}"
    kubectl.apply(pod("forced", shell(f": {mark}; sleep 1000 & sleep 1000")))
    wait_ready(kubectl, "pod/forced")
    assert eventually(lambda: processes_with(mark))
    kubectl("delete", "pod", "forced", "--force", "--grace-period=0")
    eventually(lambda: not processes_with(mark))


def test_a_forced_deletion_cuts_every_ending_short(kubectl: Kubectl) -> None:
    mark = f"mark-{kubectl.namespace}"
    kubectl.apply(pod("slow", shell(f': {mark}; trap "" TERM; while true; do sleep 0.1; done')))
    wait_ready(kubectl, "pod/slow")
    assert eventually(lambda: processes_with(mark))
    for grace in (60, 30):
        kubectl("delete", "pod", "slow", f"--grace-period={grace}", "--wait=false")
    for _ in range(2):
        kubectl("delete", "pod", "slow", "--grace-period=0", "--force", "--ignore-not-found")
    eventually(lambda: not processes_with(mark))
    # and the agent goes on
    kubectl.apply(pod("next", shell("sleep 1000")))
    wait_ready(kubectl, "pod/next")


def test_a_namespace_goes_with_everything_in_it(kubectl: Kubectl) -> None:
    mark = f"mark-{kubectl.namespace}"
    kubectl.apply(deployment("web", shell(f": {mark}; exec sleep 1000"), replicas=3))
    kubectl("rollout", "status", "deployment/web", "--timeout=120s")
    kubectl("delete", "namespace", str(kubectl.namespace), "--timeout=120s")
    assert not processes_with(mark)


@pytest.fixture
def own_cluster() -> Iterator[tuple[Devcluster, asyncio.Runner]]:
    """A cluster that may die."""
    with asyncio.Runner() as runner:
        cluster = Devcluster(images=IMAGES)
        runner.run(cluster.start())
        try:
            yield cluster, runner
        finally:
            started = time.monotonic()
            with contextlib.suppress(DevclusterError):  # its death is what the test is about
                runner.run(cluster.stop())
            assert time.monotonic() - started < STOP_TIMEOUT_SECONDS, "its supervisor did not end by itself"


def agent_pid(cluster: Devcluster) -> int:
    """The process of a cluster's agent."""
    kubeconfig_dir = re.escape(str(cluster.logs_dir.parent))
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().decode().split("\0")
                if "devcluster.agent" in words and any(re.search(kubeconfig_dir, word) for word in words):
                    return int(entry.name)
    raise LookupError("no agent is running")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_survives_the_agent(
    own_cluster: tuple[Devcluster, asyncio.Runner], number: signal.Signals
) -> None:
    cluster, _ = own_cluster
    kubectl = Kubectl(cluster.kubeconfig, namespace="default")
    mark = f"mark-{cluster.network.number}-{os.getpid()}"
    script = f': {mark}; trap "" TERM; (sleep 1000 &) ; setsid sleep 1000 & while true; do sleep 1; done'
    probe = {"exec": {"command": ["sh", "-c", f": {mark}; sleep 1000"]}, "timeoutSeconds": 500}
    kubectl.apply(
        deployment("web", shell(script, env=[{"name": "MARK", "value": mark}], livenessProbe=probe))
    )
    kubectl("rollout", "status", "deployment/web", "--timeout=120s")
    eventually(lambda: len(processes_with(mark)) >= 6)
    pid = agent_pid(cluster)
    os.kill(pid, number)
    eventually(lambda: not processes_with(mark), within_seconds=120)
