"""Which field of the CR stands for which setting of the data plane."""

import re
from collections.abc import Iterator
from typing import Any

from tableforge_dataplane.contract import settings
from tableforge_operator.api import Duration
from tableforge_operator.api.fields import fields_of
from tableforge_operator.api.schema import group_schema
from tableforge_operator.api.spec import Spec

FIELDS = {setting: path for path, setting in fields_of(Spec) if setting is not None}
"""Setting of the data plane → field of the CR."""

_SPECS = settings.specs()

PLAIN = {
    setting: path
    for setting, path in FIELDS.items()
    if not isinstance(_SPECS[setting][1], str) or _SPECS[setting][0].pattern is None
}
"""Those that are a number, a flag, a duration or one of several words: values are easily made up."""

# The data plane alone lets everybody in unless told otherwise; on Kubernetes it is the other way round.
OTHERWISE = {"auth.required"}
# Where Kubernetes asks for more than the data plane does: ports below 1024 need a privilege.
RAISED_MINIMUM = {"websocket.port": 1024}

WITHOUT_A_FIELD = {
    "auth.jwks_ca_file": "auth.jwks.caSecretRef and caConfigMapRef",
    "auth.jwks_plain_http": "never: whoever can change what travels there could let anybody in",
    "auth.jwt_secret": "auth.jwtSecretRef",
    "auth.previous_jwt_secret": "auth.previousJwtSecretRef",
    "auth.public_key": "auth.publicKeys",
    "auth.token_expiry_seconds": "of tokens that `tableforge-dataplane token` makes; no instance makes any",
    "http.api_key": "auth.apiKeySecretRef",
    "http.fleet_key": "the operator derives it",
    "http.port": "always the same: nothing outside meets it",
    "launch.data_dir": "of `serve` where there is no Redis",
    "live.file": "the operator mounts it",
    "monitoring.memory_threshold_bytes": "monitoring.memoryThreshold, a quantity",
    "rooms.options_file": "rooms.options",
    "routing.address": "the operator tells it, once the gateway has taken the instance's route",
    "routing.weight": "pod.resources.requests, its CPU",
    "scaling.instance_id": "the pod's name",
    "websocket.host": "all addresses: the pod has its own",
    "websocket.tls_cert_file": "websocket.tls.secretName",
    "websocket.tls_key_file": "websocket.tls.secretName",
}
"""Settings that no field stands for by itself, and what does. Those of Redis are apart."""


def place(spec: dict[str, Any], path: str, value: Any) -> None:
    """Set the field at `path` in a spec."""
    *groups, field = path.split(".")
    for group in groups:
        spec = spec.setdefault(group, {})
    spec[field] = value


def placed(path: str, value: Any) -> dict[str, Any]:
    """A spec with that one field."""
    spec: dict[str, Any] = {}
    place(spec, path, value)
    return spec


def durations() -> Iterator[tuple[str, Duration, Duration, str]]:
    """Every field that holds a duration: its bounds, and what is said beyond them. Lists are left out."""
    due = [("", group_schema(Spec))]
    for path, schema in due:
        due += [(f"{path}.{name}", below) for name, below in schema.get("properties", {}).items()]
        for rule in schema.get("x-kubernetes-validations", ()):
            if bounds := re.search(r"duration\('(\w+)'\) && .* <= duration\('(\w+)'\)", rule["rule"]):
                low, high = map(Duration.parse, bounds.groups())
                yield path.removeprefix("."), low, high, rule["message"]
