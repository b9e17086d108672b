"""Secrets and ConfigMaps that a user names, and the files that the instances read them from.

They lie in the namespace of the WebSocketCluster. The kubelet mounts them; the operator never reads them.
"""

import dataclasses
from collections.abc import Iterator
from typing import Final, Literal

from tableforge_dataplane.contract import endpoints, settings
from tableforge_operator.api.spec import Spec
from tableforge_operator.api.spec.auth import ConfigMapKeyRef, SecretKeyRef
from tableforge_operator.api.spec.redis_external import Tls

_SPECS: Final = settings.specs()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reference:
    """One key of such an object, and where an instance finds what it holds."""

    setting: str
    """The setting of the data plane (`group.field`) that names the file."""
    field: str
    """The field of the WebSocketCluster, for messages."""
    volume: str
    """Name of the pod's volume. Two references to one object may share one."""
    file: str
    name: str
    key: str
    kind: Literal["Secret", "ConfigMap"] = "Secret"

    @property
    def variable(self) -> str:
        """The variable of the data plane that holds the path."""
        return file_variable(self.setting)


def file_variable(setting: str) -> str:
    """The variable that names the file of `setting`."""
    spec, default = _SPECS[setting]
    return f"{spec.env}_FILE" if isinstance(default, settings.Secret) else spec.env


def references(spec: Spec) -> tuple[Reference, ...]:
    """Everything that `spec` refers to."""
    return (*_of_redis(spec), *_of_auth(spec), *_of_websocket(spec))


def _of_redis(spec: Spec) -> Iterator[Reference]:
    external = spec.redis.external
    if external is None:
        return
    if (password := external.password_secret_ref) is not None:
        yield Reference(
            setting="redis.password",
            field="redis.external.passwordSecretRef",
            volume="redis-password",
            file=endpoints.REDIS_PASSWORD_FILE,
            name=password.name,
            key=password.key,
        )
    if external.sentinel is not None and (password := external.sentinel.password_secret_ref) is not None:
        yield Reference(
            setting="redis.sentinel_password",
            field="redis.external.sentinel.passwordSecretRef",
            volume="sentinel-password",
            file=endpoints.SENTINEL_PASSWORD_FILE,
            name=password.name,
            key=password.key,
        )
    if external.tls is not None:
        yield from _of_redis_tls(external.tls)


def _of_redis_tls(tls: Tls) -> Iterator[Reference]:
    if (authorities := tls.ca_secret_ref or tls.ca_config_map_ref) is not None:
        in_secret = tls.ca_secret_ref is not None
        yield Reference(
            setting="redis.tls_ca_file",
            field=f"redis.external.tls.{'caSecretRef' if in_secret else 'caConfigMapRef'}",
            volume="redis-ca",
            file=endpoints.REDIS_CA_FILE,
            name=authorities.name,
            key=authorities.key,
            kind="Secret" if in_secret else "ConfigMap",
        )
    if (own := tls.client_certificate_secret_ref) is not None:
        for setting, key in (("redis.tls_cert_file", "tls.crt"), ("redis.tls_key_file", "tls.key")):
            yield Reference(
                setting=setting,
                field="redis.external.tls.clientCertificateSecretRef",
                volume="redis-tls",
                file=f"{endpoints.REDIS_TLS_DIR}/{key}",
                name=own.name,
                key=key,
            )


def _of_auth(spec: Spec) -> Iterator[Reference]:
    auth = spec.auth
    secrets = (
        ("auth.jwt_secret", "jwtSecretRef", "jwt-secret", endpoints.JWT_SECRET_FILE, auth.jwt_secret_ref),
        (
            "auth.previous_jwt_secret",
            "previousJwtSecretRef",
            "previous-jwt-secret",
            endpoints.PREVIOUS_JWT_SECRET_FILE,
            auth.previous_jwt_secret_ref,
        ),
        ("http.api_key", "apiKeySecretRef", "api-key", endpoints.API_KEY_FILE, auth.api_key_secret_ref),
    )
    for setting, field, volume, file, ref in secrets:
        if ref is not None:
            yield Reference(
                setting=setting, field=f"auth.{field}", volume=volume, file=file, name=ref.name, key=ref.key
            )
    if (keys := auth.public_keys) is not None:
        yield from _either(
            keys.secret_ref,
            keys.config_map_ref,
            setting="auth.public_key",
            field="auth.publicKeys",
            volume="public-keys",
            file=endpoints.PUBLIC_KEYS_FILE,
        )
    if auth.jwks is not None:
        yield from _either(
            auth.jwks.ca_secret_ref,
            auth.jwks.ca_config_map_ref,
            setting="auth.jwks_ca_file",
            field="auth.jwks",
            volume="jwks-ca",
            file=endpoints.JWKS_CA_FILE,
        )


def _either(
    secret: SecretKeyRef | None,
    config_map: ConfigMapKeyRef | None,
    *,
    setting: str,
    field: str,
    volume: str,
    file: str,
) -> Iterator[Reference]:
    if (ref := secret or config_map) is not None:
        kind: Literal["Secret", "ConfigMap"] = "ConfigMap" if secret is None else "Secret"
        yield Reference(
            setting=setting, field=field, volume=volume, file=file, kind=kind, name=ref.name, key=ref.key
        )


def _of_websocket(spec: Spec) -> Iterator[Reference]:
    if (tls := spec.websocket.tls) is not None:
        for setting, key in (("websocket.tls_cert_file", "tls.crt"), ("websocket.tls_key_file", "tls.key")):
            yield Reference(
                setting=setting,
                field="websocket.tls.secretName",
                volume="tls",
                file=f"{endpoints.TLS_DIR}/{key}",
                name=tls.secret_name,
                key=key,
            )
