"""A new password for a managed Redis: whatever comes when, nobody is locked out, and the old one goes."""

import dataclasses
import hashlib
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from tableforge_operator.decide import resources
from tableforge_operator.decide.plan import Plan, decide
from tableforge_operator.decide.snapshot import FleetView, Refusal, Snapshot
from tests.operator.engine.pods import fleet
from tests.operator.engine.snapshots import SECRETS, at, conditions, done, of_track, ready_cluster


def password_name(generation: int) -> str:
    """The Secret with one password, as instances are mounted it."""
    return f"tables-redis-uid-1-{generation}"


class World:
    """Redis, two instances with what kubelets brought them, and an operator that acts on what it sees."""

    def __init__(self, generation: int = 1) -> None:
        spec = {"redis": {"managed": {"passwordGeneration": generation}}}
        self.snapshot = ready_cluster(now=at(0), **spec)
        self.secrets = SECRETS
        """What the operator derives; another master key gives others."""
        self.contents: dict[str, str] = {}
        """What was in each Secret when it was created, by name: its line of configuration."""
        self.created = {generation}
        """The generations of the Secrets that exist."""
        self.redis = (generation,)
        """What the Redis that runs takes."""
        self._create(decide(Snapshot(cluster=self.snapshot.cluster), at(0), secrets=SECRETS))
        self.takes = self._hashes_of(password_name(generation))
        """SHA-256 of the passwords of the Redis that runs."""
        self.held = {"instance-0": generation, "instance-1": generation}
        self.told = dict(self.held)
        """What each has written into its record."""
        self.rolled = True
        self.evicted: tuple[str, ...] = ()
        self.strangers: tuple[str, ...] = ()
        """Pods with an instance's labels, and no owner."""
        self.unseen = False
        """Whether the operator may not look at pods."""
        self._see()

    def ask_for(self, generation: int) -> None:
        cluster = dict(self.snapshot.cluster)
        cluster["spec"] = {
            **cluster["spec"],
            "redis": {"managed": {"passwordGeneration": generation}},
        }
        cluster["metadata"] = {**cluster["metadata"], "generation": cluster["metadata"]["generation"] + 1}
        self.snapshot = dataclasses.replace(self.snapshot, cluster=cluster)

    def turn(self) -> None:
        """The operator decides once, and what it decided is done."""
        self._see()
        plan = decide(self.snapshot, at(1), secrets=self.secrets)
        self._create(plan)
        before = self.template_secret
        self.snapshot = done(self.snapshot, plan, now=at(1))
        if self.template_secret != before:
            self.rolled = False

    @property
    def template_secret(self) -> str:
        workload = self.snapshot.children["StatefulSet", "tables-redis"]
        (name,) = (
            volume["secret"]["secretName"]
            for volume in workload["spec"]["template"]["spec"]["volumes"]
            if volume["name"] == "auth"
        )
        return str(name)

    @property
    def template_takes(self) -> tuple[int, ...]:
        return tuple(int(part) for part in self.template_secret.split("uid-1-")[1].split("-")[:2])

    def _create(self, plan: Plan) -> None:
        for secret in plan.secrets:
            # One by that name that exists stays as it is.
            name = secret["metadata"]["name"]
            self.contents.setdefault(name, secret["stringData"].get("auth.conf", ""))
            *_, last = name.split("uid-1-")
            if last.isdecimal():
                self.created.add(int(last))

    def _hashes_of(self, name: str) -> set[str]:
        line = self.contents[name]
        if line.startswith("requirepass"):
            return {hashlib.sha256(line.split()[1].encode()).hexdigest()}
        return {word[1:] for word in line.split() if word.startswith("#")}

    def restart_redis(self) -> None:
        """The StatefulSet's controller replaces the pod."""
        self.redis, self.rolled = self.template_takes, True
        self.takes = self._hashes_of(self.template_secret)

    def replace_master_key(self) -> None:
        """Another operator starts, which derives others and remembers nothing."""
        self.secrets = resources.derive(hashlib.sha256(self.secrets.fleet_key.encode()).digest(), "uid-1")
        self.snapshot = dataclasses.replace(self.snapshot, applied={}, secrets_created=frozenset())

    def project(self, instance: str) -> None:
        """The kubelet brings an instance the newest Secret of those that are mounted."""
        self.held[instance] = max(self.created)

    def tell(self, instance: str) -> None:
        self.told[instance] = self.held[instance]

    def nobody_is_locked_out(self) -> None:
        assert set(self.held.values()) <= set(self.redis), (self.held, self.redis)
        for generation in self.held.values():
            assert self._hashes_of(password_name(generation)) <= self.takes, "known by number only"

    def _see(self) -> None:
        children = dict(self.snapshot.children)
        for key, workload in children.items():
            if key[0] == "StatefulSet":
                status: dict[str, Any] = {
                    "observedGeneration": 1,
                    "replicas": 1,
                    "readyReplicas": 1,
                    "updateRevision": "new",
                    "currentRevision": "new" if self.rolled else "old",
                }
                children[key] = {**workload, "status": status}
        known = fleet(instances=2)
        records = [
            msgspec.structs.replace(record, redis_password=self.told[record.instance])
            for record in known.instances
        ]
        pods = tuple(
            {
                "kind": "Pod",
                "metadata": {"name": name, **of_track(), **owner},
                "status": {"phase": phase},
            }
            for phase, names, owner in (
                ("Running", self.held, {}),
                ("Failed", self.evicted, {}),
                ("Running", self.strangers, {"ownerReferences": []}),
            )
            for name in names
        )
        view = FleetView(fleet=msgspec.structs.replace(known, instances=records), fleet_at=at(1).monotonic)
        self.snapshot = dataclasses.replace(
            self.snapshot,
            children=children,
            fleet=view,
            pods=() if self.unseen else pods,
            blind={"Pod": "pods are forbidden"} if self.unseen else {},
        )

    def finish(self) -> None:
        """Everything that is under way comes to its end."""
        for _ in range(20):
            self.turn()
            self.restart_redis()
            self.nobody_is_locked_out()
            for name in self.held:
                self.project(name)
                self.nobody_is_locked_out()
                self.tell(name)


