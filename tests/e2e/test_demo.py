"""`make demo` tells its story to the end."""

import asyncio
import sys

import pytest

from demo.images import ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


async def test_the_demo_tells_its_whole_story() -> None:
    demo = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "demo",
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await demo.communicate()
    finally:
        if demo.returncode is None:
            demo.kill()
            await demo.wait()
    told = output.decode()
    assert demo.returncode == 0, told
    for line in (
        "websocketcluster.tableforge.io/tables condition met",
        "lost its connection to",
        "1 instance of 1 sent clients elsewhere",
        "each line once at each place of its table, in order",
        "No resources found in default namespace.",
        "Everything that was started has ended.",
    ):
        assert line in told, told
