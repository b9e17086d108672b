"""What the message path joins by hand is what the encoders make of the same."""

import time
from typing import cast

import hiredis
import pytest

from tableforge_dataplane.broker.addresses import RoomAddress
from tableforge_dataplane.broker.publications import Publication, PublicationOwner, commands, head_of
from tableforge_dataplane.broker.scripts import publish_script
from tableforge_dataplane.contract.room_options import LogLimits
from tableforge_dataplane.contract.settings import RoomSettings
from tableforge_dataplane.protocol import names
from tableforge_dataplane.protocol.commands import CommandId
from tableforge_dataplane.protocol.events import Ack
from tableforge_dataplane.protocol.native import Native

ADDRESS = RoomAddress.of("test", "room-1", LogLimits.of_rooms(RoomSettings()))
NOBODY = cast("PublicationOwner", None)


@pytest.mark.parametrize(
    "identifier", [0, 7, -3, 2**53, 1.5, 1e300, "", "a", 'ü"\\\n', "x" * names.MAX_ID_CHARACTERS]
)
@pytest.mark.parametrize("seq", [1, 999_999_999_999_999])
def test_an_acknowledgement_is_what_its_event_encodes_to(identifier: CommandId, seq: int) -> None:
    tag = b"4503599627370495"
    native = Native()
    event = Ack(id=identifier, room="room:1", pos=names.format_position(seq, tag), seq=seq)
    assert native.ack(identifier, "room:1", seq, tag) == native.encode(event)


@pytest.mark.parametrize("size", [0, 1, 2047, 2048, 100_000])
def test_every_argument_of_a_publication_arrives_whole_whatever_its_length(size: int) -> None:
    script = publish_script(0)
    head = head_of(ADDRESS, script=script, publish_command=b"PUBLISH")
    batch = [
        Publication(
            head=head, tag=b"1", origin=b"ada", key=key, body=body, since=since, owner=NOBODY, retried=False
        )
        for key, body, since in (
            (b"k" * size, b"{}", b""),
            (b"", b"b" * size, b"1-2"),
            (b"key\r\n$3", b"\r\n" * (size // 2), b""),
        )
    ]
    limits = ADDRESS.limits
    reader = hiredis.Reader()
    reader.feed(commands(batch, b"PUBLISH"))
    for publication in batch:
        assert reader.gets() == [
            b"EVALSHA",
            script.sha,
            b"2",
            ADDRESS.meta,
            ADDRESS.log,
            ADDRESS.channel,
            b"PUBLISH",
            *(b"%d" % limit for limit in (limits.max_messages, limits.max_bytes, limits.max_age_ms)),
            publication.tag,
            publication.origin,
            publication.key,
            publication.since,
            publication.body,
        ]
    assert reader.gets() is False


def test_volatile_ones_go_between_stored_ones_in_their_order() -> None:
    head = head_of(ADDRESS, script=publish_script(0), publish_command=b"PUBLISH")
    before = time.time() - 0.001
    batch = [
        Publication(head=head, tag=b"1", origin=b"ada", key=b"k", body=body, owner=NOBODY, channel=channel)
        for body, channel in ((b"first", b""), (b"second", b"channel"), (b"third", b""))
    ]
    reader = hiredis.Reader()
    reader.feed(commands(batch, b"SPUBLISH"))
    first, second, third = reader.gets(), reader.gets(), reader.gets()
    assert (first[-1], third[-1]) == (b"first", b"third")
    assert second[:2] == [b"SPUBLISH", b"channel"]
    nothing, _, _, ts, origin, body = second[2].split(b" ", 5)
    assert (nothing, origin, body) == (b"0", b"ada", b"second")
    assert float(ts) >= before
