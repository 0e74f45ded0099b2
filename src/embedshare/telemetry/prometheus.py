"""The model server's metrics for Prometheus, on a port of their own.

There is one server process, so nothing is stored here: each scrape reads the existing counters.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import ThreadingHTTPServer
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, MetricsHandler
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from embedshare import hosts, platforms
from embedshare.telemetry import memory
from embedshare.telemetry.histogram import Snapshot

#: Seconds without a word after which a scraper is dropped.
SCRAPER_S = 10.0
STAGES = ("tokenize", "queue", "compute", "total")
#: Counters: the name here, the key in the stats, the meaning.
COUNTERS = (
    ("texts", "sequences", "Texts that were computed"),
    ("tokens", "tokens", "Tokens that were computed, padding not included"),
    ("padding_tokens", "padding_tokens", "Computed positions in batches without a token"),
    ("batches", "batches", "Batches that were computed"),
    ("shared_batches", "shared_batches", "Batches that held texts of more than one caller"),
    ("expired_calls", "expired", "Calls whose deadline passed before they were computed"),
    ("abandoned_calls", "abandoned", "Calls whose caller had left before they were computed"),
    ("rejected_calls", "rejected", "Calls refused because the queue was full"),
    ("out_of_memory_batches", "out_of_memory", "Batches that did not fit into the device's memory"),
    ("failed_batches", "failed_batches", "Batches that the runtime failed"),
    ("swaps", "swaps", "Changes of the model while the server ran"),
    ("failed_swaps", "failed_swaps", "Failed changes of the model, which changed nothing"),
)
GAUGES = (
    ("waiting_tokens", "waiting_tokens", "Queued tokens"),
    ("active_calls", "active_operations", "Queued and running calls"),
)


#: Of the cache of vectors: the name here, the key in its stats, the meaning.
OF_THE_CACHE = (
    ("misses", "misses", "Texts that were computed"),
    ("joined", "joined", "Texts whose vectors another call was computing"),
    ("evictions", "evictions", "Vectors dropped for others"),
    ("entries", "entries", "Cached vectors"),
    ("bytes", "bytes", "Memory that they take"),
)
#: Of each model, with its id as the label `model`: the name here, the key of its entry, the meaning.
OF_A_MODEL = (
    ("calls", "calls", "Calls for the model"),
    ("loads", "loads", "Times that the model was loaded"),
    ("failovers", "failovers", "Calls for the model that another one answered"),
    ("active", "active", "Queued and running calls for the model"),
    ("bytes", "bytes", "Memory that loading the model took"),
)


class View(NamedTuple):
    """The server at one moment."""

    stats: Mapping[str, Any]
    """In the form of EmbeddingClient.stats()."""

    outcomes: Mapping[tuple[str, str], int]
    """Finished calls, by method and outcome."""

    connections: int
    models: Sequence[Mapping[str, Any]]
    """The models' entries, see ModelPool.entries."""

    uptime_s: float


class ServerCollector(Collector):
    """Metrics from the result of `look` at each scrape."""

    def __init__(self, look: Callable[[], View]) -> None:
        self._look = look

    def collect(self) -> Iterator[Metric]:
        stats, outcomes, connections, models, uptime_s = self._look()
        calls = CounterMetricFamily("embedshare_server_calls", "Finished calls", labels=["method", "outcome"])
        for (method, outcome), count in sorted(outcomes.items()):
            calls.add_metric([method, outcome], count)
        yield calls
        yield from _histograms(stats["histograms"])
        for name, key, meaning in COUNTERS:
            yield CounterMetricFamily(f"embedshare_server_{name}", meaning, value=stats[key])
        for name, key, meaning in GAUGES:
            yield GaugeMetricFamily(f"embedshare_server_{name}", meaning, value=stats[key])
        yield GaugeMetricFamily("embedshare_server_connections", "Callers connected", value=connections)
        yield GaugeMetricFamily("embedshare_server_uptime_seconds", "Since the start", value=uptime_s)
        indexes = stats["indexes"]
        yield GaugeMetricFamily("embedshare_server_indexes", "Vector indexes", value=indexes["count"])
        yield GaugeMetricFamily(
            "embedshare_server_index_bytes", "Memory that they take", value=indexes["bytes"]
        )
        yield CounterMetricFamily(
            "embedshare_server_evicted_indexes", "Indexes evicted for others", value=indexes["evicted"]
        )
        sizes = {
            "memory_bytes": ("Memory that the server's process holds", memory.of_process()),
            "gpu_memory_bytes": ("Memory that it has taken from its GPUs", memory.of_gpu()),
            "model_memory_bytes": ("Memory that loading the model took", _bytes(stats["model_mb"])),
        }
        for name, (meaning, size) in sizes.items():
            if size is not None:
                yield GaugeMetricFamily(f"embedshare_server_{name}", meaning, value=size)
        yield from _of_the_cache(stats["cache"])
        yield from _of_models(models)
        yield from _of_services(models)


