"""What the agent decides without any cluster: images, variables, names, statuses, logs, backends."""

import datetime as dt
import ipaddress
import json
import resource
from pathlib import Path
from typing import Any

import pytest

from devcluster.agent import settings
from devcluster.agent.addresses import AddressesExhausted, PodAddresses
from devcluster.agent.api import ApiError
from devcluster.agent.endpoints import Backend
from devcluster.agent.env import ConfigError, container_variables, expand, service_variables
from devcluster.agent.fields import FieldError, quantity, resource_value
from devcluster.agent.hosts import hosts_file, service_lines, write_in_place
from devcluster.agent.images import ImageTable, ImageTableError
from devcluster.agent.logs import ContainerLog
from devcluster.agent.node import Node
from devcluster.agent.probes import Timing, Verdict
from devcluster.agent.proxy import Balancer, Route, routes
from devcluster.agent.sandbox_init import mirrored_directories
from devcluster.agent.scheduler import obstacle
from devcluster.agent.status import ContainerView, PodView, Running, Terminated, Waiting, phase, pod_status
from devcluster.agent.volumes import File, PayloadDirectory

Object = dict[str, Any]
NOW = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)


# --- images ---------------------------------------------------------------------------------------------


def table(tmp_path: Path, content: Object) -> ImageTable:
    file = tmp_path / "images.json"
    file.write_text(json.dumps(content))
    return ImageTable.load(file)


def test_the_longest_matching_repository_wins_and_tags_do_not_matter(tmp_path: Path) -> None:
    images = table(
        tmp_path, {"redis": {"command": ["a"]}, "team/redis": {"command": ["b"]}, "other": {"command": ["c"]}}
    )

    def command(name: str) -> tuple[str, ...] | None:
        found = images.find(name)
        return found.image.command if found else None

    assert command("redis") == command("redis:7") == command("docker.io/library/redis@sha256:00") == ("a",)
    assert command("localhost:5000/team/redis:7") == command("team/redis") == ("b",)
    assert command("notredis") is None
    assert command("redis/redis-tools") is None


def test_command_and_args_replace_as_in_kubernetes(tmp_path: Path) -> None:
    image_of = table(
        tmp_path,
        {
            "db": {
                "command": ["dbd"],
                "args": ["--default"],
                "append_args": ["--bind", "$(POD_IP)"],
                "programs": {
                    "dbd": {"path": "/opt/dbd"},
                    "cli": {"path": "/opt/cli", "prepend_args": ["-h", "$(POD_IP)"]},
                },
            }
        },
    ).find("db")
    assert image_of is not None
    image, variables = image_of.image, {"POD_IP": "127.1.2.3", "X": "x"}
    assert image.argv(None, None, variables) == ["/opt/dbd", "--default", "--bind", "127.1.2.3"]
    assert image.argv(None, ["--$(X)", "$(Y)"], variables) == [
        "/opt/dbd",
        "--x",
        "$(Y)",
        "--bind",
        "127.1.2.3",
    ]
    assert image.argv(["cli"], ["$$(X)"], variables) == ["/opt/cli", "-h", "127.1.2.3", "$(X)"]
    assert image.argv(["sh", "-c", "date"], None, variables) == ["sh", "-c", "date"]
    assert image.program(["cli", "$(POD_IP)"], variables) == ["/opt/cli", "-h", "127.1.2.3", "$(POD_IP)"]


def test_a_bad_table_is_refused_with_its_file_and_field(tmp_path: Path) -> None:
    with pytest.raises(ImageTableError, match=r"images\.json.*comand"):
        table(tmp_path, {"db": {"comand": []}})
    with pytest.raises(ImageTableError, match=r"missing\.json"):
        ImageTable.load(tmp_path / "missing.json")


# --- variables ------------------------------------------------------------------------------------------


def test_references_are_expanded_once_and_unknown_ones_stay() -> None:
    known = {"A": "1", "B": "$(A)"}
    assert expand("$(A) $(B) $(C) $$(A) $ $(", known) == "1 $(A) $(C) $(A) $ $("


