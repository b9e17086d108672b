"""The `spec` of a WebSocketCluster: what a user may ask for.

Only fields that act are here. The descriptions are what `kubectl explain` shows.
"""

from typing import Annotated, ClassVar

from tableforge_operator.api.fields import Group, Rule, field
from tableforge_operator.api.spec import autoscaling as scaling_rules
from tableforge_operator.api.spec.auth import Auth
from tableforge_operator.api.spec.autoscaling import Autoscaling
from tableforge_operator.api.spec.common import DEFAULT_DATAPLANE_IMAGE, Image
from tableforge_operator.api.spec.ingress import Ingress
from tableforge_operator.api.spec.instances import (
    Clustering,
    LoadBalancing,
    Monitoring,
    Performance,
    Scaling,
)
from tableforge_operator.api.spec.pod import Pod
from tableforge_operator.api.spec.redis import Redis
from tableforge_operator.api.spec.rollout import Rollout
from tableforge_operator.api.spec.rooms import Rooms
from tableforge_operator.api.spec.routing import Routing
from tableforge_operator.api.spec.security import Security
from tableforge_operator.api.spec.service import Service
from tableforge_operator.api.spec.websocket import Websocket


class Spec(Group, frozen=True):
    """What the cluster should be."""

    replicas: Annotated[
        int,
        field("How many instances run; with autoscaling the least that do.", ge=0, le=1000),
    ] = 3
    image: Annotated[
        Image | None,
        field(
            f"Image of the data plane. Default: {DEFAULT_DATAPLANE_IMAGE}, renewed with the operator.",
        ),
    ] = None
    websocket: Websocket = Websocket()
    redis: Redis = Redis()
    scaling: Scaling = Scaling()
    auth: Auth = Auth()
    load_balancing: LoadBalancing = LoadBalancing()
    performance: Performance = Performance()
    monitoring: Monitoring = Monitoring()
    security: Security = Security()
    rooms: Rooms | None = None
    clustering: Clustering = Clustering()
    routing: Routing = Routing()
    autoscaling: Autoscaling = Autoscaling()
    rollout: Rollout = Rollout()
    pod: Pod = Pod()
    service: Service = Service()
    ingress: Ingress | None = None

    rules: ClassVar = (
        # Here and not on `auth`: what a user leaves out altogether must not pass by its default.
        Rule(
            "!self.auth.required || has(self.auth.jwtSecretRef) || has(self.auth.publicKeys) "
            "|| has(self.auth.jwks)",
            "auth.required is true (the default), so auth.jwtSecretRef must name the Secret with the tokens' "
            "key, or auth.publicKeys or auth.jwks tell where the keys are that tokens are checked with; "
            "to let everybody in, set auth.required to false",
            field_path=".auth.jwtSecretRef",
            reason="FieldValueRequired",
        ),
        Rule(
            "!has(self.rooms) || !has(self.rooms.logMaxBytes) "
            "|| self.rooms.logMaxBytes >= self.websocket.maxPayloadBytes",
            "rooms.logMaxBytes must be at least websocket.maxPayloadBytes, or a room's log could not hold "
            "its newest message: raise the one or lower the other",
            field_path=".rooms.logMaxBytes",
        ),
        Rule(
            "!has(self.rooms) || !has(self.rooms.personalMaxBytes) "
            "|| self.rooms.personalMaxBytes >= self.websocket.maxPayloadBytes",
            "rooms.personalMaxBytes must be at least websocket.maxPayloadBytes, or a personal log could "
            "not hold its newest message: raise the one or lower the other",
            field_path=".rooms.personalMaxBytes",
        ),
        Rule(
            "!has(self.rooms) || !has(self.rooms.options) || self.rooms.options.all(options, "
            "!has(options.logMaxBytes) || options.logMaxBytes >= self.websocket.maxPayloadBytes)",
            "logMaxBytes in rooms.options must be at least websocket.maxPayloadBytes, or a room's log "
            "could not hold its newest message: raise the one or lower the other",
            field_path=".rooms.options",
        ),
        Rule(
            "!has(self.performance.compressionThreshold) || (has(self.performance.enableCompression) "
            "&& !self.performance.enableCompression) "
            "|| self.performance.compressionThreshold <= self.websocket.maxPayloadBytes",
            "performance.compressionThreshold must be at most websocket.maxPayloadBytes, or nothing would "
            "ever be compressed: lower the one, raise the other, or set performance.enableCompression to "
            "false",
            field_path=".performance.compressionThreshold",
        ),
        *scaling_rules.RULES,
    )
