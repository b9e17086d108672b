"""Names of the registry's keys. One hash tag: on a Redis Cluster they lie on one shard, so scripts can use
them together."""

import dataclasses
from typing import Final

from tableforge_dataplane.topology.slots import slot_of

REGISTRY_SLOT: Final = slot_of(b"{registry}")
"""All of the registry's keys lie in it."""


@dataclasses.dataclass(frozen=True, slots=True)
class RegistryKeys:
    """The keys of one cluster, which `prefix` (`TABLEFORGE_REDIS_KEY_PREFIX`) keeps apart from others."""

    prefix: str

    @property
    def records(self) -> str:
        """A hash, instance → record as JSON."""
        return f"tf:{self.prefix}:{{registry}}:records"

    def lease(self, instance: str) -> str:
        """A string, the boot id of the process that holds the name; it expires with the failover timeout."""
        return f"tf:{self.prefix}:{{registry}}:lease:{instance}"

    @property
    def homes(self) -> str:
        """A hash, room → instance; what belongs to it is named in `scripts/directory.lua`."""
        return self.directory("homes")

    def directory(self, name: str) -> str:
        """One of the directory's keys."""
        return f"tf:{self.prefix}:{{registry}}:{name}"

    def rooms(self, instance: str) -> str:
        """A HyperLogLog of the rooms with members on the instance."""
        return f"tf:{self.prefix}:{{registry}}:rooms:{instance}"

    def rooms_next(self, instance: str) -> str:
        """Where the next one is built before it takes the other's place."""
        return f"tf:{self.prefix}:{{registry}}:rooms-next:{instance}"

    def headcount(self, instance: str) -> str:
        """A string: how many connections addresses and users have on the instance, hashed; expires soon."""
        return f"tf:{self.prefix}:{{registry}}:headcount:{instance}"

    @property
    def salt(self) -> str:
        """A string that all instances hash addresses and users with in those."""
        return f"tf:{self.prefix}:{{registry}}:salt"

    @property
    def claim(self) -> str:
        """A string, the name of the cluster that uses this prefix; it expires with the failover timeout."""
        return f"tf:{self.prefix}:{{registry}}:claim"

    @property
    def reconnects(self) -> str:
        """A hash, the bucket that everything draws from that makes clients reconnect."""
        return f"tf:{self.prefix}:{{registry}}:reconnects"