async def test_a_later_variable_sees_earlier_ones_and_secrets_are_decoded() -> None:
    objects: dict[tuple[str, str], Object] = {
        ("secrets", "s"): {"type": "Opaque", "data": {"key": "aHVzaA=="}},
        ("configmaps", "c"): {"data": {"A": "from map", "B": "b"}},
    }

    async def lookup(resource: str, _namespace: str, name: str) -> Object | None:
        return objects.get((resource, name))

    container = {
        "name": "main",
        "envFrom": [{"configMapRef": {"name": "c"}}, {"secretRef": {"name": "none", "optional": True}}],
        "env": [
            {"name": "A", "value": "own"},
            {"name": "S", "valueFrom": {"secretKeyRef": {"name": "s", "key": "key"}}},
            {"name": "T", "value": "$(A)-$(S)-$(LATER)"},
            {"name": "LATER", "value": "x"},
            {"name": "O", "valueFrom": {"secretKeyRef": {"name": "s", "key": "no", "optional": True}}},
        ],
    }
    pod = {"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": {"containers": [container]}}

    async def variables() -> dict[str, str]:
        return await container_variables(pod, container, lookup, services={}, pod_ip="1", host_ip="2")

    expected = {"A": "own", "B": "b", "S": "hush", "T": "own-hush-$(LATER)", "LATER": "x"}
    assert await variables() == expected
    del objects["configmaps", "c"]
    with pytest.raises(ConfigError, match='configmap "c" not found'):
        await variables()


def a_service(name: str, namespace: str = "n", **spec: Any) -> Object:
    full = {
        "clusterIP": "127.9.0.9",
        "selector": {"app": name},
        "ports": [{"port": 80, "name": "http"}],
    } | spec
    return {"metadata": {"name": name, "namespace": namespace}, "spec": full}


def test_service_variables_are_for_linked_services_and_the_api_server() -> None:
    api = a_service("kubernetes", "default", clusterIP="127.9.0.1", ports=[{"port": 443, "name": "https"}])
    services = [api, a_service("my-db"), a_service("headless", clusterIP="None"), a_service("far", "m")]
    linked = service_variables(services, "n", links=True)
    assert linked["MY_DB_SERVICE_HOST"] == "127.9.0.9"
    assert linked["MY_DB_PORT_80_TCP"] == "tcp://127.9.0.9:80"
    assert linked["KUBERNETES_SERVICE_PORT_HTTPS"] == "443"
    assert not [name for name in linked if name.startswith(("HEADLESS", "FAR"))]
    alone = service_variables(services, "n", links=False, api_server=("127.9.0.2", 6443))
    assert alone["KUBERNETES_SERVICE_HOST"] == "127.9.0.2"
    assert alone["KUBERNETES_SERVICE_PORT"] == "6443"
    assert all(name.startswith("KUBERNETES") for name in alone)


@pytest.mark.parametrize(
    ("text", "value"),
    [("250m", 0.25), ("1Gi", 2**30), ("1.5k", 1500), ("2e3", 2000), ("7", 7), ("-1M", -(10**6))],
)
def test_quantities(text: str, value: float) -> None:
    assert quantity(text) == value


def test_resources_are_rounded_up_and_nonsense_is_refused() -> None:
    container = {"resources": {"limits": {"cpu": "1500m"}}}
    assert resource_value(container, {"resource": "limits.cpu"}) == "2"
    assert resource_value(container, {"resource": "limits.cpu", "divisor": "1m"}) == "1500"
    assert resource_value(container, {"resource": "requests.cpu"}) == "0"
    with pytest.raises(FieldError):
        quantity("many")


# --- addresses and names --------------------------------------------------------------------------------


def test_addresses_are_reused_as_late_as_possible() -> None:
    addresses = PodAddresses(ipaddress.IPv4Network("127.1.0.0/29"))
    taken = [addresses.take() for _ in range(5)]
    assert taken == [f"127.1.0.{number}" for number in range(2, 7)]
    with pytest.raises(AddressesExhausted):
        addresses.take()
    addresses.give_back("127.1.0.4")
    addresses.give_back("127.1.0.2")
    addresses.give_back("127.1.0.4")
    assert [addresses.take(), addresses.take()] == ["127.1.0.4", "127.1.0.2"]