def test_the_way_from_one_to_the_next() -> None:
    world = World()
    world.ask_for(2)
    world.turn()
    assert 2 not in world.template_takes, "first the Secret, then the pod that cannot do without"
    world.turn()
    assert (world.template_takes, world.created) == ((1, 2), {1})
    world.turn()
    assert world.created == {1}, "Redis does not take it yet"
    world.restart_redis()
    world.turn()
    assert (world.template_takes, world.created) == ((1, 2), {1, 2})
    world.project("instance-0")
    world.tell("instance-0")
    world.turn()
    assert world.template_takes == (1, 2), "one of them does not have it yet"
    found = conditions(world.snapshot)["Ready"]
    assert found["reason"] == "PasswordChanging"
    assert "instance instance-1" in found["message"]
    assert "spec.redis.managed.passwordGeneration" in found["message"]
    world.project("instance-1")
    world.tell("instance-1")
    world.turn()
    assert world.template_takes == (2,)


def test_a_redis_that_is_about_to_be_replaced_is_not_there_yet() -> None:
    world = World()
    world.rolled = False
    world.turn()
    found = conditions(world.snapshot)
    assert (found["Ready"]["reason"], found["RedisReady"]["status"]) == ("RedisStarting", "False")


def test_the_pods_of_the_instances_stay_as_they_are() -> None:
    world = World()
    before = world.snapshot.children["Deployment", "tables-a"]["spec"]["template"]
    for generation in (2, 3, 4):
        world.ask_for(generation)
        world.finish()
        assert world.redis == (generation,)
        assert world.snapshot.children["Deployment", "tables-a"]["spec"]["template"] == before


