"""The per-user register of clusters, and what is done about those whose end nobody saw.

Each living cluster has a folder in `<temporary folder>/devcluster-<uid>/` with a record and a file that its
supervisor holds locked. Where neither the lock is held nor the supervisor lives, it is a leftover.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import select
import shutil
import signal
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from devcluster.errors import DevclusterError

from .process import start_time

KILL_TIMEOUT_SECONDS = 10.0
SUPERVISOR = "supervisor"
"""The name under which a cluster's supervisor is on record."""

log = logging.getLogger(__name__)


class ProcessRecord(msgspec.Struct, frozen=True):
    """Names a process for good, even after its pid is used again."""

    name: str
    pid: int
    start_time: int


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What has to go when a cluster is gone."""

    id: str
    data_dir: str
    processes: list[ProcessRecord]


_decode_record: msgspec.json.Decoder[Record] = msgspec.json.Decoder(Record)


@dataclass(frozen=True, slots=True)
class Layout:
    """What lies where below a cluster's data folder."""

    root: Path

    @property
    def certificates(self) -> Path:
        return self.root / "certificates"

    @property
    def etcd(self) -> Path:
        return self.root / "etcd"

    @property
    def volumes(self) -> Path:
        return self.root / "volumes"

    @property
    def agent(self) -> Path:
        return self.root / "agent"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def audit_log(self) -> Path:
        return self.logs / "audit.log"

    @property
    def audit_policy(self) -> Path:
        return self.root / "audit-policy.yaml"

    @property
    def images(self) -> Path:
        return self.root / "images.json"

    @property
    def kubeconfig(self) -> Path:
        return self.root / "kubeconfig"

    def make(self) -> None:
        """Make the folders."""
        for folder in (self.certificates, self.etcd, self.volumes, self.agent, self.logs):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def clear(self, *, keep_logs: bool) -> None:
        """Remove what a cluster put there, and nothing else."""
        for folder in (self.certificates, self.etcd, self.volumes, self.agent):
            remove_tree(folder)
        for file in (self.audit_policy, self.images, self.kubeconfig):
            file.unlink(missing_ok=True)
        if not keep_logs:
            remove_tree(self.logs)


def register_folder() -> Path:
    """Where this user's clusters are registered. Raises DevclusterError where somebody else owns it."""
    folder = Path(tempfile.gettempdir()) / f"devcluster-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise DevclusterError(
            f"{folder} must be a folder of this user that nobody else may enter; remove it."
        )
    return folder


