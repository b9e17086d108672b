"""The agent by itself: an API server that goes away, its own restart, a machine that refuses namespaces."""

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from devcluster import ComponentDied, Devcluster
from tests.devcluster.agent.conftest import IMAGES
from tests.devcluster.agent.workloads import (
    Manifest,
    deployment,
    eventually,
    pod,
    shell,
    status_of,
    wait_ready,
)
from tests.support.children import free_port
from tests.support.kubectl import Kubectl

pytestmark = pytest.mark.cluster


class Line:
    """A TCP connection to the API server that can be cut and mended."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = free_port()  # it stays free while the line is cut

    async def mend(self) -> None:
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", self.port)

    async def cut(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(*self._target)
        ends = {writer, far_writer}
        self._writers |= ends

        async def one_way(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(65536):
                    target.write(data)
                    await target.drain()
            target.close()

        await asyncio.gather(one_way(reader, far_writer), one_way(far_reader, writer))
        self._writers -= ends


class Agent:
    """An agent process on a control plane of the test's own."""

    def __init__(self, cluster: Devcluster, folder: Path, line: Line) -> None:
        certificates = Path(cluster.description.data_dir) / "certificates"
        config = json.loads((certificates / "agent.kubeconfig").read_text())
        config["clusters"][0]["cluster"] |= {
            "server": f"https://127.0.0.1:{line.port}",
            "tls-server-name": "kubernetes",
        }
        (folder / "kubeconfig").write_text(json.dumps(config))
        (folder / "images.json").write_text(json.dumps(IMAGES))
        network = cluster.network
        self.folder = folder
        self.arguments = [
            f"--kubeconfig={folder / 'kubeconfig'}",
            "--node-name=devcluster",
            f"--node-ip={network.node_address}",
            f"--pod-cidr={network.pod_cidr}",
            f"--service-cidr={network.service_cidr}",
            f"--data-dir={folder / 'agent'}",
            f"--images={folder / 'images.json'}",
            "--port=0",
            f"--tls-cert={certificates / 'agent-server.crt'}",
            f"--tls-key={certificates / 'agent-server.key'}",
            f"--client-ca={certificates / 'kubelet-client-ca.crt'}",
            f"--front-proxy-ca={certificates / 'front-proxy-ca.crt'}",
        ]
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "devcluster.agent", *self.arguments, cwd=Path(__file__).parents[3]
        )

    async def end(self, number: signal.Signals) -> int:
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(number)
        return await self._process.wait()


@pytest.fixture
async def alone(tmp_path: Path) -> AsyncIterator[tuple[Kubectl, Agent, Line]]:
    """A control plane, an agent on it, and the line between them."""
    async with Devcluster(agent=False) as cluster:
        host, _, port = cluster.api_url.removeprefix("https://").partition(":")
        line = Line(host, int(port))
        await line.mend()
        agent = Agent(cluster, tmp_path, line)
        await agent.start()
        try:
            yield Kubectl(cluster.kubeconfig, namespace="default"), agent, line
        finally:
            await agent.end(signal.SIGTERM)
            await line.cut()


async def test_pods_run_on_while_the_api_server_is_away(alone: tuple[Kubectl, Agent, Line]) -> None:
    kubectl, _, line = alone
    # by a rename, so that no reader finds it empty
    count = "echo $i > /out/next; mv /out/next /out/count"
    script = f"i=0; while true; do i=$((i+1)); {count}; sleep 0.1; done"
    folder = alone[1].folder / "out"
    folder.mkdir()
    mount = {"volumeMounts": [{"name": "out", "mountPath": "/out"}]}
    volume = {"name": "out", "hostPath": {"path": str(folder)}}
    manifest = deployment("counter", shell(script, **mount), replicas=1, volumes=[volume])
    await asyncio.to_thread(kubectl.apply, manifest)
    await asyncio.to_thread(kubectl, "rollout", "status", "deployment/counter", "--timeout=120s")
    before = {one["metadata"]["name"] for one in kubectl.get("pods")["items"]}

    await asyncio.to_thread(eventually, (folder / "count").exists)
    await line.cut()
    first = int((folder / "count").read_text())
    # What happens meanwhile, deletions included, must be noticed afterwards.
    kubectl("delete", "pod", *before, "--wait=false")
    kubectl.apply(pod("new", shell("exec sleep 1000")))
    await asyncio.to_thread(eventually, lambda: int((folder / "count").read_text()) > first + 15)
    assert before <= {one["metadata"]["name"] for one in kubectl.get("pods")["items"]}

    await line.mend()
    await asyncio.to_thread(wait_ready, kubectl, "pod/new")
    await asyncio.to_thread(kubectl, "rollout", "status", "deployment/counter", "--timeout=120s")

    def names() -> set[str]:
        return {one["metadata"]["name"] for one in kubectl.get("pods")["items"]}

    await asyncio.to_thread(eventually, lambda: not before & names())


