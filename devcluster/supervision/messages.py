"""What an owner and its supervisor say to each other: a JSON object a line, over stdin and stdout."""

from __future__ import annotations

from typing import Any

import msgspec


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What cluster is wanted: the first line on the supervisor's stdin.

    The line `restart` kills the API server and starts it anew, `stop` ends the cluster in good order. The end
    of the file without `stop` means that the owner died; a detached cluster minds that until it is ready.
    """

    etcd: str
    kube_apiserver: str
    kube_controller_manager: str
    images: dict[str, Any]
    """The agent's image table."""
    agent: bool
    node_name: str
    agent_arguments: list[str]
    data_dir: str | None
    """None: a temporary folder, removed with the cluster."""
    kubeconfig: str | None
    """Where the admin's kubeconfig is wanted; None: in the data folder."""
    state_dir: str | None
    """Where a detached cluster's state file goes."""
    owner_pid: int | None
    """None: detached, it lives until it is told to end."""


class Starting(msgspec.Struct, frozen=True, tag="starting"):
    """A step of the start."""

    step: str


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag="ready"):
    """The cluster answers; also the content of a detached cluster's state file."""

    id: str
    supervisor_pid: int
    supervisor_start_time: int
    network_number: int
    api_url: str
    kubeconfig: str
    data_dir: str
    logs_dir: str
    audit_log: str
    agent: bool


class Restarted(msgspec.Struct, frozen=True, tag="restarted"):
    """The API server was killed, and answers again."""


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """The cluster is gone: it did not start, or a component died."""

    started: bool
    text: str


class Stopped(msgspec.Struct, frozen=True, tag="stopped"):
    """Everything has ended, as asked."""


Event = Starting | Ready | Restarted | Failed | Stopped

encode = msgspec.json.Encoder().encode
decode_event: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)
decode_order: msgspec.json.Decoder[Order] = msgspec.json.Decoder(Order)
decode_state: msgspec.json.Decoder[Ready] = msgspec.json.Decoder(Ready)