@contextlib.contextmanager
def _locked(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold a file or folder locked; answers False where another process does and `wait` is not wanted."""
    holder = os.open(path, os.O_RDONLY | os.O_CLOEXEC | (0 if path.is_dir() else os.O_CREAT), 0o600)
    try:
        fcntl.flock(holder, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield True
    finally:
        os.close(holder)


def _register_locked(root: Path) -> contextlib.AbstractContextManager[bool]:
    """Entries come and go under this lock only: nobody meets one that is half made or half gone."""
    return _locked(root / ".lock", wait=True)


def _data_locked(data_dir: Path) -> contextlib.AbstractContextManager[bool]:
    """Who has a data folder that a user named; they may be of different registers."""
    return _locked(data_dir / ".devcluster.lock", wait=False)


class Place:
    """A living cluster's entry in the register; `register` makes it."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.id = folder.name
        self.layout = layout
        self._folder = folder
        self._processes: list[ProcessRecord] = []

    def started(self, name: str, pid: int) -> None:
        """Put a process on record."""
        born = start_time(pid)
        if born is not None:
            self._processes.append(ProcessRecord(name, pid, born))
            self._write()

    def _write(self) -> None:
        record = Record(id=self.id, data_dir=str(self.layout.root), processes=self._processes)
        unfinished = self._folder / "record.new"
        unfinished.write_bytes(msgspec.json.encode(record))
        unfinished.replace(self._folder / "record.json")


@contextlib.contextmanager
def register(data_dir: Path | None) -> Iterator[Place]:
    """Clear what crashes left behind, then enter a new cluster; its folders go when the context ends.

    A data folder that was given keeps its logs. Raises DevclusterError where another cluster uses it.
    """
    root = register_folder()
    with contextlib.ExitStack() as held:
        with _register_locked(root):
            _clear_leftovers(root)
            folder = root / secrets.token_hex(4)
            folder.mkdir(mode=0o700)
            held.enter_context(_locked(folder / "lock", wait=True))
            # Cleaners of temporary folders (systemd-tmpfiles) leave alone what is in a locked one.
            held.enter_context(_locked(folder, wait=True))
        held.callback(_remove_entry, folder)
        if data_dir is None:
            layout = Layout(folder / "data")
        else:
            data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            layout = Layout(data_dir)
            if not held.enter_context(_data_locked(data_dir)):
                raise DevclusterError(f"{data_dir} is the data folder of a devcluster that is running.")
            layout.clear(keep_logs=False)
        place = Place(folder, layout)
        place.started(SUPERVISOR, os.getpid())
        held.callback(layout.clear, keep_logs=data_dir is not None)
        layout.make()
        yield place


def _remove_entry(folder: Path) -> None:
    with _register_locked(folder.parent):
        remove_tree(folder)


def is_in_use(data_dir: Path) -> bool:
    """Whether a cluster has this data folder: it runs, starts or ends."""
    if not data_dir.is_dir():
        return False
    with _data_locked(data_dir) as free:
        return not free


def clear_leftovers() -> None:
    """Kill and remove what is left of this user's clusters whose supervisors are dead."""
    root = register_folder()
    with _register_locked(root):
        _clear_leftovers(root)


def _clear_leftovers(root: Path) -> None:
    for folder in root.iterdir():
        if not folder.is_dir():
            continue
        try:
            with _locked(folder / "lock", wait=False) as dead:
                if dead:
                    _clear(folder)
        except (DevclusterError, OSError) as error:
            # It is in nobody's way: each cluster has a folder and a network of its own.
            log.warning("what a dead devcluster left in %s cannot be cleared: %s", folder, error)


def _clear(folder: Path) -> None:
    try:
        record = _decode_record.decode((folder / "record.json").read_bytes())
    except (FileNotFoundError, msgspec.DecodeError):
        # It died before it had started anything, or the machine did before the record was on the disk.
        remove_tree(folder)
        return
    if any(one.name == SUPERVISOR and start_time(one.pid) == one.start_time for one in record.processes):
        # Alive, whatever became of its lock: somebody who cleans temporary folders may have removed it.
        return
    for process in record.processes:
        kill(process.pid, process.start_time)
    _clear_data(Path(record.data_dir), temporary=Path(record.data_dir).is_relative_to(folder))
    remove_tree(folder)


def _clear_data(data_dir: Path, *, temporary: bool) -> None:
    if temporary:
        Layout(data_dir).clear(keep_logs=False)
    elif data_dir.is_dir():
        with _data_locked(data_dir) as free:
            # A cluster of another register may have it by now.
            if free:
                Layout(data_dir).clear(keep_logs=True)


def kill(pid: int, born: int) -> None:
    """Kill a process and wait for its end, unless the pid has come to mean another one."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        # Read through the handle's lifetime: the pid cannot change its meaning any more.
        if start_time(pid) != born:
            return
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        if not select.select([handle], [], [], KILL_TIMEOUT_SECONDS)[0]:
            raise DevclusterError(f"Process {pid} of a dead devcluster cannot be killed.")
    except ProcessLookupError:
        return
    finally:
        os.close(handle)


def remove_tree(folder: Path) -> None:
    """Remove a folder, with write-protected folders inside; what does not exist is fine."""

    def make_writable(function: Callable[..., Any], path: str, error: Any) -> None:
        reason = error[1]
        if isinstance(reason, FileNotFoundError):
            return
        parent = Path(path).parent
        for protected in (parent, Path(path)):
            if not protected.is_symlink() and protected.is_dir():
                protected.chmod(0o700)
        if function in {os.rmdir, os.unlink}:
            function(path)
        else:
            shutil.rmtree(path)

    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder, onerror=make_writable)
