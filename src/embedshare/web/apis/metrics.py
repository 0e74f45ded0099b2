"""This worker's metrics for Prometheus.

With PROMETHEUS_MULTIPROC_DIR set, processes that share a port (gunicorn's) keep their numbers in files
there. Any of them answers a scrape with the sum of all. So these are prometheus_client's own metric
objects.
"""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, Protocol

import msgspec
from flask import Blueprint, Flask, Response, g, request
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, exposition, multiprocess

from embedshare import platforms
from embedshare.errors import EmbedshareError
from embedshare.single_flight import SingleFlight
from embedshare.telemetry import memory
from embedshare.telemetry.calls import Calls, Ended
from embedshare.telemetry.histogram import MILLISECONDS
from embedshare.web import body, openapi
from embedshare.web.errors import JSON
from embedshare.web.routes import Tag

#: The possible values of `stats()["client"]["state"]`, all shown.
STATES = ("connecting", "connected", "falling back", "refused", "local", "closed")
#: Methods with a label of their own; any other shares one.
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
#: Seconds between writes of the numbers that change without a request, for processes that share files.
REFRESH_S = 1.0
SECONDS = tuple(bound / 1e3 for bound in MILLISECONDS)
TEXT = "text/plain"
#: The first parts of the routes for monitoring.
_OPERATORS = frozenset({"dashboard", "embedding", "health", "load", "metrics"})
#: Seconds that a summary waits for the model server's part.
PATIENCE_S = 1.0


class Watched(Protocol):
    """The model's functions that metrics use."""

    calls: Calls

    def client_stats(self) -> dict[str, Any]: ...
    def stats(self) -> dict[str, Any]: ...


class Summary(msgspec.Struct):
    """A worker since its start: requests (`requests_failed`: answered with 5xx), its vectors, the mean time
    of a request; and the changes of the model and their failures since the model server's start."""

    requests_total: int
    requests_failed: int
    success_rate: float
    embeddings_generated: int
    avg_latency_ms: float
    model_reloads: int
    model_reload_failures: int
    uptime_seconds: float


class Requests(msgspec.Struct):
    """HTTP requests since `since` (seconds since 1970); `failed` were answered with 5xx, `refused` with 4xx.

    Checks, figures and pages for operators are left out.
    """

    since: float
    answered: int
    failed: int
    refused: int


