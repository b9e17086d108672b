"""A cluster that stays when the one who started it leaves: `up`, `status`, `down`.

It lives as long as its supervisor, which says in a state file how to reach it. The file's pid counts only
together with the process's start time: pids are used again.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from .cluster import (
    DEFAULT_NODE_NAME,
    LINE_LIMIT_BYTES,
    STOP_TIMEOUT_SECONDS,
    SUPERVISOR,
    check_platform,
    make_order,
    obtain_binaries,
    own_environment,
    read_images,
    until_ready,
)
from .errors import DevclusterError
from .supervision import folders, messages
from .supervision.process import start_time
from .supervision.supervisor import STATE_FILE

DATA, KUBECONFIG = "data", "kubeconfig"
"""What lies in a state folder beside the state file."""


def status(state_dir: Path) -> messages.Ready | None:
    """The cluster that runs with this state folder; None where none does."""
    try:
        state = messages.decode_state.decode((state_dir / STATE_FILE).read_bytes())
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise DevclusterError(f"{state_dir / STATE_FILE} cannot be read ({error}); remove it.") from error
    return state if start_time(state.supervisor_pid) == state.supervisor_start_time else None


async def up(
    state_dir: Path,
    *,
    images: Mapping[str, Any] | Path | None = None,
    agent: bool = True,
    kubeconfig: Path | None = None,
    node_name: str = DEFAULT_NODE_NAME,
    agent_arguments: Sequence[str] = (),
    on_step: Callable[[str], None] | None = None,
) -> messages.Ready:
    """Start a cluster that stays, or answer the one that runs with this state folder already.

    Its data lies in `<state_dir>/data`, the kubeconfig in `<state_dir>/kubeconfig` unless another place is
    named. Raises Unsupported, ToolchainUnavailable or StartFailed, with nothing left running.
    """
    check_platform()
    if (running := status(state_dir)) is not None:
        return running
    binaries = await obtain_binaries()
    _make(state_dir)
    order = make_order(
        binaries,
        images=read_images(images),
        agent=agent,
        node_name=node_name,
        agent_arguments=agent_arguments,
        data_dir=state_dir / DATA,
        kubeconfig=kubeconfig or state_dir / KUBECONFIG,
        state_dir=state_dir,
        owner_pid=None,
    )
    with _spawn() as supervisor:
        if supervisor.stdin is None or supervisor.stdout is None:
            raise AssertionError("both are pipes")
        supervisor.stdin.write(messages.encode(order) + b"\n")
        supervisor.stdin.flush()
        events = asyncio.StreamReader(limit=LINE_LIMIT_BYTES)
        protocol = asyncio.StreamReaderProtocol(events)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, supervisor.stdout)
        try:
            return await until_ready(events, on_step)
        except BaseException:
            supervisor.stdin.close()
            # Until it has cleaned up.
            await events.read()
            raise
        finally:
            transport.close()


def _spawn() -> subprocess.Popen[bytes]:
    """A supervisor that forks and leaves at once: what goes on is nobody's child.

    Until the cluster is ready, the pipe to it is its lifeline all the same.
    """
    return subprocess.Popen(
        SUPERVISOR,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=own_environment(),
        start_new_session=True,
    )


def _make(state_dir: Path) -> None:
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)


def down(state_dir: Path) -> bool:
    """End the cluster of a state folder, wait until nothing of it is left; False where none was running.

    Raises DevclusterError while one is starting or ending there.
    """
    running = status(state_dir)
    if running is None:
        if folders.is_in_use(state_dir / DATA):
            raise DevclusterError(
                f"A devcluster is starting or ending in {state_dir}; try again in a moment, "
                "or end the start with Ctrl-C."
            )
        # It may have been killed: what it left is still there then.
        folders.clear_leftovers()
        for file in (STATE_FILE, KUBECONFIG):
            (state_dir / file).unlink(missing_ok=True)
        return False
    try:
        handle = os.pidfd_open(running.supervisor_pid)
    except ProcessLookupError:
        return True
    try:
        # The handle is the process's for good, unlike the pid: look once more before the signal.
        if start_time(running.supervisor_pid) == running.supervisor_start_time:
            signal.pidfd_send_signal(handle, signal.SIGTERM)
            if not select.select([handle], [], [], STOP_TIMEOUT_SECONDS)[0]:
                signal.pidfd_send_signal(handle, signal.SIGKILL)
                select.select([handle], [], [], STOP_TIMEOUT_SECONDS)
                folders.clear_leftovers()
    finally:
        os.close(handle)
    return True
