"""What the agent is told at its start: the command line of `python -m devcluster.agent`."""

import argparse
import dataclasses
import ipaddress
from pathlib import Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class AgentSettings:
    """The agent's settings. Paths are absolute."""

    kubeconfig: Path
    """Credentials that may do all that a kubelet, a scheduler and a kube-proxy may; `system:masters` here."""
    node_name: str
    node_ip: str
    """The node's InternalIP: node ports and the log server listen on it."""
    pod_cidr: ipaddress.IPv4Network
    service_cidr: ipaddress.IPv4Network
    data_dir: Path
    """Emptied at the start. Holds volumes, logs and mount points; containers don't see it."""
    images: Path
    port: int
    """Of the HTTPS server that `kubectl logs` reaches through the API server; 0 takes any free port."""
    tls_cert: Path
    tls_key: Path
    client_ca: Path
    """Who may read logs: bearers of a client certificate that this authority signed."""
    front_proxy_ca: Path
    """Who may ask for metrics: the API server, when it passes on what others ask of it."""
    hide: tuple[Path, ...] = ()
    """Host directories that containers must not see, beside `data_dir`."""
    backoff_initial_seconds: float = 10.0
    """The kubelet's: the second restart of a container waits this long, each further one twice as long."""
    backoff_limit_seconds: float = 300.0
    shutdown_grace_seconds: float = 2.0
    """How long processes may take to end when the agent itself is told to."""
    log_file_bytes: int = 10 * 1024 * 1024
    """At which size a container's log file is rotated; one older file is kept."""


def parse(arguments: list[str] | None = None) -> AgentSettings:
    """Read the command line; ends the process with a usage message where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m devcluster.agent", description="Run pods as local processes."
    )
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument("--node-name", required=True)
    parser.add_argument("--node-ip", required=True, help="the node's address, inside 127.0.0.0/8")
    parser.add_argument("--pod-cidr", type=ipaddress.IPv4Network, required=True, help="such as 127.40.0.0/16")
    parser.add_argument("--service-cidr", type=ipaddress.IPv4Network, required=True)
    parser.add_argument("--data-dir", type=Path, required=True, help="emptied at the start")
    parser.add_argument("--images", type=Path, required=True, help="JSON: what runs for which image")
    parser.add_argument(
        "--port", type=int, required=True, help="of the log server on the node's address; 0: any"
    )
    parser.add_argument("--tls-cert", type=Path, required=True)
    parser.add_argument("--tls-key", type=Path, required=True)
    parser.add_argument("--client-ca", type=Path, required=True)
    parser.add_argument("--front-proxy-ca", type=Path, required=True)
    parser.add_argument(
        "--hide", type=Path, action="append", default=[], help="a directory containers don't see"
    )
    parser.add_argument("--backoff-initial", type=float, default=10.0, metavar="SECONDS")
    parser.add_argument("--backoff-limit", type=float, default=300.0, metavar="SECONDS")
    parser.add_argument("--shutdown-grace", type=float, default=2.0, metavar="SECONDS")
    parser.add_argument("--log-file-bytes", type=int, default=10 * 1024 * 1024)
    given = parser.parse_args(arguments)
    if not ipaddress.ip_address(given.node_ip).is_loopback:
        parser.error(
            f"--node-ip {given.node_ip}: must lie in 127.0.0.0/8, the agent serves this machine only"
        )
    if not given.pod_cidr.is_loopback:
        parser.error(f"--pod-cidr {given.pod_cidr}: must lie in 127.0.0.0/8, pods get loopback addresses")
    if not given.service_cidr.is_loopback:
        parser.error(
            f"--service-cidr {given.service_cidr}: must lie in 127.0.0.0/8, Services get loopback addresses"
        )
    if given.pod_cidr.overlaps(given.service_cidr):
        parser.error(f"--pod-cidr {given.pod_cidr} and --service-cidr {given.service_cidr} overlap")
    return AgentSettings(
        kubeconfig=given.kubeconfig.resolve(),
        node_name=given.node_name,
        node_ip=given.node_ip,
        pod_cidr=given.pod_cidr,
        service_cidr=given.service_cidr,
        data_dir=given.data_dir.resolve(),
        images=given.images.resolve(),
        port=given.port,
        tls_cert=given.tls_cert.resolve(),
        tls_key=given.tls_key.resolve(),
        client_ca=given.client_ca.resolve(),
        front_proxy_ca=given.front_proxy_ca.resolve(),
        hide=tuple(path.resolve() for path in given.hide),
        backoff_initial_seconds=given.backoff_initial,
        backoff_limit_seconds=given.backoff_limit,
        shutdown_grace_seconds=given.shutdown_grace,
        log_file_bytes=given.log_file_bytes,
    )
