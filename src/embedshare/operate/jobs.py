"""The command `jobs`: lists, shows, cancels and deletes the jobs of all callers."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table

from embedshare.errors import UnknownJob
from embedshare.jobs.spec import JobSpec
from embedshare.jobs.store import JobStore


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="action")
    helps = {
        "list": "show every job: its owner, its state, how far it is",
        "show": "show one job",
        "cancel": "end a job after its part under way",
        "delete": "delete a job and its result",
    }
    for name, text in helps.items():
        action = actions.add_parser(name, help=text, description=text)
        action.add_argument("--json", action="store_true", help="for scripts: JSON on standard output")
        if name != "list":
            action.add_argument("id", help="the id of a job")


def carry_out(options: argparse.Namespace, store: JobStore) -> list[dict[str, Any]]:
    """The jobs that the action concerns, as they are then; none for a deleted one.

    Raises UnknownJob, JobEnded, JobsNotKept.
    """
    if options.action == "list":
        return [entry for job in store.jobs() for entry in _entries(store, job)]
    job = store.job(options.id.removeprefix("batch_"))
    if options.action == "delete":
        store.remove(job)
        return []
    if options.action == "cancel":
        store.cancel(job)
    return _entries(store, job)


def render(jobs: Sequence[dict[str, Any]]) -> Table:
    """The jobs as a table for a terminal."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("job", "owner", "kind", "state"):
        table.add_column(column, overflow="fold")
    for column in ("done", "of", "lines/s", "left"):
        table.add_column(column, justify="right", no_wrap=True)
    for one in jobs:
        state = one["status"] if one["error"] is None else f"{one['status']}: {one['error']}"
        rate, eta_s = one["rate"], one["eta_s"]
        table.add_row(
            one["id"], one["owner"] or "–", one["kind"], state, f"{one['done']:,}", f"{one['total']:,}",
            "" if rate is None else f"{rate:,.0f}", "" if eta_s is None else f"{eta_s:,.0f} s",
        )  # fmt: skip
    return table


def _entries(store: JobStore, job: JobSpec) -> list[dict[str, Any]]:
    """The job as plain values; none if it is deleted meanwhile."""
    try:
        now = store.progress(job)
    except UnknownJob:
        return []
    return [
        {
            "id": job.id,
            "owner": job.owner,
            "kind": job.kind,
            "model": job.options.model,
            "status": now.state.value,
            "total": job.lines,
            "done": now.done,
            "rate": None if now.rate is None else round(now.rate, 2),
            "eta_s": None if now.eta_s is None else round(now.eta_s, 1),
            "age_s": round(time.time() - job.created, 1),
            "error": None if now.failure is None else now.failure.message,
        }
    ]
