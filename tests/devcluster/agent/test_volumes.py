"""What containers find at their mount paths."""

from typing import Any

import pytest

from tests.devcluster.agent.workloads import (
    POD_IP,
    config_map,
    eventually,
    pod,
    pod_spec,
    shell,
    wait_ready,
)
from tests.support.kubectl import Kubectl

pytestmark = pytest.mark.cluster


def log_of(kubectl: Kubectl, name: str, script: str, container: dict[str, Any], **spec: Any) -> str:
    """What a script says in a pod that then ends."""
    kubectl.apply(pod(name, shell(script, **container), restartPolicy="Never", **spec))
    eventually(lambda: kubectl.get("pod", name)["status"]["phase"] in ("Succeeded", "Failed"))
    return kubectl("logs", name)


def test_config_maps_and_secrets_are_files_with_modes_and_paths(kubectl: Kubectl) -> None:
    kubectl.apply(config_map("settings", a="A", b="B"))
    kubectl.apply(
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "key"}, "stringData": {"key": "hush"}}
    )
    volumes = [
        {"name": "all", "configMap": {"name": "settings"}},
        {"name": "some", "configMap": {"name": "settings", "items": [{"key": "b", "path": "deep/er/b"}]}},
        {"name": "key", "secret": {"secretName": "key", "defaultMode": 0o400}},
        {"name": "absent", "secret": {"secretName": "no-such", "optional": True}},
    ]
    mounts = [
        {"name": "all", "mountPath": "/etc/app/all"},
        {"name": "some", "mountPath": "/opt/not/there/some"},
        {"name": "all", "mountPath": "/etc/app/one.conf", "subPath": "a"},
        {"name": "key", "mountPath": "/run/key"},
        {"name": "absent", "mountPath": "/run/absent"},
    ]
    script = """
        ls /etc/app/all; cat /etc/app/all/a /opt/not/there/some/deep/er/b /etc/app/one.conf /run/key/key; echo
        stat -Lc %a /run/key/key /etc/app/all/a; ls /run/absent | wc -l
        echo x > /etc/app/all/a || echo read-only; ls /etc/passwd
    """
    text = log_of(kubectl, "reader", script, {"volumeMounts": mounts}, volumes=volumes)
    lines = [line for line in text.splitlines() if "cannot create" not in line]
    assert lines == ["a", "b", "ABAhush", "400", "644", "0", "read-only", "/etc/passwd"]


def test_a_mounted_config_map_follows_its_object(kubectl: Kubectl) -> None:
    kubectl.apply(config_map("settings", word="one", gone="x"))
    volume = {"name": "settings", "configMap": {"name": "settings"}}
    # what it read counts only where the swap did not fall between the two reads; the names beside the data
    # follow a moment later, as a kubelet has it
    now = "readlink /settings/..data"
    text = "$(ls /settings/..data/) $(cat /settings/word)"
    read = f'data=$({now}); text="{text}"; [ "$data" = "$({now})" ] && echo $text'
    script = f"while true; do {read}; echo names: $(ls /settings); sleep 0.1; done"
    container = shell(script, volumeMounts=[{"name": "settings", "mountPath": "/settings"}])
    kubectl.apply(pod("reader", container, volumes=[volume]))
    eventually(lambda: "gone word one\nnames: gone word\n" in kubectl("logs", "reader"))
    kubectl.apply(config_map("settings", word="two", new="x"))
    eventually(
        lambda: "new word two\nnames: new word\n" in kubectl("logs", "reader"),
        within_seconds=120,
    )
    lines = {line for line in kubectl("logs", "reader").splitlines() if not line.startswith("names:")}
    assert lines == {"gone word one", "new word two"}, "all at once"


def test_an_optional_secret_may_come_later(kubectl: Kubectl) -> None:
    volume = {"name": "key", "secret": {"secretName": "later", "optional": True}}
    script = (
        "until [ -s /run/key/password ]; do sleep 0.1; done; cat /run/key/password; echo; exec sleep 1000"
    )
    container = shell(script, volumeMounts=[{"name": "key", "mountPath": "/run/key"}])
    kubectl.apply(pod("patient", container, volumes=[volume]))
    wait_ready(kubectl, "pod/patient")
    assert kubectl("logs", "patient") == ""
    kubectl("create", "secret", "generic", "later", "--from-literal=password=hush")
    eventually(lambda: kubectl("logs", "patient") == "hush\n", within_seconds=120)


def test_a_required_secret_holds_the_pod_until_it_is_there(kubectl: Kubectl) -> None:
    volume = {"name": "key", "secret": {"secretName": "required"}}
    container = shell("exec sleep 1000", volumeMounts=[{"name": "key", "mountPath": "/run/key"}])
    kubectl.apply(pod("held", container, volumes=[volume]))
    selector = "--field-selector=involvedObject.name=held,reason=FailedMount"
    events = eventually(lambda: kubectl.get("events", selector)["items"])
    assert events[0]["message"] == 'MountVolume.SetUp failed for volume "key" : secret "required" not found'
    assert kubectl.get("pod", "held")["status"]["phase"] == "Pending"
    kubectl("create", "secret", "generic", "required", "--from-literal=a=b")
    wait_ready(kubectl, "pod/held")


