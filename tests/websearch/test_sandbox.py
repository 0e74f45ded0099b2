"""Work in a process that may crash, hang, fill the memory or be killed: real processes, real pages."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest

from embedshare.errors import FetchFailed
from embedshare.sandbox import Lost, Sandbox
from embedshare.settings import SearchSettings, Settings
from embedshare.websearch.ddgs_process import DdgsProcess
from embedshare.websearch.page_process import PageProcess
from embedshare.websearch.pipeline import WebSearch
from embedshare.websearch.types import Page, SearchResult
from tests.forking import forks, holds_in_forked_child
from tests.processes import ROOT, SRC, environment, wait_for
from tests.websearch.site import Quiet, serving

LIMIT_S = 60.0
#: Two megabytes that the parser needs longer than PARSE_S for: it moves each line past those before it.
FOR_EVER = b"<p>" + b"<b><p>" * 330_000
ARTICLE = "<p>The mill stands at the river and grinds corn. It was built of oak in the year 1701.</p>" * 8


@pytest.fixture(autouse=True)
def _tests_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def troubled() -> Sandbox:
    return Sandbox("tests.websearch.troubled", at_once=2, environment=("TROUBLED_",))


def do(process: Sandbox, work: str, limit_s: float = LIMIT_S) -> str:
    return process.do(work.encode(), time.monotonic() + LIMIT_S, limit_s).decode()


def test_one_process_does_one_piece_of_work_after_another(troubled: Sandbox) -> None:
    first = do(troubled, "pid")
    assert do(troubled, "say äöü") == "äöü"
    assert do(troubled, "print not an answer") == "printed"
    assert do(troubled, f"say {'x' * 3_000_000}") == "x" * 3_000_000
    assert do(troubled, "pid") == first


@forks
def test_a_forked_process_has_places_of_its_own() -> None:
    one = Sandbox("tests.websearch.troubled", at_once=1, environment=("TROUBLED_",))
    with ThreadPoolExecutor(1) as threads:
        hanging = threads.submit(do, one, "hang", 8.0)
        wait_for(lambda: not one._places._value)
        assert holds_in_forked_child(lambda: one.do(b"say a", time.monotonic() + 6, LIMIT_S) == b"a")
        with pytest.raises(Lost):
            hanging.result()


@pytest.mark.parametrize("work", ["crash", "fill", "flood", "unknown"])
def test_who_ends_the_process_loses_and_the_next_has_another(troubled: Sandbox, work: str) -> None:
    if work == "fill" and sys.platform != "linux":
        pytest.skip("only Linux holds a process to a limit of memory")
    first = do(troubled, "pid")
    with pytest.raises(Lost, match="ended the process"):
        do(troubled, work)
    assert do(troubled, "pid") != first


def test_who_takes_too_long_is_ended(troubled: Sandbox) -> None:
    child = int(do(troubled, "pid"))
    began = time.monotonic()
    with pytest.raises(Lost, match="too long"):
        do(troubled, "hang", limit_s=0.5)
    assert time.monotonic() - began < LIMIT_S / 2
    assert not psutil.pid_exists(child)
    assert do(troubled, "say again") == "again"


def test_a_process_that_ended_while_it_waited_costs_nothing(troubled: Sandbox) -> None:
    psutil.Process(int(do(troubled, "pid"))).kill()
    assert do(troubled, "say well") == "well"


def test_no_more_processes_than_allowed_and_who_waits_too_long_is_told(troubled: Sandbox) -> None:
    with ThreadPoolExecutor(8) as threads:
        pids = set(threads.map(lambda _: do(troubled, "pid"), range(40)))
    assert 1 <= len(pids) <= 2

    def hang() -> None:
        with pytest.raises(Lost, match="too long"):
            do(troubled, "hang", 1.0)

    hung = [threading.Thread(target=hang) for _ in range(2)]
    for thread in hung:
        thread.start()
    wait_for(lambda: not troubled._idle, LIMIT_S, "both processes at work")
    with pytest.raises(Lost, match="free in time"):
        troubled.do(b"say late", time.monotonic() + 0.2, LIMIT_S)
    for thread in hung:
        thread.join()
    assert do(troubled, "say early") == "early"


def test_a_program_that_is_not_there_is_told() -> None:
    with pytest.raises(Lost, match="code 1"):
        do(Sandbox("tests.websearch.no_such_module", 1), "say hello")


def ended(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_process_ends_with_its_parent() -> None:
    parent = (
        "import os, time\n"
        "from embedshare.sandbox import Sandbox\n"
        "process = Sandbox('tests.websearch.troubled', 1)\n"
        "print(process.do(b'pid', time.monotonic() + 60, 60).decode(), flush=True)\n"
        "os._exit(1)\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", parent],
        env=environment(PYTHONPATH=os.pathsep.join([str(SRC), str(ROOT)])),
        stdout=subprocess.PIPE,
        check=False,
    )
    child = int(said.stdout)
    wait_for(lambda: not psutil.pid_exists(child), LIMIT_S / 2, "the end of an orphan")


def test_a_process_ends_when_it_has_had_nothing_to_do(
    troubled: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TROUBLED_IDLE_S", "0.5")
    child = psutil.Process(int(do(troubled, "pid")))
    wait_for(lambda: ended(child), LIMIT_S / 2, "the end of the idle process")
    assert do(troubled, "say well") == "well"


@pytest.fixture(scope="module")
def parser() -> PageProcess:
    parser = PageProcess()
    parser.prepare()
    return parser


@pytest.mark.parametrize("kind", [PageProcess, DdgsProcess])
def test_a_process_for_what_strangers_sent_has_neither_the_keys_nor_the_passwords_of_its_worker(
    monkeypatch: pytest.MonkeyPatch, kind: type[PageProcess] | type[DdgsProcess]
) -> None:
    secrets = {
        "EMBEDDING_AUTHKEY": "the-operator's-key",
        "EMBEDDING_DB_URL": "postgresql://user:the-password@localhost/test",
        "EMBEDDING_REDIS_URL": "redis://:the-redis-password@localhost",
        "AWS_SECRET_ACCESS_KEY": "the-cloud's-key",
        "HTTPS_PROXY": "http://user:the-proxy-password@localhost:9",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    apart = kind()._apart
    apart.prepare()
    child = psutil.Process(apart._idle[0]._process.pid)
    given = wait_for(lambda: "PYTHONPATH" in child.environ() and child.environ(), what="its environment")
    assert given["PYTHONPATH"].startswith(str(SRC))
    way_out = {"HTTPS_PROXY"} if kind is DdgsProcess else set()  # public engines need the proxy
    assert {name for name, value in secrets.items() if value in given.values()} == way_out
    apart._idle[0].end()


def page(content: bytes) -> Page:
    return Page("http://site.test/", content, "text/html", "utf-8")


def test_a_page_is_read_apart(parser: PageProcess) -> None:
    document = parser.readable(
        page(f"<html><title>Mills</title><body>{ARTICLE}".encode()), time.monotonic() + LIMIT_S
    )
    assert document.title == "Mills"
    assert "built of oak" in document.text


def test_a_page_that_takes_for_ever_is_left_and_the_next_is_read(parser: PageProcess) -> None:
    with pytest.raises(FetchFailed, match="too long"):
        parser.readable(page(FOR_EVER), time.monotonic() + 1.0)
    assert parser.readable(page(ARTICLE.encode()), time.monotonic() + LIMIT_S).text


class Site(Quiet):
    """A site with three readable pages, and one that the parser never finishes."""

    def do_GET(self) -> None:
        self.send(FOR_EVER if self.path == "/hostile" else f"{ARTICLE}{self.path}".encode())


class Links:
    """An engine that returns these links."""

    def __init__(self, *links: str) -> None:
        self._links = links

    def search(self, query: str, limit: int) -> list[SearchResult]:
        return [SearchResult(link) for link in self._links]


def flat(texts: list[str]) -> np.ndarray:
    return np.arange(len(texts), dtype=np.float32).reshape(-1, 1)


def own_parsers() -> list[psutil.Process]:
    mine = [each for each in psutil.Process().children() if not ended(each)]
    return [each for each in mine if "embedshare.websearch.page_process" in " ".join(each.cmdline())]


@pytest.mark.parametrize("killed", [False, True])
def test_a_search_survives_a_page_that_hangs_or_kills_its_reader(
    monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    """The hostile page is alone and first (max_concurrent=1), so that all others wait for it."""
    monkeypatch.setattr("embedshare.websearch.page_process.PARSE_S", LIMIT_S / 2 if killed else 1.0)
    before = set(own_parsers())
    with serving(Site) as port:
        site = f"http://127.0.0.1:{port}"
        links = [f"{site}/{name}" for name in ("hostile", "a", "b", "c")]
        settings = Settings(search=SearchSettings(fetch_allowed_hosts=f"127.0.0.1:{port}"))
        search = WebSearch(settings, Links(*links), page_s=LIMIT_S, total_s=LIMIT_S)

        def kill() -> None:
            def busy() -> list[psutil.Process]:
                found = set(own_parsers()) - before
                return [each for each in found if each.cpu_times().user > 0.6]

            wait_for(busy, LIMIT_S, "a process that reads the page")[0].kill()

        killer = threading.Thread(target=kill)
        if killed:
            killer.start()
        assert search.search("mills", flat, max_concurrent=1).urls == links[1:]
        if killed:
            killer.join()
            monkeypatch.setattr("embedshare.websearch.page_process.PARSE_S", 1.0)
        assert search.search("mills", flat).urls == links[1:]