def a_pod(name: str, app: str, address: str = "", *, ready: bool = True, **spec: Any) -> Object:
    conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
    containers = [{"name": "main", "image": "i", "ports": [{"name": "http", "containerPort": 8080}]}]
    return {
        "metadata": {"name": name, "namespace": "n", "uid": name, "labels": {"app": app}},
        "spec": {"containers": containers, **spec},
        "status": {"podIP": address, "phase": "Running", "conditions": conditions},
    }


def test_names_are_as_dns_would_have_them() -> None:
    services = [
        a_service("web"),
        a_service("peers", clusterIP="None", selector={"app": "db"}),
        a_service("local", type="ExternalName", externalName="localhost", clusterIP=""),
        a_service("elsewhere", type="ExternalName", externalName="example.org", clusterIP=""),
    ]
    pods = [
        a_pod("db-0", "db", "127.1.0.2", hostname="db-0", subdomain="peers"),
        a_pod("db-1", "db", "127.1.0.3", ready=False, hostname="db-1", subdomain="peers"),
    ]
    own = [line.split() for line in service_lines(services, pods, "n")]
    assert own == [
        ["127.0.0.1", "local.n.svc.cluster.local", "local.n.svc", "local.n", "local"],
        [
            "127.1.0.2",
            "db-0.peers.n.svc.cluster.local",
            "db-0.peers.n.svc",
            "db-0.peers.n",
            "db-0.peers",
            "peers.n.svc.cluster.local",
            "peers.n.svc",
            "peers.n",
            "peers",
        ],
        ["127.9.0.9", "web.n.svc.cluster.local", "web.n.svc", "web.n", "web"],
    ]
    assert not any("web" in line.split() for line in service_lines(services, pods, "other"))
    text = hosts_file(pods[0], "127.1.0.2", [])
    assert text.splitlines() == ["127.0.0.1\tlocalhost", "127.1.0.2\tdb-0.peers.n.svc.cluster.local db-0"]


