"""What every pod needs from the node around it."""

import dataclasses
from collections.abc import Callable

import aiohttp

from devcluster.agent.addresses import PodAddresses
from devcluster.agent.api import Api, Object
from devcluster.agent.env import Lookup
from devcluster.agent.events import EventRecorder
from devcluster.agent.images import Found
from devcluster.agent.settings import AgentSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class NodeContext:
    """The node's services to its pods."""

    settings: AgentSettings
    api: Api
    events: EventRecorder
    addresses: PodAddresses
    lookup: Lookup
    find_image: Callable[[str], Found | None]
    services: Callable[[], list[Object]]
    """All Services of the cluster, as last seen."""
    host_lines: Callable[[str], list[str]]
    """The Services' lines of `/etc/hosts`, as a namespace sees them."""
    api_server: tuple[str, int] | None
    """Where pods find the API server; None: at the address of its Service."""
    probe_http: aiohttp.ClientSession
