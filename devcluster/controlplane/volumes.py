"""Provisions volume claims as folders in the cluster's data folder, behind the default StorageClass.

The controller manager has a host-path provisioner too, but with a path that is compiled in,
`/tmp/hostpath_pv`: whoever came first on a machine owns it, other users' claims fail, and nothing tells
whose volumes a crash left.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from devcluster.supervision.folders import remove_tree

from .api import RETRY_SECONDS, Api, ApiError

STORAGE_CLASS = "standard"
PROVISIONER = "devcluster.local/host-path"
PROVISIONED_BY = "pv.kubernetes.io/provisioned-by"
CLAIMS = "/api/v1/persistentvolumeclaims"
STORAGE_CLASSES = "/apis/storage.k8s.io/v1/storageclasses"
VOLUMES = "/api/v1/persistentvolumes"
ATTEMPTS = 5

log = logging.getLogger(__name__)


def storage_class() -> dict[str, Any]:
    """The default StorageClass."""
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {
            "name": STORAGE_CLASS,
            "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
        },
        "provisioner": PROVISIONER,
        "reclaimPolicy": "Delete",
        # There is one node: nothing to wait for.
        "volumeBindingMode": "Immediate",
        "allowVolumeExpansion": True,
    }


def volume_for(claim: dict[str, Any], *, folder: Path, reclaim_policy: str) -> dict[str, Any] | None:
    """The volume that a claim needs; None where it is not ours to make, or made already."""
    spec, metadata = claim["spec"], claim["metadata"]
    chosen = metadata.get("annotations", {}).get("volume.kubernetes.io/storage-provisioner")
    if (
        chosen != PROVISIONER
        or spec.get("volumeName")
        or metadata.get("deletionTimestamp")
        or spec.get("volumeMode") == "Block"
    ):
        return None
    name = f"pvc-{metadata['uid']}"
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name, "annotations": {PROVISIONED_BY: PROVISIONER}},
        "spec": {
            "storageClassName": spec["storageClassName"],
            "persistentVolumeReclaimPolicy": reclaim_policy,
            "accessModes": spec["accessModes"],
            "volumeMode": "Filesystem",
            "capacity": {"storage": spec["resources"]["requests"]["storage"]},
            "hostPath": {"path": str(folder / name), "type": "Directory"},
            "claimRef": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "uid": metadata["uid"],
            },
        },
    }


def grown(claim: dict[str, Any]) -> str | None:
    """The size that a claim of ours asks for beyond what its volume has; None where it asks for no more.

    The API server lets a claim of a class that expands volumes ask for more, and never for less.
    """
    spec, status = claim["spec"], claim.get("status", {})
    chosen = claim["metadata"].get("annotations", {}).get("volume.kubernetes.io/storage-provisioner")
    has = status.get("capacity", {}).get("storage")
    wanted: str = spec["resources"]["requests"]["storage"]
    if chosen != PROVISIONER or status.get("phase") != "Bound" or has is None or has == wanted:
        return None
    return wanted


def is_abandoned(volume: dict[str, Any]) -> bool:
    """Whether a volume is ours, its claim is gone and its data is to go with it."""
    annotations = volume["metadata"].get("annotations", {})
    return bool(
        annotations.get(PROVISIONED_BY) == PROVISIONER
        and volume["spec"]["persistentVolumeReclaimPolicy"] == "Delete"
        and volume.get("status", {}).get("phase") == "Released"
    )


def _make_writable_folder(path: Path) -> None:
    path.mkdir(parents=True, exist_ok=True)
    # As an emptyDir is, whichever user a container runs as.
    path.chmod(0o777)


class VolumeProvisioner:
    """Makes folders for claims and removes them again, for as long as `run` runs."""

    def __init__(self, api: Api, folder: Path) -> None:
        self._api = api
        self._folder = folder

    async def run(self) -> None:
        """Never ends by itself."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._provision())
            tasks.create_task(self._reclaim())

    async def _provision(self) -> None:
        async for claim in self._api.follow(CLAIMS):
            await self._persist(self._provision_one, claim)

    async def _provision_one(self, claim: dict[str, Any]) -> None:
        if (size := grown(claim)) is not None:
            await self._grow(claim, size)
        if volume_for(claim, folder=self._folder, reclaim_policy="Delete") is None:
            return
        # The class may have been made by somebody else, with another policy.
        found = await self._api.get(
            f"/apis/storage.k8s.io/v1/storageclasses/{claim['spec']['storageClassName']}"
        )
        policy = (found or {}).get("reclaimPolicy", "Delete")
        volume = volume_for(claim, folder=self._folder, reclaim_policy=policy)
        if volume is None:
            return
        _make_writable_folder(Path(volume["spec"]["hostPath"]["path"]))
        await self._api.create(VOLUMES, volume)

    async def _grow(self, claim: dict[str, Any], size: str) -> None:
        """A folder has all the room there is: only what is written of it grows."""
        volume, metadata = claim["spec"]["volumeName"], claim["metadata"]
        place = f"/api/v1/namespaces/{metadata['namespace']}/persistentvolumeclaims/{metadata['name']}"
        capacity = {"storage": size}
        await self._api.merge(f"{VOLUMES}/{volume}", {"spec": {"capacity": capacity}})
        await self._api.merge(f"{place}/status", {"status": {"capacity": capacity}})

    async def _reclaim(self) -> None:
        async for volume in self._api.follow(VOLUMES):
            await self._persist(self._reclaim_one, volume)

    async def _reclaim_one(self, volume: dict[str, Any]) -> None:
        if is_abandoned(volume):
            name = volume["metadata"]["name"]
            await asyncio.to_thread(remove_tree, self._folder / name)
            await self._api.delete(f"{VOLUMES}/{name}")

    async def _persist(self, act: Callable[[dict[str, Any]], Awaitable[None]], item: dict[str, Any]) -> None:
        """Act on an object, a few times where that fails; after them the next list, or its next change."""
        for left in reversed(range(ATTEMPTS)):
            try:
                return await act(item)
            except (ApiError, OSError) as error:
                log.warning("%s of %s: %s", act.__name__, item["metadata"]["name"], error)
                if left:
                    await asyncio.sleep(RETRY_SECONDS)
        return None