def test_an_operator_that_restarts_goes_on_where_it_was() -> None:
    world = World()
    world.ask_for(2)
    world.turn()
    world.turn()
    world.restart_redis()
    world.snapshot = dataclasses.replace(world.snapshot, applied={}, secrets_created=frozenset())
    world.finish()
    assert world.redis == (2,)


def test_no_instances_need_not_be_waited_for() -> None:
    world = World()
    world.ask_for(2)
    world.held.clear()
    world.finish()
    assert world.redis == (2,)


def test_a_pod_of_somebody_elses_is_not_waited_for() -> None:
    world = World()
    world.strangers = ("no-instance",)
    world.ask_for(2)
    world.finish()
    assert world.redis == (2,)


def test_an_evicted_instance_is_not_waited_for() -> None:
    world = World()
    world.evicted = ("instance-9",)
    world.ask_for(2)
    world.finish()
    assert world.redis == (2,)


def test_redis_runs_on_where_the_secret_with_both_passwords_is_refused() -> None:
    world = World()
    world.ask_for(2)
    (name,) = (
        secret["metadata"]["name"]
        for secret in decide(world.snapshot, at(1), secrets=SECRETS).secrets
        if secret["metadata"]["name"].startswith("tables-redis-uid-1-1-2")
    )
    refusal = Refusal(
        reason="QuotaExceeded",
        message="exceeded quota: few",
        digest="",
        attempts=1,
        retry_at=at(60).monotonic,
    )
    world.snapshot = dataclasses.replace(world.snapshot, refusals={("Secret", name): refusal})
    world.turn()
    assert world.template_takes == (1,)
    plan = decide(world.snapshot, at(1), secrets=SECRETS)
    assert not plan.changes_objects, "it is looked at again when the refusal is due, and not at once"
    world.snapshot = dataclasses.replace(world.snapshot, refusals={})
    world.finish()
    assert world.redis == (2,)


def test_while_pods_are_not_seen_redis_takes_the_old_password_too() -> None:
    world = World()
    world.ask_for(2)
    world.turn()
    world.turn()
    world.restart_redis()
    world.unseen = True
    for _ in range(3):
        world.turn()
    assert world.template_takes == (1, 2)
    world.unseen = False
    world.finish()
    assert world.redis == (2,)


def test_with_another_master_key_everybody_stays_connected_and_the_password_changes_nonetheless() -> None:
    world = World()
    world.replace_master_key()
    world.turn()
    world.turn()
    assert (world.template_takes, world.rolled) == ((1,), True), "nothing restarts for it"
    world.ask_for(2)
    world.finish()
    assert world.redis == (2,)
    assert world.takes == {world.secrets.redis_password_hash(2)}


def test_a_master_key_replaced_in_the_middle_has_redis_take_what_comes_before_it_is_given() -> None:
    world = World()
    world.ask_for(2)
    world.turn()
    world.turn()
    world.restart_redis()
    world.replace_master_key()
    world.turn()
    assert password_name(2) not in world.contents, "Redis does not take the one of this key yet"
    world.turn()
    assert (world.template_takes, world.rolled) == ((1, 2), False)
    world.finish()
    assert world.takes == {world.secrets.redis_password_hash(2)}


def test_an_older_operators_redis_says_from_now_on_what_it_takes_and_does_not_restart() -> None:
    world = World()
    children = dict(world.snapshot.children)
    key = ("StatefulSet", "tables-redis")
    children[key] = {
        **children[key],
        "metadata": {
            part: value for part, value in children[key]["metadata"].items() if part != "annotations"
        },
    }
    world.snapshot = dataclasses.replace(world.snapshot, children=children, applied={})
    world.turn()
    world.turn()
    annotations = world.snapshot.children[key]["metadata"]["annotations"]
    assert annotations == {"tableforge.io/password-hashes": f"1={SECRETS.redis_password_hash(1)}"}
    assert world.rolled


