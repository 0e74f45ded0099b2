"""Rerankers, sparse and multi-vector models: `python -m benchmarks.kinds`.

Writes benchmarks/kinds.json and the table of docs/models.md. The models are all-MiniLM-L6-v2's real weights
with a head of random weights for each kind, so they cost what trained ones of this size do: ms-marco-MiniLM
has the same layers. The sparse head's biases leave a text about 150 words, as a trained one does. Without
them nearly every word would have a weight.
"""

from __future__ import annotations

import contextlib
import json
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import corpus, machine, paths, servers
from benchmarks.peers import fastapi_uvicorn
from benchmarks.peers.environment import Environment

RESULTS = paths.HERE / "kinds.json"
PAGE = paths.DOCS / "models.md"
BEGIN, END = "<!-- kinds -->", "<!-- /kinds -->"
ROUNDS = 5
#: Documents of one query, as a first stage of a search hands them on.
DOCUMENTS = 100
#: Texts that sparse and multi-vector models encode in one call, and short queries, each in its own.
TEXTS, QUERIES = 500, 50
#: The names of calls.
NAMES = ("rank", "texts", "queries")
#: Callers at once: processes, and threads of each.
PROCESSES, THREADS, WINDOW_S, WINDOWS = 4, 4, 12.0, 3

#: Makes the call that each line of its input names, and prints the seconds that it took.
TIMED = """
given = json.loads(sys.stdin.readline())
query, queries, documents, texts = (given[name] for name in ("query", "queries", "documents", "texts"))
for call in calls.values():
    call()
print("ready", flush=True)
for line in sys.stdin:
    began = time.perf_counter()
    calls[line.strip()]()
    print(time.perf_counter() - began, flush=True)
"""
#: The calls of each kind: every one by the library in its process, and by the client.
CALLS = {
    "cross-encoder": """
calls = {"rank": lambda: model.rank(query, documents)}
""",
    "sparse": """
calls = {
    "texts": lambda: model.encode_document(texts),
    "queries": lambda: [model.encode_query(one) for one in queries],
}
""",
    "multi-vector": """
calls = {
    "texts": lambda: model.encode_document(texts),
    "queries": lambda: [model.encode_query(one) for one in queries],
    "rank": lambda: rank(model),
}
""",
}
LIBRARY = """
from sentence_transformers import {0}
model = {0}(sys.argv[1], device="cpu")
def rank(model):
    return model.similarity(model.encode_query([query]), model.encode_document(documents))
"""
OURS = """
from embeddingClient import {0}
model = {0}(sys.argv[1])
def rank(model):
    return model.rank(query, documents)
"""
CLASSES = {
    "cross-encoder": ("CrossEncoder", "get_reranker"),
    "sparse": ("SparseEncoder", "get_sparse_encoder"),
    "multi-vector": ("MultiVectorEncoder", "get_multi_vector_encoder"),
}
#: Ranks the documents from several threads for some seconds; prints the number of finished calls.
LOAD = """
import http.client, json, sys, threading, time
where, threads, seconds = json.loads(sys.argv[1])
given = json.loads(sys.stdin.readline())
body = json.dumps({"query": given["query"], "texts": given["documents"]})
if where:
    local = threading.local()
    def call():
        if not hasattr(local, "connection"):
            local.connection = http.client.HTTPConnection("127.0.0.1", where, timeout=600)
        local.connection.request("POST", "/rerank", body, {"Content-Type": "application/json"})
        answer = local.connection.getresponse()
        found = json.loads(answer.read())
        assert answer.status == 200 and len(found) == len(given["documents"])
else:
    from embeddingClient import get_reranker
    model = get_reranker("cross-encoder")
    def call(): assert len(model.rank(given["query"], given["documents"])) == len(given["documents"])
call()
print("ready", flush=True)
sys.stdin.readline()
done, end = [], time.monotonic() + seconds
def run():
    while time.monotonic() < end:
        call()
        done.append(time.monotonic())
all_threads = [threading.Thread(target=run) for _ in range(threads)]
began = time.monotonic()
[each.start() for each in all_threads]
[each.join() for each in all_threads]
print(json.dumps([len(done), time.monotonic() - began]))
"""


