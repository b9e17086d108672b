"""The Ingress, whole, and what is refused."""

import pytest

from tableforge_operator.decide.resources import children
from tests.operator.model import expected
from tests.operator.model.expected import metadata
from tests.operator.model.refusals import refusals


@pytest.fixture
def ingress(cluster, secrets):
    """The Ingress of a cluster; None where there is none."""

    def make(asked):
        objects = children(cluster({} if asked is None else {"ingress": asked}), secrets=secrets).applied
        return next((obj for obj in objects if obj["kind"] == "Ingress"), None)

    return make


def rule(host, path):
    backend = {"service": {"name": "tables", "port": {"number": 3001}}}
    return {"host": host, "http": {"paths": [{"path": path, "pathType": "Prefix", "backend": backend}]}}


def test_none_unless_asked_for(ingress):
    assert ingress(None) is None


def test_a_host_is_enough(ingress):
    assert ingress({"host": "tables.example.com"}) == {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": metadata("tables", expected.DATAPLANE),
        "spec": {"rules": [rule("tables.example.com", "/ws")]},
    }


def test_every_field_acts(ingress):
    found = ingress(
        {
            "host": "*.example.com",
            "className": "nginx",
            "path": "/tables",
            "tlsSecretName": "tables-tls",
            "annotations": {"nginx.ingress.kubernetes.io/proxy-read-timeout": "3600", "a.example/b": "c"},
        }
    )
    assert found["spec"] == {
        "ingressClassName": "nginx",
        "rules": [rule("*.example.com", "/tables")],
        "tls": [{"hosts": ["*.example.com"], "secretName": "tables-tls"}],
    }
    assert found["metadata"]["annotations"] == {
        "a.example/b": "c",
        "nginx.ingress.kubernetes.io/proxy-read-timeout": "3600",
    }


REFUSED = {
    "no-host": ({}, "spec.ingress.host: Required value"),
    "scheme": ({"host": "wss://tables.example.com"}, "without a scheme"),
    "port": ({"host": "tables.example.com:443"}, "without a port"),
    "upper-case": ({"host": "Tables.example.com"}, "in lower case"),
    "two-stars": ({"host": "*.*.example.com"}, "at most with *. in front"),
    "class": ({"host": "a.example", "className": "My Class"}, "must be a name of lower-case"),
    "relative": ({"host": "a.example", "path": "ws"}, "must start with a slash"),
    "query": ({"host": "a.example", "path": "/ws?token=1"}, "be a path of a URL"),
    "slashes": ({"host": "a.example", "path": "//ws"}, "be a path of a URL"),
    "secret": ({"host": "a.example", "tlsSecretName": "A_B"}, "must be a name of lower-case"),
    "reserved": ({"host": "a.example", "annotations": {"tableforge.io/x": ""}}, "are the operator's"),
    "key": ({"host": "a.example", "annotations": {"a/b/c": ""}}, "keys must be letters"),
}
TAKEN = {
    "all": {
        "host": "*.a.example",
        "className": "nginx",
        "path": "/a/~b/%20",
        "tlsSecretName": "t",
        "annotations": {"x.example/y": "z"},
    },
    "root": {"host": "localhost", "path": "/"},
}


@pytest.mark.cluster
def test_wrong_values_are_refused_with_what_to_change(shared_kubectl):
    said = refusals(shared_kubectl, {name: {"ingress": asked} for name, (asked, _) in REFUSED.items()})
    wrong = {name: said[name] for name, (_, message) in REFUSED.items() if message not in said[name]}
    assert wrong == {}


@pytest.mark.cluster
def test_right_values_are_taken_here_and_as_an_ingress(shared_kubectl, cluster, secrets):
    assert set(
        refusals(shared_kubectl, {name: {"ingress": asked} for name, asked in TAKEN.items()}).values()
    ) == {""}
    for asked in TAKEN.values():
        objects = children(cluster({"ingress": asked}, namespace="default"), secrets=secrets).applied
        (found,) = (obj for obj in objects if obj["kind"] == "Ingress")
        said = shared_kubectl(
            *("apply", "--server-side", "--validate=strict", "--dry-run=server"), "-f", "-", stdin=found
        )
        assert (said.code, said.err) == (0, "")
