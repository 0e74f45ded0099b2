"""The live page of the shared model's work, and its data."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec
from flask import Blueprint, Response
from werkzeug.exceptions import NotFound

from embedshare.errors import EmbedshareError
from embedshare.single_flight import SingleFlight
from embedshare.telemetry.histogram import quantile
from embedshare.web import openapi, pages
from embedshare.web.apis.metrics import Requests
from embedshare.web.routes import OPEN, Tag


class Observed(Protocol):
    """The model's functions that this page uses."""

    def stats(self) -> dict[str, Any]: ...
    def models(self, timeout: float | None = ...) -> list[dict[str, Any]]: ...
    def client_stats(self) -> dict[str, Any]: ...


class Process(msgspec.Struct):
    """A process that serves the model or uses it; null is unknown.

    `calls` is the number of calls made (a worker) or answered (the server) since its start.
    """

    name: str
    pid: int | None
    port: int | None = None
    state: str | None = None
    uptime_s: float | None = None
    restarts: int | None = None
    memory_mb: float | None = None
    calls: int | None = None


class ServedModel(msgspec.Struct):
    """One of the server's models; `idle_s` are the seconds since its last call, null if it is not loaded.

    `memory_mb` is what it took when it was loaded last; `calls` and `loads` count since the server's start.
    """

    id: str
    name: str
    default: bool
    state: str
    pinned: bool
    active: int
    calls: int
    loads: int
    idle_s: float | None
    memory_mb: float | None
    error: str | None


class RemoteService(msgspec.Struct):
    """The service behind a loaded remote model; `state` is its breaker's: closed while it is asked.

    Counts are those since the load; `month_cost` and `month_budget` are in the currency of the model's price.
    """

    model: str
    provider: str
    state: str
    retry_after_s: float
    error: str | None
    answered: int
    failed: int
    p50_ms: float | None
    tokens: int
    month_cost: float
    month_budget: float | None
    failovers: int


class Memory(msgspec.Struct):
    """Memory of the server and the connected `processes` together (`shared_mb`), and of those processes with
    a model of `model_mb` in each instead (`unshared_mb`)."""

    processes: int
    shared_mb: float | None
    unshared_mb: float | None
    model_mb: float | None


class DashboardData(msgspec.Struct):
    """Figures at `time` (seconds since 1970): counters and histograms cumulate since their process's start.

    `http` counts this worker's requests, `server` the calls of all workers: coalesced requests are one call.
    """

    time: float
    worker: dict[str, Any]
    server: dict[str, Any] | None
    processes: list[Process]
    memory: Memory
    error: str | None = None
    http: Requests | None = None
    models: list[ServedModel] = []
    """The server's models, if it has several."""
    services: list[RemoteService] = []
    """The services of its remote models."""


_Figures = tuple[dict[str, Any], list[ServedModel], list[RemoteService]]
#: Seconds that a page waits for the figures, before it shows that no model answers.
PATIENCE_S = 2.0


def blueprint(
    model: Observed,
    supervised: Callable[[], list[dict[str, Any]]] = list,
    requests: Callable[[], Requests] | None = None,
) -> Blueprint:
    """`/dashboard`, its files and its data.

    `supervised` lists a supervisor's processes, with the fields of Process; it may raise without one. Other
    processes connected to the server follow. `requests` counts this worker's.
    """
    routes = Blueprint("dashboard", __name__)
    latest, latest_supervised = SingleFlight(lambda: _asked(model)), SingleFlight(supervised)

    @routes.get("/dashboard", scopes=OPEN, tag=Tag.PAGES)
    @openapi.describe({200: {"text/html": str}, 304: {}})
    def dashboard() -> Response:
        """The live page."""
        return pages.page("dashboard")

    @routes.get("/dashboard/static/<name>", scopes=OPEN, tag=Tag.PAGES)
    @openapi.describe(
        {200: {kind.partition(";")[0]: str for kind in pages.MEDIA_TYPES.values()}, 304: {}},
        errors=(NotFound,),
    )
    def dashboard_static(name: str) -> Response:
        """A file of the live page or of the search page."""
        if name not in pages.FILES:
            raise NotFound(f"the pages have no file {name!r}")
        return pages.static(name)

    @routes.get("/dashboard/data", scopes=("metrics",), tag=Tag.PAGES)
    @openapi.describe({200: DashboardData})
    def dashboard_data() -> Response:
        """The current figures of the live page."""
        data = _data(model, latest, latest_supervised)
        data.http = None if requests is None else requests()
        return Response(msgspec.json.encode(data), content_type="application/json")

    return routes


