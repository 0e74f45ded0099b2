"""The live page in a real Chromium, with a real server, a real worker and real load."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from playwright.sync_api import Browser

from embedshare.telemetry.histogram import MILLISECONDS, quantile
from tests.layers import DEFAULT
from tests.processes import ModelServer
from tests.watching import (
    CONTRASTS,
    Watched,
    Worker,
    in_megabytes,
    module,
    needs_chromium,
    painted,
    pointed_at,
)

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def model_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    running = ModelServer(tmp_path_factory.mktemp("server"), EMBEDDING_MODEL_NAME=DEFAULT).start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def worker(model_server: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    running = Worker(model_server, tmp_path_factory.mktemp("worker"))
    yield running
    running.stop()


@pytest.fixture
def watched(chromium: Browser, worker: Worker) -> Iterator[Watched]:
    """The page. Fails if it reported an error or requested another origin."""
    page = Watched(chromium, worker)
    yield page
    page.context.close()
    assert not page.complaints
    assert page.asked
    assert not [url for url in page.asked if not url.startswith((f"{worker.url}/", "data:"))]


def test_the_figures_follow_the_load_and_the_history_stays(watched: Watched, tmp_path: Path) -> None:
    with watched.worker.load(tmp_path) as made:
        watched.wait_for(
            lambda: made() > 2 and 0.7 < watched.figure("#calls") / made() < 1.4, "the load that is made"
        )
        watched.wait_for(lambda: watched.figure("#texts") > watched.figure("#calls"), "two texts a call")
        watched.wait_for(lambda: 0.7 < watched.figure("#requests") / made() < 1.4, "the requests")
        assert watched.figure("#errors") == 0
        assert watched.figure("#p50") > 0
        assert watched.figure("#p99") >= watched.figure("#p50")
        assert watched.page.is_hidden("#empty")
        assert watched.standing == "server"
        assert DEFAULT in watched.text("#model")
        memory = requests.get(f"{watched.worker.url}/dashboard/data", timeout=30).json()["memory"]
        for name, value in (("shared", memory["shared_mb"]), ("unshared", memory["unshared_mb"])):
            assert in_megabytes(watched.text(f"#{name}")) == pytest.approx(value, rel=0.2)
        assert watched.text("#shared-name") == f"{memory['processes']} process and one model server"
        print(f"{watched.text('#calls')} calls/s shown, {made():.1f} made, p50 {watched.text('#p50')} ms")
    watched.wait_for(lambda: watched.text("#calls") == "0", "the end of the load")
    assert watched.text("#p50") == "–"
    assert any(rate > 0 for rate in pointed_at(watched))


def test_who_answers_is_shown_and_marked_when_the_server_dies_and_comes_back(
    watched: Watched, model_server: ModelServer, tmp_path: Path
) -> None:
    assert watched.standing == "server"
    assert not painted(watched.page, "--warn")
    model_server.kill()
    watched.wait_for(lambda: watched.standing == "away", "a server that is away")
    assert str(model_server.port) in watched.text("#notice")
    with watched.worker.load(tmp_path):
        watched.wait_for(lambda: watched.standing == "fallback", "the local model", 120)
        watched.wait_for(lambda: watched.figure("#calls") > 0, "calls that the local model answers")
        assert "local model" in watched.text("#notice")
        model_server.start()
        watched.wait_for(lambda: watched.standing == "server", "the server's return", 120)
        watched.wait_for(lambda: watched.figure("#calls") > 0, "calls that the server answers")
    assert watched.page.is_hidden("#notice")
    assert painted(watched.page, "--warn")
    assert painted(watched.page, "--bad")


def test_a_worker_that_is_away_is_said_and_tried_until_it_is_back(
    chromium: Browser, worker: Worker, tmp_path: Path
) -> None:
    watched = Watched(chromium, worker)
    with worker.load(tmp_path):
        watched.wait_for(lambda: watched.figure("#calls") > 0, "calls")
    worker.stop()
    watched.wait_for(lambda: "trying again" in watched.text("#live-text"), "the loss of the worker")
    assert "does not answer" in watched.text("#notice")
    worker.start()
    watched.wait_for(lambda: watched.text("#live-text").startswith("live"), "the worker's return")
    watched.wait_for(lambda: watched.page.is_hidden("#notice"), "the end of the notice")
    assert any(rate > 0 for rate in pointed_at(watched))
    assert all("ERR_" in complaint for complaint in watched.complaints)  # the browser's own, about the worker
    watched.context.close()


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.long)])
def test_both_themes_can_be_read_and_a_choice_is_remembered(
    chromium: Browser, worker: Worker, tmp_path: Path, scheme: Any
) -> None:
    watched = Watched(chromium, worker, color_scheme=scheme)
    page = watched.page
    for _ in range(2):
        theme = page.evaluate("document.documentElement.dataset.theme")
        ratios = page.evaluate(CONTRASTS)
        assert len(ratios) > 30
        assert not {text: ratio for text, ratio in ratios.items() if ratio < 4.5}, theme
        page.screenshot(path=tmp_path / f"{theme}.png", full_page=True)
        assert (tmp_path / f"{theme}.png").stat().st_size > 20_000
        page.click("#theme")
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    page.click("#theme")
    page.reload()
    assert (
        page.evaluate("document.documentElement.dataset.theme") == {"light": "dark", "dark": "light"}[scheme]
    )
    assert not watched.complaints
    watched.context.close()


@pytest.mark.parametrize("width", [390, pytest.param(768, marks=pytest.mark.long)])
def test_no_screen_is_too_narrow(chromium: Browser, worker: Worker, tmp_path: Path, width: int) -> None:
    watched = Watched(chromium, worker)
    watched.page.set_viewport_size({"width": width, "height": 844})
    chart = "document.querySelector('#latency canvas').clientWidth"
    watched.wait_for(lambda: watched.page.evaluate(chart) < width, "charts of the new width")
    assert watched.page.evaluate("document.documentElement.scrollWidth") <= width
    past = watched.page.evaluate(
        """() => [...document.querySelectorAll("main *")].filter((one) => one.checkVisibility()
            && !one.closest(".uplot, [role=tooltip]") && one.getBoundingClientRect().right > innerWidth + 1)
            .map((one) => one.outerHTML.slice(0, 80))"""
    )
    assert not past
    watched.context.close()


def test_the_browser_runs_no_script_that_is_not_the_page_s_own(chromium: Browser, worker: Worker) -> None:
    watched = Watched(chromium, worker)
    ran = watched.page.evaluate(
        """() => {
            const script = document.createElement("script");
            script.textContent = "window.ran = true";
            document.head.append(script);
            return Boolean(window.ran);
        }"""
    )
    assert ran is False
    assert any("Content Security Policy" in complaint for complaint in watched.complaints)
    watched.context.close()


def test_percentiles_of_the_page_are_python_s(watched: Watched) -> None:
    choose = random.Random(1)
    cases = []
    for size in (0, 1, 2, 30, 10_000):
        counts = [0] * (len(MILLISECONDS) + 1)
        for _ in range(size):
            counts[choose.randrange(len(counts))] += 1
        cases += [(MILLISECONDS, counts, q) for q in (0.0, 0.5, 0.9, 0.99, 1.0)]
    found = module(watched.page, "interval.js", "argument.map((one) => it.quantile(...one))", cases)
    assert found == [pytest.approx(quantile(*case)) if any(case[1]) else None for case in cases]


def sample(
    time: float, calls: int, *, pid: int = 1, failed: int = 0, latencies: list[int] | None = None
) -> Any:
    """The part of an answer from /dashboard/data that the arithmetic reads."""
    server = {
        "pid": pid, "identity": "a", "uptime": time, "total_requests": calls, "failed_requests": failed,
        "sequences": 2 * calls, "tokens": 10 * calls, "padding_tokens": calls, "waiting_tokens": calls,
        "active_operations": 1,
        "histograms": {"total_ms": {"bounds": [1, 2, 4], "counts": latencies or [0] * 4, "sum": 0}},
    }  # fmt: skip
    memory = {"processes": 1, "shared_mb": None, "unshared_mb": None, "model_mb": None}
    http = {"since": pid, "answered": 3 * calls, "failed": failed, "refused": 2 * failed}
    worker = {"state": "connected"}
    return {"time": time, "worker": worker, "server": server, "memory": memory, "http": http}


def test_a_difference_of_samples_is_what_happened_between_them(watched: Watched) -> None:
    samples = [sample(10, 100, latencies=[1, 0, 0, 0]), sample(12, 160, failed=4, latencies=[1, 10, 50, 0])]
    found = module(watched.page, "interval.js", "it.difference(...argument)", samples)
    assert [found[name] for name in ("counted", "calls", "failed", "texts")] == [2, 60, 4, 120]
    assert found["histograms"]["total_ms"]["counts"] == [0, 10, 50, 0]
    assert [found[name] for name in ("served", "requests", "errors", "refused")] == [2, 180, 4, 8]


def test_requests_are_counted_while_the_model_server_is_away_and_from_a_worker_s_start(
    watched: Watched,
) -> None:
    away = {**sample(12, 160, failed=60), "server": None}
    found = module(watched.page, "interval.js", "it.difference(...argument)", [sample(10, 100), away])
    assert [found[name] for name in ("counted", "calls")] == [0, 0]
    assert [found[name] for name in ("served", "requests", "errors")] == [2, 180, 60]
    for later in (sample(12, 160, pid=2), {**sample(12, 160), "http": None}):
        found = module(watched.page, "interval.js", "it.difference(...argument)", [sample(10, 100), later])
        assert [found[name] for name in ("served", "requests")] == [0, 0]


@pytest.mark.parametrize("later", [sample(12, 5), sample(12, 160, pid=2), {**sample(12, 0), "server": None}])
def test_a_server_that_began_anew_counts_from_there_and_not_backwards(watched: Watched, later: Any) -> None:
    found = module(watched.page, "interval.js", "it.difference(...argument)", [sample(10, 100), later])
    assert [found[name] for name in ("counted", "calls", "texts")] == [0, 0, 0]
    assert found["histograms"] == {}


def test_a_long_history_is_bounded_and_loses_no_call(watched: Watched) -> None:
    code = """(() => {
        const history = new it.History();
        for (let at = 0; at <= 100000; at++) {
            argument.server.uptime = at;
            history.add(structuredClone({ ...argument, time: at, server: { ...argument.server, total_requests: 3 * at } }));
        }
        const total = (list) => list.reduce((sum, one) => sum + one.calls, 0);
        return [history.intervals.length, total(history.intervals), history.points(100000).length,
                total(history.points(100000)), history.points(60).length, history.recent(5).calls];
    })()"""  # noqa: E501
    kept, calls, points, shown, last_minute, now = module(watched.page, "history.js", code, sample(0, 0))
    assert kept < 5000
    assert calls == shown == 300_000
    assert points <= 301
    assert (last_minute, now) == (61, 15)
