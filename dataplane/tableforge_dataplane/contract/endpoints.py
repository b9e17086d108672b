"""Ports, HTTP paths and mounted files on which operator and data plane meet."""

from typing import Final

SUBPROTOCOL: Final = "tableforge.v1"

WS_PATH: Final = "/ws"
HEALTH_PATH: Final = "/health"
LIVE_PATH: Final = "/live"
READY_PATH: Final = "/ready"
METRICS_PATH: Final = "/metrics"
FLEET_PATH: Final = "/fleet"
FLEET_COMMANDS_PATH: Final = "/fleet/commands"
INSTANCE_PATH: Final = "/i"
"""`/i/<instance>/ws` reaches that instance and no other, where `routing.mode` is `Gateway`."""
STATS_PATH: Final = "/stats"
ROOMS_PATH: Final = "/rooms"
API_PATH: Final = "/api"

FLEET_KEY_INFO: Final = "tableforge/fleet/v1"
"""HKDF's `info` for the key that guards `/fleet`; its salt is the CR's uid."""

REDIS_PASSWORD_INFO: Final = "tableforge/redis-password/v1"  # noqa: S105 (a label, not a password)
"""HKDF's `info` for the password of a managed Redis; its salt is the CR's uid and the generation."""

SECRETS_DIR: Final = "/var/run/tableforge"
"""Where the operator mounts Secrets into the pod; one folder each below it."""

REDIS_PASSWORD_FILE: Final = f"{SECRETS_DIR}/redis/password"
REDIS_PASSWORDS_DIR: Final = f"{SECRETS_DIR}/redis"
"""With the passwords of a managed Redis, a file each, called by its generation."""
SENTINEL_PASSWORD_FILE: Final = f"{SECRETS_DIR}/sentinel/password"
REDIS_CA_FILE: Final = f"{SECRETS_DIR}/redis-ca/ca.crt"
REDIS_TLS_DIR: Final = f"{SECRETS_DIR}/redis-tls"
"""With `tls.crt` and `tls.key`, as a Secret of type kubernetes.io/tls has them."""
JWT_SECRET_FILE: Final = f"{SECRETS_DIR}/jwt/secret"
FLEET_KEY_FILE: Final = f"{SECRETS_DIR}/fleet/key"
PREVIOUS_JWT_SECRET_FILE: Final = f"{SECRETS_DIR}/previous-jwt/secret"
PUBLIC_KEYS_FILE: Final = f"{SECRETS_DIR}/public-keys/keys"
JWKS_CA_FILE: Final = f"{SECRETS_DIR}/jwks-ca/ca.crt"
API_KEY_FILE: Final = f"{SECRETS_DIR}/api/key"
TLS_DIR: Final = f"{SECRETS_DIR}/tls"
"""With `tls.crt` and `tls.key`, as a Secret of type kubernetes.io/tls has them."""

LIVE_SETTINGS_FILE: Final = "/etc/tableforge/live/settings.json"
"""Where the operator mounts what may change while an instance runs."""