def test_hosts_are_changed_in_place(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    write_in_place(file, "a longer text\n")
    inode = file.stat().st_ino
    write_in_place(file, "short\n")
    assert (file.read_text(), file.stat().st_ino) == ("short\n", inode)


# --- services -------------------------------------------------------------------------------------------


def test_routes_lead_to_ready_pods_and_to_leaving_ones_only_without_others() -> None:
    api = Backend("127.0.0.1", 6443)
    services = [
        a_service("web", ports=[{"port": 80, "targetPort": "http", "nodePort": 30080}]),
        a_service("none"),
        a_service("kubernetes", "default", clusterIP="127.9.0.1", selector=None, ports=[{"port": 443}]),
    ]
    pods = [a_pod("a", "web", "127.1.0.2"), a_pod("b", "web", "127.1.0.3", ready=False)]
    leaving = a_pod("c", "web", "127.1.0.4")
    leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"

    found = routes(services, [*pods, leaving], node_ip="127.0.9.9", api_server=api)
    assert set(found) == {("127.9.0.9", 80), ("127.0.9.9", 30080), ("127.9.0.1", 443)}
    assert found["127.9.0.9", 80].backends == (Backend("127.1.0.2", 8080),)
    assert found["127.9.0.1", 443].backends == (api,)
    only_leaving = routes(services, [leaving], node_ip="127.0.9.9", api_server=api)
    assert only_leaving["127.9.0.9", 80].backends == (Backend("127.1.0.4", 8080),)
    services[0]["spec"]["publishNotReadyAddresses"] = True
    both = routes(services, pods, node_ip="127.0.9.9", api_server=api)["127.9.0.9", 80].backends
    assert [one.address for one in both] == ["127.1.0.2", "127.1.0.3"]


def test_backends_take_turns_unless_a_client_keeps_its_own() -> None:
    backends = tuple(Backend(f"127.1.0.{number}", 80) for number in (2, 3, 4))
    balancer = Balancer(Route("n/web", backends))
    chosen = [balancer.choose("c") for _ in range(6)]
    assert [chosen.count(backend) for backend in backends] == [2, 2, 2]
    sticky = Balancer(Route("n/web", backends, affinity_seconds=60))
    first = sticky.choose("c")
    assert first is not None
    assert {sticky.choose("c") for _ in range(5)} == {first}
    sticky.route = Route("n/web", tuple(one for one in backends if one != first), affinity_seconds=60)
    assert sticky.choose("c") != first
    sticky.route = Route("n/web", ())
    assert sticky.choose("c") is None


def test_a_pod_waits_for_what_it_needs_of_the_node() -> None:
    node: Object = {"metadata": {"labels": {"disk": "fast"}}, "spec": {}}
    pod = a_pod("p", "web", nodeSelector={"disk": "fast"})
    assert obstacle(pod, node, {}) is None
    assert "not found" in (obstacle(pod, node, {"data": None}) or "")
    assert "unbound" in (
        obstacle(pod, node, {"data": {"metadata": {}, "status": {"phase": "Pending"}}}) or ""
    )
    node["spec"]["taints"] = [{"key": "only", "value": "gpu", "effect": "NoSchedule"}]
    assert "untolerated taint(s) {only: gpu}" in (obstacle(pod, node, {}) or "")
    pod["spec"]["tolerations"] = [{"key": "only", "value": "gpu", "effect": "NoSchedule"}]
    assert obstacle(pod, node, {}) is None
    node["metadata"]["labels"] = {}
    assert "node affinity/selector" in (obstacle(pod, node, {}) or "")


# --- status ---------------------------------------------------------------------------------------------

RAN = Terminated(1, "Error", NOW, NOW)
FINE = Terminated(0, "Completed", NOW, NOW)


def a_view(*containers: ContainerView, pod: Object | None = None, **more: Any) -> PodView:
    full = {"pod_ip": "127.1.0.2", "host_ip": "127.0.0.9", "start_time": NOW} | more
    return PodView(pod=pod or a_pod("p", "web", ready=False), containers=containers, **full)


def main(state: Waiting | Running | Terminated, **more: Any) -> ContainerView:
    return ContainerView(name="main", role="main", image="i", state=state, **more)


def init(state: Waiting | Running | Terminated, **more: Any) -> ContainerView:
    return ContainerView(name="init", role="init", image="i", state=state, **more)


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        (a_view(main(Waiting("ContainerCreating"))), "Pending"),
        (a_view(main(Running(NOW))), "Running"),
        (a_view(main(Waiting("CrashLoopBackOff"), last=RAN)), "Running"),
        (a_view(main(RAN)), "Running"),
        (a_view(main(Running(NOW)), main(Waiting("ErrImagePull"))), "Pending"),
        (a_view(init(Running(NOW)), main(Waiting("PodInitializing"))), "Pending"),
        (a_view(init(FINE), main(Running(NOW))), "Running"),
        (a_view(main(FINE), finished=True), "Succeeded"),
        (a_view(main(FINE), main(RAN), finished=True), "Failed"),
        (a_view(init(RAN), main(Waiting("PodInitializing")), finished=True), "Failed"),
    ],
)
def test_phases(view: PodView, expected: str) -> None:
    assert phase(view) == expected


def test_transition_times_move_only_with_the_status() -> None:
    pod = a_pod("p", "web", ready=False)
    pod["status"]["conditions"] = [
        {"type": "Ready", "status": "False", "lastTransitionTime": "2020-01-01T00:00:00Z"},
        {"type": "ContainersReady", "status": "True", "lastTransitionTime": "2020-01-01T00:00:00Z"},
    ]
    status = pod_status(a_view(main(Running(NOW), ready=False), pod=pod), NOW)
    conditions = {one["type"]: one for one in status["conditions"]}
    assert conditions["Ready"]["lastTransitionTime"] == "2020-01-01T00:00:00Z"
    assert conditions["ContainersReady"]["lastTransitionTime"] == "2026-01-02T03:04:05Z"
    assert conditions["Ready"]["message"] == "containers with unready status: [main]"
    assert status["containerStatuses"][0]["state"] == {"running": {"startedAt": "2026-01-02T03:04:05Z"}}


