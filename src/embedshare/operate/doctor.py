"""Finds faults of this machine, each with its remedy; changes nothing."""

from __future__ import annotations

import errno
import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from rich import box
from rich.table import Table
from rich.text import Text

from embedshare import folders, platforms
from embedshare.engine import families
from embedshare.errors import EmbedshareError, missing_database
from embedshare.ipc import authkey
from embedshare.jobs import place
from embedshare.operate.processes import Place, is_worker, port_holder, worker_address
from embedshare.settings import Settings

GOOD, WARNING, BAD = "good", "warning", "bad"
#: Free memory and disk below which a first start may fail: it loads the model with torch and converts it.
FIRST_START_BYTES = 2 << 30
SUPPORTED = ((3, 10), (3, 13))
_COLOURS = {GOOD: "green", WARNING: "yellow", BAD: "red"}
#: The packages of the whole product, and the effect of a missing one.
_PACKAGES = {
    "torch": "no model can be loaded for the first time",
    "sentence-transformers": "no model can be loaded for the first time",
    "openvino": "a CPU runs the model with torch, several times slower",
    "flask": "no web worker can run",
    "waitress": "no web worker can run",
    "prometheus_client": "there are no metrics",
}


class Finding(NamedTuple):
    """The result of one check."""

    about: str
    state: str
    """good, warning or bad"""

    found: str
    remedy: str = ""


def examine(
    settings: Settings, ports: Sequence[Finding], server_answers: Callable[[], str | None]
) -> list[Finding]:
    """Check everything that the services need.

    `ports` are the findings of `running_workers` or `worker_ports`. `server_answers` says why the model
    server does not answer, None if it does.
    """
    return [
        *_python(),
        *_packages(),
        *_key(settings),
        *_server(settings, server_answers),
        *ports,
        *_weights(settings),
        *_device(settings),
        *_room(settings),
        *_folders(settings),
        *_indexes(settings),
        *_jobs(settings),
        *_database(settings),
    ]


def render(findings: list[Finding]) -> Table:
    """The findings as a table for a terminal."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("about", "", "found", "what to do"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        table.add_row(
            finding.about, Text(finding.state, _COLOURS[finding.state]), finding.found, finding.remedy
        )
    return table


def _python() -> Iterator[Finding]:
    found = f"{platform.python_version()} at {sys.executable}"
    if SUPPORTED[0] <= sys.version_info[:2] <= SUPPORTED[1]:
        yield Finding("Python", GOOD, found)
    else:
        low, high = (".".join(map(str, version)) for version in SUPPORTED)
        yield Finding("Python", WARNING, found, f"use one from {low} to {high}, the tested versions")


def _packages() -> Iterator[Finding]:
    missing, versions = {}, []
    for package, without in _PACKAGES.items():
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            missing[package] = without
    if versions:
        yield Finding("packages", GOOD, ", ".join(versions))
    for package, without in missing.items():
        yield Finding(
            "packages",
            BAD,
            f"{package} is missing: {without}",
            "pip install -r requirements.txt, into this Python",
        )


def _key(settings: Settings) -> Iterator[Finding]:
    if (
        settings.server.authkey is None
        and settings.server.on_loopback
        and not authkey.key_file(settings).exists()
    ):
        yield Finding(
            "key", GOOD, f"none yet; the server makes it at its first start: {authkey.key_file(settings)}"
        )
        return
    try:
        authkey.server_key(settings)
    except EmbedshareError as error:
        yield Finding("key", BAD, error.message, "see docs/operations.md, The key")
        return
    where = "EMBEDDING_AUTHKEY" if settings.server.authkey is not None else str(authkey.key_file(settings))
    weak = settings.server.authkey in authkey.PUBLISHED_KEYS
    if weak:
        yield Finding(
            "key", WARNING, f"{where} is a published key", "set one of your own, of 16 bytes or more"
        )
    else:
        yield Finding("key", GOOD, where)


def _server(settings: Settings, server_answers: Callable[[], str | None]) -> Iterator[Finding]:
    if not settings.client.use_ipc:
        yield Finding("model server", GOOD, "not used: USE_IPC_EMBEDDING is false")
        return
    where = "{}:{}".format(*settings.server.address)
    problem = server_answers()
    if problem is None:
        yield Finding("model server", GOOD, f"answers at {where}")
    elif _free(settings.server.host, settings.server.port):
        yield Finding(
            "model server", WARNING, f"no process listens at {where}", "start it: python service_manager.py"
        )
    else:
        yield Finding(
            "model server", BAD, f"{_holder(settings.server.port)} holds {where}, and: {problem}",
            "end that process, or choose another EMBEDDING_SERVER_PORT",
        )  # fmt: skip


def running_workers(processes: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """The workers of the supervisor's report, at their ports."""
    for process in processes:
        if not is_worker(process["name"]):
            continue
        found = f"{process['port']} is {process['name']}'s, which is {process['state']}"
        if process["pid"] is not None:
            found += f", process {process['pid']}"
        if process["state"] in ("hung", "given up", "restarting"):
            remedy = f"see its log, {process['log']}"
            yield Finding("worker ports", BAD, found, remedy)
        else:
            yield Finding("worker ports", GOOD, found)


