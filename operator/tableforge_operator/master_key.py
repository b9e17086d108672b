"""The operator's master key, from which everything secret that it makes is derived."""

import asyncio
import base64
import binascii
import logging
import secrets
from typing import Final

from tableforge_operator.kube import (
    SECRETS,
    AlreadyExistsError,
    Kube,
    NotFoundError,
    ServerError,
    TooManyRequestsError,
    UnreachableError,
)

SECRET_NAME: Final = "tableforge-operator-master-key"  # noqa: S105 - a name
DATA_KEY: Final = "key"
SIZE_BYTES: Final = 32
ATTEMPTS: Final = 4
RETRY_SECONDS: Final = 1.0

log = logging.getLogger(__name__)


class MasterKeyError(Exception):
    """The Secret is there and holds no key that can be used."""


async def master_key(kube: Kube, namespace: str) -> bytes:
    """The key in the operator's own namespace; made where there is none. Raises MasterKeyError, ApiError.

    What a retry can mend is tried again a few times; hold the lease meanwhile, it may take minutes.
    """
    for _ in range(ATTEMPTS - 1):
        try:
            return await _master_key(kube, namespace)
        except (UnreachableError, ServerError, TooManyRequestsError) as error:
            log.warning("cannot get the master key", extra={"error": error.message})
            await asyncio.sleep(RETRY_SECONDS)
    return await _master_key(kube, namespace)


async def _master_key(kube: Kube, namespace: str) -> bytes:
    try:
        return _key_of(await kube.get(SECRETS, namespace, SECRET_NAME), namespace)
    except NotFoundError:
        pass
    key = secrets.token_bytes(SIZE_BYTES)
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": SECRET_NAME,
            "namespace": namespace,
            "labels": {"app.kubernetes.io/name": "tableforge-operator"},
        },
        "type": "Opaque",
        "immutable": True,
        "data": {DATA_KEY: base64.b64encode(key).decode()},
    }
    try:
        await kube.create(secret)
    except AlreadyExistsError:
        # Another operator was faster: its key is the one.
        return _key_of(await kube.get(SECRETS, namespace, SECRET_NAME), namespace)
    return key


def _key_of(secret: dict[str, object], namespace: str) -> bytes:
    data = secret.get("data")
    text = data.get(DATA_KEY, "") if isinstance(data, dict) else ""
    try:
        key = base64.b64decode(text, validate=True)
    except binascii.Error:
        key = b""
    if len(key) < SIZE_BYTES:
        raise MasterKeyError(
            f"Secret {namespace}/{SECRET_NAME} has no key of at least {SIZE_BYTES} bytes at data.{DATA_KEY}: "
            "restore it, or delete it to have a new one made (instances then get new keys and roll)"
        )
    return key
