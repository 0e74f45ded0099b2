"""The installed library ddgs, whose requests go through a proxy on loopback. The proxy answers in place of
the engines, with pages of their form. No test here detects a change of the real engines."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import trustme

from embedshare.errors import SearchFailed
from embedshare.websearch import engines
from embedshare.websearch.engines import Ddgs
from tests.websearch import authority
from tests.websearch.site import serving

HOSTS = (
    "en.wikipedia.org", "grokipedia.com", "www.mojeek.com", "search.brave.com", "html.duckduckgo.com",
    "search.yahoo.com", "www.startpage.com",
)  # fmt: skip


class Engines(authority.Intercepting):
    """All engines that ddgs uses: those in `answers` answer, by host; the others are out of order."""

    asked: ClassVar[list[str]] = []
    answers: ClassVar[dict[str, Callable[[Engines], Any]]] = {}

    def do_GET(self) -> None:
        Engines.asked.append(self.host)
        answer = Engines.answers.get(self.host)
        if answer is None:
            self.send(b"out of order", status=500)
        else:
            answer(self)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()


def wikipedia(asked: Engines) -> None:
    if "opensearch" in asked.path:
        found: Any = ["bread", ["Bread"], [""], ["https://en.wikipedia.org/wiki/Bread"]]
    else:
        found = {"query": {"pages": {"1": {"extract": "Bread is baked from dough."}}}}
    asked.send(json.dumps(found).encode(), "application/json")


def mojeek(asked: Engines, links: int = 8) -> None:
    items = "".join(
        f"<li><h2><a href='https://site{n}.test/'>Bread &amp; butter {n}</a></h2>"
        f"<p class='s'>on bread {n}</p></li>"
        for n in range(links)
    )
    asked.send(f"<html><body><ul class='results-standard results'>{items}</ul></body></html>".encode())


def nothing(asked: Engines) -> None:
    asked.send(b'["bread", [], [], []]' if "opensearch" in asked.path else b'{"results": []}')


def hang(asked: Engines) -> None:
    time.sleep(30)


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which ddgs uses the stand-in engines."""
    ca = trustme.CA()
    trusted = tmp_path_factory.mktemp("ca") / "ca.pem"
    ca.cert_pem.write_to_path(str(trusted))
    Engines.context = authority.context(ca, *HOSTS)
    with serving(Engines) as port:
        yield {"DDGS_PROXY": f"http://127.0.0.1:{port}", "PRIMP_CA_BUNDLE": str(Path(trusted))}


@pytest.fixture
def ddgs(proxy: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Ddgs:
    for name, value in proxy.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(Engines, "answers", {})
    Engines.asked.clear()
    return Ddgs()


def test_links_of_several_engines_come_with_titles_and_snippets(ddgs: Ddgs) -> None:
    Engines.answers.update({"en.wikipedia.org": wikipedia, "www.mojeek.com": mojeek})
    found = ddgs.search("how is bread baked", 6)
    assert len(found) == 6
    assert found[0].url == "https://en.wikipedia.org/wiki/Bread"
    assert (found[0].title, found[0].snippet) == ("Bread", "Bread is baked from dough.")
    assert {link.url for link in found[1:]} <= {f"https://site{n}.test/" for n in range(8)}
    assert all(link.title.startswith("Bread & butter") and link.snippet for link in found[1:])


def test_one_engine_that_answers_is_enough(ddgs: Ddgs) -> None:
    Engines.answers["www.mojeek.com"] = lambda asked: mojeek(asked, 2)
    assert {link.url for link in ddgs.search("bread", 6)} == {"https://site0.test/", "https://site1.test/"}
    assert len(set(Engines.asked)) > 3


def test_that_nothing_was_found_is_no_failure(ddgs: Ddgs) -> None:
    Engines.answers.update(dict.fromkeys(HOSTS, nothing))
    assert ddgs.search("bread", 6) == []


def test_an_engine_that_breaks_is_a_failed_search(ddgs: Ddgs) -> None:
    Engines.answers["en.wikipedia.org"] = lambda asked: asked.send(b"<html>no JSON")
    with pytest.raises(SearchFailed):
        ddgs.search("bread", 6)


def test_engines_that_hang_are_done_without(ddgs: Ddgs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "ENGINE_S", 6.0)
    Engines.answers.update({"en.wikipedia.org": hang, "grokipedia.com": hang, "www.mojeek.com": mojeek})
    assert len(ddgs.search("bread", 6)) == 6


def test_where_all_engines_hang_the_search_fails_in_time_and_the_next_one_works(
    ddgs: Ddgs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "ENGINE_S", 2.0)
    Engines.answers.update(dict.fromkeys(HOSTS, hang))
    began = time.monotonic()
    with pytest.raises(SearchFailed, match="too long"):
        ddgs.search("bread", 6)
    assert time.monotonic() - began < 20
    Engines.answers.clear()
    Engines.answers["en.wikipedia.org"] = wikipedia
    monkeypatch.setattr(engines, "ENGINE_S", 30.0)
    assert len(ddgs.search("bread", 6)) == 1


def test_engines_that_refuse_look_as_if_nothing_was_found(ddgs: Ddgs) -> None:
    """The library does not report their refusals."""
    assert ddgs.search("bread", 6) == []
    assert len(set(Engines.asked)) > 3


def test_without_a_network_the_search_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDGS_PROXY", "http://127.0.0.1:9")
    with pytest.raises(SearchFailed, match="no search engine answered"):
        Ddgs().search("bread", 6)


@pytest.mark.parametrize("answers", [None, lambda asked: asked.send(b"<html>no JSON")])
def test_why_engines_fail_is_told_without_the_query(
    ddgs: Ddgs, monkeypatch: pytest.MonkeyPatch, answers: Callable[[Engines], Any] | None
) -> None:
    if answers is None:
        monkeypatch.setenv("DDGS_PROXY", "http://127.0.0.1:9")
        ddgs = Ddgs()
    else:
        Engines.answers["en.wikipedia.org"] = answers
    with pytest.raises(SearchFailed) as failed:
        ddgs.search("marked-query-4711", 6)
    assert failed.value.message == "no search engine answered: they failed"
