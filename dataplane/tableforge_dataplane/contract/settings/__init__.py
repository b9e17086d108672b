"""Every setting of the data plane: its environment variable, default, bounds and meaning.

This is the one place where defaults live, a module per group: `Settings.redis` is in `redis`, and so on. The
operator renders these variables and takes the CRD's defaults from here; `environment` reads them at the start
of an instance. Durations are whole milliseconds in the environment, as operators of the original deployment
know them, and seconds in code.
"""

import dataclasses
from typing import Any

from tableforge_dataplane.contract.settings.auth import AuthSettings, RsaAlgorithm, SecretAlgorithm
from tableforge_dataplane.contract.settings.declaration import Spec, Unit
from tableforge_dataplane.contract.settings.http import HttpSettings
from tableforge_dataplane.contract.settings.launch import LaunchSettings
from tableforge_dataplane.contract.settings.live import LiveSettings
from tableforge_dataplane.contract.settings.load_balancing import LoadBalancingSettings, PlacementStrategy
from tableforge_dataplane.contract.settings.logging import LogFormat, LoggingSettings, LogLevel
from tableforge_dataplane.contract.settings.monitoring import MonitoringSettings
from tableforge_dataplane.contract.settings.performance import PerformanceSettings
from tableforge_dataplane.contract.settings.redis import Durability, RedisMode, RedisSettings
from tableforge_dataplane.contract.settings.rollout import RolloutSettings
from tableforge_dataplane.contract.settings.rooms import RoomSettings
from tableforge_dataplane.contract.settings.routing import RoutingMode, RoutingSettings
from tableforge_dataplane.contract.settings.scaling import ScalingSettings
from tableforge_dataplane.contract.settings.secret import Secret
from tableforge_dataplane.contract.settings.security import ClientAddressHeader, SecuritySettings
from tableforge_dataplane.contract.settings.websocket import TlsVersion, WebsocketSettings

__all__ = [
    "AuthSettings",
    "ClientAddressHeader",
    "Durability",
    "HttpSettings",
    "LaunchSettings",
    "LiveSettings",
    "LoadBalancingSettings",
    "LogFormat",
    "LogLevel",
    "LoggingSettings",
    "MonitoringSettings",
    "PerformanceSettings",
    "PlacementStrategy",
    "RedisMode",
    "RedisSettings",
    "RolloutSettings",
    "RoomSettings",
    "RoutingMode",
    "RoutingSettings",
    "RsaAlgorithm",
    "ScalingSettings",
    "Secret",
    "SecretAlgorithm",
    "SecuritySettings",
    "Settings",
    "Spec",
    "TlsVersion",
    "Unit",
    "WebsocketSettings",
    "secrets_of",
    "specs",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of one instance."""

    redis: RedisSettings = RedisSettings()
    websocket: WebsocketSettings = WebsocketSettings()
    scaling: ScalingSettings = ScalingSettings()
    performance: PerformanceSettings = PerformanceSettings()
    rooms: RoomSettings = RoomSettings()
    load_balancing: LoadBalancingSettings = LoadBalancingSettings()
    security: SecuritySettings = SecuritySettings()
    auth: AuthSettings = AuthSettings()
    http: HttpSettings = HttpSettings()
    monitoring: MonitoringSettings = MonitoringSettings()
    rollout: RolloutSettings = RolloutSettings()
    routing: RoutingSettings = RoutingSettings()
    logging: LoggingSettings = LoggingSettings()
    launch: LaunchSettings = LaunchSettings()
    live: LiveSettings = LiveSettings()

    warnings: tuple[str, ...] = ()
    """Sentences about variables that were accepted and have no effect."""

    @property
    def capacity(self) -> int:
        """The most connections this instance takes."""
        return min(self.websocket.max_connections, self.load_balancing.max_connections_per_instance)


def secrets_of(settings: Settings) -> list[Secret]:
    """Everything in `settings` that must not show anywhere."""
    return [
        value
        for group in dataclasses.fields(settings)
        if group.name != "warnings"
        for value in vars(getattr(settings, group.name)).values()
        if isinstance(value, Secret)
    ]


def specs() -> dict[str, tuple[Spec, Any]]:
    """Every setting as `group.field` → (spec, default), for the CRD, the docs and their checks."""
    found: dict[str, tuple[Spec, Any]] = {}
    for group in dataclasses.fields(Settings):
        if group.name == "warnings":
            continue
        group_type: Any = type(group.default)
        for field in dataclasses.fields(group_type):
            default = field.default
            if default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            found[f"{group.name}.{field.name}"] = (field.metadata["spec"], default)
    return found
