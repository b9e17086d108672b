"""Ports, HTTP paths and mounted files on which operator and data plane meet."""

from typing import Final

SUBPROTOCOL: Final = "tableforge.v1"

WS_PATH: Final = "/ws"
HEALTH_PATH: Final = "/health"
LIVE_PATH: Final = "/live"
READY_PATH: Final = "/ready"
METRICS_PATH: Final = "/metrics"
FLEET_PATH: Final = "/fleet"

FLEET_KEY_INFO: Final = "tableforge/fleet/v1"
"""HKDF's `info` for the key that guards `/fleet`; its salt is the CR's uid."""

REDIS_PASSWORD_INFO: Final = "tableforge/redis-password/v1"  # noqa: S105 (a label, not a password)
"""HKDF's `info` for the password of a managed Redis; its salt is the CR's uid and the generation."""

SECRETS_DIR: Final = "/var/run/tableforge"
"""Where the operator mounts Secrets into the pod; one folder each below it."""

REDIS_PASSWORD_FILE: Final = f"{SECRETS_DIR}/redis/password"
JWT_SECRET_FILE: Final = f"{SECRETS_DIR}/jwt/secret"
FLEET_KEY_FILE: Final = f"{SECRETS_DIR}/fleet/key"
