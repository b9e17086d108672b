"""What the fields of a WebSocketCluster have in common: kinds of text, and rules for them."""

from importlib.metadata import version
from typing import Annotated, Any, Final

from msgspec import Meta

from tableforge_dataplane.contract.room_options import MAX_PATTERN_CHARACTERS
from tableforge_operator.api.fields import Rule, default_of, field

DEFAULT_DATAPLANE_IMAGE: Final = f"tableforge/dataplane:{version('tableforge')}"
DEFAULT_REDIS_IMAGE: Final = "valkey/valkey:9.1"
INTERNAL_PORT: Final[int] = default_of("http.port")
"""The instances' internal port (metrics, the fleet's view). No field stands for it."""

Image = Annotated[str, Meta(pattern=r"^\S+$", min_length=1, max_length=512)]
Text43 = Annotated[str, Meta(max_length=43)]
"""The longest range of IPv6 addresses."""
Text63 = Annotated[str, Meta(max_length=63)]
Text253 = Annotated[str, Meta(max_length=253)]
Text4096 = Annotated[str, Meta(max_length=4096)]
DNS_NAME: Final = Rule(
    "!format.dns1123Subdomain().validate(self).hasValue()",
    "must be a name of lower-case letters, digits, dashes and dots",
)
CIDR: Final = Rule(
    "isCIDR(self) && cidr(self).masked() == cidr(self)",
    "must be a range of addresses without bits beyond its prefix, such as 10.0.0.0/8 or fd00::/8",
)
DNS_LABEL: Final = Rule(
    "!format.dns1123Label().validate(self).hasValue()",
    "must be a name of lower-case letters, digits and dashes",
)
HOST_NAME: Final = Rule(
    "self.startsWith('*.') ? !format.dns1123Subdomain().validate(self.substring(2)).hasValue() "
    ": !format.dns1123Subdomain().validate(self).hasValue()",
    "must be a host name in lower case without a scheme and without a port, at most with *. in front",
)
SECRET_KEY: Final = Rule(
    "self.matches('^[-._a-zA-Z0-9]+$') && !self.startsWith('..') && self != '.'",
    "must be a key of the Secret: letters, digits or any of - _ .",
)
CONFIG_MAP_KEY: Final = Rule(
    SECRET_KEY.rule, "must be a key of the ConfigMap: letters, digits or any of - _ ."
)
PATTERN: Final = field(
    "Rooms (or users) by name, in segments between colons: `*` stands for one whole segment, a last `**` "
    "for one or more.",
    Rule(
        "self.matches('^((\\\\*|[^:*]*):)*(\\\\*\\\\*?|[^:*]*)$')",
        "must be segments between colons, where a `*` stands for a whole segment and `**` for the last ones",
    ),
    min_length=1,
    max_length=MAX_PATTERN_CHARACTERS,
)
"""A pattern as rights and rooms' options have them."""
NAME: Final[dict[str, Any]] = {"min_length": 1, "max_length": 253}
RESERVED: Final = "self.all(key, !key.startsWith('tableforge.io/') && !key.startsWith('app.kubernetes.io/'))"
RESERVED_MESSAGE: Final = (
    "keys that start with tableforge.io/ or app.kubernetes.io/ are the operator's: remove them"
)
KEYS: Final = Rule(
    "self.all(key, !format.qualifiedName().validate(key).hasValue())",
    "keys must be letters, digits, dashes, dots and underscores, with a domain and a slash in front at most",
)
LABELS: Final = (
    KEYS,
    Rule(
        "self.all(key, !format.labelValue().validate(self[key]).hasValue())",
        "values must be at most 63 letters, digits, dashes, dots and underscores, and start and end with a "
        "letter or digit",
    ),
)
