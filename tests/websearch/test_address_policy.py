"""The addresses that a fetch may connect to."""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from embedshare.errors import AddressRefused, FetchFailed
from embedshare.websearch import dns
from embedshare.websearch.address_policy import AddressPolicy, is_public
from tests.processes import wait_for

PUBLIC = "93.184.216.34"
SOON = time.monotonic() + 86_400  # tests run long after this import
NAT64 = int(ipaddress.IPv6Address("64:ff9b::"))


def leads_to(*addresses: str) -> AddressPolicy:
    """Return the policy with a resolver that gives every name these addresses."""
    return AddressPolicy(resolve=lambda host, port, deadline: list(addresses))


@given(st.ip_addresses(v=4))
@example(ipaddress.IPv4Address("100.64.0.1"))
@example(ipaddress.IPv4Address("0.0.0.0"))
@example(ipaddress.IPv4Address("169.254.169.254"))
@example(ipaddress.IPv4Address("255.255.255.255"))
def test_no_address_that_is_not_global_is_public(address: ipaddress.IPv4Address) -> None:
    if not address.is_global or address.is_multicast:
        assert not is_public(address)
    elif address not in ipaddress.ip_network("192.88.99.0/24") and not address.is_reserved:
        assert is_public(address)


@given(st.ip_addresses(v=6))
def test_no_ipv6_address_that_is_not_global_is_public(address: ipaddress.IPv6Address) -> None:
    translated = address.ipv4_mapped is not None or int(address) >> 32 == NAT64 >> 32
    if not translated and is_public(address):
        assert address.is_global
        assert int(address) >> 125 == 1  # 2000::/3


@given(st.ip_addresses(v=4))
@example(ipaddress.IPv4Address("127.0.0.1"))
def test_an_ipv4_address_inside_an_ipv6_one_is_judged_as_itself(address: ipaddress.IPv4Address) -> None:
    assert is_public(ipaddress.IPv6Address(f"::ffff:{address}")) == is_public(address)
    assert is_public(ipaddress.IPv6Address(NAT64 + int(address))) == is_public(address)
    assert not is_public(ipaddress.IPv6Address((0x2002 << 112) + (int(address) << 80)))  # 6to4
    assert not is_public(ipaddress.IPv6Address(int(address)))  # IPv4-compatible, long deprecated


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com/", "file:///etc/passwd", "gopher://example.com/", "javascript:alert(1)",
        "//example.com/",
        "http://", "http:///path", "http://user@example.com/", "http://user:word@example.com/",
        "http://127.0.0.1/", "http://127.1/", "http://2130706433/", "http://0x7f000001/", "http://0177.0.0.1/",
        "http://0x7f.1/", "http://0/", "http://0.0.0.0/", "http://127.0.0.1./", "http://１２７.0.0.1/",
        "http://127.0.0.1。/", "http://。/", "http://a℀b.example/",
        "http://10.0.0.1/", "http://172.16.0.1/", "http://192.168.1.1/", "http://169.254.169.254/latest/meta-data/",
        "http://100.64.0.1/", "http://224.0.0.1/", "http://255.255.255.255/", "http://192.88.99.1/",
        "http://[::1]/", "http://[::]/", "http://[::ffff:127.0.0.1]/", "http://[::ffff:7f00:1]/", "http://[fe80::1]/",
        "http://[fe80::1%25eth0]/", "http://[fd00::1]/", "http://[ff02::1]/", "http://[64:ff9b::7f00:1]/",
        "http://[64:ff9b:1::1]/", "http://[2002:7f00:1::]/", "http://[2001:0:7f00:1::]/", "http://[::127.0.0.1]/",
        "http://example.com:22/", "http://example.com:5002/", "http://example.com:99999/", "http://example.com:x/",
        "http://example.com\\@127.0.0.1/", "http://exa mple.com/", "http://example.com/\r\nHost: x", "http://[::1/",
        "http://" + "a" * 5000,
    ],
)  # fmt: skip
def test_an_address_that_is_not_public_http_is_refused(url: str) -> None:
    with pytest.raises(AddressRefused):
        leads_to(PUBLIC).target(url, SOON)


