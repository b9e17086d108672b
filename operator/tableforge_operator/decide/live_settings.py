"""How far a change of settings that running instances take on has come: by what each says it goes by."""

from tableforge_operator.api import WebSocketCluster
from tableforge_operator.decide import findings, instances
from tableforge_operator.decide.resources.config_map import live_fingerprint
from tableforge_operator.decide.snapshot import Now, Snapshot


def note(cluster: WebSocketCluster, snapshot: Snapshot, now: Now) -> str:
    """Whom it has yet to reach; empty where nobody says that it has not. Older instances do not tell."""
    view = snapshot.fleet
    if view.fleet is None or now.monotonic - view.fleet_at > findings.FLEET_MEMORY_SECONDS:
        return ""
    told = {record.instance: record.live_settings for record in view.fleet.instances if record.alive}
    ours = [pod["metadata"]["name"] for pod in instances.staying(cluster, snapshot)]
    telling = sorted(name for name in ours if told.get(name))
    wanted = live_fingerprint(cluster) if telling else ""
    lacking = [name for name in telling if told[name] != wanted]
    if not lacking:
        return ""
    return (
        f" Changed settings have reached {len(telling) - len(lacking)} of {len(telling)} instances, and "
        f"{lacking[0]} not yet: it takes a minute or two, and its /health says where it cannot use them."
    )
