"""A gateway in front of a devcluster: the kinds of the Gateway API, and a real Traefik that serves them."""

from .kinds import GatewayUnavailableError, gateway_api_version, install_kinds
from .traefik import HOST, NAMESPACE, Traefik, built_with

__all__ = [
    "HOST",
    "NAMESPACE",
    "GatewayUnavailableError",
    "Traefik",
    "built_with",
    "gateway_api_version",
    "install_kinds",
]
