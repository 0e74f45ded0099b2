"""A site of a few hundred real pages on loopback, Python's own documentation, and a SearXNG for it."""

from __future__ import annotations

import functools
import html
import json
import math
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from embedshare.websearch.bm25 import words

#: Modules whose import opens windows or browsers, prints, or takes long.
SKIPPED = {"this", "antigravity", "idlelib", "turtledemo", "lib2to3", "test", "tkinter", "ensurepip", "venv"}
SUBMODULES = [
    "asyncio.queues",
    "asyncio.subprocess",
    "collections.abc",
    "concurrent.futures",
    "ctypes.util",
    "email.charset",
    "email.headerregistry",
    "email.message",
    "email.mime.text",
    "email.parser",
    "email.policy",
    "html.entities",
    "html.parser",
    "http.client",
    "http.cookiejar",
    "http.cookies",
    "http.server",
    "importlib.abc",
    "importlib.metadata",
    "importlib.resources",
    "importlib.util",
    "json.decoder",
    "json.encoder",
    "logging.config",
    "logging.handlers",
    "multiprocessing.connection",
    "multiprocessing.managers",
    "multiprocessing.pool",
    "multiprocessing.shared_memory",
    "unittest.case",
    "unittest.loader",
    "unittest.mock",
    "urllib.error",
    "urllib.parse",
    "urllib.request",
    "urllib.response",
    "urllib.robotparser",
    "wsgiref.handlers",
    "wsgiref.simple_server",
    "wsgiref.validate",
    "xml.dom.minidom",
    "xml.etree.ElementTree",
    "xml.sax",
    "xml.sax.handler",
    "xmlrpc.client",
    "xmlrpc.server",
]
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title></head><body>
<header><nav><ul>{links}</ul></nav><p>We use cookies to improve this site. Accept all cookies?</p></header>
<main>{main}</main>
<aside><h3>Popular pages</h3><ul>{links}</ul></aside>
<footer><p>All rights reserved. Terms of use. Privacy policy. Subscribe to our newsletter.</p></footer>
</body></html>"""
NAVIGATION = (
    "json",
    "asyncio",
    "pathlib",
    "logging",
    "typing",
    "datetime",
    "re",
    "sqlite3",
    "csv",
    "unittest",
)


#: Documents the modules that its input names, in a process of its own: the parser of Python 3.11, which pydoc
#: uses, fails where another thread or a finalizer uses it meanwhile.
DOCUMENTER = """
import importlib, json, pydoc, sys, warnings
warnings.simplefilter("ignore")  # deprecated modules warn at import
found = {}
for name in json.load(sys.stdin):
    try:
        module = importlib.import_module(name)
    except ImportError:
        continue  # a module of another system
    found[name] = pydoc.html.document(module, name)
json.dump(found, sys.stdout)
"""


@functools.cache
def pages() -> dict[str, str]:
    """Return each module's page, by name."""
    names = [name for name in sys.stdlib_module_names if not name.startswith("_") and name not in SKIPPED]
    asked = json.dumps(sorted([*names, *SUBMODULES]))
    command = [sys.executable, "-c", DOCUMENTER]
    told = subprocess.run(command, input=asked, capture_output=True, text=True, check=True).stdout
    links = "".join(f'<li><a href="/{name}.html">{name}</a></li>' for name in NAVIGATION)
    return {
        name: PAGE.format(title=f"{name} - documentation", links=links, main=main)
        for name, main in json.loads(told).items()
    }


class Engine:
    """A search engine: a page ranks higher the more words of the query it has, and the rarer they are."""

    def __init__(self) -> None:
        self._words = {name: set(words(html.unescape(page))) for name, page in pages().items()}
        self._held_by = Counter(word for own in self._words.values() for word in own)

    def search(self, query: str, limit: int) -> list[str]:
        asked = set(words(query))

        def score(name: str) -> float:
            shared = asked & self._words[name]
            rarity = sum(math.log(len(self._words) / self._held_by[word]) for word in shared)
            return rarity / math.log(20 + len(self._words[name]))

        return sorted(self._words, key=lambda name: (-score(name), name))[:limit]


@contextmanager
def serving(
    handler: type[BaseHTTPRequestHandler], kind: type[ThreadingHTTPServer] = ThreadingHTTPServer
) -> Iterator[int]:
    """Run a server on 127.0.0.1 that answers with `handler`; yield its port."""
    with kind(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


class Quiet(BaseHTTPRequestHandler):
    """The common part of the handlers."""

    def log_message(self, format: str, *args: Any) -> None:
        """Do nothing."""

    def send(self, content: bytes, content_type: str = "text/html; charset=utf-8", status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


class Documentation(Quiet):
    """The site: a module's page is at /NAME.html."""

    def do_GET(self) -> None:
        page = pages().get(self.path.removeprefix("/").removesuffix(".html"))
        self.send(page.encode() if page else b"no such page", status=200 if page else 404)


def searxng(site: str, answers: dict[str, str]) -> type[Quiet]:
    """Return a SearXNG for the site at `site`, which returns the engine's six links.

    If the page that answers the query (`answers`) is not among them, it replaces the last.
    """
    engine = Engine()

    class Search(Quiet):
        def do_GET(self) -> None:
            asked = parse_qs(urlsplit(self.path).query)
            if asked.get("format") != ["json"]:
                self.send(b"no other format", status=403)
                return
            [query] = asked["q"]
            names = engine.search(query, 6)
            right = answers.get(query)
            if right is not None and right not in names:
                names[-1] = right
            found = [{"url": f"{site}/{name}.html", "title": name, "content": None} for name in names]
            reply = {
                "query": query,
                "number_of_results": 0,
                "results": found,
                "answers": [],
                "suggestions": [],
            }
            self.send(json.dumps(reply).encode(), "application/json")

    return Search
