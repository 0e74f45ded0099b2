"""Pages of slow, endless, wrong or hostile sites."""

from __future__ import annotations

import gzip
import socket
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from typing import Any, ClassVar

import pytest

from embedshare.errors import AddressRefused, FetchFailed
from embedshare.text.encodings import decoded
from embedshare.websearch.address_policy import AddressPolicy
from embedshare.websearch.extraction import readable
from embedshare.websearch.fetcher import MAX_BYTES, Fetcher
from embedshare.websearch.types import Page
from tests.websearch.site import Quiet, serving

RUSSIAN = "Съешь же ещё этих мягких французских булок, да выпей чаю. " * 20
META = '<meta charset="windows-1251">'
GERMAN = "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. " * 20


class Site(Quiet):
    """A site with one page for each fault."""

    seen: ClassVar[Counter[str]] = Counter()
    hosts: ClassVar[Counter[str | None]] = Counter()

    def do_GET(self) -> None:
        Site.seen[self.path] += 1
        Site.hosts[self.headers["Host"]] += 1
        name = self.path.strip("/").partition("/")[0].replace(".", "_")
        try:
            getattr(self, f"page_{name}")()
        except (ConnectionError, AttributeError):
            self.close_connection = True

    def redirect(self, to: str) -> None:
        self.send_response(302)
        self.send_header("Location", to)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def page_robots_txt(self) -> None:
        self.send(b"User-agent: *\nDisallow: /forbidden\n", "text/plain")

    def page_fine(self) -> None:
        self.send(b"<html><title>Fine</title><body><p>All is well.</p></body></html>")

    page_forbidden = page_fine

    def page_to(self) -> None:
        self.redirect(self.path.removeprefix("/to/"))

    def page_loop(self) -> None:
        self.redirect("/loop")

    def page_hops(self) -> None:
        left = int(self.path.rpartition("/")[2])
        self.redirect(f"/hops/{left - 1}" if left > 1 else "/fine")

    def page_drip(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.drip()

    def page_dripping_head(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
        self.drip()

    def drip(self) -> None:
        until = time.monotonic() + 20
        while time.monotonic() < until:
            self.wfile.write(b"a")
            time.sleep(0.05)

    def page_silent(self) -> None:
        self.rfile.read(1)

    def page_endless(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        while True:
            self.wfile.write(b"<p>And so on.</p>" * 1000)

    def page_large(self) -> None:
        self.send(b"<p>Ten megabytes.</p>" * 500_000)

    def page_bomb(self) -> None:
        self.compressed("gzip", gzip.compress(bytes(50_000_000)))

    def page_gzip(self) -> None:
        self.compressed("gzip", gzip.compress(b"<p>squeezed</p>"))

    def page_deflate(self) -> None:
        self.compressed("deflate", zlib.compress(b"<p>squeezed</p>"))

    def page_raw_deflate(self) -> None:
        packer = zlib.compressobj(wbits=-15)
        self.compressed("deflate", packer.compress(b"<p>squeezed</p>") + packer.flush())

    def page_broken_gzip(self) -> None:
        self.compressed("gzip", b"this is no gzip at all")

    def page_brotli(self) -> None:
        self.compressed("br", b"\x0b\x02\x80abc\x03")

    def compressed(self, encoding: str, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Encoding", encoding)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def page_cut(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"<p>not all")

    def page_pdf(self) -> None:
        self.send(b"%PDF-1.7", "application/pdf")

    def page_gone(self) -> None:
        self.send(b"gone", status=404)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serving(Site) as port:
        yield port


def fetched(
    port: int, path: str, limit_s: float = 20.0, resolve: Any = None, host: str = "site.test"
) -> Page:
    addresses = AddressPolicy("site.test", resolve or (lambda host, port, deadline: ["127.0.0.1"]))
    return Fetcher(addresses).fetch(f"http://{host}:{port}{path}", time.monotonic() + limit_s)


def test_a_page_is_fetched_under_its_own_name(port: int) -> None:
    page = fetched(port, "/fine")
    assert page == Page(
        f"http://site.test:{port}/fine",
        b"<html><title>Fine</title><body><p>All is well.</p></body></html>", "text/html", "utf-8",
    )  # fmt: skip
    assert set(Site.hosts) == {f"site.test:{port}"}


@pytest.mark.parametrize("path", ["/drip", "/dripping_head", "/silent"])
def test_a_slow_page_ends_in_its_time(port: int, path: str) -> None:
    began = time.monotonic()
    with pytest.raises(FetchFailed):
        fetched(port, path, limit_s=1.0)
    assert time.monotonic() - began < 10  # these sites send for 20 s, or without end


@pytest.mark.parametrize("path", ["/endless", "/large", "/bomb"])
def test_of_a_large_page_the_beginning_is_taken(port: int, path: str) -> None:
    assert len(fetched(port, path).content) == MAX_BYTES


@pytest.mark.parametrize("path", ["/gzip", "/deflate", "/raw_deflate"])
def test_a_compressed_page_is_read(port: int, path: str) -> None:
    assert fetched(port, path).content == b"<p>squeezed</p>"


@pytest.mark.parametrize("path", ["/broken_gzip", "/brotli", "/cut", "/pdf", "/gone", "/loop", "/hops/6"])
def test_what_is_no_page_is_not_fetched(port: int, path: str) -> None:
    with pytest.raises(FetchFailed) as caught:
        fetched(port, path)
    assert not isinstance(caught.value, AddressRefused)


def test_five_redirects_are_followed(port: int) -> None:
    assert fetched(port, "/hops/5").url == f"http://site.test:{port}/fine"


@pytest.mark.parametrize(
    "to",
    ["http://127.0.0.1/", "http://inside.test/", "http://[::1]/", "http://2130706433/", "file:///etc/passwd",
     "//127.0.0.1:22/", "http://169.254.169.254/latest/meta-data/"],
)  # fmt: skip
def test_a_redirect_to_an_internal_address_is_refused(port: int, to: str) -> None:
    with pytest.raises(AddressRefused):
        fetched(port, f"/to/{to}")


class InnerServer(ThreadingHTTPServer):
    """A server at the same port of the other loopback address: macOS has no 127.0.0.2."""

    address_family = socket.AF_INET6


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no ::1, the second address that the test needs")
def test_a_name_that_changes_its_meaning_after_the_check_gains_nothing(port: int) -> None:
    """The site's name resolves to another address each time; each connection uses the checked address."""

    class Inside(Quiet):
        asked: ClassVar[Counter[str]] = Counter()

        def do_GET(self) -> None:
            Inside.asked[self.path] += 1
            self.send(b"<p>secret</p>")

    given: list[str] = []

    def rebinding(host: str, port: int, deadline: float) -> list[str]:
        # first an allowed address, then the internal one of the server below
        given.append("127.0.0.1" if host == "site.test" and len(given) < 1 else "::1")
        return given[-1:]

    with InnerServer(("::1", port), Inside) as inside:
        thread = threading.Thread(target=inside.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        page = fetched(port, "/fine", resolve=rebinding)
        assert page.content.startswith(b"<html><title>Fine")
        assert given == ["127.0.0.1"], "the name was resolved again after it had been checked"
        with pytest.raises(AddressRefused):  # the redirect's name is checked again, and is internal by now
            fetched(port, f"/to/http://rebound.test:{port}/fine", resolve=_then("127.0.0.1", "::1"))
        inside.shutdown()
        thread.join()
    assert not Inside.asked


def _then(*addresses: str) -> Any:
    left = list(addresses)
    return lambda host, port, deadline: [left.pop(0) if len(left) > 1 else left[0]]


def test_the_next_address_is_tried_where_one_does_not_answer(port: int) -> None:
    assert fetched(port, "/fine", resolve=lambda host, port, deadline: ["::1", "127.0.0.1"]).content


def test_what_robots_txt_forbids_is_not_asked_for(port: int) -> None:
    fetcher = Fetcher(AddressPolicy("site.test", lambda host, port, deadline: ["127.0.0.1"]))
    Site.seen.clear()
    for path in ("/forbidden", "/forbidden/deep", "/to//forbidden"):
        with pytest.raises(FetchFailed, match=r"robots\.txt"):
            fetcher.fetch(f"http://site.test:{port}{path}", time.monotonic() + 20)
    assert Site.seen == {"/robots.txt": 1, "/to//forbidden": 1}


@pytest.mark.parametrize(
    ("rules", "path", "may"),
    [
        ("User-agent: *\nDisallow: /*.php$", "/a/b.php", False),
        ("User-agent: *\nDisallow: /*.php$", "/a/b.php?c", True),
        ("User-agent: *\nDisallow: /a*/secret", "/about/secret/x", False),
        ("User-agent: *\nDisallow: /\nAllow: /open/", "/open/page", True),  # the longest rule counts
        ("User-agent: *\nAllow: /\nDisallow: /closed/", "/closed/page", False),
        ("User-agent: other\nDisallow: /", "/page", True),
        ("User-agent: *\nDisallow:\n\nUser-agent: EmbedShare\nDisallow: /", "/page", False),
        ("User-agent: *\nDisallow: /\n\nUser-agent: embedshare\nAllow: /", "/page", True),
        ("\ufeffUser-agent: *\nDisallow: /b%c3%bccher", "/bücher", False),
        ("<html>not found</html>", "/page", True),
        ("\0\x85" * 100, "/page", True),
        (f"User-agent: *\nDisallow: /{'*a' * 20_000}b", "/" + "a" * 3000, True),
        ("".join(f"User-agent: a{n}\n" for n in range(9000)) + "Disallow: /b\n" * 9000, "/page", False),
    ],
)
def test_rules_are_read_as_their_standard_says_and_cost_little(rules: str, path: str, may: bool) -> None:
    class Ruled(Quiet):
        def do_GET(self) -> None:
            self.send(rules.encode() if self.path == "/robots.txt" else b"<p>page</p>")

    began = time.monotonic()
    with serving(Ruled) as own:
        if may:
            assert fetched(own, path).content == b"<p>page</p>"
        else:
            with pytest.raises(FetchFailed, match=r"robots\.txt"):
                fetched(own, path)
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(("status", "may"), [(404, True), (403, True), (500, False), (503, False)])
def test_a_site_without_rules_forbids_nothing_and_one_in_trouble_everything(status: int, may: bool) -> None:
    class Rules(Quiet):
        def do_GET(self) -> None:
            if self.path == "/robots.txt":
                self.send(b"User-agent: *\nDisallow: /", status=status)
            else:
                self.send(b"<p>page</p>")

    with serving(Rules) as own:
        if may:
            assert fetched(own, "/page").content == b"<p>page</p>"
        else:
            with pytest.raises(FetchFailed, match=str(status)):
                fetched(own, "/page")


@pytest.mark.parametrize(
    ("content", "charset", "text"),
    [
        (GERMAN.encode(), "utf-8", GERMAN),
        (GERMAN.encode(), "iso-8859-1", GERMAN),  # the header is wrong
        (GERMAN.encode()[:-1], None, GERMAN[:-1]),
        (GERMAN.encode("latin-1"), "iso-8859-1", GERMAN),
        (GERMAN.encode("latin-1"), "utf-8", GERMAN),
        (RUSSIAN.encode("cp1251"), "utf-8", RUSSIAN),
        (RUSSIAN.encode("koi8-r"), "koi8-r", RUSSIAN),
        (RUSSIAN.encode("utf-16"), "utf-8", RUSSIAN),
        ((META + RUSSIAN).encode("cp1251"), None, META + RUSSIAN),
        ("こんにちは".encode("shift_jis"), "Shift_JIS", "こんにちは"),
        ("こんにちは".encode("iso2022_jp"), "iso-2022-jp", "こんにちは"),
        ("“so”".encode("cp1252"), "iso-8859-1", "“so”"),
        (GERMAN.encode(), "no-such-charset", GERMAN),
        (GERMAN.encode(), "none\0", GERMAN),
        (GERMAN.encode(), "base64", GERMAN),  # not a text codec
        (b"", None, ""),
    ],
)  # fmt: skip
def test_text_is_read_whatever_its_site_says_of_its_encoding(
    content: bytes, charset: str | None, text: str
) -> None:
    assert decoded(content, charset) == text


ARTICLE = "The mill stands at the river and grinds corn. It was built of oak in the year 1701. " * 8


@pytest.mark.parametrize(
    ("content", "title", "holds"),
    [
        (f"<html><title>A &amp; B</title><body><nav>Menu Login</nav><p>{ARTICLE}</p></body></html>",
         "A & B", "built of oak"),
        ("<html><body><table><tr><td>lone</td><td>cells</td></tr></table></body></html>", "", "lone"),
        ("<div>" * 5000 + "deep down", "", ""),
        ("", "", ""),
        ("\x00\x01<p>", "", ""),
        (f"<title>{'long ' * 500}</title><p>{ARTICLE}", ("long " * 40), "built of oak"),
    ],
)  # fmt: skip
def test_a_page_has_a_title_and_readable_text(content: str, title: str, holds: str) -> None:
    page = Page("http://site.test/", content.encode(), "text/html", "utf-8")
    document = readable(page)
    assert document.title == title
    assert holds in document.text
    assert "Login" not in document.text


def test_plain_text_is_read_as_it_is() -> None:
    page = Page("http://site.test/", b"one <two>\r\n\r\n  three", "text/plain", None)
    assert readable(page).text == "one <two>\nthree"
