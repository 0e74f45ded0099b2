"""HTTPS to a checked address: the certificate must be for the name."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import pytest
import trustme

from embedshare.errors import FetchFailed
from embedshare.websearch.address_policy import AddressPolicy
from embedshare.websearch.fetcher import Fetcher
from embedshare.websearch.types import Page
from tests.websearch import authority
from tests.websearch.site import Quiet, serving

NAME = "site.test"


class Secret(Quiet):
    """One page; `hosts` are the Host headers of its requests."""

    hosts: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        Secret.hosts.append(self.headers["Host"])
        self.send(b"" if self.path == "/robots.txt" else b"<p>safe</p>")


@pytest.fixture(scope="module")
def trusted() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(autouse=True)
def _only_ours_is_trusted(trusted: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trusted.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))


@contextmanager
def site(ca: trustme.CA, *names: str) -> Iterator[tuple[int, list[str | None]]]:
    """Run an HTTPS site with a certificate for `names`; yield its port and the names that TLS requested."""
    context, asked = authority.context(ca, *names), []

    def remember(sock: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        asked.append(name)

    context.sni_callback = remember
    with authority.serving_tls(Secret, context) as port:
        yield port, asked


def fetched(port: int, host: str = NAME) -> Page:
    addresses = AddressPolicy(host, lambda host, port, deadline: ["127.0.0.1"])
    return Fetcher(addresses).fetch(f"https://{host}:{port}/", time.monotonic() + 20)


def test_the_name_is_asked_for_and_its_certificate_accepted(trusted: trustme.CA) -> None:
    Secret.hosts.clear()
    with site(trusted, NAME) as (port, asked):
        assert fetched(port).content == b"<p>safe</p>"
    assert set(asked) == {NAME}
    assert set(Secret.hosts) == {f"{NAME}:{port}"}


@pytest.mark.parametrize("names", [("other.test",), ("127.0.0.1",), ("*.site.test",)])
def test_a_certificate_of_another_name_is_refused(trusted: trustme.CA, names: tuple[str, ...]) -> None:
    """A certificate for the address is not enough: the page's link gives the name."""
    Secret.hosts.clear()
    with site(trusted, *names) as (port, _), pytest.raises(FetchFailed, match="CERTIFICATE_VERIFY_FAILED"):
        fetched(port)
    assert not Secret.hosts


def test_an_authority_that_is_not_trusted_is_refused(
    trusted: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    with site(trustme.CA(), NAME) as (port, _), pytest.raises(FetchFailed, match="CERTIFICATE_VERIFY_FAILED"):
        fetched(port)
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    with site(trusted, NAME) as (port, _), pytest.raises(FetchFailed, match="CERTIFICATE_VERIFY_FAILED"):
        fetched(port)


def test_an_address_in_place_of_a_name_needs_a_certificate_of_the_address(trusted: trustme.CA) -> None:
    with site(trusted, "127.0.0.1") as (port, _):
        assert fetched(port, "127.0.0.1").content == b"<p>safe</p>"
    with site(trusted, NAME) as (port, _), pytest.raises(FetchFailed, match="CERTIFICATE_VERIFY_FAILED"):
        fetched(port, "127.0.0.1")


def test_plain_http_does_not_pass_for_https(trusted: trustme.CA) -> None:
    with serving(Secret) as port, pytest.raises(FetchFailed):
        fetched(port)
