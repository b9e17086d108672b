"""The story that `make demo` tells, chapter by chapter. Everything shown is what really happens."""

import asyncio
import contextlib
import shlex
from collections.abc import AsyncIterator
from pathlib import Path

from demo import stage
from demo.guests import GUESTS, TABLES, Guests, guests
from demo.kubectl import Kubectl
from demo.screen import DemoError, Screen
from demo.talk import Person, person

CLUSTER = "tables"
ROOM = "table:1"
PEOPLE = ("ada", "ben", "cleo")
LINES_DURING_THE_KILL = 200
EVERYTHING = (
    "websocketclusters,deployments,statefulsets,pods,services,configmaps,secrets,serviceaccounts,pdb,pvc"
)


DATAPLANE = f"tableforge.io/cluster={CLUSTER},app.kubernetes.io/component=dataplane"
CORDON = "tableforge.io/cordon"
REBALANCE = "--for=jsonpath={.status.rebalance"
BALANCED = '{.status.conditions[?(@.type=="Balanced")].message}'


async def show() -> None:
    """Tell the whole story. Raises DemoError where something is not as told."""
    screen = Screen()
    screen.chapter("A Kubernetes control plane: etcd, kube-apiserver, kube-controller-manager, and a node")
    async with stage.devcluster() as cluster:
        kubectl = Kubectl(cluster.kubeconfig)
        scene = Scene(kubectl, screen)
        await scene.run("version")
        await scene.run("get", "nodes")
        screen.chapter("The operator, as anyone installs it")
        await scene.install_operator()
        screen.chapter("One kubectl apply: three instances and a Redis")
        await scene.apply_sample()
        screen.chapter(f"Three people in the room {ROOM}, each on another pod")
        async with scene.people() as people:
            await scene.talk(people)
            screen.chapter("kill -9 of a pod's server, while messages flow")
            await scene.kill_while_talking(people)
            screen.chapter("A hot pod cools down, while everybody goes on talking")
            await scene.cool_down(people)
            screen.chapter("Scaling, as with any workload, with everybody connected")
            await scene.scale(5)
            await scene.scale(2)
            await scene.still_together(people)
        screen.chapter("Deleting it: nothing hangs, nothing is left")
        await scene.delete()
        screen.chapter("Clean-up")
    screen.say(
        f"Everything that was started has ended. The whole story took {screen.elapsed_seconds():.0f} s."
    )


