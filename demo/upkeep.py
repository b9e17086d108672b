"""`make up` and `make down`: the same cluster, left running until it is told to stop."""

import asyncio
import json
import sys

from demo.images import ROOT, image_table
from demo.kubectl import Kubectl
from demo.screen import Screen
from demo.story import CLUSTER, Scene

STATE = ROOT / ".devcluster"


async def up() -> None:
    """Start the devcluster in the background, install operator and sample, and say how to reach them."""
    STATE.mkdir(exist_ok=True)
    images = STATE / "images.json"
    images.write_text(json.dumps(image_table(), indent=2), encoding="utf-8")
    screen = Screen()
    screen.chapter("A devcluster in the background")
    await _devcluster("up", "--state-dir", str(STATE), "--images", str(images))
    kubectl = Kubectl(STATE / "kubeconfig")
    scene = Scene(kubectl, screen)
    screen.chapter("The operator")
    await scene.install_operator()
    screen.chapter("A WebSocketCluster")
    await scene.apply_sample()
    service = await kubectl.json("get", "service", CLUSTER)
    url = f"ws://{service['spec']['clusterIP']}:{service['spec']['ports'][0]['port']}/ws"
    screen.chapter("It is yours")
    screen.say("For kubectl, of 1.32 or newer (one is in .venv/bin):")
    screen.output(f"export KUBECONFIG={kubectl.kubeconfig}")
    screen.say("Clients connect to:")
    screen.output(url)
    screen.say("Talk to it, from two terminals:")
    screen.output(f".venv/bin/python -m tableforge_client {url} --room table:1")
    screen.say("`make down` stops it and removes all but its logs.")


async def down() -> None:
    """Stop what `up` started."""
    await _devcluster("down", "--state-dir", str(STATE))


async def _devcluster(*words: str) -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "devcluster", *words, cwd=ROOT)
    if code := await process.wait():
        raise SystemExit(code)
