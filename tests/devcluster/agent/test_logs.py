"""`kubectl logs`."""

import datetime as dt
import os
import subprocess
from pathlib import Path

import pytest

from devcluster import Devcluster
from tests.devcluster.agent.workloads import eventually, pod, shell, wait_ready
from tests.support.kubectl import KUBECTL, Kubectl, KubectlError

pytestmark = pytest.mark.cluster


def test_logs_are_followed_until_the_container_ends(
    kubectl: Kubectl, cluster: Devcluster, tmp_path: Path
) -> None:
    script = 'echo one; while [ ! -e /out/go ]; do sleep 0.1; done; echo two; printf "no newline"'
    container = shell(script, volumeMounts=[{"name": "out", "mountPath": "/out"}])
    volume = {"name": "out", "hostPath": {"path": str(tmp_path)}}
    kubectl.apply(pod("talker", container, volumes=[volume], restartPolicy="Never"))
    eventually(lambda: kubectl("logs", "talker") == "one\n")
    follower = subprocess.Popen(
        [KUBECTL, "--namespace", str(kubectl.namespace), "logs", "--follow", "talker"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "KUBECONFIG": str(cluster.kubeconfig)},
    )
    try:
        assert follower.stdout is not None
        assert follower.stdout.readline() == "one\n"
        (tmp_path / "go").touch()
        assert follower.stdout.readline() == "two\n", "it came while kubectl was following"
        assert follower.stdout.read() == "no newline"
        assert follower.wait(timeout=60) == 0
    finally:
        follower.kill()
        follower.wait()


def test_logs_are_cut_as_asked(kubectl: Kubectl) -> None:
    script = "for i in 1 2 3 4 5; do echo line $i; done; echo trouble >&2; exec sleep 1000"
    kubectl.apply(pod("talker", shell(script)))
    eventually(lambda: "trouble" in kubectl("logs", "talker"))
    assert kubectl("logs", "talker", "--tail=2") in (
        "line 5\ntrouble\n",
        "trouble\nline 5\n",
        "line 4\nline 5\n",
    )
    assert kubectl("logs", "talker", "--limit-bytes=10") == "line 1\nlin"
    first = kubectl("logs", "talker", "--timestamps").splitlines()[0]
    moment, _, text = first.partition(" ")
    assert text == "line 1"
    age = dt.datetime.now(dt.UTC) - dt.datetime.fromisoformat(moment)
    assert dt.timedelta(0) < age < dt.timedelta(minutes=10)
    assert kubectl("logs", "talker", "--since=1h") != ""
    later = (dt.datetime.now(dt.UTC) + dt.timedelta(seconds=5)).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert kubectl("logs", "talker", f"--since-time={later}") == ""
    with pytest.raises(KubectlError, match="previous terminated container"):
        kubectl("logs", "talker", "--previous")


def test_a_long_line_stays_one_line(kubectl: Kubectl) -> None:
    script = "head -c 100000 /dev/zero | tr '\\0' x; echo; echo end; exec sleep 1000"
    kubectl.apply(pod("long", shell(script)))
    eventually(lambda: kubectl("logs", "long").endswith("end\n"))
    assert [len(line) for line in kubectl("logs", "long", "--tail=2").splitlines()] == [100_000, 3]


def test_exec_says_what_to_do_instead(kubectl: Kubectl) -> None:
    kubectl.apply(pod("here", shell("exec sleep 1000")))
    wait_ready(kubectl, "pod/here")
    with pytest.raises(KubectlError, match="not offered by a devcluster node"):
        kubectl("exec", "here", "--", "true")
