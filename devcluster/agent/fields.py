"""What a pod may ask about itself: the downward API's fields and resources."""

import math
import os
import re
from collections.abc import Mapping
from fractions import Fraction

from devcluster.agent.api import Object

_SUFFIXES = {
    "n": Fraction(1, 10**9),
    "u": Fraction(1, 10**6),
    "m": Fraction(1, 1000),
    "": Fraction(1),
    "k": Fraction(10**3),
    "M": Fraction(10**6),
    "G": Fraction(10**9),
    "T": Fraction(10**12),
    "P": Fraction(10**15),
    "E": Fraction(10**18),
    "Ki": Fraction(2**10),
    "Mi": Fraction(2**20),
    "Gi": Fraction(2**30),
    "Ti": Fraction(2**40),
    "Pi": Fraction(2**50),
    "Ei": Fraction(2**60),
}
_QUANTITY = re.compile(r"([+-]?[0-9.]+)([eE][+-]?[0-9]+)?([A-Za-z]*)")
_SUBSCRIPT = re.compile(r"metadata\.(labels|annotations)\['([^']+)'\]")


class FieldError(ValueError):
    """A pod asks for a field that does not exist."""


def quantity(text: str) -> Fraction:
    """The value of a Kubernetes quantity such as `250m` or `1Gi`. Raises FieldError."""
    found = _QUANTITY.fullmatch(str(text))
    if not found or found[3] not in _SUFFIXES:
        raise FieldError(f"{text!r} is no quantity")
    return Fraction(found[1] + (found[2] or "")) * _SUFFIXES[found[3]]


def machine_resources() -> dict[str, str]:
    """What the node has: its capacity and what a container without limits may use."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    disk = os.statvfs("/")
    return {
        "cpu": str(os.cpu_count() or 1),
        "memory": f"{memory // 1024}Ki",
        "ephemeral-storage": f"{disk.f_frsize * disk.f_blocks // 1024}Ki",
    }


def field_value(pod: Object, path: str, *, pod_ip: str, host_ip: str) -> str:
    """The value of a `fieldRef`. Raises FieldError."""
    metadata, spec = pod["metadata"], pod["spec"]
    if found := _SUBSCRIPT.fullmatch(path):
        return str((metadata.get(found[1]) or {}).get(found[2], ""))
    if path in ("metadata.labels", "metadata.annotations"):
        return _map_text(metadata.get(path.removeprefix("metadata.")) or {})
    simple = {
        "metadata.name": metadata["name"],
        "metadata.namespace": metadata["namespace"],
        "metadata.uid": metadata["uid"],
        "spec.nodeName": spec.get("nodeName", ""),
        "spec.serviceAccountName": spec.get("serviceAccountName", ""),
        "status.podIP": pod_ip,
        "status.podIPs": pod_ip,
        "status.hostIP": host_ip,
        "status.hostIPs": host_ip,
    }
    if path not in simple:
        raise FieldError(f"fieldPath {path!r} is not supported")
    return str(simple[path])


def _map_text(values: Mapping[str, str]) -> str:
    escaped = (
        (key, value.replace("\\", "\\\\").replace('"', '\\"')) for key, value in sorted(values.items())
    )
    return "\n".join('{}="{}"'.format(key, value.replace("\n", "\\n")) for key, value in escaped)


def resource_value(container: Object, reference: Object) -> str:
    """The value of a `resourceFieldRef`, in units of its divisor and rounded up. Raises FieldError."""
    kind, _, name = reference["resource"].partition(".")
    resources = container.get("resources") or {}
    given = (resources.get(kind) or {}).get(name)
    if given is None and kind == "limits":
        given = machine_resources().get(name)
    amount = quantity(given) if given is not None else Fraction(0)
    divisor = quantity(reference.get("divisor") or "1") or Fraction(1)
    return str(math.ceil(amount / divisor))