def _asked(model: Observed) -> _Figures:
    """The server's figures, those of its models if it has several, and of remote services."""
    stats = model.stats()
    if stats["pid"] == stats["client"]["pid"]:  # a local model answers
        return stats, [], []
    models = model.models(PATIENCE_S)
    services = [_service(one) for one in models if one.get("service")]
    if len(models) < 2:
        return stats, [], services
    figures = [{**one, "memory_mb": one["bytes"] / 1e6 or None} for one in models]
    return stats, msgspec.convert(figures, list[ServedModel]), services


def _service(entry: Mapping[str, Any]) -> RemoteService:
    service = entry["service"]
    requests, times = service["requests"], service["request_ms"]
    return RemoteService(
        entry["id"], entry["provider"], service["breaker"], service["retry_after_s"], service["error"],
        requests["answered"], requests["requests"] - requests["answered"],
        quantile(times["bounds"], times["counts"], 0.5),
        service["tokens"], service["month_cost"], service["month_budget"], entry["failovers"],
    )  # fmt: skip


def _data(
    model: Observed, latest: SingleFlight[_Figures], supervised: SingleFlight[list[dict[str, Any]]]
) -> DashboardData:
    error: str | None = None
    models: list[ServedModel] = []
    services: list[RemoteService] = []
    try:
        stats, models, services = latest.get(PATIENCE_S)
        server = dict(stats)
        worker = server.pop("client")
    except (EmbedshareError, TimeoutError) as reason:
        server, worker = None, model.client_stats()
        error = reason.message if isinstance(reason, EmbedshareError) else f"{reason} from the model server"
    now = time.time()
    listed = _completed(_supervised(supervised), _connected(server, worker))
    memory = _memory(server, worker)
    return DashboardData(now, worker, server, listed, memory, error, models=models, services=services)


def _connected(server: Mapping[str, Any] | None, worker: Mapping[str, Any]) -> list[Process]:
    """The processes that the server knows, itself first, and this worker; in a stable order."""
    me = Process(
        "this worker", worker["pid"], state=_state(server, worker), uptime_s=worker["uptime_s"],
        memory_mb=worker["memory_mb"], calls=worker["calls"],
    )  # fmt: skip
    if server is None or server["pid"] == worker["pid"]:
        return [me]
    port = server["server_address"].rpartition(":")[2]
    first = Process(
        "model server", server["pid"], int(port), "serving", server["uptime"],
        memory_mb=server["memory_mb"], calls=server["total_requests"],
    )  # fmt: skip
    others = [
        Process(
            each["program"] or "unknown", each["pid"], None, "connected",
            memory_mb=each["memory_mb"], calls=each["calls"],
        )
        for each in sorted(server["callers"], key=lambda each: (each["program"] or "", each["pid"] or 0))
        if each["pid"] != worker["pid"]
    ]  # fmt: skip
    return [first, me, *others]


def _supervised(latest: SingleFlight[list[dict[str, Any]]]) -> list[Process]:
    try:
        found = msgspec.convert(latest.get(PATIENCE_S), list[Process])
    except (EmbedshareError, TimeoutError):
        return []
    for process in found:
        process.port = process.port or None  # a process that listens nowhere has port 0
    return found


def _completed(supervised: list[Process], connected: list[Process]) -> list[Process]:
    """A supervisor's processes, completed by the server's and this worker's data; then the others."""
    known = {each.pid: each for each in connected}
    for process in supervised:
        other = known.pop(process.pid, None)
        if other is not None:
            process.memory_mb = other.memory_mb if process.memory_mb is None else process.memory_mb
            process.calls = other.calls if process.calls is None else process.calls
    return [*supervised, *known.values()]


def _state(server: Mapping[str, Any] | None, worker: Mapping[str, Any]) -> str:
    """A client notices that its server is down at its next call; this page knows it before."""
    return "waiting" if server is None and worker["state"] == "connected" else str(worker["state"])


def _memory(server: Mapping[str, Any] | None, worker: Mapping[str, Any]) -> Memory:
    """The memory of connected processes of this machine; another machine's cannot be read."""
    if server is None or server["pid"] == worker["pid"]:  # nothing is shared now
        return Memory(0, None, None, None)
    of_callers = [each["memory_mb"] for each in server["callers"] if each["memory_mb"] is not None]
    of_server, model = server["memory_mb"], server["model_mb"]
    if of_server is None or model is None or not of_callers:
        return Memory(len(of_callers), None, None, model)
    alone = sum(of_callers)
    return Memory(len(of_callers), alone + of_server, alone + model * len(of_callers), model)