def test_a_stateful_set_finds_its_claim_again(kubectl: Kubectl) -> None:
    container = shell(
        "hostname >> /data/log; cat /data/log; exec sleep 1000",
        volumeMounts=[{"name": "data", "mountPath": "/data"}],
        readinessProbe={"exec": {"command": ["test", "-s", "/data/log"]}, "periodSeconds": 1},
    )
    claim = {
        "metadata": {"name": "data"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "10Mi"}}},
    }
    kubectl.apply(
        {
            "apiVersion": "apps/v1",
            "kind": "StatefulSet",
            "metadata": {"name": "store"},
            "spec": {
                "serviceName": "store",
                "replicas": 1,
                "selector": {"matchLabels": {"app": "store"}},
                "template": {"metadata": {"labels": {"app": "store"}}, "spec": pod_spec(container)},
                "volumeClaimTemplates": [claim],
            },
        }
    )
    kubectl("rollout", "status", "statefulset/store", "--timeout=120s")
    eventually(lambda: kubectl("logs", "store-0") == "store-0\n")
    before = kubectl.get("pod", "store-0")["metadata"]["uid"]
    kubectl("delete", "pod", "store-0", "--timeout=120s")
    eventually(lambda: kubectl.get("pod", "store-0")["metadata"]["uid"] != before)
    wait_ready(kubectl, "pod/store-0")
    eventually(lambda: kubectl("logs", "store-0") == "store-0\nstore-0\n")


def test_a_read_only_root_is_read_only_and_volumes_are_not(kubectl: Kubectl) -> None:
    script = """
        for place in / /tmp /usr /etc /root /scratch; do
            if touch $place/x 2> /dev/null; then echo $place; fi
        done
        echo done > /dev/termination-log; echo nothing > /dev/null
    """
    volumes = [{"name": "scratch", "emptyDir": {}}]
    container = {"volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}]}
    closed = container | {"securityContext": {"readOnlyRootFilesystem": True}}
    assert log_of(kubectl, "closed", script, closed, volumes=volumes).split() == ["/scratch"]
    written = log_of(kubectl, "open", script, container, volumes=volumes).split()
    assert written == ["/", "/tmp", "/root", "/scratch"], "the host's own directories are never written to"
    status = kubectl.get("pod", "closed")["status"]["containerStatuses"][0]
    assert status["state"]["terminated"]["message"] == "done\n"


def test_volumes_are_shared_in_a_pod_and_tmp_is_not(kubectl: Kubectl) -> None:
    mount = {"volumeMounts": [{"name": "shared", "mountPath": "/tmp/shared", "subPath": "a/b"}]}
    one = shell("touch /tmp/own; echo hello > /tmp/shared/word; exec sleep 1000", name="one", **mount)
    script = (
        "until [ -s /tmp/shared/word ]; do sleep 0.1; done; cat /tmp/shared/word; "
        "[ -e /tmp/own ] || echo private; exec sleep 1000"
    )
    two = shell(script, name="two", **mount)
    kubectl.apply(pod("pair", one, two, volumes=[{"name": "shared", "emptyDir": {}}]))
    eventually(lambda: kubectl("logs", "pair", "-c", "two") == "hello\nprivate\n")


def test_the_downward_api_tells_of_the_pod(kubectl: Kubectl) -> None:
    def field(name: str, path: str) -> dict[str, Any]:
        return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}

    variables = [
        field("NAME", "metadata.name"),
        field("APP", "metadata.labels['app']"),
        field("NODE", "spec.nodeName"),
        POD_IP,
        {"name": "LIMIT", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
        {"name": "URL", "value": "http://$(POD_IP):1/$(NAME)/$$(NAME)/$(UNKNOWN)"},
    ]
    items = [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]
    container = {
        "env": variables,
        "resources": {"limits": {"memory": "64Mi", "cpu": "1"}},
        "volumeMounts": [{"name": "about", "mountPath": "/about"}],
    }
    volumes = [{"name": "about", "downwardAPI": {"items": items}}]
    script = "echo $NAME $APP $NODE $POD_IP $LIMIT $URL; cat /about/labels; echo; hostname"
    lines = log_of(kubectl, "teller", script, container, volumes=volumes).splitlines()
    found = kubectl.get("pod", "teller")
    address, node = found["status"]["podIP"], found["spec"]["nodeName"]
    url = f"http://{address}:1/teller/$(NAME)/$(UNKNOWN)"
    assert lines == [f"teller teller {node} {address} 64 {url}", 'app="teller"', "teller"]


def test_the_environment_is_the_pods_alone(kubectl: Kubectl, monkeypatch: pytest.MonkeyPatch) -> None:
    kubectl.apply(config_map("more", FROM_MAP="yes"))
    container = {"envFrom": [{"prefix": "P_", "configMapRef": {"name": "more"}}]}
    text = log_of(kubectl, "bare", "env", container, enableServiceLinks=False)
    names = {line.partition("=")[0] for line in text.splitlines()}
    names -= {"PWD", "SHLVL", "_", "OLDPWD"}  # the shell's own
    assert {"PATH", "HOME", "HOSTNAME", "P_FROM_MAP", "KUBERNETES_SERVICE_HOST"} <= names
    assert not {name for name in names if not name.startswith(("KUBERNETES_", "P_", "PATH", "HO"))}
