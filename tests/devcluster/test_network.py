"""No two clusters on one machine share an address."""

import ipaddress
import socket
import subprocess
import sys

from devcluster.network import Network, claim_network, free_port


def test_each_claim_has_a_slice_of_its_own() -> None:
    first, second = claim_network(), claim_network()
    try:
        assert first.network != second.network
        one, other = ipaddress.IPv4Network(first.network.cidr), ipaddress.IPv4Network(second.network.cidr)
        assert not one.overlaps(other)
    finally:
        first.release()
        second.release()


def test_a_claim_ends_with_its_process() -> None:
    program = """
from devcluster.network import claim_network
claim = claim_network()
print(claim.network.number, flush=True)
input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        number = int(holder.stdout.readline())
        probe = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        holder.kill()
        holder.wait()
        with probe:
            probe.bind(f"\0devcluster/127.{number}")


def test_pods_services_and_machinery_do_not_overlap() -> None:
    network = Network(99)
    whole = ipaddress.IPv4Network(network.cidr)
    pods, services = ipaddress.IPv4Network(network.pod_cidr), ipaddress.IPv4Network(network.service_cidr)
    assert whole.supernet_of(pods)
    assert whole.supernet_of(services)
    assert not pods.overlaps(services)
    for address in (network.node_address, network.etcd_address, network.controller_manager_address):
        assert ipaddress.ip_address(address) in whole
        assert ipaddress.ip_address(address) not in pods
        assert ipaddress.ip_address(address) not in services
    assert ipaddress.ip_address(network.api_address) == services[1]


def test_a_port_that_something_has_on_every_address_is_left_alone() -> None:
    with socket.socket() as server:
        server.bind(("0.0.0.0", 0))
        server.listen()
        taken = server.getsockname()[1]
        assert free_port("127.0.0.2", preferred=taken) != taken
    assert free_port("127.0.0.2", preferred=taken) == taken
