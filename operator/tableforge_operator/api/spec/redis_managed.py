"""`spec.redis.managed`: a standalone Redis that the operator runs."""

from typing import Annotated, ClassVar, Literal

from tableforge_operator.api.fields import Group, Rule, field
from tableforge_operator.api.quantities import MEMORY_PATTERN
from tableforge_operator.api.spec.common import DEFAULT_REDIS_IMAGE, DNS_NAME, Image, Text253


class Storage(Group, frozen=True):
    """The claim that a managed Redis keeps its append-only file on."""

    size: Annotated[
        str,
        field(
            "Size of the claim, at least three times `maxMemory`: the append-only file grows to twice the "
            "data before it is rewritten, and the new one is written beside it. It may grow where the "
            "StorageClass expands volumes, and never shrinks.",
            Rule(
                "self.matches('^[1-9][0-9]{0,5}(Mi|Gi|Ti)$')",
                "must be a whole number of Mi, Gi or Ti, such as 1Gi",
            ),
            max_length=16,
        ),
    ] = "1Gi"
    storage_class_name: Annotated[
        Text253 | None,
        field("StorageClass of the claim; the default class where unset. It cannot change later.", DNS_NAME),
    ] = None


class Persistence(Group, frozen=True):
    """What becomes of a managed Redis's data."""

    on_delete: Annotated[
        Literal["Retain", "Delete"],
        field(
            "What happens to the claim when the WebSocketCluster is deleted: `Retain` keeps it, and a new "
            "WebSocketCluster of the same name finds its rooms again; `Delete` removes it."
        ),
    ] = "Retain"


class ManagedRedis(Group, frozen=True):
    """A standalone Redis that the operator runs for this cluster, with a claim and a password of its own."""

    image: Annotated[
        Image | None,
        field(
            f"Image of Redis or Valkey, 7.2 or newer. Default: {DEFAULT_REDIS_IMAGE}, "
            "renewed with the operator. "
            "Images whose entry point takes the path of a configuration file, as the official ones do, fit.",
        ),
    ] = None
    max_memory: Annotated[
        str,
        field(
            "Redis's `maxmemory`: how much data it holds before writes are refused, in `mb` or `gb`. "
            "The pod's memory request and limit follow from it.",
            Rule(
                f"self.matches('^{MEMORY_PATTERN}$') && "
                "(self.endsWith('gb') || self.size() > 4 || int(self.substring(0, self.size() - 2)) >= 16)",
                "must be a whole number of mb or gb, at least 16mb, such as 256mb",
            ),
            max_length=8,
        ),
    ] = "256mb"
    password_generation: Annotated[
        int,
        field(
            "Which password Redis has. One more gives it a new one: clients stay connected, publishes wait "
            "while Redis restarts, and the old one counts until every instance has the new one.",
            ge=1,
            le=99999,
        ),
    ] = 1
    storage: Storage = Storage()
    persistence: Persistence = Persistence()

    rules: ClassVar = (
        Rule(
            "!isQuantity(self.storage.size) "
            "|| !isQuantity(self.maxMemory.replace('mb', 'Mi').replace('gb', 'Gi')) "
            "|| quantity(self.storage.size)"
            ".sub(quantity(self.maxMemory.replace('mb', 'Mi').replace('gb', 'Gi')))"
            ".sub(quantity(self.maxMemory.replace('mb', 'Mi').replace('gb', 'Gi')))"
            ".sub(quantity(self.maxMemory.replace('mb', 'Mi').replace('gb', 'Gi')))"
            ".compareTo(quantity('0')) >= 0",
            "storage.size must be at least three times maxMemory: raise storage.size or lower maxMemory",
            field_path=".storage.size",
        ),
    )
