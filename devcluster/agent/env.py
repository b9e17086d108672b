"""A container's environment: literals, references and the Services around it."""

import base64
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Literal

from devcluster.agent.api import Object
from devcluster.agent.fields import FieldError, field_value, resource_value

Lookup = Callable[[Literal["configmaps", "secrets"], str, str], Awaitable[Object | None]]
"""Finds a ConfigMap or Secret by namespace and name."""

_REFERENCE = re.compile(r"\$(?:\$|\(([^()]*)\))")


class ConfigError(Exception):
    """A container refers to something that does not exist; the message names it."""


def expand(text: str, variables: Mapping[str, str]) -> str:
    """Replace `$(NAME)`; a name that is not known stays as it is, `$$` becomes `$`."""

    def replacement(found: re.Match[str]) -> str:
        if found[1] is None:
            return "$"
        return variables.get(found[1], found[0])

    return _REFERENCE.sub(replacement, text)


def service_variables(
    services: Iterable[Object], namespace: str, *, links: bool, api_server: tuple[str, int] | None = None
) -> dict[str, str]:
    """The variables that tell of Services: the API server's always, the namespace's own where linked.

    `api_server` is told instead of its Service's address where the latter cannot be served.
    """
    result: dict[str, str] = {}
    for service in services:
        metadata, spec = service["metadata"], service["spec"]
        address = spec.get("clusterIP", "")
        is_api = (metadata["namespace"], metadata["name"]) == ("default", "kubernetes")
        if not address or address == "None" or not (is_api or (links and metadata["namespace"] == namespace)):
            continue
        prefix = metadata["name"].upper().replace("-", "_")
        ports = spec.get("ports") or []
        result[f"{prefix}_SERVICE_HOST"] = address
        for index, port in enumerate(ports):
            number, protocol = port["port"], port.get("protocol", "TCP")
            if is_api and api_server is not None:
                address, number = api_server
                result[f"{prefix}_SERVICE_HOST"] = address
            if index == 0:
                result[f"{prefix}_SERVICE_PORT"] = str(number)
                result[f"{prefix}_PORT"] = f"{protocol.lower()}://{address}:{number}"
            if name := port.get("name"):
                result[f"{prefix}_SERVICE_PORT_{name.upper().replace('-', '_')}"] = str(number)
            link = f"{prefix}_PORT_{number}_{protocol}"
            result[link] = f"{protocol.lower()}://{address}:{number}"
            result[f"{link}_PROTO"] = protocol.lower()
            result[f"{link}_PORT"] = str(number)
            result[f"{link}_ADDR"] = address
    return result


async def container_variables(
    pod: Object,
    container: Object,
    lookup: Lookup,
    *,
    services: Mapping[str, str],
    pod_ip: str,
    host_ip: str,
) -> dict[str, str]:
    """The variables that the pod's spec asks for. Raises ConfigError for a missing required reference."""
    namespace = pod["metadata"]["namespace"]
    result = dict(services)
    for source in container.get("envFrom") or []:
        prefix = source.get("prefix", "")
        for field, resource in (("configMapRef", "configmaps"), ("secretRef", "secrets")):
            if reference := source.get(field):
                data = await _data(lookup, resource, namespace, reference)
                result.update({prefix + key: value for key, value in data.items() if "=" not in key})
    for variable in container.get("env") or []:
        name = variable["name"]
        source = variable.get("valueFrom")
        if not source:
            result[name] = expand(variable.get("value") or "", result)
            continue
        value = await _referenced(pod, container, source, lookup, pod_ip=pod_ip, host_ip=host_ip)
        if value is not None:
            result[name] = value
    return result


async def _referenced(
    pod: Object, container: Object, source: Object, lookup: Lookup, *, pod_ip: str, host_ip: str
) -> str | None:
    try:
        if reference := source.get("fieldRef"):
            return field_value(pod, reference["fieldPath"], pod_ip=pod_ip, host_ip=host_ip)
        if reference := source.get("resourceFieldRef"):
            others = [*pod["spec"]["containers"], *(pod["spec"].get("initContainers") or [])]
            named = [one for one in others if one["name"] == reference.get("containerName")]
            return resource_value(named[0] if named else container, reference)
    except FieldError as error:
        raise ConfigError(str(error)) from error
    for field, resource in (("configMapKeyRef", "configmaps"), ("secretKeyRef", "secrets")):
        if reference := source.get(field):
            data = await _data(lookup, resource, pod["metadata"]["namespace"], reference)
            if reference["key"] in data:
                return data[reference["key"]]
            if reference.get("optional"):
                return None
            singular = resource.removesuffix("s")
            where = f"{pod['metadata']['namespace']}/{reference['name']}"
            raise ConfigError(f"couldn't find key {reference['key']} in {singular} {where}")
    raise ConfigError(f"valueFrom {sorted(source)} is not supported")


async def _data(lookup: Lookup, resource: str, namespace: str, reference: Object) -> dict[str, str]:
    """The text entries of a ConfigMap or Secret; empty where it is optional and missing."""
    kind: Literal["configmaps", "secrets"] = "secrets" if resource == "secrets" else "configmaps"
    found = await lookup(kind, namespace, reference["name"])
    if found is None:
        if reference.get("optional"):
            return {}
        raise ConfigError(f'{kind.removesuffix("s")} "{reference["name"]}" not found')
    return text_entries(found)


def text_entries(item: Object) -> dict[str, str]:
    """What a ConfigMap's `data` or a Secret's decoded `data` hold, as text."""
    if _is_secret(item):
        return {key: raw.decode(errors="surrogateescape") for key, raw in byte_entries(item).items()}
    return dict(item.get("data") or {})


def byte_entries(item: Object) -> dict[str, bytes]:
    """All entries of a ConfigMap or Secret, as bytes."""
    if _is_secret(item):
        return {key: base64.b64decode(value) for key, value in (item.get("data") or {}).items()}
    result = {key: value.encode() for key, value in (item.get("data") or {}).items()}
    result.update({key: base64.b64decode(value) for key, value in (item.get("binaryData") or {}).items()})
    return result


def _is_secret(item: Object) -> bool:
    return "type" in item  # which Secrets always have and ConfigMaps never; items of a list lack their kind
