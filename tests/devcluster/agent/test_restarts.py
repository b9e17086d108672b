"""What becomes of containers that end, cannot start, or start with the wrong things."""

import functools
import itertools
from pathlib import Path

import pytest

from tests.devcluster.agent.conftest import BACKOFF_SECONDS
from tests.devcluster.agent.workloads import (
    Manifest,
    config_map,
    event_messages,
    eventually,
    pod,
    pod_spec,
    shell,
    status_of,
    wait_ready,
)
from tests.support.kubectl import Kubectl, KubectlError

pytestmark = pytest.mark.cluster


def test_a_crash_loop_backs_off(kubectl: Kubectl, tmp_path: Path) -> None:
    script = "date +%s.%N | tee -a /out/runs; echo the reason > /dev/termination-log; exit 7"
    container = shell(script, volumeMounts=[{"name": "out", "mountPath": "/out"}])
    volume = {"name": "out", "hostPath": {"path": str(tmp_path)}}
    kubectl.apply(pod("crash", container, volumes=[volume]))

    def waiting(restarts: int) -> Manifest | None:
        """Its status while it waits for another restart, after at least so many."""
        status = status_of(kubectl, "crash")
        waits = status["state"]["waiting"]["reason"] == "CrashLoopBackOff"
        return status if waits and status["restartCount"] >= restarts else None

    for restarts in (1, 3):
        status = eventually(functools.partial(waiting, restarts))
        # The first restart comes at once.
        delay = BACKOFF_SECONDS * 2 ** (status["restartCount"] - 1)
        message = status["state"]["waiting"]["message"]
        assert message.startswith(f"back-off {delay}s restarting failed container=main")
        ended = status["lastState"]["terminated"]
        assert (ended["exitCode"], ended["reason"], ended["message"]) == (7, "Error", "the reason\n")
    assert kubectl.get("pod", "crash")["status"]["phase"] == "Running"
    eventually(lambda: event_messages(kubectl, "crash", "BackOff"))

    previous = kubectl("logs", "crash", "--previous").strip()
    runs = (tmp_path / "runs").read_text().split()
    assert previous in runs
    gaps = [float(after) - float(before) for before, after in itertools.pairwise(runs)]
    assert len(gaps) >= 3
    for number, gap in enumerate(gaps[1:]):
        assert gap >= BACKOFF_SECONDS * 2**number, gaps


def test_an_unknown_image_is_told_and_waited_for(kubectl: Kubectl) -> None:
    kubectl.apply(pod("strange", {"name": "main", "image": "example.org/unknown/thing:1"}))
    first = eventually(lambda: status_of(kubectl, "strange")["state"]["waiting"])
    assert first["reason"] in ("ContainerCreating", "ErrImagePull", "ImagePullBackOff")

    def backs_off() -> str | None:
        waiting = status_of(kubectl, "strange")["state"]["waiting"]
        return waiting["message"] if waiting["reason"] == "ImagePullBackOff" else None

    message = eventually(backs_off)
    assert message is not None
    assert 'no program for image "example.org/unknown/thing:1": the image table' in message
    assert kubectl.get("pod", "strange")["status"]["phase"] == "Pending"
    with pytest.raises(KubectlError, match="is waiting to start"):
        kubectl("logs", "strange")


def test_a_program_that_does_not_exist_is_told(kubectl: Kubectl) -> None:
    kubectl.apply(pod("typo", {"name": "main", "image": "busybox", "command": ["/no/such/program"]}))
    ended = eventually(lambda: status_of(kubectl, "typo")["lastState"]["terminated"])
    assert (ended["exitCode"], ended["reason"]) == (128, "StartError")
    assert "/no/such/program: No such file or directory" in ended["message"]


