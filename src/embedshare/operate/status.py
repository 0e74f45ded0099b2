"""The state of the services: the supervisor's processes, their load, and the shared model."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import requests
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from embedshare.errors import EmbedshareError, SupervisorError
from embedshare.operate.processes import MODEL_SERVER, ask_worker, is_worker
from embedshare.settings import Settings
from embedshare.telemetry.histogram import quantile

#: Seconds over which rates and percentiles are measured.
OVER_S = 1.0
#: Seconds without an answer after which a process is shown without figures.
PATIENCE_S = 3.0
#: Colours of states; others are red.
_WELL, _UNDER_WAY = {"ready"}, {"waiting", "starting", "restarting", "stopping"}

Stats = dict[str, Any]


def gather(
    processes: Sequence[Mapping[str, Any]], settings: Settings, server_stats: Callable[[], Stats]
) -> dict[str, Any]:
    """`{"processes": [...], "server": {...} or None}`, as plain values; takes OVER_S seconds.

    `processes`: the supervisor's reports. `server_stats` asks the model server.
    """
    names = [str(process["name"]) for process in processes]
    asked = [_who_to_ask(process, settings, server_stats) for process in processes]
    with ThreadPoolExecutor(max(1, len(asked))) as threads:
        before = list(threads.map(_ask, asked))
        time.sleep(OVER_S)
        after = list(threads.map(_ask, asked))
    shown = [
        {**process, "memory_mb": _memory_mb(process["pid"]), **_activity(first, last)}
        for process, first, last in zip(processes, before, after, strict=True)
    ]
    stats = after[names.index(MODEL_SERVER)] if MODEL_SERVER in names else None
    return {"processes": shown, "server": _facts(stats[1]) if stats is not None else None}


def render(report: Mapping[str, Any]) -> RenderableType:
    """The report as tables for a terminal."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for column in ("process", "state"):
        table.add_column(column, no_wrap=True)
    for column in ("pid", "port", "uptime", "restarts", "memory", "calls/s", "p50 ms", "p99 ms"):
        table.add_column(column, justify="right", no_wrap=True)
    for process in report["processes"]:
        state = process["state"]
        colour = "green" if state in _WELL else "yellow" if state in _UNDER_WAY else "red"
        table.add_row(
            process["name"], Text(state, colour), _text(process["pid"]), _text(process["port"] or None),
            _duration(process["uptime_s"]), str(process["restarts"]),
            _text(process["memory_mb"], "{:,.0f} MB"), _text(process["calls_per_s"], "{:,.1f}"),
            _text(process["p50_ms"], "{:,.1f}"), _text(process["p99_ms"], "{:,.1f}"),
        )  # fmt: skip
    server = report["server"]
    if server is None:
        return table
    model = Table(box=None, pad_edge=False, show_header=False)
    model.add_column(style="bold")
    for name, value in _described(server):
        model.add_row(name, value)
    return Group(table, model)


def _who_to_ask(
    process: Mapping[str, Any], settings: Settings, server_stats: Callable[[], Stats]
) -> Callable[[], Stats]:
    """The server reports all calls, a worker its own client's, the process of jobs none."""
    if process["name"] == MODEL_SERVER:
        return server_stats
    if not is_worker(process["name"]):
        return _tells_nothing

    def worker_stats() -> Stats:
        answer = ask_worker(settings, process["host"], process["port"], "/embedding/stats", PATIENCE_S)
        stats: Stats = answer["client"]
        return stats

    return worker_stats


def _tells_nothing() -> Stats:
    raise SupervisorError("this process answers no questions")


def _ask(stats: Callable[[], Stats]) -> tuple[float, Stats] | None:
    try:
        answer = stats()
    except (EmbedshareError, requests.RequestException, ValueError, KeyError):
        return None
    return time.monotonic(), answer


def _activity(first: tuple[float, Stats] | None, last: tuple[float, Stats] | None) -> dict[str, float | None]:
    """Calls a second between two answers, and their percentiles; None if unknown."""
    if first is None or last is None:
        return {"calls_per_s": None, "p50_ms": None, "p99_ms": None}
    (began, before), (ended, after) = first, last
    then, now = before["histograms"]["total_ms"], after["histograms"]["total_ms"]
    counts = [b - a for a, b in zip(then["counts"], now["counts"], strict=True)]
    if min(counts) < 0:  # it was restarted meanwhile
        counts = now["counts"]
    p50, p99 = (quantile(now["bounds"], counts, share) for share in (0.5, 0.99))
    return {
        "calls_per_s": round(sum(counts) / (ended - began), 1),
        "p50_ms": None if p50 is None else round(p50, 2),
        "p99_ms": None if p99 is None else round(p99, 2),
    }


def _facts(stats: Stats) -> dict[str, Any]:
    names = (
        "model", "identity", "device", "dtype", "runtime", "uptime", "mean_batch_sequences",
        "mean_batch_tokens", "waiting_tokens", "active_operations", "total_requests", "failed_requests",
        "rejected", "swaps", "memory_mb", "gpu_memory_mb", "indexes", "cache",
    )  # fmt: skip
    return {name: stats.get(name) for name in names}


def _described(server: Mapping[str, Any]) -> list[tuple[str, str]]:
    gpu, indexes = server["gpu_memory_mb"], server["indexes"]
    return [
        ("model", f"{server['model']} ({str(server['identity'])[:12]})"),
        ("runs on", f"{server['device']}, {server['runtime']} {server['dtype']}"),
        (
            "mean batch",
            f"{server['mean_batch_sequences']:,.1f} texts, {server['mean_batch_tokens']:,.0f} tokens",
        ),
        ("queue", f"{server['waiting_tokens']:,} tokens, {server['active_operations']} calls in flight"),
        ("calls", f"{server['total_requests']:,}, of which {server['failed_requests']:,} failed"),
        (
            "indexes",
            f"{indexes['count']:,}, {indexes['bytes'] / 1e6:,.0f} MB; {indexes['evicted']:,} evicted",
        ),
        ("cached vectors", cached(server.get("cache") or {})),
        ("GPU memory", f"{gpu:,.0f} MB" if gpu is not None else "no GPU"),
    ]


def cached(stats: Mapping[str, Any]) -> str:
    """The cache of vectors in a line."""
    if not stats:
        return "off (EMBEDDING_VECTOR_CACHE_BYTES is 0)"
    found = stats["hits"] + stats["joined"]
    share = found / (found + stats["misses"]) if found else 0.0
    of = f"{stats['bytes'] / 1e6:,.0f} of {stats['limit_bytes'] / 1e6:,.0f} MB"
    return (
        f"{stats['entries']:,}, {of}; {share:.0%} of {found + stats['misses']:,} texts were cached"
        f"{_by_level(stats.get('hits_by_level', {}))}"
    )


def _by_level(hits: Mapping[str, int]) -> str:
    """The texts that each level had, if there is more than one."""
    told = ", ".join(f"{count:,} in {name}" for name, count in hits.items())
    return f" ({told})" if len(hits) > 1 else ""


def _memory_mb(pid: int | None) -> float | None:
    try:
        return round(psutil.Process(pid).memory_info().rss / 2**20, 1) if pid is not None else None
    except psutil.Error:
        return None


def _text(value: float | None, form: str = "{}") -> str:
    return "–" if value is None else form.format(value)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour}h"
    return f"{hour}h {minute:02}m" if hour else f"{minute}m {second:02}s"
