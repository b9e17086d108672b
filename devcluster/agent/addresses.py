"""Addresses of pods: one loopback address each out of the pod network, the longest unused first."""

import ipaddress
from collections import deque


class AddressesExhausted(Exception):  # noqa: N818 -- reads as the condition it is
    """Every address of the pod network is in use."""


class PodAddresses:
    """Hands out addresses and takes them back.

    An address that came back is reused last, so that a client that still knows a gone pod's address does not
    reach another pod by it.
    """

    FRESH_LIMIT = 65_536

    def __init__(self, network: ipaddress.IPv4Network) -> None:
        self._network = network
        first, count = int(network.network_address), min(network.num_addresses, self.FRESH_LIMIT)
        # Not the network's address, its first host (a gateway's by custom) nor its last.
        self._free = deque(range(first + 2, first + count - 1))
        self._used: set[int] = set()

    def take(self) -> str:
        """An unused address. Raises AddressesExhausted."""
        if not self._free:
            raise AddressesExhausted(f"all addresses of {self._network} are in use")
        number = self._free.popleft()
        self._used.add(number)
        return str(ipaddress.IPv4Address(number))

    def give_back(self, address: str) -> None:
        """Return an address; one that is not in use is ignored."""
        number = int(ipaddress.IPv4Address(address))
        if number in self._used:
            self._used.remove(number)
            self._free.append(number)