async def test_an_agent_that_comes_back_starts_its_pods_again(alone: tuple[Kubectl, Agent, Line]) -> None:
    kubectl, agent, _ = alone
    once = pod("once", shell("exec sleep 1000"), restartPolicy="Never")
    for manifest in (pod("again", shell("exec sleep 1000")), once):
        await asyncio.to_thread(kubectl.apply, manifest)
        await asyncio.to_thread(wait_ready, kubectl, f"pod/{manifest['metadata']['name']}")
    await asyncio.to_thread(kubectl.apply, pod("leaving", shell("exec sleep 1000")))
    await asyncio.to_thread(wait_ready, kubectl, "pod/leaving")
    assert await agent.end(signal.SIGKILL) == -signal.SIGKILL
    kubectl("delete", "pod", "leaving", "--wait=false")
    (agent.folder / "agent" / "leftover").write_text("x")

    await agent.start()
    await asyncio.to_thread(eventually, lambda: status_of(kubectl, "again")["restartCount"] == 1)
    await asyncio.to_thread(wait_ready, kubectl, "pod/again")
    assert not (agent.folder / "agent" / "leftover").exists()
    assert status_of(kubectl, "again")["lastState"]["terminated"]["reason"] == "ContainerStatusUnknown"
    status: Manifest = kubectl.get("pod", "again")["status"]
    assert [one["ip"] for one in status["podIPs"]] == [status["podIP"]]
    await asyncio.to_thread(
        kubectl, "wait", "--for=jsonpath={.status.phase}=Failed", "pod/once", "--timeout=120s"
    )
    await asyncio.to_thread(kubectl, "wait", "--for=delete", "pod/leaving", "--timeout=120s")
    await asyncio.to_thread(kubectl, "delete", "pod", "once", "again", "--timeout=120s")


async def test_a_machine_without_namespaces_is_told_what_to_do(tmp_path: Path) -> None:
    arguments = (
        "--kubeconfig=k --node-name=n --node-ip=127.0.9.1 --pod-cidr=127.1.0.0/24 "
        f"--service-cidr=127.2.0.0/24 --data-dir={tmp_path} "
        "--images=i --port=0 --tls-cert=c --tls-key=k --client-ca=a"
        " --front-proxy-ca=f"
    )
    refuse = "echo 0 > /proc/sys/user/max_mnt_namespaces"
    process = await asyncio.create_subprocess_exec(
        *("unshare", "--user", "--map-root-user", "sh", "-c"),
        f"{refuse} && exec {sys.executable} -m devcluster.agent {arguments}",
        stderr=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[3],
    )
    _, output = await process.communicate()
    assert process.returncode == 3
    assert b"does not let the devcluster's node agent make namespaces" in output
    assert b"kind" in output


async def test_a_killed_api_server_costs_no_pod_and_comes_back_to_what_there_was() -> None:
    async with Devcluster(images=IMAGES) as cluster:
        kubectl = Kubectl(cluster.kubeconfig, namespace="default")
        kubectl.apply(pod("before", shell("sleep 600")))
        await asyncio.to_thread(wait_ready, kubectl, "pod/before")
        known = kubectl.get("pod", "before")
        for number in (1, 2):
            await cluster.restart_api_server()
            kubectl.apply(pod(f"after-{number}", shell("sleep 600")))
            await asyncio.to_thread(wait_ready, kubectl, f"pod/after-{number}")
        found = kubectl.get("pod", "before")
        assert found["metadata"]["uid"] == known["metadata"]["uid"]
        assert found["status"]["containerStatuses"] == known["status"]["containerStatuses"]
        kubectl("delete", "pod", "before", "--timeout=120s", "--grace-period=1")


async def test_an_api_server_that_does_not_come_back_ends_the_cluster() -> None:
    async def lose() -> None:
        async with Devcluster(agent=False) as cluster:
            # what it starts with is gone
            (Path(cluster.description.data_dir) / "certificates" / "api-server.crt").unlink()
            await cluster.restart_api_server()

    with pytest.raises(ComponentDied, match="kube-apiserver ended with status"):
        await lose()
