"""Sessions: `python -m benchmarks.sessions`.

Writes benchmarks/sessions.json and the table of docs/sessions.md. A supervisor runs the model server and the
process of sessions with their default settings, but for the models and the cache of vectors, which is off.
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks import corpus, machine, paths, servers

RESULTS = paths.HERE / "sessions.json"
PAGE = paths.DOCS / "sessions.md"
BEGIN, END = "<!-- sessions -->", "<!-- /sessions -->"
#: Files of one session, their characters, and uploads at a time: Python 3.13's documentation as text has
#: 12 MB in 500 files.
FILES, CHARACTERS, UPLOADS = 200, 24_000, 8
TURNS, SESSIONS, MODELS = 1, 20, ("minilm", "minilm-b", "minilm-c")
#: Chunks that are searched in, those of the one session of many, and searches of each.
CHUNKS, OWN_CHUNKS, SEARCHES = 100_000, 10_000, 200
SMALL_CHUNK = 24
#: Tokens of a chunk of the files, and those that it shares with the next: the defaults for this model.
CHUNK, OVERLAP = 256, 50
QUERY = "how does a worker share its model with the others number {}?"


def main() -> None:
    paths.import_from_src()
    with tempfile.TemporaryDirectory(prefix="embedshare-sessions-") as name:
        results = {"machine": machine.describe(), **measure(Path(name))}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    lines = _table(results)
    Console().print("\n".join(lines))
    page = PAGE.read_text(encoding="utf-8")
    before, after = page.partition(BEGIN)[0], page.partition(END)[2]
    PAGE.write_text("\n".join([before + BEGIN, *lines, END]) + after, encoding="utf-8")


def measure(folder: Path) -> dict[str, Any]:
    """The figures, by their names."""
    running = _Services(folder)
    found: dict[str, Any] = {}
    try:
        client = running.client()
        found |= _ingest(client)
        found |= _many(client)
        found |= _search(client)
        found |= _restart(running, client)
    finally:
        running.stop()
    return found


class _Services:
    """A supervisor with the process of sessions."""

    def __init__(self, folder: Path) -> None:
        models = folder / "models.yaml"
        entries = "".join(
            f"    - id: {name}\n      name: all-MiniLM-L6-v2\n      preload: true\n" for name in MODELS
        )
        models.touch(0o600)
        models.write_text(f"models:\n  local:\n{entries}")
        self.settings = {
            "EMBEDDING_SERVER_PORT": str(servers.free_port()),
            "EMBEDDING_SESSIONS_PORT": str(servers.free_port()),
            "EMBEDDING_SESSIONS_DIR": str(folder / "sessions"),
            "EMBEDDING_AUTHKEY_FILE": str(folder / "authkey"),
            "EMBEDDING_CACHE_DIR": str(folder / "cache"),
            "EMBEDDING_DB_URL": f"sqlite:///{folder / 'sessions.db'}",
            "EMBEDDING_LOG_DIR": str(folder / "logs"),
            "EMBEDDING_MODELS_FILE": str(models),
            "EMBEDDING_FALLBACK": "none",
            "PYTHONPATH": str(paths.SRC),
        }
        self.folder = folder
        os.environ.update(self.settings)
        self.start()

    def start(self) -> None:
        command = [
            sys.executable, str(paths.ROOT / "service_manager.py"), "--sessions",
            "--workers", "1", "--port", str(servers.free_port()),
        ]  # fmt: skip
        with (self.folder / "supervisor.log").open("ab") as log:
            env = servers.environment(self.settings)
            self.process = subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=self.folder)
        self.await_answer()

    def await_answer(self) -> None:
        """Wait until the process of sessions answers."""
        until = time.monotonic() + servers.START_LIMIT_S
        while True:
            try:
                self.client().list_sessions()
                return
            except Exception:
                if time.monotonic() > until or self.process.poll() is not None:
                    raise
                time.sleep(0.2)

    def client(self) -> Any:
        from embedshare.grpc.client import SessionClient
        from embedshare.settings import Settings

        return SessionClient(Settings.load())

    def kill_sessions(self) -> None:
        """Kill the process of sessions, which the supervisor restarts."""
        import psutil

        for child in psutil.Process(self.process.pid).children(recursive=True):
            if any(part.endswith("sessionServer.py") for part in child.cmdline()):
                child.send_signal(signal.SIGKILL)
                child.wait(10)
                return
        raise AssertionError("there is no process of sessions")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)


def _files() -> list[str]:
    """Texts of the size of files of Python's documentation."""
    paragraphs = iter(corpus.load().many(100_000))
    files: list[str] = []
    for _ in range(FILES):
        text = ""
        while len(text) < CHARACTERS:
            text += next(paragraphs) + "\n\n"
        files.append(text)
    return files


def _sent(text: str) -> Iterator[bytes]:
    content = text.encode()
    return (content[start : start + (1 << 18)] for start in range(0, len(content), 1 << 18))


def _put(client: Any, session: str, name: str, text: str) -> dict[str, Any]:
    told: dict[str, Any] = client.process_file(session, name, "text/plain", _sent(text), {})
    return told


