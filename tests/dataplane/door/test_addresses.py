"""Where a client is: what proxies say, what clients make up, and what counts as one client."""

import contextlib
import dataclasses
import ipaddress
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tableforge_dataplane.contract.settings import SecuritySettings
from tableforge_dataplane.security.addresses import (
    MOST_HOPS,
    AddressError,
    ClientAddresses,
    client_key,
    parse_address,
)

PROXIES = "10.0.0.0/8, 2001:db8:ffff::/48"
PROXY = parse_address("10.0.0.1")


def addresses(proxies: str = PROXIES, *, header: str = "X-Forwarded-For") -> ClientAddresses:
    return ClientAddresses(
        dataclasses.replace(
            SecuritySettings(),
            trusted_proxies=proxies,
            client_address_header=header,  # type: ignore[arg-type]
        )
    )


def behind(*lines: str, header: str = "X-Forwarded-For") -> str:
    return str(addresses(header=header).behind(PROXY, lines))


def test_who_is_no_trusted_proxy_speaks_for_itself_only() -> None:
    peer = parse_address("203.0.113.9")
    assert addresses().behind(peer, ["198.51.100.1"]) == peer
    assert addresses("").behind(PROXY, ["198.51.100.1"]) == PROXY


@pytest.mark.parametrize(
    ("lines", "client"),
    [
        (["198.51.100.1"], "198.51.100.1"),
        (["6.6.6.6, 198.51.100.1"], "198.51.100.1"),
        (["6.6.6.6, 198.51.100.1, 10.2.3.4"], "198.51.100.1"),
        (["6.6.6.6", "198.51.100.1", "10.2.3.4, 10.9.9.9"], "198.51.100.1"),
        (["nonsense, 198.51.100.1"], "198.51.100.1"),
        (["10.7.7.7, 10.2.3.4"], "10.7.7.7"),
        (["198.51.100.1:4711"], "198.51.100.1"),
        (["[2001:db8::7]:4711"], "2001:db8::7"),
        (["2001:db8::7"], "2001:db8::7"),
        (["::ffff:198.51.100.1"], "198.51.100.1"),
        (["198.51.100.1, 2001:db8:ffff::1"], "198.51.100.1"),
        ([" , 198.51.100.1 ,, "], "198.51.100.1"),
        ([], "10.0.0.1"),
    ],
)
def test_the_last_address_that_is_no_proxys_is_the_clients(lines: list[str], client: str) -> None:
    assert behind(*lines) == client


@pytest.mark.parametrize(
    ("lines", "client"),
    [
        (["for=198.51.100.1"], "198.51.100.1"),
        (['For="[2001:db8::7]:4711";proto=https;by=10.0.0.1'], "2001:db8::7"),
        (['for="198.51.100.1:80"'], "198.51.100.1"),
        (["for=6.6.6.6, for=198.51.100.1;host=a, for=10.2.3.4"], "198.51.100.1"),
        (['for=198.51.100.1;host="a,for=6.6.6.6"'], "198.51.100.1"),
        (['for=198.51.100.1;host="a\\",for=6.6.6.6"'], "198.51.100.1"),
        (["for=198.51.100.1", "for=10.2.3.4"], "198.51.100.1"),
        (["for=6.6.6.6, for=unknown, for=10.2.3.4"], "10.2.3.4"),
        (["for=6.6.6.6, for=_hidden"], "10.0.0.1"),
        (["for=6.6.6.6, proto=https"], "10.0.0.1"),
        ([], "10.0.0.1"),
    ],
)
def test_forwarded_is_read_as_its_standard_has_it(lines: list[str], client: str) -> None:
    assert behind(*lines, header="Forwarded") == client


@pytest.mark.parametrize("line", ["6.6.6.6, nonsense", "unknown", "198.51.100.1.2", "1.2.3.4, [::1"])
def test_a_trusted_proxys_nonsense_names_nobody(line: str) -> None:
    with pytest.raises(AddressError):
        behind(line)


@pytest.mark.parametrize(
    "line",
    ['for="198.51.100.1', "for", "for=a b", "for=1.2.3.4;for=5.6.7.8", 'for="nonsense"', "for=,x=y;;z"],
)
def test_a_malformed_forwarded_names_nobody(line: str) -> None:
    with pytest.raises(AddressError):
        behind(line, header="Forwarded")


def test_a_list_without_end_is_not_read() -> None:
    with pytest.raises(AddressError):
        behind(", ".join(["10.0.0.1"] * (MOST_HOPS + 1)))


hosts = st.ip_addresses(v=4).filter(lambda address: address not in ipaddress.ip_network("10.0.0.0/8"))


@given(client=hosts, made_up=st.lists(st.text(max_size=30)), hops=st.lists(st.just("10.1.1.1"), max_size=5))
def test_whatever_a_client_makes_up_its_proxy_has_the_last_word(
    client: ipaddress.IPv4Address, made_up: list[str], hops: list[str]
) -> None:
    assert behind(", ".join([*made_up, str(client), *hops])) == str(client)
    quoted = [part.replace("\\", "").replace('"', "") for part in made_up]
    line = ", ".join([*quoted, f'for="{client}:1"', *(f"for={hop}" for hop in hops)])
    assert behind(line, header="Forwarded") == str(client)


@given(st.text(max_size=200), st.sampled_from(["X-Forwarded-For", "Forwarded"]))
def test_any_text_is_an_address_or_an_error(text: str, header: str) -> None:
    with contextlib.suppress(AddressError):
        behind(text, header=header)


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded"])
def test_reading_costs_no_more_than_the_header_is_long(header: str) -> None:
    began = time.process_time()
    for text in (
        'for="' + "\\" * 8000,
        "a" * 8000,
        "for=" + ";" * 8000,
        "=" * 8000,
        "[" * 8000,
        "1.1" * 2700,
    ):
        with contextlib.suppress(AddressError):
            behind(text, header=header)
    assert time.process_time() - began < 1.0


def test_an_ipv6_client_is_its_64() -> None:
    keys = {client_key(parse_address(f"2001:db8:1:2:{end:x}::1")) for end in (0, 1, 0xFFFF)}
    assert keys == {"2001:db8:1:2::/64"}
    assert client_key(parse_address("2001:db8:1:3::1")) not in keys
    assert (
        client_key(parse_address("::ffff:192.0.2.1")) == client_key(parse_address("192.0.2.1")) == "192.0.2.1"
    )
    assert parse_address("fe80::1%eth0") == parse_address("fe80::1")


@pytest.mark.parametrize(
    "private", ["10.1.2.3", "192.168.0.7", "172.16.9.9", "127.0.0.1", "100.64.0.1", "fd00::1"]
)
def test_a_private_address_is_a_clients_only_where_somebody_said_who_the_proxies_are(private: str) -> None:
    assert not addresses("").is_client(parse_address(private))
    assert addresses("none").is_client(parse_address(private))
    assert addresses("192.0.2.0/24").is_client(parse_address(private))


def test_a_public_address_is_a_clients() -> None:
    assert addresses("").is_client(parse_address("8.8.8.8"))
    assert addresses("").is_client(parse_address("2a00:1450::1"))