@pytest.mark.parametrize("internal", ["127.0.0.1", "10.1.2.3", "::1", "::ffff:10.0.0.1", "169.254.169.254"])
def test_a_name_of_an_internal_address_is_refused(internal: str) -> None:
    for addresses in ([internal], [PUBLIC, internal], [internal, PUBLIC]):
        with pytest.raises(AddressRefused):
            leads_to(*addresses).target("http://inside.example/", SOON)


def test_a_public_name_leads_to_the_addresses_that_were_checked() -> None:
    target = leads_to(PUBLIC, "2606:2800:220:1::1").target("HTTPS://Exämple.com:8443/a/b?c=d#e", SOON)
    assert target.addresses == (PUBLIC, "2606:2800:220:1::1")
    assert (target.scheme, target.host, target.port) == ("https", "xn--exmple-cua.com", 8443)
    assert target.url == "https://xn--exmple-cua.com:8443/a/b?c=d"
    assert leads_to(PUBLIC).target("http://example.com。/", SOON).host == "example.com"
    assert leads_to(PUBLIC).target("http://example.com:80", SOON).url == "http://example.com/"


def test_a_name_without_an_address_is_not_fetched() -> None:
    def unknown(host: str, port: int, deadline: float) -> list[str]:
        raise OSError("no such name")

    with pytest.raises(FetchFailed):
        AddressPolicy(resolve=unknown).target("http://nowhere.example/", SOON)
    with pytest.raises(FetchFailed):
        leads_to().target("http://nowhere.example/", SOON)


@pytest.mark.parametrize(
    ("allowed", "url", "may"),
    [
        ("wiki.example", "http://wiki.example/", True),
        ("wiki.example", "http://WIKI.example.:5002/", True),
        ("wiki.example:8080", "http://wiki.example:8080/", True),
        ("wiki.example:8080", "http://wiki.example/", False),
        ("wiki.example", "http://a.wiki.example/", False),
        ("other.example, wiki.example", "http://wiki.example/", True),
        ("127.0.0.1", "http://127.0.0.1:9999/", True),
        ("127.0.0.1", "http://wiki.example/", False),  # a name does not match its address
        ("[::1]:80", "http://[::1]/", True),
        ("::1", "http://[::1]/", True),
        ("[::1]:80", "http://[::1]:81/", False),
        ("", "http://wiki.example/", False),
    ],
)
def test_internal_hosts_are_fetched_where_they_are_allowed(allowed: str, url: str, may: bool) -> None:
    addresses = AddressPolicy(allowed, resolve=lambda host, port, deadline: ["127.0.0.1"])
    if may:
        assert addresses.target(url, SOON).addresses
    else:
        with pytest.raises(AddressRefused):
            addresses.target(url, SOON)


def test_a_resolver_that_hangs_is_not_waited_for_and_its_threads_are_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Uses a stand-in for the system's resolver, since no test can make that one hang."""
    answered = threading.Event()

    def hangs(host: str, port: int, **options: Any) -> list[Any]:
        answered.wait(60)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (PUBLIC, port))]

    def asking() -> int:
        return sum(thread.name == "embedshare-resolve" for thread in threading.enumerate())

    monkeypatch.setattr(socket, "getaddrinfo", hangs)
    began = time.monotonic()
    for number in range(dns.AT_ONCE + 3):
        with pytest.raises(FetchFailed, match="in time" if number < dns.AT_ONCE else "are being resolved"):
            AddressPolicy().target(f"http://slow{number}.example/", time.monotonic() + 0.05)
    assert time.monotonic() - began < 30
    assert asking() == dns.AT_ONCE
    with pytest.raises(AddressRefused):  # an invalid name needs no resolver
        AddressPolicy().target("http://127.0.0.1/", time.monotonic() + 0.05)
    answered.set()
    wait_for(lambda: asking() == 0, 30, "the end of all threads")
    assert AddressPolicy().target("http://slow.example/", SOON).addresses == (PUBLIC,)


def test_the_system_s_resolver_knows_this_machine() -> None:
    assert set(dns.resolve("localhost", 80, SOON)) <= {"127.0.0.1", "::1"}
    with pytest.raises(AddressRefused):
        AddressPolicy().target("http://localhost/", SOON)
    with pytest.raises(FetchFailed, match="has no address"):
        AddressPolicy().target("http://no-such-name.invalid/", SOON)
    with pytest.raises(FetchFailed, match="has no address"):
        AddressPolicy().target(f"http://{'a' * 64}.example/", SOON)  # longer than a label may be
