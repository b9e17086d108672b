"""Names of the registry's keys. One hash tag: on a Redis Cluster they lie on one shard, so scripts can use
them together."""

import dataclasses


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

    def rooms(self, instance: str) -> str:
        """A HyperLogLog of the rooms with members on the instance."""
        return f"tf:{self.prefix}:{{registry}}:rooms:{instance}"

    def rooms_next(self, instance: str) -> str:
        """Where the next one is built before it takes the other's place."""
        return f"tf:{self.prefix}:{{registry}}:rooms-next:{instance}"