def blind_from_the_start(snapshot: Snapshot) -> Snapshot:
    """As an operator sees it that starts and may not list StatefulSets."""
    rest = {key: obj for key, obj in snapshot.children.items() if key[0] != "StatefulSet"}
    return dataclasses.replace(
        snapshot,
        children=rest,
        applied={},
        secrets_created=frozenset(),
        blind={"StatefulSet": "statefulsets is forbidden"},
    )


def touched(plan: Plan) -> set[str]:
    """What of a managed Redis and its passwords a plan changes."""
    made = {secret["metadata"]["name"] for secret in plan.secrets if "redis" in secret["metadata"]["name"]}
    return made | {wanted.key[0] for wanted in plan.applies if wanted.key[0] == "StatefulSet"}


@given(first=st.integers(1, 9), wanted=st.integers(1, 9), gone=st.sampled_from([(), ("Deployment",)]))
def test_a_redis_that_is_not_seen_is_left_alone(first: int, wanted: int, gone: tuple[str, ...]) -> None:
    world = World(first)
    before = world.snapshot.children["Deployment", "tables-a"]["spec"]["template"]["spec"]["volumes"]
    world.ask_for(max(first, wanted))
    snapshot = blind_from_the_start(world.snapshot)
    rest = {key: obj for key, obj in snapshot.children.items() if key[0] not in gone}
    blind = {**snapshot.blind, **dict.fromkeys(gone, "forbidden")}
    found = decide(dataclasses.replace(snapshot, children=rest, blind=blind), at(1), secrets=SECRETS)
    assert not touched(found)
    for apply in found.applies:
        if apply.key[0] == "Deployment":
            assert apply.obj["spec"]["template"]["spec"]["volumes"] == before, "they keep the one they use"


def test_a_new_clusters_redis_waits_until_it_could_be_seen_and_the_status_says_so() -> None:
    snapshot = dataclasses.replace(
        Snapshot(cluster=ready_cluster(now=at(0)).cluster), blind={"StatefulSet": "statefulsets is forbidden"}
    )
    found = decide(snapshot, at(1), secrets=SECRETS)
    assert not touched(found)
    snapshot = done(snapshot, found, now=at(1))
    ready = conditions(decide(snapshot, at(1), secrets=SECRETS))["Ready"]
    assert ready["reason"] == "Blind"
    assert "neither made nor changed: statefulsets is forbidden" in ready["message"]
    assert touched(decide(dataclasses.replace(snapshot, blind={}), at(1), secrets=SECRETS))


STEPS = st.lists(
    st.sampled_from(["turn", "redis", "project-0", "project-1", "tell-0", "tell-1", "ask", "forget", "key"]),
    max_size=60,
)


@settings(max_examples=40, deadline=None)
@given(steps=STEPS, first=st.integers(1, 3))
def test_nobody_is_locked_out_whatever_comes_when(steps: list[str], first: int) -> None:
    world = World(first)
    wanted = first
    for step in steps:
        if step == "turn":
            world.turn()
        elif step == "redis":
            world.restart_redis()
        elif step == "ask":
            wanted += 1
            world.ask_for(wanted)
        elif step == "key":
            world.replace_master_key()
        elif step == "forget":
            world.snapshot = dataclasses.replace(world.snapshot, applied={}, secrets_created=frozenset())
        else:
            what, _, number = step.partition("-")
            (world.project if what == "project" else world.tell)(f"instance-{number}")
        world.nobody_is_locked_out()
    for _ in range(wanted - first + 1):
        world.finish()
    assert world.redis == (wanted,)
    assert set(world.held.values()) == {wanted}


def test_what_a_snapshot_does_not_show_changes_nothing() -> None:
    snapshot = Snapshot(cluster=ready_cluster(now=at(0)).cluster)
    plan = decide(snapshot, at(1), secrets=SECRETS)
    assert [
        secret["metadata"]["name"] for secret in plan.secrets if "redis" in secret["metadata"]["name"]
    ] == ["tables-redis-uid-1-1"]
