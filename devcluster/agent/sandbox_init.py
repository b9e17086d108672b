"""The first program in a container: makes its namespaces and root, then becomes the container's process.

Runs as a script of its own (`python -I -S sandbox_init.py run|enter FD`) with only the standard library,
because it must be single-threaded to enter user namespaces and quick to start. FD is open for reading
and holds the request as JSON (environments hold secrets, so it is never a file or an argument).

`run` builds the container and stays as its guardian: it waits for the process and ends with its exit code
(128 and the signal's number after a signal). Whoever dies takes the rest along: the agent's death kills the
guardian, the guardian's death the process, and a PID namespace ends with its first process.

On the request's status descriptor it reports one JSON object: `{"pid": N}` once the process exists, or
`{"error": "…"}` where it could not be made; a second one, `{"error": …}`, where the program could not be run.

The root is a tmpfs into which the host's top-level directories are bound read-only. Where a volume is to be
mounted on a path that the host does not have, its parent becomes a directory of the tmpfs with the host's
entries bound one by one. `/tmp`, `/var/tmp` and `/root` are private, `/dev` is a minimal one, `/proc` the PID
namespace's own.
"""

import ctypes
import errno
import json
import os
import select
import signal
import socket
import sys
import warnings  # noqa: F401 -- os.execvpe wants it when the root has changed already

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 0x1, 0x2, 0x4, 0x8
MS_BIND, MS_REC = 0x1000, 0x4000
MS_UNBINDABLE, MS_PRIVATE = 1 << 17, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG = 1
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
MOUNT_ATTR_RDONLY = 0x1
SYS_MOUNT_SETATTR = 442  # the same on every architecture that has it (Linux 5.12)

PRIVATE = ("/tmp", "/var/tmp", "/root")  # noqa: S108 -- the container's, not ours
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
EXIT_NOT_STARTED = 128

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class _MountAttributes(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    _check(_libc.unshare(ctypes.c_int(flags)), "unshare")


def mount(source: str, target: str, kind: str | None = None, flags: int = 0, data: str | None = None) -> None:
    result = _libc.mount(
        source.encode(),
        target.encode(),
        kind.encode() if kind else None,
        ctypes.c_ulong(flags),
        data.encode() if data else None,
    )
    _check(result, f"mount {source} on {target}")


def set_read_only(path: str, *, read_only: bool, recursive: bool = False) -> None:
    attributes = _MountAttributes(
        attr_set=MOUNT_ATTR_RDONLY if read_only else 0, attr_clr=0 if read_only else MOUNT_ATTR_RDONLY
    )
    result = _libc.syscall(
        ctypes.c_long(SYS_MOUNT_SETATTR),
        ctypes.c_int(AT_FDCWD),
        ctypes.c_char_p(path.encode()),
        ctypes.c_uint(AT_RECURSIVE if recursive else 0),
        ctypes.byref(attributes),
        ctypes.c_size_t(ctypes.sizeof(attributes)),
    )
    _check(int(result), f"mount_setattr {path}")


def die_with_parent(expected_parent: int) -> None:
    """Have the kernel kill this process when the thread that forked it ends; ends now if it has already."""
    _check(_libc.prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0), "prctl")
    if os.getppid() != expected_parent:
        os._exit(EXIT_NOT_STARTED)


