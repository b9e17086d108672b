"""Each cluster's own slice of the loopback network: `127.<n>.0.0/16`.

`n` is claimed for as long as the cluster lives by a bound abstract Unix socket. Those are unique per network
namespace, which is exactly where loopback addresses are unique, whoever the users are; and the kernel drops
the claim with the process that holds it, however that one ends.
"""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass

from .errors import DevclusterError

# 127.0.x.x is everybody's; resolvers and databases live in the lowest ones by habit.
FIRST_NUMBER = 20
LAST_NUMBER = 250


@dataclass(frozen=True, slots=True)
class Network:
    """The addresses of one cluster.

    The first half of the slice is for the machinery (its first quarter) and the pods (its second), the second
    half for Services. The API server listens on the address that Kubernetes reserves for the Service
    `kubernetes`, so a pod reaches it there without anyone in between.
    """

    number: int

    @property
    def cidr(self) -> str:
        """The whole slice."""
        return f"127.{self.number}.0.0/16"

    @property
    def node_address(self) -> str:
        """The Node's InternalIP, where the agent listens."""
        return f"127.{self.number}.0.1"

    @property
    def etcd_address(self) -> str:
        return f"127.{self.number}.0.2"

    @property
    def controller_manager_address(self) -> str:
        return f"127.{self.number}.0.3"

    @property
    def pod_cidr(self) -> str:
        return f"127.{self.number}.64.0/18"

    @property
    def service_cidr(self) -> str:
        return f"127.{self.number}.128.0/17"

    @property
    def api_address(self) -> str:
        """The API server's, and the cluster IP of the Service `kubernetes`."""
        return f"127.{self.number}.128.1"


class NetworkClaim:
    """Holds a slice until it is released or its process ends."""

    def __init__(self, network: Network, holder: socket.socket) -> None:
        self.network = network
        self._holder = holder

    def release(self) -> None:
        self._holder.close()


def claim_network() -> NetworkClaim:
    """Claim the lowest slice that no other cluster on this machine holds.

    Raises DevclusterError when all are taken.
    """
    for number in range(FIRST_NUMBER, LAST_NUMBER + 1):
        holder = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            holder.bind(f"\0devcluster/127.{number}")
        except OSError as error:
            holder.close()
            if error.errno != errno.EADDRINUSE:
                raise
            continue
        return NetworkClaim(Network(number), holder)
    raise DevclusterError(
        f"All {LAST_NUMBER - FIRST_NUMBER + 1} loopback slices are in use by devclusters; "
        "stop some of them (python -m devcluster status)."
    )


def free_port(address: str, *, preferred: int) -> int:
    """A TCP port that can be bound at `address` now: the preferred one unless something has it.

    Something that listens on every address (a k3s on this machine, say) has it here too.
    """
    for candidate in (preferred, 0):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            # As servers do: connections of a predecessor in TIME_WAIT are no reason to go elsewhere.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, candidate))
            except OSError as error:
                if error.errno == errno.EADDRINUSE and candidate:
                    continue
                raise
            port: int = probe.getsockname()[1]
            return port
    raise AssertionError("binding port 0 either succeeds or raises")
