"""The store is like what the API server has, whatever order news comes in."""

from typing import Any

from tableforge_operator.observe.store import ClusterKey, Store

ENVIRONMENT = [{"configMapRef": {"name": "config"}}]
KEY: ClusterKey = ("ns", "tables")


def child(name: str, version: int, *, owner: str | None = "tables", **more: Any) -> dict[str, Any]:
    reference = {
        "apiVersion": "tableforge.io/v1alpha1",
        "kind": "WebSocketCluster",
        "name": owner,
        "uid": "u",
        "controller": True,
    }
    return {
        "kind": "Service",
        "metadata": {
            "name": name,
            "namespace": "ns",
            "resourceVersion": str(version),
            "ownerReferences": [] if owner is None else [reference],
        },
        **more,
    }


class Watched:
    """A store and what it told."""

    def __init__(self) -> None:
        self.told: list[tuple[ClusterKey, bool]] = []
        self.store = Store(lambda key, removed: self.told.append((key, removed)))

    def names(self) -> dict[str, str]:
        return {
            obj["metadata"]["name"]: obj["metadata"]["resourceVersion"] for obj in self.store.of_cluster(KEY)
        }

    def news(self) -> list[tuple[ClusterKey, bool]]:
        told, self.told = self.told, []
        return told


def test_what_appears_changes_and_goes_is_told_to_its_cluster() -> None:
    watched = Watched()
    watched.store.put(child("a", 1))
    assert watched.news() == [(KEY, False)]
    watched.store.put(child("a", 2))
    assert watched.news() == [(KEY, False)]
    watched.store.remove(child("a", 3))
    assert watched.news() == [(KEY, True)]
    assert watched.names() == {}
    assert list(watched.store.clusters()) == []


def test_news_older_than_a_write_of_ours_is_passed_over() -> None:
    watched = Watched()
    watched.store.put(child("a", 5), notify=False)
    watched.store.put(child("a", 4))
    watched.store.put(child("a", 5))
    watched.store.remove(child("a", 4))
    assert watched.news() == []
    assert watched.names() == {"a": "5"}


def test_a_list_replaces_what_it_should_have_shown_and_nothing_newer() -> None:
    watched = Watched()
    watched.store.put(child("gone", 3))
    watched.store.put(child("kept", 4))
    watched.store.put(child("newer", 12))
    watched.news()
    watched.store.replace("Service", None, [child("kept", 4)], "10")
    assert watched.names() == {"kept": "4", "newer": "12"}
    assert watched.news() == [(KEY, True)]


def test_a_list_of_one_namespace_says_nothing_of_another() -> None:
    watched = Watched()
    watched.store.put(child("a", 1))
    watched.store.replace("Service", "elsewhere", [], "10")
    watched.store.replace("ConfigMap", None, [], "10")
    assert watched.names() == {"a": "1"}


def test_a_child_that_loses_its_owner_is_told_to_the_cluster_it_had() -> None:
    watched = Watched()
    watched.store.put(child("a", 1))
    watched.news()
    watched.store.put(child("a", 2, owner=None))
    assert watched.news() == [(KEY, False)]
    assert watched.names() == {}


def test_a_pod_belongs_by_its_label_and_little_of_its_spec_is_kept() -> None:
    watched = Watched()
    pod = {
        "kind": "Pod",
        "metadata": {
            "name": "p",
            "namespace": "ns",
            "resourceVersion": "1",
            "labels": {"tableforge.io/cluster": "tables"},
            "managedFields": [{"manager": "kubelet"}],
        },
        "spec": {
            "nodeName": "n",
            "containers": [
                {"env": [{"name": "X", "value": "secret"}], "envFrom": ENVIRONMENT},
                {"image": "i"},
            ],
        },
    }
    watched.store.put(pod)
    (kept,) = watched.store.of_cluster(KEY)
    assert kept["spec"] == {"nodeName": "n", "containers": [{"envFrom": ENVIRONMENT}]}


def test_of_a_replica_set_only_what_its_pods_start_with_is_kept_and_news() -> None:
    told: list[tuple[ClusterKey, bool]] = []
    store = Store(lambda *what: told.append(what))

    def seen(version: int, *, name: str = "config", replicas: int = 1) -> dict[str, Any]:
        container = {"image": "i", "envFrom": [{"configMapRef": {"name": name}}]}
        return {
            **child("one", version),
            "kind": "ReplicaSet",
            "metadata": {
                "name": "one",
                "namespace": "ns",
                "resourceVersion": str(version),
                "labels": {"tableforge.io/cluster": "tables"},
            },
            "spec": {"replicas": replicas, "template": {"spec": {"containers": [container]}}},
            "status": {"replicas": replicas},
        }

    store.put(seen(1))
    (kept,) = store.of_cluster(("ns", "tables"))
    assert kept["spec"] == {"template": {"spec": {"containers": [{"envFrom": ENVIRONMENT}]}}}
    assert "status" not in kept
    store.put(seen(2, replicas=3))
    assert told == [(("ns", "tables"), False)]
    store.put(seen(3, name="other"))
    store.remove(seen(4))
    assert told == [(("ns", "tables"), False)] * 2 + [(("ns", "tables"), True)]
    assert "managedFields" not in kept["metadata"]


def test_blindness_is_news_once_and_over_once() -> None:
    store = Watched().store
    assert store.set_blind("Service", None, "forbidden")
    assert not store.set_blind("Service", None, "forbidden")
    assert store.blind("ns") == {"Service": "forbidden"}
    assert store.set_blind("Service", None, None)
    assert not store.set_blind("Service", None, None)
    assert store.blind("ns") == {}