class Scene:
    """The acts of the story on one cluster."""

    def __init__(self, kubectl: Kubectl, screen: Screen) -> None:
        self._kubectl = kubectl
        self._screen = screen

    async def run(self, *words: str) -> str:
        """Show a kubectl command and what it prints."""
        shown = [
            f"manifests{word.removeprefix(str(stage.MANIFESTS))}" if _ours(word) else word for word in words
        ]
        self._screen.command(["kubectl", *map(shlex.quote, shown)])
        said = await self._kubectl(*words)
        self._screen.output(said)
        return said

    async def install_operator(self) -> None:
        """Apply the manifests and wait for the operator."""
        await self.run("apply", "-k", str(stage.MANIFESTS))
        await self.run(
            "rollout", "status", "-n", stage.OPERATOR_NAMESPACE, stage.OPERATOR_DEPLOYMENT, "--timeout=120s"
        )

    async def apply_sample(self) -> None:
        """Apply the sample and wait until it is Ready."""
        self._screen.output(stage.SAMPLE.read_text(encoding="utf-8"))
        await self.run("apply", "-f", str(stage.SAMPLE))
        await self.run("wait", "--for=condition=Ready", f"wsc/{CLUSTER}", "--timeout=120s")
        await self.run("get", "wsc,deploy,pods,svc")

    async def _url(self) -> str:
        service = await self._kubectl.json("get", "service", CLUSTER)
        return f"ws://{service['spec']['clusterIP']}:{service['spec']['ports'][0]['port']}/ws"

    @contextlib.asynccontextmanager
    async def people(self) -> AsyncIterator[list[Person]]:
        """Three people in the room, each on another pod."""
        url = await self._url()
        self._screen.say(f"They all connect to {url}, the address of the Service.")
        async with contextlib.AsyncExitStack() as stack:
            people: list[Person] = []
            for name in PEOPLE:
                elsewhere = [other.client.instance for other in people]
                someone = person(name, url, ROOM, self._screen, elsewhere=elsewhere)
                people.append(await stack.enter_async_context(someone))
            yield people

    async def talk(self, people: list[Person]) -> None:
        """Everybody says a line, and everybody hears it."""
        for someone in people:
            await self._say_and_hear(someone, f"hello from {someone.client.instance}", people)

    async def still_together(self, people: list[Person]) -> None:
        """Who was on a pod that left is on another one, the status counts everybody, nothing is missing."""
        await self.run("wait", "--for=jsonpath={.status.instances}=2", f"wsc/{CLUSTER}", "--timeout=90s")
        await self.run("get", "wsc")
        await self.talk(people)
        self._check(people)

    async def _say_and_hear(self, speaker: Person, text: str, people: list[Person]) -> None:
        seq = await speaker.say(text)
        for someone in people:
            await someone.has_heard(seq)

    async def kill_while_talking(self, people: list[Person]) -> None:
        """Two go on talking while the server that the third one is on is killed."""
        victim, *others = people
        pod = victim.client.instance
        if pod is None:
            raise DemoError(f"{victim.name} is not connected")
        for someone in people:
            someone.quiet = True
        self._screen.say(f"{' and '.join(other.name for other in others)} go on talking (not printed) …")
        halfway = asyncio.Event()

        async def talk(speaker: Person) -> None:
            for number in range(LINES_DURING_THE_KILL):
                await speaker.say(f"line {number}")
                if number == LINES_DURING_THE_KILL // 4:
                    halfway.set()

        async with asyncio.TaskGroup() as talking:
            for other in others:
                talking.create_task(talk(other))
            await halfway.wait()
            pid = stage.kill_server(pod)
            self._screen.command(["kill", "-9", str(pid)])
            self._screen.say(f"That was the server in {pod}, the one {victim.name} is on.")
        await self._say_and_hear(others[0], "did you hear everything?", people)
        self._check(people)
        for someone in people:
            someone.quiet = False
        await self.run("wait", "--for=condition=Ready", f"wsc/{CLUSTER}", "--timeout=60s")
        await self.run("get", "pods")

    async def cool_down(self, people: list[Person]) -> None:
        """Guests come who are all led to one pod, and are then shared with the others."""
        found = await self._kubectl(
            "get", "pods", "-l", DATAPLANE, "-o", "jsonpath={.items[*].metadata.name}"
        )
        hot, *others = names = sorted(found.split())
        pods = [f"pod/{name}" for name in others]
        self._screen.say("Closed by hand to new clients, so that all that come now come to the third one:")
        await self.run("annotate", *pods, f"{CORDON}=true")
        accepting = r"--for=jsonpath={.metadata.labels.tableforge\.io/accepting}"
        await self.run("wait", f"{accepting}=false", *pods, "--timeout=60s")
        async with guests(await self._url(), self._screen) as everybody:
            self._screen.say(f"{GUESTS} guests at {TABLES} tables. They start to talk, and don't stop.")
            async with everybody.talking():
                await self.run("annotate", *pods, f"{CORDON}-")
                await self.run("wait", f"{accepting}=true", *pods, "--timeout=60s")
                self._connections(names, people, everybody)
                await self.run("wait", "--for=condition=Balanced=False", f"wsc/{CLUSTER}", "--timeout=60s")
                await self.run("get", f"wsc/{CLUSTER}", "-o", f"jsonpath={BALANCED}")
                self._screen.say("The operator would mend it within a minute or two; this asks for it now:")
                await self.run("annotate", f"wsc/{CLUSTER}", "tableforge.io/rebalance=now")
                await self.run("wait", f"{REBALANCE}.lastRequest}}=now", f"wsc/{CLUSTER}", "--timeout=60s")
                await self.run("get", f"wsc/{CLUSTER}", "-o", "jsonpath={.status.rebalance}")
                await self.run("wait", f"{REBALANCE}.phase}}=Idle", f"wsc/{CLUSTER}", "--timeout=60s")
                self._connections(names, people, everybody)
                for reason in ("RebalanceStarted", "RebalanceFinished"):
                    await self.run(
                        *("get", "events", "--field-selector", f"reason={reason}"),
                        *("-o", "custom-columns=REASON:.reason,MESSAGE:.message"),
                    )
                await self.run("wait", "--for=condition=Balanced", f"wsc/{CLUSTER}", "--timeout=60s")
                await self.run("get", f"wsc/{CLUSTER}", "-o", f"jsonpath={BALANCED}")
            self._screen.say(everybody.check())
            counts = everybody.connections()
            if counts[hot] > len(everybody) / 2:
                raise DemoError(f"{hot} is as hot as it was: {dict(counts)}")
        await self.talk(people)
        self._check(people)

    def _connections(self, names: list[str], people: list[Person], everybody: Guests) -> None:
        """A bar for each pod."""
        counts = everybody.connections()
        counts.update(where for someone in people if (where := someone.client.instance) is not None)
        for name in names:
            self._screen.output(f"{name} {'█' * counts[name]} {counts[name]}")

    def _check(self, people: list[Person]) -> None:
        wrong = [problem for someone in people for problem in someone.gaps()]
        resets = sum(someone.resets for someone in people)
        if wrong or resets:
            raise DemoError(f"messages are missing: {wrong}, history was reset {resets} times")
        for someone in people:
            first, last = someone.heard[0].seq, someone.heard[-1].seq
            self._screen.say(
                f"{someone.name:<5} heard #{first} to #{last}: {len(someone.heard)} messages, none twice"
            )

    async def scale(self, replicas: int) -> None:
        """Scale the cluster and wait until it is so."""
        await self.run("scale", f"wsc/{CLUSTER}", f"--replicas={replicas}")
        ready = f"--for=jsonpath={{.status.readyReplicas}}={replicas}"
        await self.run("wait", ready, f"wsc/{CLUSTER}", "--timeout=90s")
        await self.run("wait", "--for=condition=Ready", f"wsc/{CLUSTER}", "--timeout=60s")
        await self.run("get", "wsc,pods")

    async def delete(self) -> None:
        """Delete the cluster and see that nothing of it is left."""
        label = f"tableforge.io/cluster={CLUSTER}"
        await self.run("delete", f"wsc/{CLUSTER}", "--timeout=60s")
        await stage.eventually_empty(self._kubectl, EVERYTHING, "-l", label)
        await self.run("get", EVERYTHING, "-l", label)


def _ours(word: str) -> bool:
    return Path(word).is_absolute() and word.startswith(str(stage.MANIFESTS))
