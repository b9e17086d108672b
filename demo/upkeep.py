"""`make up` and `make down`: the same cluster, left running until it is told to stop."""

import asyncio
from pathlib import Path

from demo.images import ROOT, image_table
from demo.kubectl import Kubectl
from demo.screen import Screen
from demo.story import CLUSTER, Scene
from devcluster import detached

STATE = ROOT / ".devcluster"


async def up() -> None:
    """Start the devcluster in the background, install operator and sample, and say how to reach them."""
    screen = Screen()
    screen.chapter("A devcluster in the background")
    cluster = await detached.up(
        STATE, images=image_table(), on_step=lambda step: screen.say(f"starting {step} …")
    )
    screen.say(f"The API server answers at {cluster.api_url}.")
    kubectl = Kubectl(Path(cluster.kubeconfig))
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
    screen = Screen()
    if await asyncio.to_thread(detached.down, STATE):
        screen.say(
            f"Stopped. Nothing of it runs any more; its logs stay in {STATE.name}/ until `make clean`."
        )
    else:
        screen.say("Nothing was running.")