def _ingest(client: Any) -> dict[str, Any]:
    """The time of many files, and of the bulk encoding of the same chunks' token ids, by turns."""
    from embeddingClient import EmbeddingClient

    model, ratios, rates = EmbeddingClient(model=MODELS[0]), [], []
    for turn in range(TURNS):
        texts = [f"{text}\n\nturn {turn}" for text in _files()]
        client.create_session(f"files-{turn}", MODELS[0], chunk_size=CHUNK, chunk_overlap=OVERLAP)
        work = [partial(_put, client, f"files-{turn}", f"{at}.txt", text) for at, text in enumerate(texts)]
        began = time.monotonic()
        with_threads(UPLOADS, work)
        ingested_s = time.monotonic() - began
        chunks = [chunk for text in texts for chunk in _chunks(text)]
        began = time.monotonic()
        model.embed(chunks)
        encoded_s = time.monotonic() - began
        ratios.append(encoded_s / ingested_s)
        rates.append(sum(map(len, chunks)) / ingested_s)
        stored = client.get_session(f"files-{turn}")["chunks"]
        assert stored == len(chunks), (stored, len(chunks))
    model.close()
    return {"ingest_share": ratios, "ingest_tokens_per_s": rates}


def _chunks(text: str) -> list[list[int]]:
    """The token ids of a file's chunks, as the session server cuts it."""
    from embedshare.sessions import parts
    from embedshare.sessions.embedding import Models
    from embedshare.settings import Settings
    from embedshare.text.documents.pieces import Piece

    if not _cutting:
        found = parts.imported()
        models = Models(Settings.load(), found)
        described = models.describe(MODELS[0])
        frame = models.frame(described, MODELS[0])
        tokenize = partial(models.tokens, MODELS[0], described.identity)
        _cutting.append(lambda: found.chunker(tokenize, CHUNK, OVERLAP, frame.before, frame.after, True))
    chunker = _cutting[0]()
    chunks = [*chunker.push(Piece(text, None, None)), *chunker.end()]
    return [chunk.ids for chunk in chunks if chunk.ids is not None]


#: Makes a chunker, from its first use on.
_cutting: list[Callable[[], Any]] = []


def with_threads(count: int, work: list[Callable[[], Any]]) -> list[float]:
    """Do the work in threads; the seconds that each took."""
    waiting, took, lock = list(reversed(work)), [], threading.Lock()

    def run() -> None:
        while True:
            with lock:
                if not waiting:
                    return
                one = waiting.pop()
            began = time.monotonic()
            one()
            took.append(time.monotonic() - began)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return took


def _many(client: Any) -> dict[str, Any]:
    """Equal files of as many sessions at once: the longest time of one over the mean."""
    texts = _files()[:SESSIONS]
    for number in range(SESSIONS):
        client.create_session(session_id=f"many-{number}", model=MODELS[number % len(MODELS)])
    text = texts[0]
    work = [
        partial(_put, client, f"many-{number}", "one.txt", f"{text}\n\n{number}")
        for number in range(SESSIONS)
    ]
    took = with_threads(SESSIONS, work)
    return {"many_longest_of_mean": max(took) / statistics.mean(took)}


def _search(client: Any) -> dict[str, Any]:
    """Searches in many chunks, and in one session of fewer."""
    rng = random.Random(1)
    words = ["model", "vector", "worker", "server", "cache", "queue", "text", "token", "batch", "index"]

    def text(count: int) -> str:
        return "\n\n".join(
            " ".join(rng.choice(words) for _ in range(SMALL_CHUNK - 6)) + "." for _ in range(count)
        )

    sizes = {"large": CHUNKS - OWN_CHUNKS, "small": OWN_CHUNKS}
    for name, count in sizes.items():
        client.create_session(session_id=name, model=MODELS[0], chunk_size=SMALL_CHUNK, chunk_overlap=0)
        for part in range(0, count, 5000):
            _put(client, name, f"{part}.txt", text(min(5000, count - part)))
    found = {}
    for name in sizes:
        times = []
        for number in range(SEARCHES):
            began = time.monotonic()
            client.search(name, QUERY.format(number))
            times.append((time.monotonic() - began) * 1e3)
        found[f"search_{name}_ms"] = float(np.median(times))
    return found


def _restart(running: _Services, client: Any) -> dict[str, Any]:
    """What a search finds before the process of sessions is killed, and after."""
    before = client.search("small", QUERY.format(1))
    running.kill_sessions()
    running.await_answer()
    after = running.client().search("small", QUERY.format(1), 10, None, None)
    return {"same_after_kill": [one["text"] for one in before] == [one["text"] for one in after]}


def _table(results: dict[str, Any]) -> list[str]:
    told = results["machine"]
    rows = [
        (f"{FILES} files into one session: tokens/s, of a bulk encoding of the same chunks",
         f"{statistics.median(results['ingest_tokens_per_s']):,.0f} tokens/s",
         f"{statistics.median(results['ingest_share']):.0%}", "85%"),
        (f"{SESSIONS} sessions at once on {len(MODELS)} models: the longest wait, of the mean", "",
         f"{results['many_longest_of_mean']:.2f}x", "3x"),
        (f"a search among {CHUNKS - OWN_CHUNKS:,} chunks of a session, its text embedded: p50", "",
         f"{results['search_large_ms']:.1f} ms", "40 ms"),
        (f"a search in a session of {OWN_CHUNKS:,} chunks, of {CHUNKS:,} in the store: p50", "",
         f"{results['search_small_ms']:.1f} ms", "10 ms"),
        ("found again after the process of sessions was killed", "",
         "the same" if results["same_after_kill"] else "not the same", "the same"),
    ]  # fmt: skip
    return [
        f"One run of `python -m benchmarks.sessions`, {told['cpu']}, {told['cores']} cores:",
        "",
        "| figure | measured | result | target |",
        "|---|---|---|---|",
        *(f"| {what} | {measured} | **{result}** | {target} |" for what, measured, result, target in rows),
    ]


if __name__ == "__main__":
    main()