def test_a_missing_reference_is_told_and_heals(kubectl: Kubectl) -> None:
    variable = {"name": "WORD", "valueFrom": {"configMapKeyRef": {"name": "words", "key": "word"}}}
    kubectl.apply(pod("waiting", shell("echo word=$WORD; exec sleep 1000", env=[variable])))
    waiting = eventually(lambda: status_of(kubectl, "waiting")["state"]["waiting"])
    eventually(
        lambda: status_of(kubectl, "waiting")["state"]["waiting"]["reason"] == "CreateContainerConfigError"
    )
    waiting = status_of(kubectl, "waiting")["state"]["waiting"]
    assert waiting["message"] == 'configmap "words" not found'
    kubectl.apply(config_map("words", other="x"))
    expected = f"couldn't find key word in configmap {kubectl.namespace}/words"
    eventually(lambda: status_of(kubectl, "waiting")["state"]["waiting"]["message"] == expected)
    kubectl.apply(config_map("words", word="found"))
    wait_ready(kubectl, "pod/waiting")
    assert kubectl("logs", "waiting") == "word=found\n"


def test_pods_that_end_have_ended(kubectl: Kubectl) -> None:
    kubectl.apply(pod("fine", shell("exit 0"), restartPolicy="Never"))
    kubectl.apply(pod("broken", shell("exit 3"), restartPolicy="Never"))
    kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/fine", "--timeout=120s")
    kubectl("wait", "--for=jsonpath={.status.phase}=Failed", "pod/broken", "--timeout=120s")
    assert status_of(kubectl, "broken")["state"]["terminated"]["exitCode"] == 3
    assert status_of(kubectl, "fine")["state"]["terminated"]["reason"] == "Completed"
    kubectl("delete", "pod", "fine", "broken", "--timeout=120s")


def test_a_job_restarts_on_failure_until_it_succeeds(kubectl: Kubectl) -> None:
    script = "[ -e /state/tried ] && exit 0; touch /state/tried; exit 1"
    container = shell(script, volumeMounts=[{"name": "state", "mountPath": "/state"}])
    template = pod_spec(container, restartPolicy="OnFailure", volumes=[{"name": "state", "emptyDir": {}}])
    kubectl.apply(
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": "job"},
            "spec": {"template": {"spec": template}},
        }
    )
    kubectl("wait", "--for=condition=Complete", "job/job", "--timeout=120s")


def test_init_containers_run_in_order_and_sidecars_beside(kubectl: Kubectl) -> None:
    mount = {"volumeMounts": [{"name": "state", "mountPath": "/state"}]}
    first = shell("echo first >> /state/order", name="first", **mount)
    side = shell(
        "echo side >> /state/order; touch /state/side; exec sleep 1000",
        name="side",
        restartPolicy="Always",
        startupProbe={
            "exec": {"command": ["test", "-e", "/state/side"]},
            "periodSeconds": 1,
            "timeoutSeconds": 60,
        },
        **mount,
    )
    second = shell("echo second >> /state/order", name="second", **mount)
    main = shell("cat /state/order; exec sleep 1000", **mount)
    spec = {"initContainers": [first, side, second], "volumes": [{"name": "state", "emptyDir": {}}]}
    kubectl.apply(pod("steps", main, **spec))
    wait_ready(kubectl, "pod/steps")
    assert eventually(lambda: kubectl("logs", "steps", "-c", "main")) == "first\nside\nsecond\n"
    kubectl("delete", "pod", "steps", "--timeout=120s")


def test_a_failing_init_container_keeps_the_pod_from_starting(kubectl: Kubectl) -> None:
    main = shell("exec sleep 1000")
    kubectl.apply(pod("stuck", main, initContainers=[shell("exit 4", name="init")]))

    def init() -> object:
        status = kubectl.get("pod", "stuck")["status"]
        one = status["initContainerStatuses"][0]
        return (
            status["phase"] == "Pending"
            and one["state"].get("waiting", {}).get("reason") == "CrashLoopBackOff"
        )

    eventually(init)
    kubectl.apply(pod("failed", main, initContainers=[shell("exit 4", name="init")], restartPolicy="Never"))
    kubectl("wait", "--for=jsonpath={.status.phase}=Failed", "pod/failed", "--timeout=120s")


def test_an_active_deadline_ends_a_pod(kubectl: Kubectl) -> None:
    kubectl.apply(pod("limited", shell("exec sleep 1000"), activeDeadlineSeconds=2))
    kubectl("wait", "--for=jsonpath={.status.phase}=Failed", "pod/limited", "--timeout=120s")
    assert kubectl.get("pod", "limited")["status"]["reason"] == "DeadlineExceeded"
