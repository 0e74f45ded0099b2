"""Programs that use the earlier names as callers did, in both modes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.layers import DEFAULT
from tests.processes import ModelServer, environment, run_python
from tests.searching import BREAD, Searching, searching

both_modes = pytest.mark.parametrize("use_ipc", ["true", "false"])
shared_mode = pytest.mark.parametrize("use_ipc", ["true", pytest.param("false", marks=pytest.mark.long)])


@pytest.fixture(scope="module")
def server(default_server: ModelServer) -> ModelServer:
    """The default model's server: a search needs its quality."""
    return default_server


@pytest.fixture(scope="module")
def web() -> Iterator[Searching]:
    with searching() as found:
        yield found


def settings(use_ipc: str, server: ModelServer, web: Searching) -> dict[str, str]:
    """A caller's environment; in local mode it has no way to the server."""
    given = {
        **web.settings, "USE_IPC_EMBEDDING": use_ipc, "EMBEDDING_FALLBACK": "none",
        "EMBEDDING_MODEL_NAME": DEFAULT,
    }  # fmt: skip
    return server.environment(**given) if use_ipc == "true" else environment(**given)


EMBEDS = """
import json
from textEmbedModel import (
    build_enhanced_vector_index, generate_embeddings_concurrent, get_embedding_model, is_using_ipc_embedding,
    search_enhanced_index,
)
model = get_embedding_model()
one = model.encode(["how is bread baked"])[0]
many = model.generate_embeddings(["how is bread baked", "whales"])
same = generate_embeddings_concurrent(["how is bread baked", "whales"], model, batch_size=2)
docs, urls = ["Whales sing under water.", "Bread is baked. " * 50, "Stocks fell."], ["u0", "u1", "u2"]
index, embeddings, metadata = build_enhanced_vector_index(docs, urls, model)
print(json.dumps({
    "ipc": is_using_ipc_embedding(),
    "one": [list(one.shape), str(one.dtype)],
    "many": [list(many.shape), str(many.dtype)],
    "cosine": float(one @ many[0]),
    "apart": float(abs(many - same).max()),
    "embeddings": [list(embeddings.shape), str(embeddings.dtype)],
    "metadata": metadata,
    "found": search_enhanced_index("how is bread baked", model, index, metadata, top_k=2),
    "all": [one["id"] for one in search_enhanced_index("whales", model, index, metadata, top_k=9)],
    "distance": float(((model.encode(["whales"])[0] - embeddings[0]) ** 2).sum()),
    "nearest": search_enhanced_index("whales", model, index, metadata)[0]["relevance_score"],
}))
"""


@both_modes
def test_one_object_embeds_in_both_ways_and_indexes_documents(
    use_ipc: str, server: ModelServer, web: Searching
) -> None:
    said = json.loads(run_python(EMBEDS, settings(use_ipc, server, web)).splitlines()[-1])
    assert said["ipc"] is (use_ipc == "true")
    assert said["one"] == [[384], "float32"]
    assert said["many"] == [[2, 384], "float32"]
    assert said["embeddings"] == [[3, 384], "float32"]
    assert said["cosine"] > 0.999
    assert said["apart"] < 0.02
    bread = "Bread is baked. " * 50
    assert said["metadata"] == [
        {"id": 0, "url": "u0", "content": "Whales sing under water.",
         "full_content": "Whales sing under water.", "length": 24},
        {"id": 1, "url": "u1", "content": bread[:500] + "...", "full_content": bread, "length": 800},
        {"id": 2, "url": "u2", "content": "Stocks fell.", "full_content": "Stocks fell.", "length": 12},
    ]  # fmt: skip
    first, second = said["found"]
    assert first == {**said["metadata"][1], "relevance_score": first["relevance_score"], "rank": 1}
    assert second["rank"] == 2
    assert first["relevance_score"] < second["relevance_score"]
    assert sorted(said["all"]) == [0, 1, 2]
    assert said["nearest"] == pytest.approx(said["distance"], abs=0.02)


