"""Undocumented names of waitress that the listener and the loop use: a version that lacks one fails here."""

from __future__ import annotations

import ast
import inspect
import socket
from collections.abc import Iterator
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import requests
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from waitress import wasyncore
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.server import BaseWSGIServer, create_server
from waitress.task import ErrorTask, WSGITask
from waitress.utilities import RequestEntityTooLarge

from embedshare.web.server import listener, loop
from tests.processes import ROOT, ModelServer, wait_for
from tests.web.conftest import Worker

#: Names, by the waitress object that has them.
NAMES = {
    "listener": (
        "_map", "accepting", "active_channels", "add_task", "adj", "application", "asyncore", "channel_class",
        "del_channel", "handle_accept", "pull_trigger", "run", "socket", "task_dispatcher", "trigger",
    ),
    "trigger": ("pull_trigger", "readable", "writable", "accepting"),
    "dispatcher": ("active_count", "queue", "shutdown"),
    "channel": (
        "_fileno", "accepting", "adj", "error_task_class", "parser_class", "readable", "received", "request",
        "requests", "server", "task_class", "total_outbufs_len", "will_close", "writable", "write_soon",
    ),
    "parser": (
        "adj", "chunked", "close", "command", "content_length", "error", "expect_continue", "headers",
        "parse_header", "path", "received",
    ),
    "task": ("build_response_header", "channel", "complete", "request", "write", "wrote_header"),
    "error task": (
        "channel", "content_length", "execute", "request", "response_headers", "set_close_on_finish",
        "status", "write",
    ),
    "refusal": ("body", "code", "reason"),
    "wasyncore": ("loop", "read", "write"),
}  # fmt: skip
#: Names that our objects or the standard library's also have, and that are used from these.
OTHERS = {"__name__", "_close", "close", "select", "start", "threads"}
#: Our methods that replace methods of waitress, and that waitress calls.
REPLACED = [
    (listener._Channel, HTTPChannel, ("readable", "received", "write_soon")),
    (listener._Parser, HTTPRequestParser, ("parse_header", "received")),
    (listener._Task, WSGITask, ("build_response_header", "write")),
    (listener._ErrorTask, ErrorTask, ("execute",)),
    (listener._Waking, BaseWSGIServer, ("add_task", "pull_trigger")),
]


@pytest.fixture(scope="module")
def stock() -> Iterator[dict[str, Any]]:
    """One object of each kind, straight from waitress."""
    near, far = socket.socketpair()
    server = create_server(lambda environ, start_response: [], {}, host="127.0.0.1", port=0, threads=1)
    assert isinstance(server, BaseWSGIServer)
    with closing(far), closing(near):
        channel = HTTPChannel(server, near, ("127.0.0.1", 1), server.adj, map=server._map)
        parser = HTTPRequestParser(server.adj)
        parser.received(b"GET / HTTP/1.1\r\n\r\n")
        yield {
            "listener": server, "trigger": server.trigger, "dispatcher": server.task_dispatcher,
            "channel": channel, "parser": parser, "task": WSGITask(channel, parser),
            "error task": ErrorTask(channel, parser), "refusal": RequestEntityTooLarge("too large"),
            "wasyncore": wasyncore,
        }  # fmt: skip
        server.task_dispatcher.shutdown()
        server.close()


@pytest.mark.parametrize("owner", NAMES)
def test_waitress_has_every_name_that_is_relied_on(stock: dict[str, Any], owner: str) -> None:
    assert [name for name in NAMES[owner] if not hasattr(stock[owner], name)] == []


def test_the_list_names_all_that_is_used_and_nothing_else(stock: dict[str, Any]) -> None:
    listed = {name for names in NAMES.values() for name in names}
    theirs = {name for each in stock.values() for name in dir(each)} - set(dir(dict))
    assert (used_names() & theirs) - OTHERS == listed - OTHERS


def used_names() -> set[str]:
    """Return the attributes in the two files, including those read from `vars`."""
    names = set()
    for module in (listener, loop):
        for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
            if isinstance(node, ast.Attribute):
                names.add(node.attr)
            elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
                names.add(node.slice.value)
            elif isinstance(node, (ast.FunctionDef, ast.AnnAssign, ast.Assign)):
                names |= names_defined(node)
    return names


def names_defined(node: ast.FunctionDef | ast.AnnAssign | ast.Assign) -> set[str]:
    if isinstance(node, ast.FunctionDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def test_replaced_methods_take_what_waitress_s_own_take() -> None:
    for ours, theirs, names in REPLACED:
        for name in names:
            mine, stock = (inspect.signature(getattr(each, name)).parameters for each in (ours, theirs))
            assert len(mine) == len(stock), (ours, name)
            assert name == "add_task" or list(mine) == list(stock), (ours, name)
    assert list(inspect.signature(HTTPChannel).parameters) == ["server", "sock", "addr", "adj", "map"]
    assert list(inspect.signature(wasyncore.loop).parameters) == ["timeout", "use_poll", "map", "count"]


def test_only_the_minor_version_with_these_names_is_installed() -> None:
    listed = [
        Requirement(line)
        for line in (ROOT / "requirements.txt").read_text().splitlines()
        if "waitress" in line
    ]
    assert [each.specifier for each in listed] == [SpecifierSet("~=3.0.1")]
    assert version("waitress") in listed[0].specifier


def test_a_worker_runs_with_waitress_s_own_loop(server: ModelServer, tmp_path: Path) -> None:
    worker = Worker(server, tmp_path / "worker.log", EMBEDDING_WEB_LOOP="waitress")
    try:
        wait_for(lambda: b"ready: http" in worker.log.read_bytes(), 30, "the worker's ready line")
        with requests.Session() as session:
            for _ in range(3):
                assert session.get(f"{worker.url}/health", timeout=30).json()["status"] == "ok"
                answer = session.post(f"{worker.url}/embed", json={"texts": ["a", "b"]}, timeout=30)
                assert [len(each) for each in answer.json()["embeddings"]] == [384, 384]
    finally:
        worker.process.terminate()
        assert worker.process.wait(30) == 0, worker.log.read_text()
    assert "Traceback" not in worker.log.read_text()
