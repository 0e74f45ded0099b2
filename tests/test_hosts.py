"""Hosts that mean this machine: a name that someone else could resolve to it does not."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedshare import hosts

OWN = (
    "", "localhost", "localhost:5000", "LocalHost:80", "localhost.", "localhost.:5000", "app.localhost:5000",
    "127.0.0.1", "127.0.0.1:5000", "127.8.9.1:5000", "10.1.2.3:5000", "192.0.2.7", "0.0.0.0:5000", "[::1]",
    "[::1]:5000", "[fe80::1%eth0]:5000", "[2001:db8::1]:8000", socket.gethostname(),
    f"{socket.gethostname().upper()}:5000",
)  # fmt: skip
OTHERS = (
    "evil.example", "evil.example:5000", "localhost.evil.example", "evil-localhost", "127.0.0.1.evil.example",
    "127.0.0.1.nip.io:5000", "xlocalhost", "2130706433", "0x7f.1", "127.1", "[::1", "::1", "[evil.example]",
    "localhost:evil", "localhost:5000:80", "localhost, evil.example", "evil.example, localhost",
    "user@localhost", "localhost/", "http://localhost", "worker:5000", "\x00", "*", "[localhost]",
)  # fmt: skip


@pytest.mark.parametrize("header", OWN)
def test_an_address_localhost_and_the_machine_s_own_name_mean_this_machine(header: str) -> None:
    assert hosts.means_this_machine(header)


@pytest.mark.parametrize("header", OTHERS)
def test_no_other_host_does(header: str) -> None:
    assert not hosts.means_this_machine(header)
    assert not hosts.means_this_machine(header, ("other.example", "*.other.example", "127.0.0.1", "::"))
    assert hosts.means_this_machine(header, ("*",))


@pytest.mark.parametrize(
    ("header", "allowed", "means"),
    [
        ("embed.example:8080", ("embed.example",), True),
        ("EMBED.Example.", ("Embed.example",), True),
        ("a.embed.example", ("embed.example",), False),
        ("a.embed.example", ("*.embed.example",), True),
        ("a.b.embed.example:80", ("*.embed.example",), True),
        ("embed.example", ("*.embed.example",), False),
        ("xembed.example", ("*.embed.example", "embed.example"), False),
        ("worker:5000", ("server", "worker"), True),
    ],
)
def test_allowed_hosts_are_whole_names_or_all_below_one(
    header: str, allowed: tuple[str, ...], means: bool
) -> None:
    assert hosts.means_this_machine(header, allowed) is means


@given(st.text(max_size=40))
def test_any_header_is_decided_upon_and_no_public_name_is_this_machine_s(header: str) -> None:
    hosts.means_this_machine(header)
    assert not hosts.means_this_machine(f"{header}.evil.example")
