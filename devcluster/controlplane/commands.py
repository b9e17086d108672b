"""The command lines of the three programs: pure functions from what is known to what is run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from devcluster.network import Network
from devcluster.toolchain import Binaries

from .credentials import Credentials

AUDIT_POLICY = """\
# Who did what to which object, without bodies: enough to count anybody's writes.
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
"""

# What would do harm here, and why.
DISABLED_CONTROLLERS = (
    # Endpoints and EndpointSlices refuse loopback addresses; the agent reads pods instead.
    "endpoints-controller",
    "endpointslice-controller",
    "endpointslice-mirroring-controller",
    # A laptop that wakes from sleep would find its pods evicted.
    "node-lifecycle-controller",
    "taint-eviction-controller",
    # There is one node, with a network that is given.
    "node-ipam-controller",
    # Volumes are folders of this machine: nothing to attach.
    "persistentvolume-attach-detach-controller",
)


@dataclass(frozen=True, slots=True)
class Ports:
    """TCP ports, each on the address that Network gives its program."""

    etcd_client: int
    etcd_peer: int
    api_server: int
    controller_manager: int


@dataclass(frozen=True, slots=True)
class Files:
    """Where the programs keep things."""

    etcd_data: Path
    audit_policy: Path
    audit_log: Path
    certificates: Path


def etcd(
    binaries: Binaries, network: Network, ports: Ports, files: Files, credentials: Credentials
) -> list[str]:
    """One member, no fsync: the data does not outlive the cluster."""
    client = f"https://{network.etcd_address}:{ports.etcd_client}"
    peer = f"https://{network.etcd_address}:{ports.etcd_peer}"
    server = credentials.etcd_server
    return [
        str(binaries.etcd),
        "--name=devcluster",
        f"--data-dir={files.etcd_data}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=devcluster={peer}",
        f"--cert-file={server.certificate}",
        f"--key-file={server.key}",
        f"--trusted-ca-file={credentials.etcd_ca}",
        "--client-cert-auth",
        f"--peer-cert-file={server.certificate}",
        f"--peer-key-file={server.key}",
        f"--peer-trusted-ca-file={credentials.etcd_ca}",
        "--peer-client-cert-auth",
        "--unsafe-no-fsync",
        "--auto-compaction-mode=periodic",
        "--auto-compaction-retention=10m",
        "--log-level=warn",
    ]


def api_server(
    binaries: Binaries, network: Network, ports: Ports, files: Files, credentials: Credentials
) -> list[str]:
    """Node and RBAC authorization, default admission, audit log, aggregation layer."""
    return [
        str(binaries.kube_apiserver),
        f"--bind-address={network.api_address}",
        f"--advertise-address={network.api_address}",
        f"--secure-port={ports.api_server}",
        f"--tls-cert-file={credentials.api_server.certificate}",
        f"--tls-private-key-file={credentials.api_server.key}",
        f"--cert-dir={files.certificates}",
        f"--etcd-servers=https://{network.etcd_address}:{ports.etcd_client}",
        f"--etcd-cafile={credentials.etcd_ca}",
        f"--etcd-certfile={credentials.etcd_client.certificate}",
        f"--etcd-keyfile={credentials.etcd_client.key}",
        f"--service-cluster-ip-range={network.service_cidr}",
        # It would write the Endpoints of the Service `kubernetes`, which refuse loopback addresses.
        "--endpoint-reconciler-type=none",
        f"--client-ca-file={credentials.cluster_ca.certificate}",
        "--authorization-mode=Node,RBAC",
        "--allow-privileged=true",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-account-key-file={credentials.service_account.certificate}",
        f"--service-account-signing-key-file={credentials.service_account.key}",
        f"--kubelet-certificate-authority={credentials.cluster_ca.certificate}",
        f"--kubelet-client-certificate={credentials.kubelet_client.certificate}",
        f"--kubelet-client-key={credentials.kubelet_client.key}",
        "--kubelet-preferred-address-types=InternalIP",
        f"--requestheader-client-ca-file={credentials.front_proxy_ca}",
        "--requestheader-allowed-names=front-proxy-client",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-username-headers=X-Remote-User",
        f"--proxy-client-cert-file={credentials.front_proxy_client.certificate}",
        f"--proxy-client-key-file={credentials.front_proxy_client.key}",
        f"--audit-policy-file={files.audit_policy}",
        f"--audit-log-path={files.audit_log}",
        "--audit-log-maxsize=500",
        "--audit-log-maxbackup=1",
        "--profiling=false",
    ]


def controller_manager(
    binaries: Binaries, network: Network, ports: Ports, files: Files, credentials: Credentials
) -> list[str]:
    """Every controller but those that would do harm, each under a service account of its own."""
    kubeconfig = credentials.controller_manager_kubeconfig
    return [
        str(binaries.kube_controller_manager),
        f"--kubeconfig={kubeconfig}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        f"--bind-address={network.controller_manager_address}",
        f"--secure-port={ports.controller_manager}",
        f"--cert-dir={files.certificates}",
        f"--requestheader-client-ca-file={credentials.front_proxy_ca}",
        f"--client-ca-file={credentials.cluster_ca.certificate}",
        f"--controllers={','.join(['*', *(f'-{name}' for name in DISABLED_CONTROLLERS)])}",
        "--leader-elect=false",
        # A claim's first save may conflict with its finalizer, and is tried again only at the next sync.
        "--pvclaimbinder-sync-period=1s",
        "--use-service-account-credentials=true",
        # 15 s by default, which here would only make people wait.
        "--horizontal-pod-autoscaler-sync-period=3s",
        f"--service-account-private-key-file={credentials.service_account.key}",
        f"--root-ca-file={credentials.cluster_ca.certificate}",
        f"--cluster-signing-cert-file={credentials.cluster_ca.certificate}",
        f"--cluster-signing-key-file={credentials.cluster_ca.key}",
        f"--service-cluster-ip-range={network.service_cidr}",
        "--allocate-node-cidrs=false",
        # The defaults (20 and 30) are for a cluster of many; here they would only make people wait.
        "--kube-api-qps=200",
        "--kube-api-burst=400",
        "--profiling=false",
    ]
