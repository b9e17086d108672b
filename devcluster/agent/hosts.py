"""The names of the cluster, as an `/etc/hosts`: there is no DNS server in a devcluster.

A Service has the names that DNS would give it (`name.ns.svc.cluster.local` and its shorter forms; the bare
name only inside its own namespace); a headless one resolves to its pods, and a StatefulSet's pods have their
own names below it.
"""

import ipaddress
import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from devcluster.agent.api import Object
from devcluster.agent.endpoints import pods_behind

DOMAIN = "cluster.local"


def _names(name: str, namespace: str, viewer: str) -> list[str]:
    full = f"{name}.{namespace}"
    names = [f"{full}.svc.{DOMAIN}", f"{full}.svc", full]
    return [*names, name] if namespace == viewer else names


def _address_of(external_name: str) -> str | None:
    if external_name == "localhost":
        return "127.0.0.1"
    try:
        return str(ipaddress.ip_address(external_name))
    except ValueError:
        return None


def service_lines(services: Iterable[Object], pods: Iterable[Object], viewer: str) -> list[str]:
    """The lines for all Services, as seen from a namespace."""
    by_namespace: dict[str, list[Object]] = defaultdict(list)
    for pod in pods:
        by_namespace[pod["metadata"]["namespace"]].append(pod)
    lines = []
    for service in services:
        metadata, spec = service["metadata"], service["spec"]
        name, namespace = metadata["name"], metadata["namespace"]
        names = _names(name, namespace, viewer)
        address = spec.get("clusterIP", "")
        if spec.get("type") == "ExternalName":
            if known := _address_of(spec.get("externalName", "")):
                lines.append(f"{known}\t{' '.join(names)}")
        elif address == "None":
            for pod in pods_behind(service, by_namespace[namespace]):
                own = []
                if pod["spec"].get("subdomain") == name and (hostname := pod["spec"].get("hostname")):
                    own = _names(f"{hostname}.{name}", namespace, viewer)
                lines.append(f"{pod['status']['podIP']}\t{' '.join([*own, *names])}")
        elif address:
            lines.append(f"{address}\t{' '.join(names)}")
    return sorted(lines)


def hosts_file(pod: Object, pod_ip: str, lines: list[str]) -> str:
    """A pod's whole `/etc/hosts`; `lines` are the Services' as its namespace sees them."""
    spec, namespace = pod["spec"], pod["metadata"]["namespace"]
    hostname = spec.get("hostname") or pod["metadata"]["name"]
    own = [hostname]
    if subdomain := spec.get("subdomain"):
        own = [f"{hostname}.{subdomain}.{namespace}.svc.{DOMAIN}", hostname]
    result = ["127.0.0.1\tlocalhost", f"{pod_ip}\t{' '.join(own)}"]
    result += [
        f"{one['ip']}\t{' '.join(one.get('hostnames') or [])}" for one in spec.get("hostAliases") or []
    ]
    return "\n".join([*result, *lines]) + "\n"


def write_in_place(file: Path, text: str) -> None:
    """Change a file that is bound into containers: its inode must stay.

    The new text goes over the old one in a single write, so a reader never meets an empty file.
    """
    data = text.encode()
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if os.pread(descriptor, len(data) + 1, 0) != data:
            os.pwrite(descriptor, data, 0)
            os.ftruncate(descriptor, len(data))
    finally:
        os.close(descriptor)
