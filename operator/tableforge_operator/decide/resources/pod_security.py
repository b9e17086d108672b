"""What keeps our pods within PodSecurity's `restricted`."""

from typing import Any, Final

POD: Final[dict[str, Any]] = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
CONTAINER: Final[dict[str, Any]] = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}
SECRET_MODE: Final = 0o444
"""Readable for whatever user the image names. The volume is in no other container."""