def main() -> None:
    paths.import_from_src()
    described = machine.describe()
    text = corpus.load()
    with tempfile.TemporaryDirectory(prefix="embedshare-kinds-") as name:
        folder = Path(name)
        models = make_models(folder)
        results = {"machine": described, **_measure(folder, models, text)}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    lines = _table(results)
    Console().print("\n".join(lines))
    page = PAGE.read_text(encoding="utf-8")
    before, after = page.partition(BEGIN)[0], page.partition(END)[2]
    PAGE.write_text("\n".join([before + BEGIN, *lines, END]) + after, encoding="utf-8")


def make_models(folder: Path) -> dict[str, Path]:
    """A model of each kind, in folders of `folder`."""
    import torch
    from sentence_transformers import CrossEncoder, MultiVectorEncoder, SparseEncoder
    from transformers import AutoTokenizer, BertForMaskedLM, BertForSequenceClassification

    from embedshare.engine import weights
    from tests.layers import DEFAULT

    trunk = weights.find(DEFAULT)
    tokenizer = AutoTokenizer.from_pretrained(trunk)
    torch.manual_seed(7)
    ranker = BertForSequenceClassification.from_pretrained(trunk, num_labels=1)
    words = BertForMaskedLM.from_pretrained(trunk)
    bias = torch.full((words.config.vocab_size,), -30.0)
    bias[:: words.config.vocab_size // 150] = 1.0
    with torch.no_grad():
        words.get_output_embeddings().bias.copy_(bias)
    for name, made in (("ranker", ranker), ("words", words)):
        made.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    made_by = {
        "cross-encoder": CrossEncoder(str(folder / "ranker"), device="cpu"),
        "sparse": SparseEncoder(str(folder / "words"), device="cpu"),
        "multi-vector": MultiVectorEncoder(str(trunk), device="cpu"),
    }
    for name, model in made_by.items():
        model.save_pretrained(str(folder / name))
    return {name: folder / name for name in made_by}


def _measure(folder: Path, models: dict[str, Path], text: corpus.Corpus) -> dict[str, Any]:
    given = {
        "query": text.queries[0],
        "queries": text.queries[:QUERIES],
        "documents": text.paragraphs[:DOCUMENTS],
        "texts": text.many(TEXTS),
    }
    with _server(folder, models) as settings:
        seconds = {kind: _by_turns(settings, str(models[kind]), kind, given) for kind in models}
        rankings = _at_once(settings, models["cross-encoder"], given, folder)
    return {"seconds": seconds, "rankings_per_s": rankings}


def _by_turns(
    settings: dict[str, str], model: str, kind: str, given: dict[str, Any]
) -> dict[str, dict[str, list[float]]]:
    """The seconds of each call of this kind, by the library in its process and through the client."""
    library, ours = CLASSES[kind]
    started = {
        "library": _started(_timed(LIBRARY.format(library), kind), model, settings),
        "embedshare": _started(_timed(OURS.format(ours), kind), kind, settings),
    }
    for process in started.values():
        _tell(process, json.dumps(given))
        assert _line(process) == "ready", f"a process of {kind} ended"
    names = [name for name in NAMES if f'"{name}":' in CALLS[kind]]
    found: dict[str, dict[str, list[float]]] = {name: {who: [] for who in started} for name in names}
    for name in names * ROUNDS:
        for who, process in started.items():
            _tell(process, name)
            found[name][who].append(float(_line(process)))
    for process in started.values():
        process.communicate()
    return found


def _timed(load: str, kind: str) -> str:
    return "import json, sys, time" + load + CALLS[kind] + TIMED


def _at_once(
    given: dict[str, str], model: Path, ranking: dict[str, Any], folder: Path
) -> dict[str, list[float]]:
    """Finished rankings a second of many callers, by turns of both servers."""
    found: dict[str, list[float]] = {"FastAPI + CrossEncoder": [], "embedshare": []}
    with _peer(model, folder) as port:
        for _ in range(WINDOWS):
            found["FastAPI + CrossEncoder"].append(_rate(given, port, ranking))
            found["embedshare"].append(_rate(given, 0, ranking))
    return found


def _rate(given: dict[str, str], port: int, ranking: dict[str, Any]) -> float:
    argument = json.dumps([port, THREADS, WINDOW_S])
    loads = [_started(LOAD, argument, given) for _ in range(PROCESSES)]
    for load in loads:
        _tell(load, json.dumps(ranking))
    for load in loads:
        assert _line(load) == "ready"
    for load in loads:
        _tell(load, "go")
    told = [json.loads(load.communicate()[0]) for load in loads]
    return round(sum(count / seconds for count, seconds in told), 3)


@contextlib.contextmanager
def _server(folder: Path, models: dict[str, Path]) -> Iterator[dict[str, str]]:
    """A model server of these models; its settings, for clients too."""
    file = folder / "models.yaml"
    file.write_text(
        "models:\n  local:\n"
        + "".join(f"    - id: {name}\n      name: {path}\n" for name, path in models.items())
    )
    given = {
        "EMBEDDING_SERVER_PORT": str(servers.free_port()),
        "EMBEDDING_AUTHKEY_FILE": str(folder / "authkey"),
        "EMBEDDING_CACHE_DIR": str(folder / "cache"),
        "EMBEDDING_MODELS_FILE": str(file),
        "EMBEDDING_FALLBACK": "none",
        "EMBEDDING_TIMEOUT_S": "600",
        "PYTHONPATH": str(paths.SRC),
    }
    log = folder / "server.log"
    with log.open("wb") as out:
        command = [sys.executable, str(paths.SRC / "modelServer.py")]
        process = subprocess.Popen(command, env=servers.environment(given), stderr=out)
    try:
        while b"ready:" not in log.read_bytes():
            assert process.poll() is None, log.read_text()
        yield given
    finally:
        process.terminate()
        process.wait(30)


@contextlib.contextmanager
def _peer(model: Path, folder: Path) -> Iterator[int]:
    """The port of a FastAPI service with the model in its process."""
    peer = fastapi_uvicorn.PEER
    environment = Environment(
        "kinds"
    )  # of its own: that of the other peers is rebuilt when its packages change
    environment.ensure(peer.requirements)
    port = servers.free_port()
    command = [str(environment.python), *peer.command(port, model)]
    command[command.index("fastapi_app:app")] = "fastapi_rerank:app"
    env = {**servers.environment({}), "BENCHMARK_MODEL": str(model)}
    with (folder / "peer.log").open("wb") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    try:
        while not _listens(port):
            assert process.poll() is None, (folder / "peer.log").read_text()
        yield port
    finally:
        process.terminate()
        process.wait(30)


def _listens(port: int) -> bool:
    """Whether something listens on the port."""
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def _started(code: str, argument: str, given: dict[str, str]) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    env = servers.environment(given)
    return subprocess.Popen(
        [sys.executable, "-c", code, argument],
        env=env,
        stdin=pipe,
        stdout=pipe,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def _tell(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


ROWS = {
    ("cross-encoder", "rank"): (f"rerank of {DOCUMENTS} documents, against `CrossEncoder.rank`", "4x"),
    ("sparse", "texts"): (f"sparse: {TEXTS} texts, against `SparseEncoder`", "3x"),
    ("sparse", "queries"): (f"sparse: {QUERIES} short queries, one after another", "3x"),
    ("multi-vector", "texts"): (
        f"multi-vector: {TEXTS} texts in one call, against `MultiVectorEncoder`",
        "3x",
    ),
    ("multi-vector", "queries"): (f"multi-vector: {QUERIES} short queries, one after another", "3x"),
    ("multi-vector", "rank"): (f"multi-vector: {DOCUMENTS} documents ranked by their scores", "3x"),
}


def _table(results: dict[str, Any]) -> list[str]:
    rows = []
    for (kind, name), (told, target) in ROWS.items():
        whose = results["seconds"][kind][name]
        ours, library = statistics.median(whose["embedshare"]), statistics.median(whose["library"])
        rows.append((told, f"{ours:.3f} of {library:.3f} s", f"{library / ours:.1f}x", target))
    rates = {who: statistics.median(one) for who, one in results["rankings_per_s"].items()}
    ours, theirs = rates["embedshare"], rates["FastAPI + CrossEncoder"]
    told = f"16 callers of rankings of {DOCUMENTS} documents, against FastAPI with CrossEncoder"
    rows.append((told, f"{ours:.2f} of {theirs:.2f} rankings/s", f"{ours / theirs:.1f}x", "5x"))
    machine_told = results["machine"]
    return [
        f"One run of `python -m benchmarks.kinds`, {machine_told['cpu']}, {machine_told['cores']} cores, "
        f"medians of {ROUNDS} calls by turns through the client and in the library's own process:",
        "",
        "| figure | measured | ratio | target |",
        "|---|---|---|---|",
        *(f"| {what} | {measured} | **{ratio}** | {target} |" for what, measured, ratio, target in rows),
    ]


if __name__ == "__main__":
    main()