def worker_ports(server_port: int, workers: int, place: Place) -> Iterator[Finding]:
    """Whether that number of workers could start at `place`."""
    ports = [worker_address(place, number, server_port)[1] for number in range(1, workers + 1)]
    taken = [port for port in ports if not _free(place.host, port)]
    if not taken:
        yield Finding("worker ports", GOOD, f"{', '.join(map(str, ports))} are free")
    for port in taken:
        pid = port_holder(port)
        if pid is not None and _is_ours(pid):
            yield Finding("worker ports", GOOD, f"{port} is held by a worker of ours, process {pid}")
        else:
            yield Finding(
                "worker ports", BAD, f"{port} is held by {_holder(port)}",
                "end that process, or choose another --port",
            )  # fmt: skip


def _weights(settings: Settings) -> Iterator[Finding]:
    try:
        folder, family, identity = families.locate(settings)
    except EmbedshareError as error:
        yield Finding("weights", BAD, error.message, "see EMBEDDING_MODEL_NAME in docs/settings.md")
        return
    yield Finding("weights", GOOD, f"{settings.model.name} ({family}, {identity[:12]}) in {folder}")


def _device(settings: Settings) -> Iterator[Finding]:
    wants_gpu = settings.model.device.startswith("cuda") or settings.model.device == "mps"
    if not platforms.may_have_gpu():
        if wants_gpu:
            yield Finding(
                "device", BAD, f"EMBEDDING_DEVICE is {settings.model.device}, and this machine shows no GPU",
                "install its driver (nvidia-smi must list it), or set EMBEDDING_DEVICE=cpu",
            )  # fmt: skip
        else:
            yield Finding("device", GOOD, f"CPU with {os.cpu_count()} cores; no GPU")
        return
    try:
        import torch
    except ImportError:
        yield Finding(
            "device", WARNING, "there may be a GPU, and torch is missing", "install requirements.txt"
        )
        return
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
        yield Finding("device", GOOD, names)
    elif torch.backends.mps.is_available():
        yield Finding("device", GOOD, "Apple GPU (mps)")
    else:
        yield Finding(
            "device", BAD if wants_gpu else WARNING, "there may be a GPU, and torch finds none",
            "install a torch with CUDA of a version that the driver supports, or set EMBEDDING_DEVICE=cpu",
        )  # fmt: skip


def _room(settings: Settings) -> Iterator[Finding]:
    available = psutil.virtual_memory().available
    limited = platforms.container_memory_left()
    free = available if limited is None else min(available, limited)
    yield _enough("memory", free, "a first start takes 2 GB for a small model; end other programs")
    folder = _existing(folders.cache(settings))
    yield _enough(
        "disk", shutil.disk_usage(folder).free, f"make room where {folder} is, or set EMBEDDING_CACHE_DIR"
    )


