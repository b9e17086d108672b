"""Certificates that a user names: in Secrets or ConfigMaps of the WebSocketCluster's namespace."""

from typing import Annotated

from tableforge_operator.api.fields import Group, field
from tableforge_operator.api.spec.common import CONFIG_MAP_KEY, DNS_NAME, NAME, SECRET_KEY


class CaSecretRef(Group, frozen=True):
    """The Secret with the authorities' certificates."""

    name: Annotated[
        str, field("Name of the Secret, in the namespace of the WebSocketCluster.", DNS_NAME, **NAME)
    ]
    key: Annotated[
        str, field("Key in the Secret whose value is the certificates, PEM.", SECRET_KEY, **NAME)
    ] = "ca.crt"


class CaConfigMapRef(Group, frozen=True):
    """The ConfigMap with the authorities' certificates."""

    name: Annotated[
        str, field("Name of the ConfigMap, in the namespace of the WebSocketCluster.", DNS_NAME, **NAME)
    ]
    key: Annotated[
        str, field("Key in the ConfigMap whose value is the certificates, PEM.", CONFIG_MAP_KEY, **NAME)
    ] = "ca.crt"


class CertificateSecretRef(Group, frozen=True):
    """A Secret of type `kubernetes.io/tls`: a certificate and its private key."""

    name: Annotated[
        str,
        field(
            "Name of the Secret, in the namespace of the WebSocketCluster. Its keys are `tls.crt` and "
            "`tls.key`.",
            DNS_NAME,
            **NAME,
        ),
    ]
