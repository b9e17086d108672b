"""Every key, certificate and kubeconfig of one cluster.

Four authorities, because trust must not cross over: a client certificate of the cluster opens neither etcd
nor the agent's server, and only the API server's aggregation layer speaks for other users (the front proxy).
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path

import yaml

from devcluster.network import Network

from .certificates import Authority, KeyPair, signing_key, write_secret

CONTEXT = "devcluster"
"""Name of the only context in every kubeconfig."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """Where everything lies. A `…_ca` is a certificate; what has a key is a pair."""

    cluster_ca: KeyPair
    etcd_ca: Path
    front_proxy_ca: Path
    kubelet_client_ca: Path
    etcd_server: KeyPair
    etcd_client: KeyPair
    api_server: KeyPair
    kubelet_client: KeyPair
    front_proxy_client: KeyPair
    agent_server: KeyPair
    service_account: KeyPair
    supervisor: KeyPair
    admin_kubeconfig: Path
    controller_manager_kubeconfig: Path
    agent_kubeconfig: Path


def create(
    folder: Path, *, network: Network, api_url: str, node_name: str, admin_kubeconfig: Path
) -> Credentials:
    """Make them all, in `folder`, but for the admin's kubeconfig, which may be wanted elsewhere."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    cluster = Authority(folder, "cluster-ca")
    etcd = Authority(folder, "etcd-ca")
    front_proxy = Authority(folder, "front-proxy-ca")
    kubelet_client = Authority(folder, "kubelet-client-ca")

    def kubeconfig(path: Path, user: KeyPair) -> Path:
        write_kubeconfig(path, api_url=api_url, authority=cluster.certificate, user=user)
        return path

    admin = cluster.client("admin", common_name="devcluster-admin", organisation="system:masters")
    return Credentials(
        cluster_ca=cluster.pair,
        etcd_ca=etcd.certificate,
        front_proxy_ca=front_proxy.certificate,
        kubelet_client_ca=kubelet_client.certificate,
        etcd_server=etcd.server("etcd-server", hosts=[network.etcd_address]),
        etcd_client=etcd.client("etcd-client", common_name="kube-apiserver"),
        api_server=cluster.server(
            "api-server",
            hosts=[
                "kubernetes",
                "kubernetes.default",
                "kubernetes.default.svc",
                "kubernetes.default.svc.cluster.local",
                network.api_address,
            ],
        ),
        kubelet_client=kubelet_client.client("kubelet-client", common_name="kube-apiserver"),
        front_proxy_client=front_proxy.client("front-proxy-client", common_name="front-proxy-client"),
        # The last name is that of the Service behind which it serves the metrics API.
        agent_server=cluster.server(
            "agent-server", hosts=[node_name, network.node_address, "metrics.kube-system.svc"]
        ),
        service_account=signing_key(folder, "service-account"),
        # Names of their own keep the writes of the machinery apart in the audit log.
        supervisor=cluster.client(
            "supervisor", common_name="devcluster-supervisor", organisation="system:masters"
        ),
        admin_kubeconfig=kubeconfig(admin_kubeconfig, admin),
        controller_manager_kubeconfig=kubeconfig(
            folder / "controller-manager.kubeconfig",
            cluster.client("controller-manager", common_name="system:kube-controller-manager"),
        ),
        # Kubelet, scheduler and kube-proxy in one.
        agent_kubeconfig=kubeconfig(
            folder / "agent.kubeconfig",
            cluster.client("agent", common_name="devcluster-agent", organisation="system:masters"),
        ),
    )


def server_of(kubeconfig: Path) -> str | None:
    """The API server of a devcluster's kubeconfig; None for any other file, which is not ours to touch."""
    try:
        content = yaml.safe_load(kubeconfig.read_text(encoding="utf-8"))
        [cluster] = content["clusters"]
        return str(cluster["cluster"]["server"]) if cluster["name"] == CONTEXT else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, LookupError, TypeError, ValueError):
        return None


def write_kubeconfig(path: Path, *, api_url: str, authority: Path, user: KeyPair) -> None:
    """Write a kubeconfig that carries everything itself (JSON, which is YAML): it can be copied anywhere."""

    def inline(file: Path) -> str:
        return base64.b64encode(file.read_bytes()).decode()

    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": CONTEXT,
                "cluster": {"server": api_url, "certificate-authority-data": inline(authority)},
            }
        ],
        "users": [
            {
                "name": user.certificate.stem,
                "user": {
                    "client-certificate-data": inline(user.certificate),
                    "client-key-data": inline(user.key),
                },
            }
        ],
        "contexts": [{"name": CONTEXT, "context": {"cluster": CONTEXT, "user": user.certificate.stem}}],
        "current-context": CONTEXT,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_secret(path, (json.dumps(content, indent=2) + "\n").encode())