def serve(host: str, port: int, look: Callable[[], View], allowed_hosts: Sequence[str] = ()) -> None:
    """Answer `GET /metrics` at an address until the process ends, in threads of its own.

    It needs no key, so it answers under this machine's names, `host` and `allowed_hosts` alone. Raises
    OSError if the address cannot be listened on.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(ServerCollector(look))
    listener = platforms.exclusive_listener(host, port, backlog=16)
    server = ThreadingHTTPServer(
        (host, port), _handler(registry, (host, *allowed_hosts)), bind_and_activate=False
    )
    server.socket.close()
    server.socket = listener
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()


def _handler(over: CollectorRegistry, allowed: Sequence[str]) -> type[MetricsHandler]:
    class Handler(MetricsHandler):
        registry = over
        timeout = SCRAPER_S

        def do_GET(self) -> None:  # noqa: N802  the name that http.server calls
            if not hosts.means_this_machine(self.headers.get("Host", ""), allowed):
                self.send_error(421, explain="add this host's name to EMBEDDING_ALLOWED_HOSTS")
            elif self.path.partition("?")[0] == "/metrics":
                super().do_GET()
            else:
                self.send_error(404, explain="the metrics are at /metrics")

    return Handler


def _histograms(snapshots: Mapping[str, Snapshot]) -> Iterator[Metric]:
    seconds = HistogramMetricFamily(
        "embedshare_server_call_seconds", "Time of answered embeddings by stage", labels=["stage"]
    )
    for stage in STAGES:
        snapshot = snapshots[f"{stage}_ms"]
        seconds.add_metric([stage], _buckets(snapshot, 1e3), snapshot["sum"] / 1e3)
    yield seconds
    for name, meaning in (("sequences", "Texts in a batch"), ("tokens", "Tokens in a batch")):
        snapshot = snapshots[f"batch_{name}"]
        sizes = HistogramMetricFamily(f"embedshare_server_batch_{name}", meaning)
        sizes.add_metric([], _buckets(snapshot, 1), snapshot["sum"])
        yield sizes


def _of_the_cache(stats: Mapping[str, Any]) -> Iterator[Metric]:
    if not stats:
        return
    hits = CounterMetricFamily(
        "embedshare_server_cache_hits", "Texts whose vectors were cached", labels=["level"]
    )
    for level, count in stats["hits_by_level"].items():
        hits.add_metric([level], count)
    yield hits
    for name, key, meaning in OF_THE_CACHE:
        kind = GaugeMetricFamily if key in ("entries", "bytes") else CounterMetricFamily
        yield kind(f"embedshare_server_cache_{name}", meaning, value=stats[key])


def _of_models(models: Sequence[Mapping[str, Any]]) -> Iterator[Metric]:
    served = next((one["model"] for one in models if one["default"]), None)
    if served is not None:
        value = {key: served[key] for key in ("identity", "device", "dtype", "runtime")}
        info = {"name": served["model_name"], **value}
        yield InfoMetricFamily("embedshare_server_model", "The default model", value=info)
    for name, key, meaning in OF_A_MODEL:
        kind = CounterMetricFamily if key in ("calls", "loads", "failovers") else GaugeMetricFamily
        family = kind(f"embedshare_server_model_{name}", meaning, labels=["model"])
        for one in models:
            family.add_metric([one["id"]], float(one[key]))
        yield family
    states = GaugeMetricFamily("embedshare_server_model_state", "1 for its state", labels=["model", "state"])
    for one in models:
        states.add_metric([one["id"], one["state"]], 1)
    yield states


def _of_services(models: Sequence[Mapping[str, Any]]) -> Iterator[Metric]:
    """Of the remote models that are loaded."""
    remote = [(one["id"], one["provider"], one["service"]) for one in models if one["service"]]
    if not remote:
        return
    labels = ["model", "provider"]
    requests = CounterMetricFamily(
        "embedshare_provider_requests", "Requests to remote providers by outcome", labels=[*labels, "outcome"]
    )
    seconds = HistogramMetricFamily(
        "embedshare_provider_request_seconds", "Time of requests to remote providers", labels=labels
    )
    tokens = CounterMetricFamily(
        "embedshare_provider_tokens", "Tokens that remote models read", labels=labels
    )
    cost = GaugeMetricFamily("embedshare_provider_month_cost", "Cost in this month (UTC)", labels=labels)
    breakers = GaugeMetricFamily(
        "embedshare_provider_breaker", "1 for the state of its breaker", labels=[*labels, "state"]
    )
    for name, provider, service in remote:
        for outcome, count in service["requests"].items():
            if outcome not in ("requests", "retries"):
                requests.add_metric([name, provider, outcome], count)
        snapshot = service["request_ms"]
        seconds.add_metric([name, provider], _buckets(snapshot, 1e3), snapshot["sum"] / 1e3)
        tokens.add_metric([name, provider], service["tokens"])
        cost.add_metric([name, provider], service["month_cost"])
        breakers.add_metric([name, provider, service["breaker"]], 1)
    yield from (requests, seconds, tokens, cost, breakers)


def _buckets(snapshot: Snapshot, divisor: float) -> list[tuple[str, float]]:
    """Cumulative counts by upper bound, in Prometheus's form."""
    below, buckets = 0, []
    for bound, count in zip([*snapshot["bounds"], float("inf")], snapshot["counts"], strict=True):
        below += count
        buckets.append(("+Inf" if bound == float("inf") else repr(bound / divisor), float(below)))
    return buckets


def _bytes(megabytes: float | None) -> int | None:
    return None if megabytes is None else round(megabytes * 1e6)