class Metrics:
    """One worker's metrics."""

    def __init__(self, model: Watched) -> None:
        self._model = model
        self._shared = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        if self._shared:
            Path(self._shared).mkdir(parents=True, exist_ok=True)
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "embedshare_http_requests", "Answered requests", ["route", "method", "status"], registry=registry
        )
        self._request_seconds = Histogram(
            "embedshare_http_request_seconds", "Time of requests", ["route"],
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self._in_flight = _gauge("embedshare_http_requests_in_flight", "Requests being answered", registry)
        self._calls = Counter(
            "embedshare_client_calls",
            "This worker's calls of the model, by the provider that answered",
            ["method", "outcome", "source"],
            registry=registry,
        )
        seconds = Histogram(
            "embedshare_client_call_seconds", "Time of answered embeddings by stage", ["stage"],
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self._stages = {
            stage: seconds.labels(stage) for stage in ("tokenize", "queue", "compute", "wire", "total")
        }
        self._embeddings = Counter(
            "embedshare_client_embeddings", "Vectors that this worker got", registry=registry
        )
        self._state = _gauge(
            "embedshare_client_state", "Processes of this worker in this state", registry, "state"
        )
        self._processes = _gauge("embedshare_worker_processes", "Processes of this worker", registry)
        self._memory = _gauge("embedshare_worker_memory_bytes", "Memory that they hold", registry)
        self._started = Gauge(
            "embedshare_worker_start_time_seconds", "Start of the youngest of them, in Unix time",
            registry=registry, multiprocess_mode="livemax",
        )  # fmt: skip
        self._changes = {
            name: Counter(f"embedshare_client_{name}", meaning, registry=registry)
            for name, meaning in (
                ("fallbacks", "Fallbacks to a local model"),
                ("returns", "Returns to the server"),
                ("reconnects", "Connections that replaced an ended one"),
            )
        }
        self._seen = dict.fromkeys(self._changes, 0)
        self._begin()
        platforms.after_fork_in_child(self._begin)
        self._latest = SingleFlight(lambda: model.stats())
        self._known_swaps = 0, 0
        model.calls.listeners.append(self._count_call)

    def exposition(self) -> bytes:
        """All numbers in Prometheus' text format."""
        return exposition.generate_latest(self._refreshed())

    def summary(self) -> Summary:
        """The figures that people ask for first."""
        sums: dict[str, float] = defaultdict(float)
        failed = 0.0
        for family in self._refreshed().collect():
            for sample in family.samples:
                sums[sample.name] += sample.value
                if sample.name == "embedshare_http_requests_total" and sample.labels["status"] >= "500":
                    failed += sample.value
        requests = sums["embedshare_http_requests_total"]
        seconds, timed = (sums[f"embedshare_http_request_seconds_{part}"] for part in ("sum", "count"))
        swaps = self._swaps()
        return Summary(
            requests_total=int(requests),
            requests_failed=int(failed),
            success_rate=round(1 - failed / requests, 6) if requests else 1.0,
            embeddings_generated=int(sums["embedshare_client_embeddings_total"]),
            avg_latency_ms=round(1e3 * seconds / timed, 3) if timed else 0.0,
            model_reloads=swaps[0],
            model_reload_failures=swaps[1],
            uptime_seconds=round(time.time() - sums["embedshare_worker_start_time_seconds"], 3),
        )

    def requests(self) -> Requests:
        """The requests of this worker's callers, in all processes behind its port that share their
        numbers."""
        found = Requests(0.0 if self._shared else self._born, 0, 0, 0)
        for family in self._refreshed().collect() if self._shared else self._requests.collect():
            for sample in family.samples:
                if sample.name != "embedshare_http_requests_total" or _is_operators(sample.labels["route"]):
                    continue
                found.answered += int(sample.value)
                found.failed += int(sample.value) if sample.labels["status"] >= "500" else 0
                found.refused += int(sample.value) if "400" <= sample.labels["status"] < "500" else 0
        return found

    def _refreshed(self) -> CollectorRegistry:
        """This process's numbers, or those of all that share a port."""
        self.refresh()
        if not self._shared:
            return self._registry
        everyone = CollectorRegistry()
        multiprocess.MultiProcessCollector(everyone, self._shared)  # type: ignore[no-untyped-call]
        return everyone

    def _swaps(self) -> tuple[int, int]:
        """The changes of the model, and their failures; the last known ones while no model answers."""
        try:
            stats = self._latest.get(PATIENCE_S)
            self._known_swaps = stats["swaps"], stats["failed_swaps"]
        except (EmbedshareError, TimeoutError):
            pass
        return self._known_swaps

    def refresh(self) -> None:
        """Write the numbers that change without a request or a call."""
        with self._refreshing:
            stats = self._model.client_stats()
            for state in STATES:
                self._state.labels(state).set(state == stats["state"])
            for name, counter in self._changes.items():
                counter.inc(stats[name] - self._seen[name])
                self._seen[name] = stats[name]
            self._processes.set(1)
            self._memory.set(memory.of_process() or 0)
            self._started.set(self._born)

    def watch(self, app: Flask) -> None:
        """Count the requests of an application."""

        @app.before_request
        def began() -> None:
            g.began = time.perf_counter()
            self._in_flight.inc()
            self._keep_refreshing()

        @app.after_request
        def answered(response: Response) -> Response:
            route = request.url_rule.rule if request.url_rule else "unknown"
            method = request.method if request.method in METHODS else "other"
            self._requests.labels(route, method, str(response.status_code)).inc()
            self._request_seconds.labels(route).observe(time.perf_counter() - g.began)
            return response

        @app.teardown_request
        def ended(_: BaseException | None) -> None:
            if g.pop("began", None) is not None:  # a test client ends a request twice
                self._in_flight.dec()

    def _begin(self) -> None:
        """A forked child is a separate process, without its parent's refreshing thread."""
        self._born = time.time()
        self._refreshing = threading.Lock()
        self._is_refreshed = False

    def _count_call(self, call: Ended) -> None:
        self._calls.labels(call.method, call.outcome, call.source).inc()
        if call.timings is None:
            return
        self._embeddings.inc(call.embeddings)
        stages = call.timings.stages
        wire_ms = call.total_ms - sum(stages)
        for stage, ms in zip(self._stages, (*stages, wire_ms, call.total_ms), strict=True):
            self._stages[stage].observe(max(0.0, ms) / 1e3)

    def _keep_refreshing(self) -> None:
        """Keep the numbers of this process fresh if others answer scrapes for it."""
        if not self._shared or self._is_refreshed:
            return
        self._is_refreshed = True

        def go_on() -> None:
            while True:
                self.refresh()
                time.sleep(REFRESH_S)

        threading.Thread(target=go_on, name="metrics", daemon=True).start()


def blueprint(measured: Metrics) -> Blueprint:
    """`GET /metrics`."""
    routes = Blueprint("metrics", __name__)

    @routes.get("/metrics", scopes=("metrics",), tag=Tag.FIGURES)
    @openapi.describe({200: {TEXT: str, JSON: Summary}})
    def metrics() -> Response:
        """This worker's numbers. For Prometheus, or a few of them with `Accept: application/json`."""
        if request.accept_mimetypes.best_match([TEXT, JSON], TEXT) == JSON:
            response = body.answer(measured.summary())
        else:
            response = Response(measured.exposition(), content_type=f"{TEXT}; version=0.0.4; charset=utf-8")
        response.vary.add("Accept")
        return response

    return routes


def _is_operators(route: str) -> bool:
    return route.strip("/").partition("/")[0] in _OPERATORS


def _gauge(name: str, meaning: str, registry: CollectorRegistry, *labels: str) -> Gauge:
    """A number that is summed over live processes."""
    return Gauge(name, meaning, labels, registry=registry, multiprocess_mode="livesum")