def test_a_probe_changes_its_mind_only_after_enough_looks_in_a_row() -> None:
    timing = Timing.of({"failureThreshold": 3, "successThreshold": 2})
    verdict = Verdict(timing, initially=False)
    looks = [True, True, False, False, True, False, False, False]
    assert [verdict.add(look) and verdict.success for look in looks] == [
        False, True, False, False, False, False, False, False
    ]  # fmt: skip
    assert verdict.success is False


# --- files ----------------------------------------------------------------------------------------------


def test_a_payload_changes_at_once_and_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = PayloadDirectory(tmp_path / "volume")
    assert folder.write({"a": File(b"1", 0o644), "deep/b": File(b"2", 0o400)})
    assert not folder.write({"a": File(b"1", 0o644), "deep/b": File(b"2", 0o400)})
    assert (folder.path / "deep/b").read_bytes() == b"2"
    first = (folder.path / "..data").resolve()
    assert folder.write({"a": File(b"3", 0o644)})
    assert sorted(one.name for one in folder.path.iterdir() if not one.name.startswith("..")) == ["a"]
    assert (folder.path / "a").read_bytes() == b"3"
    assert not first.exists()


async def test_a_log_is_bounded_and_a_follower_misses_nothing(tmp_path: Path) -> None:
    log = ContainerLog(tmp_path / "0.log", limit_bytes=1000)
    for number in range(10):
        log.write(number, "stdout", f"line {number}".encode(), whole=True)
    follower = log.follow(log.end)
    seen = []
    for number in range(10, 60):
        log.write(number, "stdout", f"line {number}".encode(), whole=True)
        seen.append((await anext(follower)).text)
    assert seen == [f"line {number}\n".encode() for number in range(10, 60)]
    log.close()
    assert [one async for one in follower] == []
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 2000
    assert [one.text for one in log.lines(last=2)] == [b"line 58\n", b"line 59\n"]


async def test_a_follower_that_is_too_slow_goes_on_with_the_oldest_that_is_left(tmp_path: Path) -> None:
    log = ContainerLog(tmp_path / "0.log", limit_bytes=1000)
    follower = log.follow(log.end)
    for number in range(100):
        log.write(number, "stdout", f"line {number}".encode(), whole=True)
    log.close()
    seen = [line.text async for line in follower]
    assert seen == [line.text for line in log.lines()]
    assert seen[-1] == b"line 99\n"


def test_a_log_on_a_full_disk_loses_lines_and_stays_readable(tmp_path: Path) -> None:
    log = ContainerLog(tmp_path / "0.log", limit_bytes=10_000)
    log.write(1, "stdout", b"before", whole=True)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (log.end + 10, hard))
    try:
        log.write(2, "stdout", b"lost", whole=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    log.write(3, "stdout", b"after", whole=True)
    assert [line.text for line in log.lines()] == [b"before\n", b"after\n"]


async def test_a_node_joins_when_the_api_server_takes_it(tmp_path: Path) -> None:
    class Young:
        """An API server that has not made its namespaces yet."""

        refusals = 1

        async def create(self, path: str, body: Object) -> Object:
            if path.endswith("/leases") and self.refusals:
                self.refusals -= 1
                raise ApiError(404, "NotFound", "namespace kube-node-lease not found")
            return body

        async def patch(self, path: str, body: Object, kind: str = "") -> Object:
            if "/leases/" in path:
                raise ApiError(404, "NotFound", "no lease")
            return {"metadata": {"resourceVersion": "1"}, "spec": {}, **body}

    young = Young()
    arguments = (
        "--kubeconfig=k --node-name=n --node-ip=127.0.9.1 --pod-cidr=127.1.0.0/24 "
        "--service-cidr=127.2.0.0/24 --data-dir=d --images=i --port=0 --tls-cert=c --tls-key=k --client-ca=a"
        " --front-proxy-ca=f"
    )
    await Node(young, settings.parse(arguments.split()), 1).join()  # type: ignore[arg-type]
    assert young.refusals == 0


def test_only_directories_that_lack_something_are_rebuilt() -> None:
    there = {"/", "/etc", "/etc/hosts", "/run", "/var", "/srv"}
    targets = ["/etc/hosts", "/run/secrets/token", "/srv", "/data"]
    assert mirrored_directories(targets, there.__contains__) == {"/", "/run"}
