"""The asyncio client of the `tableforge.v1` protocol.

    async with connect("wss://tables.example.com/ws", token=fetch_token) as client:
        room = await client.join("table:1")
        ack = await room.publish("move", {"from": "e2", "to": "e4"})
        async for item in room:
            match item:
                case Message(event=event, data=data): ...
                case Reset(): ...

It stays connected: it reconnects with jitter, joins its rooms again and goes on after the last message it
has, sends again what was not acknowledged, and gives every message once and in order, or a `Reset` where that
cannot be had.
"""

from tableforge_client.client import Client, connect
from tableforge_client.engine import State, StateChange
from tableforge_client.errors import (
    ClosedError,
    RefusedError,
    RoomLeftError,
    TableForgeError,
    UnauthorizedError,
    UnknownOutcomeError,
)
from tableforge_client.items import (
    Ack,
    Direct,
    History,
    Item,
    Members,
    Message,
    Presence,
    Present,
    Reset,
)
from tableforge_client.room import Inbox, Room

__all__ = [
    "Ack",
    "Client",
    "ClosedError",
    "Direct",
    "History",
    "Inbox",
    "Item",
    "Members",
    "Message",
    "Presence",
    "Present",
    "RefusedError",
    "Reset",
    "Room",
    "RoomLeftError",
    "State",
    "StateChange",
    "TableForgeError",
    "UnauthorizedError",
    "UnknownOutcomeError",
    "connect",
]