def _folders(settings: Settings) -> Iterator[Finding]:
    cache = folders.cache(settings)
    for about, folder, name in (
        ("logs", Path(settings.operation.log_dir).resolve(), "EMBEDDING_LOG_DIR"),
        ("cache", cache, "EMBEDDING_CACHE_DIR"),
    ):
        yield _writable(about, folder, name)
    logs = Path(settings.operation.log_dir).resolve()
    for log in sorted(logs.glob("*.log")):
        try:
            log.open("ab").close()
        except OSError as error:
            found = f"{log} cannot be written to: {error.strerror}"
            yield Finding("logs", BAD, found, f"give this user the right, or remove {log}")
    kept = settings.operation.log_max_bytes * (settings.operation.log_keep + 1)
    free = shutil.disk_usage(_existing(logs)).free
    if free < kept:
        found = f"{free / 2**20:,.0f} MB free at {logs}; one process's logs may take {kept / 2**20:,.0f} MB"
        yield Finding(
            "logs", WARNING, found, "make room, or set EMBEDDING_LOG_MAX_BYTES or EMBEDDING_LOG_KEEP"
        )


def _indexes(settings: Settings) -> Iterator[Finding]:
    folder = Path(settings.indexes.directory or authkey.key_file(settings).with_name("indexes"))
    yield _private("indexes", folder, "EMBEDDING_INDEX_DIR", "POST /index is refused")


def _jobs(settings: Settings) -> Iterator[Finding]:
    if settings.takes_jobs:
        yield _private("jobs", place.folder(settings), "EMBEDDING_JOBS_DIR", "jobs are refused")


def _private(about: str, folder: Path, setting: str, consequence: str) -> Finding:
    """Whether this user alone can use a folder."""
    writable = _writable(about, folder, setting)
    fault = platforms.fault_of_trust(folder.stat(), 0o077) if folder.is_dir() else None
    if writable.state == GOOD and fault is not None:
        found = f"{folder} is not this user's alone ({fault}): {consequence}"
        return Finding(about, BAD, found, f"chmod 700 {folder}, as its owner, or set {setting}")
    return writable


def _database(settings: Settings) -> Iterator[Finding]:
    if not settings.operation.use_db_settings and not settings.web.asks_for_keys:
        return
    try:
        from embedshare.database.database import Database  # SQLAlchemy, only with a database
    except ImportError as error:
        yield Finding("database", BAD, missing_database(error).message, "run that command")
        return
    try:
        database = Database.open(settings, authkey.key_file(settings).parent)
        found = database.check()
    except EmbedshareError as error:
        remedy = "start it, or fix EMBEDDING_DB_URL; see docs/operations.md, Settings in a database"
        yield Finding("database", BAD, error.message, remedy)
        return
    yield Finding("database", GOOD, found)


def _writable(about: str, folder: Path, name: str) -> Finding:
    """Whether files can be written to the folder of the setting `name`, or to its future place."""
    try:
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        with tempfile.TemporaryFile(dir=_existing(folder)):
            return Finding(about, GOOD, str(folder))
    except OSError as error:
        found = f"{folder} cannot be written to: {error.strerror}"
        return Finding(about, BAD, found, f"give this user the right, or set {name}")


def _enough(about: str, free: int, remedy: str) -> Finding:
    found = f"{free / 2**30:.1f} GB free"
    return (
        Finding(about, GOOD, found) if free >= FIRST_START_BYTES else Finding(about, WARNING, found, remedy)
    )


def _existing(folder: Path) -> Path:
    """The folder, or its nearest existing parent."""
    return next((each for each in (folder, *folder.parents) if each.exists()), Path("."))


def _free(host: str, port: int) -> bool:
    try:
        platforms.exclusive_listener(host, port, backlog=1).close()
    except OSError:
        return False
    return True


def _holder(port: int) -> str:
    pid = port_holder(port)
    if pid is None:
        return "another user's process"
    try:
        return f"process {pid} ({' '.join(psutil.Process(pid).cmdline())[:80]})"
    except psutil.Error:
        return f"process {pid}"


def _is_ours(pid: int) -> bool:
    try:
        return any(Path(part).name == "app.py" for part in psutil.Process(pid).cmdline())
    except psutil.Error:
        return False
