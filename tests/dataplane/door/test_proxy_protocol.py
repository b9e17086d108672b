"""The PROXY protocol: both versions, in any pieces, and what is none."""

import ipaddress
import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tableforge_dataplane.security.proxy_protocol import (
    MOST_BYTES,
    SIGNATURE,
    ProxyHeader,
    ProxyProtocolError,
    read_header,
)
from tableforge_dataplane.wire.preface import PrefaceError, ProxyPreface


def v2(source: str, *, command: int = 1, tlvs: bytes = b"") -> bytes:
    """A version 2 header as a balancer sends it."""
    address = ipaddress.ip_address(source)
    size = len(address.packed)
    body = address.packed + b"\x7f" * size + struct.pack("!HH", 4711, 443) + tlvs
    family = 0x11 if address.version == 4 else 0x21
    return SIGNATURE + bytes((0x20 | command, family)) + len(body).to_bytes(2) + body


def v1(line: str) -> bytes:
    return line.encode() + b"\r\n"


@pytest.mark.parametrize(
    ("header", "source"),
    [
        (v2("192.0.2.1"), "192.0.2.1"),
        (v2("2001:db8::7"), "2001:db8::7"),
        (v2("::ffff:192.0.2.1"), "192.0.2.1"),
        (v2("192.0.2.1", tlvs=b"\x01\x00\x02h2" + b"\x04\x00\x64" + bytes(100)), "192.0.2.1"),
        (v2("192.0.2.1", command=0), None),
        (SIGNATURE + b"\x20\x00\x00\x00", None),
        (SIGNATURE + b"\x21\x00\x00\x00", None),
        (SIGNATURE + b"\x21\x31\x00\xd8" + bytes(216), None),
        (v1("PROXY TCP4 192.0.2.1 10.0.0.1 4711 443"), "192.0.2.1"),
        (v1("PROXY TCP6 2001:db8::7 ::1 4711 443"), "2001:db8::7"),
        (v1("PROXY UNKNOWN"), None),
        (v1("PROXY UNKNOWN ffff::1 ffff::2 1 2"), None),
    ],
)
def test_a_header_names_who_connected(header: bytes, source: str | None) -> None:
    expected = ProxyHeader(None if source is None else ipaddress.ip_address(source), len(header))
    assert read_header(header + b"GET / HTTP/1.1\r\n") == expected
    for size in range(len(header)):
        assert read_header(header[:size]) is None


@pytest.mark.parametrize(
    "bad",
    [
        b"GET /ws HTTP/1.1\r\n",
        SIGNATURE + b"\x11\x11\x00\x0c" + bytes(12),
        SIGNATURE + b"\x22\x11\x00\x0c" + bytes(12),
        SIGNATURE + b"\x21\x11\x00\x0b" + bytes(11),
        SIGNATURE + b"\x21\x21\x00\x0c" + bytes(12),
        SIGNATURE + b"\x21\x12\x00\x0c" + bytes(12),
        SIGNATURE + b"\x21\x11\xff\xff",
        SIGNATURE + b"\x21\x11" + (MOST_BYTES - 15).to_bytes(2),
        v1("PROXY TCP4 192.0.2.1 10.0.0.1 4711 70000"),
        v1("PROXY TCP4 2001:db8::7 10.0.0.1 4711 443"),
        v1("PROXY TCP4 192.0.2.1 10.0.0.1 4711"),
        v1("PROXY TCP5 192.0.2.1 10.0.0.1 4711 443"),
        b"PROXY TCP4 192.0.2.1 10.0.0.1 4711 443\n",
        b"PROXY " + b"x" * 200,
    ],
)
def test_what_is_no_header_is_refused_before_more_is_waited_for(bad: bytes) -> None:
    with pytest.raises(ProxyProtocolError):
        read_header(bad)


@given(
    st.binary(max_size=300), st.sampled_from([b"", SIGNATURE, SIGNATURE + b"\x21", b"PROXY ", b"PROXY TCP4 "])
)
def test_any_bytes_are_a_header_or_an_error_or_not_enough(data: bytes, start: bytes) -> None:
    try:
        header = read_header(start + data)
    except ProxyProtocolError:
        return
    assert header is None or 0 < header.size_bytes <= len(start + data)


@given(
    st.sampled_from([v2("192.0.2.1", tlvs=bytes(40)), v1("PROXY TCP4 192.0.2.1 10.0.0.1 4711 443")]),
    st.binary(max_size=40),
    st.lists(st.integers(0, 200), max_size=6),
)
def test_what_follows_the_header_is_handed_on_whatever_the_pieces(
    header: bytes, rest: bytes, cuts: list[int]
) -> None:
    stream, preface = header + rest, ProxyPreface()
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    handed_on = b""
    for begin, end in itertools.pairwise(edges):
        piece = stream[begin:end]
        got = preface.feed(piece) if not preface.told else piece
        handed_on += got or b""
    assert (handed_on, str(preface.source)) == (rest, "192.0.2.1")


@pytest.mark.parametrize(
    "first", [b"GET /live HTTP/1.1\r\n", b"HEAD /ready HTTP/1.1\r\n", b"\x16\x03\x01\x00"]
)
def test_a_check_without_a_header_is_let_through_as_such(first: bytes) -> None:
    preface = ProxyPreface()
    assert preface.feed(first[:1]) in (None, first[:1])
    preface = ProxyPreface()
    assert preface.feed(first) == first
    assert not preface.told


@pytest.mark.parametrize(
    "first", [b"\x00", b"POST / HTTP/1.1\r\n", b"PROXY nonsense\r\n", SIGNATURE + b"\xff" * 8]
)
def test_anything_else_is_dropped(first: bytes) -> None:
    with pytest.raises(PrefaceError):
        ProxyPreface().feed(first)