def within(path: str, directory: str) -> bool:
    """Whether a path is a directory or lies in it; both absolute and normalised."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def parents(path: str) -> list[str]:
    """All directories above a path, the root first."""
    parts = path.strip("/").split("/")
    return ["/" + "/".join(parts[:count]) for count in range(len(parts))]


def outermost(paths: list[str]) -> list[str]:
    """The paths that do not lie in another one of them."""
    return sorted(one for one in set(paths) if not any(within(one, other) for other in paths if other != one))


def mirrored_directories(targets: list[str], exists) -> set[str]:  # type: ignore[no-untyped-def]
    """The host directories that must be rebuilt entry by entry, because something missing goes into them."""
    result = {"/"}
    for target in targets:
        if exists(target):
            continue
        for parent in parents(target):
            if exists(parent):
                result.add(parent)
    for path in [*result]:
        result.update(parents(path))
    return result


class Root:
    """The container's root file system while it is being built below a directory of the host."""

    def __init__(self, base: str, hidden: list[str]) -> None:
        self.base = base
        self._hidden = hidden

    def inside(self, path: str) -> str:
        return self.base + path if path != "/" else self.base

    def bind(self, source: str, path: str) -> None:
        """Show a host path at a path of the container, making the place for it."""
        place = self.inside(path)
        if os.path.isdir(source):
            os.makedirs(place, exist_ok=True)
            mount(source, place, flags=MS_BIND | MS_REC)
        else:
            os.makedirs(os.path.dirname(place), exist_ok=True)
            if not os.path.lexists(place):
                os.close(os.open(place, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
            mount(source, place, flags=MS_BIND)

    def mirror(self, directory: str, mirrored: set[str], skip: tuple[str, ...]) -> None:
        """Rebuild a host directory: links copied, what is mirrored left open, the rest bound."""
        os.makedirs(self.inside(directory), exist_ok=True)
        for name in os.listdir(directory):
            path = os.path.join(directory, name)
            if path in skip:
                continue
            if path in mirrored or path in PRIVATE:
                os.makedirs(self.inside(path), exist_ok=True)
                continue
            try:
                if os.path.islink(path):
                    os.symlink(os.readlink(path), self.inside(path))
                else:
                    self.bind(path, path)
            except OSError as error:
                # What comes and goes, or what this user may not even look at, is no part of a container.
                if error.errno not in (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EINVAL, errno.ENOTDIR):
                    raise

    def hide(self) -> None:
        """Cover what containers must not see."""
        for path in self._hidden:
            if os.path.isdir(self.inside(path)):
                flags = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC
                mount("tmpfs", self.inside(path), "tmpfs", flags, "size=4k,mode=700")

    def devices(self) -> None:
        """A `/dev` with what every container has."""
        for name in DEVICES:
            if os.path.exists(f"/dev/{name}"):
                self.bind(f"/dev/{name}", f"/dev/{name}")
        os.makedirs(self.inside("/dev/shm"), exist_ok=True)  # noqa: S108
        for link, to in (("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
            os.symlink(f"/proc/self/{to}", self.inside(f"/dev/{link}"))


def build_root(request: dict) -> None:  # type: ignore[type-arg]
    """Make the container's root and move into it."""
    base = request["root"]
    mount("none", "/", flags=MS_REC | MS_PRIVATE)
    mount("tmpfs", base, "tmpfs", MS_NOSUID, "size=256m,mode=755")
    # Directories bound below may hold `base`: without this the root would be shown inside itself.
    mount("none", base, flags=MS_UNBINDABLE)
    root = Root(base, request["hidden"])
    mounts = sorted(request["mounts"], key=lambda one: (one["target"].count("/"), one["target"]))
    keep = outermost(request["keep"])

    special = ("/proc", "/sys", "/dev", *PRIVATE)
    open_to = [one["target"] for one in mounts] + [*PRIVATE, "/proc", "/sys", "/dev", "/run"]
    mirrored = mirrored_directories(
        [path for path in open_to if not any(within(path, place) for place in special)], os.path.lexists
    )
    mirrored.update(("/var", "/run"))
    for directory in sorted(mirrored):
        if os.path.isdir(directory) and not os.path.islink(directory):
            root.mirror(directory, mirrored, ("/proc", "/sys", "/dev"))
    for path in PRIVATE:
        os.makedirs(root.inside(path), exist_ok=True)
        os.chmod(root.inside(path), 0o700 if path == "/root" else 0o1777)
    for path in keep:
        if any(within(path, place) for place in PRIVATE) and os.path.exists(path):
            root.bind(path, path)
    root.devices()
    os.makedirs(root.inside("/proc"), exist_ok=True)
    os.makedirs(root.inside("/sys"), exist_ok=True)
    mount("/sys", root.inside("/sys"), flags=MS_BIND | MS_REC)
    set_read_only(base, read_only=True, recursive=True)
    set_read_only(base, read_only=False)

    for one in mounts:
        root.bind(one["source"], one["target"])
        for path in keep:
            # A volume on /tmp must not hide what the image needs below it.
            if path != one["target"] and within(path, one["target"]) and os.path.exists(path):
                root.bind(path, path)
                set_read_only(root.inside(path), read_only=True, recursive=True)
    root.hide()
    for one in mounts:
        if one["read_only"]:
            set_read_only(root.inside(one["target"]), read_only=True)
    mount("tmpfs", root.inside("/dev/shm"), "tmpfs", MS_NOSUID | MS_NODEV, "size=64m,mode=1777")  # noqa: S108
    try:
        mount("proc", root.inside("/proc"), "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    except PermissionError:
        # Inside containers that mask parts of /proc no new one may be mounted; theirs shows more processes.
        mount("/proc", root.inside("/proc"), flags=MS_BIND | MS_REC)
    if request["read_only_root"]:
        set_read_only(base, read_only=True)

    os.chdir(base)
    _check(_libc.pivot_root(b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", ctypes.c_int(MNT_DETACH)), "umount old root")
    os.chdir("/")


def become_root_of_user_namespace() -> None:
    uid, gid = os.getuid(), os.getgid()
    unshare(CLONE_NEWUSER)
    for file, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        with open(f"/proc/self/{file}", "w", encoding="ascii") as stream:
            stream.write(text)


def execute(request: dict) -> None:  # type: ignore[type-arg]
    """Become the program. Raises OSError where it cannot be run."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)  # Python ignores the first two, and ignored signals stay so
    os.umask(0o022)
    try:
        os.chdir(request["working_dir"])
    except OSError as error:
        raise OSError(error.errno, f"working directory {request['working_dir']}: {error.strerror}") from None
    environment = request["env"]
    try:
        os.execvpe(request["argv"][0], request["argv"], environment)  # noqa: S606
    except OSError as error:
        raise OSError(error.errno, f"exec {request['argv'][0]}: {error.strerror}") from None


class Status:
    """Where the agent learns how the start went."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        os.set_inheritable(descriptor, False)

    def report(self, **fields: object) -> None:
        os.write(self._descriptor, json.dumps(fields).encode() + b"\n")


def wait_for(child: int) -> int:
    """The child's exit code as shells and kubelets give it."""
    while True:
        try:
            _, status = os.waitpid(child, 0)
        except InterruptedError:
            continue
        code = os.waitstatus_to_exitcode(status)
        return 128 - code if code < 0 else code


def close_all_but(keep: int) -> None:
    """Close this process's descriptors: nobody may wait for an end of file that the guardian holds up."""
    os.closerange(0, keep)
    os.closerange(keep + 1, os.sysconf("SC_OPEN_MAX"))


def child(request: dict, status: Status, lifeline: int, prepare) -> None:  # type: ignore[no-untyped-def, type-arg]
    """The forked child: becomes the container's process, or reports why not.

    `lifeline` is the reading end of a pipe whose other end only the guardian has.
    """
    try:
        die_with_parent(0)  # seen from a new PID namespace the parent has no id
        if select.select([lifeline], [], [], 0)[0]:
            os._exit(EXIT_NOT_STARTED)  # it died before the kernel knew that its death matters
        os.close(lifeline)
        os.setsid()
        prepare()
        execute(request)
    except Exception as error:  # noqa: BLE001 -- reported to the agent, which is who can do something
        status.report(error=f"{error.strerror or error}" if isinstance(error, OSError) else f"{error}")
    os._exit(EXIT_NOT_STARTED)


def run(request: dict, status: Status) -> int:  # type: ignore[type-arg]
    """Make a container and guard it."""
    if os.getuid() != 0:
        become_root_of_user_namespace()
    unshare(CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWUTS)

    def prepare() -> None:
        socket.sethostname(request["hostname"])
        build_root(request)

    return fork_and_guard(request, status, prepare)


def enter(request: dict, status: Status) -> int:  # type: ignore[type-arg]
    """Run a program in an existing container, named by the process id of its first process."""
    names = ["user"] if os.getuid() != 0 else []
    descriptors = [
        os.open(f"/proc/{request['pid']}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC)
        for name in [*names, "mnt", "uts", "pid"]
    ]
    for descriptor in descriptors:
        _check(_libc.setns(ctypes.c_int(descriptor), ctypes.c_int(0)), "setns")
        os.close(descriptor)
    return fork_and_guard(request, status, lambda: None)


def fork_and_guard(request: dict, status: Status, prepare) -> int:  # type: ignore[no-untyped-def, type-arg]
    """Fork the container's process and wait for it."""
    lifeline, held = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(held)
        child(request, status, lifeline, prepare)
    status.report(pid=pid)
    close_all_but(held)
    for _ in range(3):
        os.open("/", os.O_RDONLY)  # so that nothing opened later becomes a standard stream
    return wait_for(pid)


def main() -> int:
    mode, descriptor = sys.argv[1], int(sys.argv[2])
    with os.fdopen(descriptor, encoding="utf-8") as stream:
        request = json.load(stream)
    status = Status(request["status_fd"])
    try:
        die_with_parent(request["agent_pid"])
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        return run(request, status) if mode == "run" else enter(request, status)
    except OSError as error:
        status.report(error=error.strerror or str(error))
        return EXIT_NOT_STARTED


if __name__ == "__main__":
    sys.exit(main())
