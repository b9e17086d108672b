"""What becomes of containers that end, cannot start, or start with the wrong things."""

import pytest

from tests.devcluster.agent.conftest import BACKOFF_SECONDS
from tests.devcluster.agent.workloads import (
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


def test_a_crash_loop_backs_off(kubectl: Kubectl) -> None:
    script = "date +%s.%N; echo the reason > /dev/termination-log; exit 7"
    kubectl.apply(pod("crash", shell(script)))
    eventually(lambda: status_of(kubectl, "crash")["state"]["waiting"]["reason"] == "CrashLoopBackOff")
    waiting = status_of(kubectl, "crash")["state"]["waiting"]
    assert waiting["message"].startswith(f"back-off {BACKOFF_SECONDS}s restarting failed container=main")
    status = status_of(kubectl, "crash")
    assert status["restartCount"] == 1, "the first restart comes at once"
    ended = status["lastState"]["terminated"]
    assert (ended["exitCode"], ended["reason"], ended["message"]) == (7, "Error", "the reason\n")
    assert kubectl.get("pod", "crash")["status"]["phase"] == "Running"
    assert event_messages(kubectl, "crash", "BackOff")

    eventually(lambda: status_of(kubectl, "crash")["restartCount"] == 3)
    eventually(
        lambda: (
            f"back-off {4 * BACKOFF_SECONDS}s" in status_of(kubectl, "crash")["state"]["waiting"]["message"]
        )
    )
    last = float(kubectl("logs", "crash"))
    before = float(kubectl("logs", "crash", "--previous"))
    assert 2 * BACKOFF_SECONDS <= last - before < 2 * BACKOFF_SECONDS + 5


def test_an_unknown_image_is_told_and_waited_for(kubectl: Kubectl) -> None:
    kubectl.apply(pod("strange", {"name": "main", "image": "example.org/unknown/thing:1"}))
    waiting = eventually(lambda: status_of(kubectl, "strange")["state"]["waiting"])
    eventually(lambda: status_of(kubectl, "strange")["state"]["waiting"]["reason"] == "ImagePullBackOff")
    assert waiting["reason"] in ("ContainerCreating", "ErrImagePull", "ImagePullBackOff")
    message = status_of(kubectl, "strange")["state"]["waiting"]["message"]
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
    kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/fine", "--timeout=30s")
    kubectl("wait", "--for=jsonpath={.status.phase}=Failed", "pod/broken", "--timeout=30s")
    assert status_of(kubectl, "broken")["state"]["terminated"]["exitCode"] == 3
    assert status_of(kubectl, "fine")["state"]["terminated"]["reason"] == "Completed"
    kubectl("delete", "pod", "fine", "broken", "--timeout=20s")


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
    kubectl("wait", "--for=condition=Complete", "job/job", "--timeout=40s")


def test_init_containers_run_in_order_and_sidecars_beside(kubectl: Kubectl) -> None:
    mount = {"volumeMounts": [{"name": "state", "mountPath": "/state"}]}
    first = shell("echo first >> /state/order", name="first", **mount)
    side = shell(
        "echo side >> /state/order; touch /state/side; exec sleep 1000",
        name="side",
        restartPolicy="Always",
        startupProbe={"exec": {"command": ["test", "-e", "/state/side"]}, "periodSeconds": 1},
        **mount,
    )
    second = shell("echo second >> /state/order", name="second", **mount)
    main = shell("cat /state/order; exec sleep 1000", **mount)
    spec = {"initContainers": [first, side, second], "volumes": [{"name": "state", "emptyDir": {}}]}
    kubectl.apply(pod("steps", main, **spec))
    wait_ready(kubectl, "pod/steps")
    assert eventually(lambda: kubectl("logs", "steps", "-c", "main")) == "first\nside\nsecond\n"
    kubectl("delete", "pod", "steps", "--timeout=20s")


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
    kubectl("wait", "--for=jsonpath={.status.phase}=Failed", "pod/failed", "--timeout=30s")


def test_an_active_deadline_ends_a_pod(kubectl: Kubectl) -> None:
    kubectl.apply(pod("limited", shell("exec sleep 1000"), activeDeadlineSeconds=2))
    kubectl("wait", "--for=jsonpath={.status.phase}=Failed", "pod/limited", "--timeout=30s")
    assert kubectl.get("pod", "limited")["status"]["reason"] == "DeadlineExceeded"
