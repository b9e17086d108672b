"""The volumes of a pod: directories of the host that are bound to mount paths.

What comes from the API (ConfigMaps, Secrets, tokens, fields) is written as a kubelet writes it: the files lie
in a directory `..<time>`, `..data` links to it and every name links through `..data`, so that one rename
changes them all at once and a program sees the new content without a restart.
"""

import dataclasses
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from devcluster.agent.api import Api, Object, path_of
from devcluster.agent.env import ConfigError, Lookup, byte_entries, expand
from devcluster.agent.fields import FieldError, field_value, resource_value
from devcluster.agent.sandbox import Mount
from devcluster.agent.tokens import PodTokens

DEFAULT_MODE = 0o644


class MountError(Exception):
    """A volume cannot be made ready yet; the message says why."""


@dataclasses.dataclass(frozen=True)
class File:
    """A file of a volume."""

    data: bytes = dataclasses.field(repr=False)
    mode: int


Payload = dict[str, File]
"""The files of a volume by their relative path."""


class PayloadDirectory:
    """A directory whose whole content changes at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._written: Payload | None = None

    def write(self, payload: Payload) -> bool:
        """Make the directory hold exactly the payload; whether anything changed."""
        if payload == self._written:
            return False
        self.path.mkdir(parents=True, exist_ok=True)
        self.path.chmod(0o755)
        data = self.path / "..data"
        old = os.readlink(data) if data.is_symlink() else None
        fresh = self.path / f"..{time.time_ns()}"
        fresh.mkdir()
        for name, file in payload.items():
            place = fresh / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(file.data)
            place.chmod(file.mode)
        link = self.path / "..data_tmp"
        link.unlink(missing_ok=True)
        link.symlink_to(fresh.name)
        link.rename(data)
        tops = {PurePosixPath(name).parts[0] for name in payload}
        for top in tops:
            if not (self.path / top).is_symlink():
                (self.path / top).symlink_to(Path("..data") / top)
        for entry in self.path.iterdir():
            if entry.is_symlink() and not entry.name.startswith("..") and entry.name not in tops:
                entry.unlink()
        if old is not None:
            shutil.rmtree(self.path / old)
        self._written = dict(payload)
        return True


def selected(entries: dict[str, bytes], source: Object, default_mode: int, what: str) -> Payload:
    """The entries of a ConfigMap or Secret that a volume shows. Raises MountError for a missing key."""
    if not source.get("items"):
        return {key: File(data, default_mode) for key, data in entries.items()}
    result: Payload = {}
    for item in source["items"]:
        if item["key"] not in entries:
            if source.get("optional"):
                continue
            raise MountError(f"{what} references non-existent key: {item['key']}")
        result[item["path"]] = File(entries[item["key"]], item.get("mode") or default_mode)
    return result


class PodVolumes:
    """All volumes of one pod."""

    def __init__(
        self, *, directory: Path, api: Api, lookup: Lookup, host_ip: str, pod_ip: Callable[[], str]
    ) -> None:
        self._directory = directory
        self._api = api
        self._lookup = lookup
        self._host_ip = host_ip
        self._pod_ip = pod_ip
        self._tokens = PodTokens(api)
        self._payloads: dict[str, PayloadDirectory] = {}
        self._places: dict[str, Path] = {}

    async def prepare(self, pod: Object) -> None:
        """Make every volume ready. Raises MountError naming the first one that is not; call again then."""
        for volume in pod["spec"].get("volumes") or []:
            try:
                await self._prepare(pod, volume)
            except (MountError, ConfigError, FieldError) as error:
                raise MountError(
                    f'MountVolume.SetUp failed for volume "{volume["name"]}" : {error}'
                ) from error

    async def refresh(self, pod: Object) -> None:
        """Bring what is mounted up to date. Raises MountError; the content then stays what it was."""
        for volume in pod["spec"].get("volumes") or []:
            if volume["name"] in self._payloads:
                try:
                    await self._prepare(pod, volume)
                except (ConfigError, FieldError) as error:
                    raise MountError(str(error)) from error

    @staticmethod
    def references(pod: Object) -> set[tuple[str, str]]:
        """The ConfigMaps and Secrets that its volumes show: resource and name."""
        found = set()
        for volume in pod["spec"].get("volumes") or []:
            sources = [volume, *((volume.get("projected") or {}).get("sources") or [])]
            for source in sources:
                if one := source.get("configMap"):
                    found.add(("configmaps", one["name"]))
                if one := source.get("secret"):
                    found.add(("secrets", one.get("secretName") or one.get("name")))
        return found

    async def _prepare(self, pod: Object, volume: Object) -> None:
        name = volume["name"]
        own = self._directory / name
        payload = await self._payload(pod, volume)
        if payload is not None:
            self._payloads.setdefault(name, PayloadDirectory(own)).write(payload)
            self._places[name] = own
        elif "emptyDir" in volume:
            own.mkdir(parents=True, exist_ok=True)
            own.chmod(0o777)
            self._places[name] = own
        elif claim := volume.get("persistentVolumeClaim"):
            self._places[name] = await self._claimed(pod["metadata"]["namespace"], claim["claimName"])
        elif "hostPath" in volume:
            self._places[name] = host_path(volume["hostPath"])
        else:
            kinds = sorted(set(volume) - {"name"})
            raise MountError(f"volumes of type {', '.join(kinds)} are not supported by this node")

    async def _payload(self, pod: Object, volume: Object) -> Payload | None:
        for kind in ("configMap", "secret", "downwardAPI", "projected"):
            if (source := volume.get(kind)) is None:
                continue
            mode = source.get("defaultMode", DEFAULT_MODE)
            if kind != "projected":
                return await self._projection(pod, {kind: source}, mode)
            result: Payload = {}
            for one in source.get("sources") or []:
                result.update(await self._projection(pod, one, mode))
            return result
        return None

    async def _projection(self, pod: Object, source: Object, mode: int) -> Payload:
        if (one := source.get("configMap")) is not None:
            return await self._entries(pod, "configmap", one["name"], one, mode)
        if (one := source.get("secret")) is not None:
            return await self._entries(pod, "secret", one.get("secretName") or one["name"], one, mode)
        if (one := source.get("downwardAPI")) is not None:
            return {item["path"]: self._field(pod, item, mode) for item in one.get("items") or []}
        if (one := source.get("serviceAccountToken")) is not None:
            token = await self._tokens.get(
                pod, audience=one.get("audience", ""), lifetime_seconds=one.get("expirationSeconds") or 3600
            )
            return {one["path"]: File(token.encode(), mode)}
        raise MountError(
            f"projected sources of type {', '.join(sorted(source))} are not supported by this node"
        )

    async def _entries(self, pod: Object, kind: str, name: str, source: Object, mode: int) -> Payload:
        namespace = pod["metadata"]["namespace"]
        found = await self._lookup("secrets" if kind == "secret" else "configmaps", namespace, name)
        if found is None:
            if source.get("optional"):
                return {}
            raise MountError(f'{kind} "{name}" not found')
        return selected(byte_entries(found), source, mode, f"{kind} {namespace}/{name}")

    def _field(self, pod: Object, item: Object, mode: int) -> File:
        if reference := item.get("fieldRef"):
            text = field_value(pod, reference["fieldPath"], pod_ip=self._pod_ip(), host_ip=self._host_ip)
        else:
            reference = item["resourceFieldRef"]
            named = [
                one for one in pod["spec"]["containers"] if one["name"] == reference.get("containerName")
            ]
            if not named:
                raise MountError(f"resourceFieldRef names no container: {reference.get('containerName')!r}")
            text = resource_value(named[0], reference)
        return File(text.encode(), item.get("mode") or mode)

    async def _claimed(self, namespace: str, name: str) -> Path:
        claim = await self._api.get_or_none(path_of("persistentvolumeclaims", namespace, name))
        if claim is None:
            raise MountError(f'persistentvolumeclaim "{name}" not found')
        if (claim.get("status") or {}).get("phase") != "Bound":
            raise MountError(f'persistentvolumeclaim "{name}" is not bound to a volume yet')
        bound = claim["spec"]["volumeName"]
        volume = await self._api.get_or_none(path_of("persistentvolumes", None, bound))
        if volume is None:
            raise MountError(f'persistentvolume "{bound}" not found')
        if source := volume["spec"].get("hostPath"):
            return host_path({"type": "DirectoryOrCreate", **source})
        if source := volume["spec"].get("local"):
            return host_path({**source, "type": "Directory"})
        raise MountError(
            f'persistentvolume "{bound}" is neither a host path nor local: not supported by this node'
        )

    def mounts(self, container: Object, variables: dict[str, str]) -> list[Mount]:
        """What is bound where in one container. Raises ConfigError for a sub path that cannot be."""
        result = []
        for mount in container.get("volumeMounts") or []:
            place = self._places[mount["name"]]
            sub = mount.get("subPath") or expand(mount.get("subPathExpr") or "", variables)
            source = sub_path(place, sub) if sub else place
            written_by_api = mount["name"] in self._payloads
            target = os.path.realpath(os.path.normpath("/" + mount["mountPath"]))
            result.append(Mount(str(source), target, written_by_api or bool(mount.get("readOnly"))))
        return result


def sub_path(place: Path, sub: str) -> Path:
    """A path inside a volume, made where it is missing. Raises ConfigError where it leads out of it."""
    source = (place / sub).resolve()
    if not source.is_relative_to(place.resolve()):
        raise ConfigError(f"subPath {sub!r} leads out of its volume")
    if not source.exists():
        source.mkdir(parents=True)
    return source


def host_path(source: Object) -> Path:
    """A `hostPath`, checked by its type. Raises MountError."""
    path, kind = Path(source["path"]), source.get("type") or ""
    if kind == "DirectoryOrCreate":
        path.mkdir(parents=True, exist_ok=True)
    elif kind == "FileOrCreate" and not path.exists():
        path.touch()
    if (kind.startswith("Directory") and not path.is_dir()) or (
        kind.startswith("File") and not path.is_file()
    ):
        raise MountError(f"hostPath type check failed: {path} is not a {kind}")
    if not path.exists():
        raise MountError(f"hostPath {path} does not exist")
    return path