SEARCHES = """
import asyncio, json
from textEmbedModel import fast_web_search_with_embeddings, get_embedding_model
model = get_embedding_model()
async def ask(query):
    return await fast_web_search_with_embeddings(query, model, max_concurrent=3, max_chars=2000)
async def several(*queries):
    return await asyncio.gather(*map(ask, queries))
one = asyncio.run(ask("How is bread baked?"))
nothing, failed = asyncio.run(several("nothing", "failure"))
print(json.dumps([one, nothing, failed]))
"""
BLOCK = re.compile(r"Source: (\S+)\nContent: (.+?)\nRelevance: (\d\.\d{3})\n", re.DOTALL)


def check_context(context: str, urls: list[str], web: Searching) -> None:
    """Fail unless the context has one block for each URL, in the URLs' order, the most relevant first."""
    blocks = BLOCK.findall(context)
    assert "\n".join(f"Source: {u}\nContent: {t}\nRelevance: {r}\n" for u, t, r in blocks) == context
    assert [url for url, _, _ in blocks] == urls
    assert urls[0] == f"{web.pages}/bread.html"
    assert len(urls) == len(set(urls)) == 3
    assert BREAD.partition(".")[0] in blocks[0][1]
    assert all(len(text) <= 803 for _, text, _ in blocks)
    distances = [float(relevance) for _, _, relevance in blocks]
    assert distances == sorted(distances)


@shared_mode
def test_a_fast_search_gives_a_context_and_its_urls(
    use_ipc: str, server: ModelServer, web: Searching
) -> None:
    said = run_python(SEARCHES, settings(use_ipc, server, web)).splitlines()[-1]
    (context, urls), nothing, failed = json.loads(said)
    check_context(context, urls, web)
    assert nothing == ["No search results found", []]
    assert failed == ["Search error: SearXNG answered 500...", []]


PIPES = """
import json, multiprocessing
from model_server import worker_process

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    worker = context.Process(target=worker_process, args=(theirs,))
    worker.start()
    said = []
    for command in (
        {"cmd": "search", "query": "How is bread baked?", "max_chars": 1500},
        {"cmd": "search", "query": "nothing"},
        {"cmd": "search", "query": "  "},
        {"cmd": "dance"},
        {"cmd": "search"},
    ):
        ours.send(command)
        assert ours.poll(60), command
        said.append(ours.recv())
    ours.send({"cmd": "exit"})
    worker.join(30)
    print(json.dumps([said, worker.exitcode]))
"""


@shared_mode
def test_a_worker_behind_a_pipe_answers_until_it_is_told_to_end(
    use_ipc: str, server: ModelServer, web: Searching, tmp_path: Path
) -> None:
    program = tmp_path / "caller.py"  # a file, since a spawned process imports its parent's program
    program.write_text(PIPES)
    done = subprocess.run(
        [sys.executable, str(program)], env=settings(use_ipc, server, web), cwd=tmp_path,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said, exit_code = json.loads(done.stdout.splitlines()[-1])
    found, nothing, blank, unknown, incomplete = said
    assert set(found) == {"result", "urls"}
    check_context(found["result"], found["urls"], web)
    assert nothing == {"result": "No search results found", "urls": []}
    assert blank == {"error": "the query must be a text that is not blank"}
    assert unknown == incomplete
    assert unknown["error"].startswith("the worker knows ")
    assert exit_code == 0


def test_a_worker_behind_a_pipe_ends_with_its_caller(server: ModelServer, web: Searching) -> None:
    code = """
import multiprocessing, threading
from model_server import worker_process
ours, theirs = multiprocessing.Pipe()
worker = threading.Thread(target=worker_process, args=(theirs,))
worker.start()
ours.close()
worker.join(30)
assert not worker.is_alive()
"""
    run_python(code, settings("true", server, web))
