"""Where a room lives in Redis: its keys and its channel, with one hash tag."""

import dataclasses

from tableforge_dataplane.contract.room_options import LogLimits


@dataclasses.dataclass(frozen=True, slots=True)
class RoomAddress:
    """Keys and channel of one room. The hash tag puts them on one shard of a Redis Cluster."""

    room: str
    meta: bytes
    log: bytes
    channel: bytes
    presence: bytes
    limits: LogLimits
    """How far its log reaches."""

    @classmethod
    def of(cls, key_prefix: str, room: str, limits: LogLimits) -> "RoomAddress":
        """`key_prefix` is the cluster's; room names have no braces in them."""
        base = f"tf:{key_prefix}:{{{room}}}:"
        return cls(
            room=room,
            meta=f"{base}meta".encode(),
            log=f"{base}log".encode(),
            channel=f"{base}messages".encode(),
            presence=f"{base}presence".encode(),
            limits=limits,
        )
