"""Processes in namespaces of their own, without any cluster."""

import asyncio
import gc
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from devcluster.agent import sandbox
from devcluster.agent.sandbox import Mount, SandboxError, SandboxProcess, SandboxSpec

PATH = "/usr/local/bin:/usr/bin:/bin"


class Sandboxes:
    """Starts sandboxes and ends them with the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._started: list[SandboxProcess] = []

    async def start(self, script: str, **more: object) -> SandboxProcess:
        spec: dict[str, object] = {
            "argv": ["sh", "-c", script],
            "env": {"PATH": PATH},
            "working_dir": "/",
            "hostname": "box",
            "root": self.folder / "root",
            **more,
        }
        process = await sandbox.start(SandboxSpec(**spec))  # type: ignore[arg-type]
        self._started.append(process)
        return process

    async def output(self, script: str, **more: object) -> list[str]:
        """The words that a script says."""
        process = await self.start(script, **more)
        output, _ = await asyncio.gather(process.stdout.read(), process.stderr.read())
        await process.wait()
        return output.decode().split()

    async def end(self) -> None:
        for process in self._started:
            process.kill()
            await process.wait()


@pytest.fixture
async def boxes(tmp_path: Path) -> AsyncIterator[Sandboxes]:
    made = Sandboxes(tmp_path)
    yield made
    await made.end()


async def test_a_process_that_cannot_be_started_for_want_of_descriptors_leaves_none_open(
    boxes: Sandboxes,
) -> None:
    assert await boxes.output("echo here") == ["here"]
    used = len(os.listdir("/proc/self/fd"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for spare in range(6):
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + spare, hard))
        try:
            with pytest.raises(SandboxError, match="Too many open files"):
                await boxes.start("echo never")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert len(os.listdir("/proc/self/fd")) == used
    assert await boxes.output("echo here") == ["here"]


def test_a_start_that_is_called_off_closes_no_descriptor_of_others(
    tmp_path: Path,
) -> None:
    async def call_off() -> None:
        boxes = Sandboxes(tmp_path)
        box = await boxes.start("exec sleep 1000")
        for step in range(30):
            start = asyncio.create_task(sandbox.start_inside(box, ["true"], {"PATH": PATH}, "/"))
            for _ in range(step):
                await asyncio.sleep(0)
            start.cancel()
            outcome = await asyncio.gather(start, return_exceptions=True)
            taken = [os.open(os.devnull, os.O_RDONLY) for _ in range(20)]
            del start, outcome
            gc.collect()
            for descriptor in taken:
                os.close(descriptor)  # An OSError where somebody else has done so.
        await boxes.end()

    # With the loop that the agent has: it closes what it is given in its own ways.
    with asyncio.Runner(loop_factory=pytest.importorskip("uvloop").new_event_loop) as runner:
        runner.run(call_off())


async def test_this_machine_permits_sandboxes(tmp_path: Path) -> None:
    await sandbox.check_machine(tmp_path)


async def test_exit_codes_are_those_of_a_shell(boxes: Sandboxes) -> None:
    assert await (await boxes.start("exit 7")).wait() == 7
    process = await boxes.start("exec sleep 100")
    process.send(signal.SIGKILL)
    assert await process.wait() == 128 + signal.SIGKILL


async def test_a_program_that_cannot_run_is_told(boxes: Sandboxes) -> None:
    with pytest.raises(SandboxError, match=r"exec /no/such: No such file or directory"):
        await boxes.start("", argv=["/no/such"])
    with pytest.raises(SandboxError, match=r"working directory /no/where: No such file"):
        await boxes.start("", working_dir="/no/where")


async def test_it_is_the_first_process_and_sees_no_others(boxes: Sandboxes) -> None:
    assert await boxes.output("echo $$; echo /proc/[0-9]*; hostname") == ["1", "/proc/1", "box"]


async def test_what_an_image_needs_is_seen_in_private_directories_and_under_volumes(
    boxes: Sandboxes, tmp_path: Path
) -> None:
    project, secret, volume = (tmp_path / name for name in ("project", "project/secret", "volume"))
    for folder in (secret, volume):
        folder.mkdir(parents=True)
    (project / "program").write_text("here")
    (secret / "key").write_text("hush")
    (volume / "file").write_text("volume")
    script = f"ls /tmp; cat {project}/program; ls {secret} | wc -l; touch {project}/x /tmp/y || echo refused"
    about = {"keep": [str(project), str(project / "program")], "hidden": [str(secret)]}
    top = tmp_path.parts[2]
    plain = await boxes.output(script, **about)
    assert plain == [top, "here0", "refused"]
    mounted = await boxes.output(script, mounts=[Mount(str(volume), "/tmp")], **about)
    assert mounted == ["file", top, "here0", "refused"]
    assert not (project / "x").exists()


async def test_programs_can_be_run_inside(boxes: Sandboxes) -> None:
    process = await boxes.start("echo mine > /tmp/mark; exec sleep 100")
    text = b""
    async with asyncio.timeout(60):
        while not text:
            inside = await sandbox.start_inside(
                process, ["sh", "-c", "cat /tmp/mark; exit 3"], {"PATH": PATH}, "/"
            )
            text = await inside.stdout.read()
            assert await inside.wait() == 3
    assert text == b"mine\n"
    with pytest.raises(SandboxError, match="exec nothing"):
        await sandbox.start_inside(process, ["nothing"], {"PATH": PATH}, "/")


async def test_processes_inside_end_with_their_container(boxes: Sandboxes) -> None:
    process = await boxes.start("exec sleep 100")
    inside = await sandbox.start_inside(process, ["sleep", "100"], {"PATH": PATH}, "/")
    process.kill()
    assert await process.wait() == 128 + signal.SIGKILL
    assert await asyncio.wait_for(inside.wait(), 60) == 128 + signal.SIGKILL


STARTER = """
import asyncio, sys
from pathlib import Path
from devcluster.agent import sandbox
async def main():
    spec = sandbox.SandboxSpec(argv=["sh", "-c", "sleep 1000 & sleep 1000"], env={"PATH": "/usr/bin:/bin"},
        working_dir="/", hostname="box", root=Path(sys.argv[1]) / "root")
    process = await sandbox.start(spec)
    inside = await sandbox.start_inside(process, ["sleep", "1000"], {"PATH": "/usr/bin:/bin"}, "/")
    print(process.pid, inside.pid, flush=True)
    await process.wait()
asyncio.run(main())
"""


async def test_nothing_survives_whoever_started_it(tmp_path: Path) -> None:
    starter = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", STARTER, str(tmp_path)),
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[3],
    )
    assert starter.stdout is not None
    pids = [int(word) for word in (await starter.stdout.readline()).split()]
    assert len(pids) == 2
    endings = [os.pidfd_open(pid) for pid in pids]
    starter.kill()
    await starter.wait()
    loop = asyncio.get_running_loop()
    for ending in endings:
        ended = asyncio.Event()
        loop.add_reader(ending, ended.set)  # a pidfd is readable once its process has ended
        await asyncio.wait_for(ended.wait(), 60)
        loop.remove_reader(ending)
        os.close(ending)
