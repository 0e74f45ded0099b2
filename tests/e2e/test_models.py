"""Several models in one server: their names, their memory, and what a change of the file does."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import requests
from playwright.sync_api import Browser

import embeddingClient
from embeddingClient import EmbeddingClient
from embedshare.errors import InvalidInput, ModelNotFound, UnknownModel
from tests.engine import real_models, small_models
from tests.processes import (
    MODEL,
    OTHER_MODEL,
    ROOT,
    ModelServer,
    convert_once,
    environment,
    free_port,
    wait_for,
)
from tests.watching import needs_chromium

FILE = """
models:
  local:
    - id: first
      name: {first}
      aliases: [small, text-embedding-3-small]
      preload: true
    - id: second
      name: {second}
      default: {second_is_default}
    - id: static
      name: {static}
      keep_alive_s: {keep_alive}
    - id: broken
      name: {folder}/nowhere
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "models.yaml"
    draft = folder / "models.draft"
    draft.write_text(text)
    draft.chmod(0o600)
    draft.replace(path)
    return path


@pytest.fixture(scope="module", autouse=True)
def converted() -> None:
    """Both models, before servers with files of models load them."""
    for model in (MODEL, str(OTHER_MODEL)):
        convert_once(model)


@pytest.fixture(scope="module")
def static(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A StaticEmbedding, with vectors of other dimensions."""
    return small_models.FAMILIES["StaticEmbedding"][0](tmp_path_factory.mktemp("static"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, static: Path) -> Iterator[ModelServer]:
    folder = tmp_path_factory.mktemp("models")
    names = {"first": MODEL, "second": OTHER_MODEL, "static": static, "folder": folder}
    path = write(folder, FILE.format(**names, second_is_default="false", keep_alive=-1))
    ours = ModelServer(folder, EMBEDDING_MODELS_FILE=str(path))
    ours.start()
    yield ours
    assert ours.stop() == 0, ours.said().decode()


@pytest.fixture
def client(server: ModelServer) -> Iterator[EmbeddingClient]:
    with server.client(EMBEDDING_FALLBACK="none") as ours:
        yield ours


def alone(folder: Path, model: Path | str) -> np.ndarray:
    """The vector of a server that has this model alone."""
    ours = ModelServer(folder, EMBEDDING_MODEL_NAME=str(model))
    ours.start()
    with ours.client() as client:
        vector = client.encode("one text")
    assert ours.stop() == 0
    return np.asarray(vector)


def test_each_name_has_its_model_s_own_vectors(client: EmbeddingClient, tmp_path: Path, static: Path) -> None:
    first, second = client.of_model("small"), client.of_model("second")
    assert {one["id"]: one["state"] for one in client.models()}["first"] == "ready"  # preloaded
    assert np.allclose(client.encode("one text"), first.encode("one text"), atol=1e-6)
    assert first.get_embedding_dimension() == second.get_embedding_dimension() == 384
    assert float(np.dot(first.encode("one text"), second.encode("one text"))) < 0.9
    assert float(np.dot(second.encode("one text"), alone(tmp_path, OTHER_MODEL))) > 0.9999
    assert client.of_model("static").encode("one text").shape == (32,)
    for one in (first, second):
        one.close()
    assert client.encode("still open").shape == (384,)


def test_real_models_have_their_own_vectors_in_one_server(tmp_path: Path) -> None:
    """The default model, the same with another head, and a StaticEmbedding with wordllama's weights."""
    from sentence_transformers import SentenceTransformer

    package = real_models.wordllama_package()
    if package is None:
        pytest.skip(f"needs wordllama's weights: pip install --no-deps {real_models.WORDLLAMA}")
    folders = {
        "minilm": real_models.minilm(),
        "dense": real_models.minilm_with_dense(tmp_path / "dense"),
        "wordllama": real_models.wordllama(tmp_path / "wordllama", package),
    }
    entries = "".join(f"    - id: {name}\n      name: {folder}\n" for name, folder in folders.items())
    path = write(tmp_path, f"models:\n  local:\n{entries}")
    server = ModelServer(tmp_path, EMBEDDING_MODELS_FILE=str(path))
    server.start()
    texts = ["one text", "Größe und Café", "", "a longer text of several words that all models read"]
    with server.client(EMBEDDING_FALLBACK="none") as client:
        for name, folder in folders.items():
            rows = client.of_model(name).encode(texts)
            expected = SentenceTransformer(str(folder), device="cpu").encode(texts)
            assert rows.shape == expected.shape
            lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(expected, axis=1)
            assert ((rows * expected).sum(1) >= 0.9999 * lengths).all(), name
    assert server.stop() == 0


def test_all_models_of_a_process_share_their_connections(
    server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in server.given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(embeddingClient, "_clients", {})
    one, other = embeddingClient.get_embedding_model(), embeddingClient.get_embedding_model("second")
    assert embeddingClient.get_embedding_model("second") is other
    assert one.encode("text").shape == other.encode("text").shape == (384,)
    connections = one._embedder.connections
    assert other._embedder.connections is connections
    assert len(connections._open) == 1
    one.close()
    one.close()
    assert other.encode("text").shape == (384,)
    assert other._embedder.connections.reconnects == 0
    other.close()


def test_a_name_that_is_not_there_is_unknown_and_weights_that_are_not_are_not_found(
    client: EmbeddingClient,
) -> None:
    served = "first, small, text-embedding-3-small, second, static, broken"
    with pytest.raises(UnknownModel, match=f"'bge' is not served; served: {served}"):
        client.of_model("bge").encode("text")
    with pytest.raises(ModelNotFound, match="nowhere"):
        client.of_model("broken").encode("text")
    assert client.encode("the others serve").shape == (384,)
    assert {one["id"]: one["state"] for one in client.models()}["broken"] == "failed"
    health = client.of_model("broken").health()
    assert (health["status"], health["model_state"]) == ("degraded", "failed")
    assert "nowhere" in health["error"]
    with pytest.raises(InvalidInput, match="must be a model's name"):
        EmbeddingClient(model=3)  # type: ignore[arg-type]


def test_two_models_called_from_many_threads_never_mix(client: EmbeddingClient) -> None:
    clients = [client.of_model("first"), client.of_model("second")]
    texts = [f"text number {number}" for number in range(40)]
    expected = [one.encode(texts) for one in clients]

    def ask(number: int) -> float:
        which, text = number % 2, number % len(texts)
        return float(np.dot(clients[which].encode(texts[text]), expected[which][text]))

    with ThreadPoolExecutor(12) as threads:
        assert min(threads.map(ask, range(600))) > 0.999


def test_operators_load_unload_and_pin_models(server: ModelServer, client: EmbeddingClient) -> None:
    def manage(*arguments: str) -> Any:
        command = [sys.executable, str(ROOT / "service_manager.py"), "models", *arguments, "--json"]
        done = subprocess.run(
            command, env=environment(**server.given), capture_output=True, text=True, timeout=60
        )
        answer = json.loads(done.stdout)
        return answer if done.returncode == 0 else (done.returncode, answer["type"])

    assert manage("load", "static")["state"] == "ready"
    assert manage("pin", "static")["pinned"] is True
    assert manage("unpin", "static")["pinned"] is False
    assert manage("unload", "static")["state"] in ("unloading", "standby")
    wait_for(lambda: client.of_model("static").models()[2]["state"] == "standby")
    assert [one["id"] for one in manage("list")] == ["first", "second", "static", "broken"]
    assert manage("load", "nothing") == (1, "UnknownModel")
    assert client.of_model("static").encode("it loads again").shape == (32,)


def test_a_changed_file_is_taken_over_while_calls_go_on(tmp_path: Path, static: Path) -> None:
    names = {"first": MODEL, "second": OTHER_MODEL, "static": static, "folder": tmp_path}
    path = write(tmp_path, FILE.format(**names, second_is_default="false", keep_alive=-1))
    server = ModelServer(tmp_path, EMBEDDING_MODELS_FILE=str(path))
    server.start()
    with server.client(EMBEDDING_FALLBACK="none", EMBEDDING_ON_MODEL_CHANGE="follow") as client:
        before = client.encode("one text")
        assert client.of_model("second").encode("one text").shape == (384,)
        write(tmp_path, "models:\n  local:\n  - id: first\n    nonsense: 1\n")
        wait_for(lambda: b"nonsense" in server.said(), 10)
        assert np.allclose(client.encode("one text"), before, atol=1e-6)
        changed = time.monotonic()
        write(tmp_path, FILE.format(**names, second_is_default="true", keep_alive=0))
        wait_for(lambda: any(one["id"] == "second" and one["default"] for one in client.models()), 10)
        assert time.monotonic() - changed < 5.0  # watched each second, and the machine is shared
        assert float(np.dot(client.encode("one text"), before)) < 0.9  # the default is another model now
        assert client.of_model("static").encode("goes at once").shape == (32,)
        wait_for(lambda: {one["id"]: one["state"] for one in client.models()}["static"] == "standby", 10)
        write(tmp_path, f"models:\n  local:\n  - id: first\n    name: {MODEL}\n")
        wait_for(lambda: [one["id"] for one in client.models()] == ["first"], 10)
        with pytest.raises(UnknownModel):
            client.of_model("second").encode("gone")
        assert float(np.dot(client.encode("one text"), before)) > 0.9999
    assert server.stop() == 0


def test_models_that_do_not_fit_together_take_turns(tmp_path: Path, static: Path) -> None:
    names = {"first": MODEL, "second": OTHER_MODEL, "static": static, "folder": tmp_path}
    path = write(tmp_path, FILE.format(**names, second_is_default="false", keep_alive=-1))
    server = ModelServer(tmp_path, EMBEDDING_MODELS_FILE=str(path))
    server.start()
    with server.client() as client:
        client.of_model("second").manage_model("load")
        sizes = [one["bytes"] for one in client.models() if one["id"] in ("first", "second")]
    assert server.stop() == 0
    assert min(sizes) > 10 << 20
    limit = int(1.5 * max(sizes))
    server = ModelServer(tmp_path, EMBEDDING_MODELS_FILE=str(path), EMBEDDING_MAX_MODEL_BYTES=str(limit))
    server.start()
    with server.client(EMBEDDING_FALLBACK="none") as client:
        clients = [client.of_model(name) for name in ("first", "second")]
        expected = [one.encode("one text") for one in clients]
        for number in range(6):
            row = clients[number % 2].encode("one text")
            assert float(np.dot(row, expected[number % 2])) > 0.999
            loaded = [one for one in client.models() if one["state"] == "ready"]
            assert sum(one["bytes"] for one in loaded) <= limit
    assert server.stop() == 0


@pytest.fixture(scope="module")
def worker(server: ModelServer) -> Iterator[str]:
    port = free_port()
    settings = {**server.given, "PORT": str(port), "EMBEDDING_FALLBACK": "none"}
    process = subprocess.Popen([sys.executable, str(ROOT / "src" / "app.py")], env=environment(**settings))
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        try:
            return requests.get(f"{url}/health", timeout=5).ok
        except requests.RequestException:
            return False

    wait_for(answers)
    yield url
    process.terminate()
    process.wait(20)


def test_each_api_takes_a_model_s_name(worker: str) -> None:
    def post(path: str, **body: Any) -> Any:
        return requests.post(f"{worker}{path}", json=body, timeout=30)

    listed = [one["id"] for one in requests.get(f"{worker}/v1/models", timeout=30).json()["data"]]
    assert listed == ["first", "small", "text-embedding-3-small", "second", "static", "broken"]
    first = np.array(post("/v1/embeddings", input="one text", model="small").json()["data"][0]["embedding"])
    second = np.array(post("/api/embed", input="one text", model="second:latest").json()["embeddings"][0])
    assert first.shape == second.shape == (384,)
    assert float(first @ second) < 0.9
    assert np.allclose(post("/embed", inputs="one text").json()[0], first, atol=1e-5)
    assert np.allclose(post("/embed?model=second", inputs="one text").json()[0], second, atol=1e-5)
    assert len(post("/embed?model=static", texts=["one text"]).json()["embeddings"][0]) == 32
    single = requests.post(f"{worker}/embed/single?model=static&text=one", timeout=30).json()
    assert single["dimension"] == 32
    info = requests.get(f"{worker}/info?model=static", timeout=30).json()
    assert info["model_id"].endswith("model")
    unknown = post("/v1/embeddings", input="one text", model="gpt-4")
    assert unknown.status_code == 404
    assert "served: first, small" in unknown.json()["error"]["message"]
    assert post("/api/embed", input="one text", model="gpt-4").status_code == 404
    assert post("/embed?model=gpt-4", inputs="one text").status_code == 404
    tokens = post("/tokenize?model=second", inputs="one text").json()[0]
    ids = [token["id"] for token in tokens]
    assert np.allclose(
        post("/v1/embeddings", input=ids, model="second").json()["data"][0]["embedding"], second, atol=1e-5
    )
    assert post("/v1/embeddings", input=ids).status_code == 400


def test_a_worker_without_its_server_answers_no_name_with_another_model(
    server: ModelServer, worker: str, tmp_path: Path
) -> None:
    """It knows the names from the list of the last worker, which is next to the key."""
    names = requests.get(f"{worker}/v1/models", timeout=30).json()["data"]
    assert len(names) > 1
    given = {**server.given, "EMBEDDING_SERVER_PORT": str(free_port()), "PORT": str(free_port())}
    del given["EMBEDDING_MODELS_FILE"]
    seen = server.folder / f"served-{server.port}.json"
    shutil.copy(seen, seen.with_name(f"served-{given['EMBEDDING_SERVER_PORT']}.json"))
    alone = subprocess.Popen([sys.executable, str(ROOT / "src" / "app.py")], env=environment(**given))
    try:
        url = f"http://127.0.0.1:{given['PORT']}/v1/embeddings"

        def status(model: str) -> int:
            try:
                body = {"model": model, "input": "one text"}
                return requests.post(url, json=body, timeout=90).status_code
            except requests.ConnectionError:
                return 0

        wait_for(lambda: status("first") == 200, 90, "a local model")
        assert status("second") == 503
        assert status("no such name") == 404
    finally:
        alone.terminate()
        alone.wait(30)


@needs_chromium
def test_the_dashboard_shows_each_model(chromium: Browser, worker: str, client: EmbeddingClient) -> None:
    page = chromium.new_page(viewport={"width": 1280, "height": 900})
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(f"{worker}/dashboard")
    client.of_model("second").encode("text")

    def rows() -> dict[str, list[str]]:
        page.wait_for_timeout(50)
        found = [row.locator("td").all_inner_texts() for row in page.locator("#models tr").all()]
        return {row[0].split("\n")[0]: row for row in found}

    wait_for(lambda: len(rows()) == 4, 30, "the models")
    wait_for(lambda: rows()["second"][1] == "ready", 30, "a loaded model")
    shown = rows()
    assert shown["first"][0].splitlines() == ["first", f"{MODEL} · default"]
    assert shown["second"][4].endswith("ago")
    assert shown["second"][6].endswith("MB")
    assert shown["broken"][1] in ("standby", "failed")
    assert (page.inner_text("#model"), page.inner_text("#facts-title")) == ("4 models", "Default model")
    assert complaints == []
    page.close()


def test_ollama_s_clients_load_unload_and_see_models(worker: str) -> None:
    def post(path: str, **body: Any) -> Any:
        return requests.post(f"{worker}{path}", json=body, timeout=60)

    def running() -> dict[str, Any]:
        return {one["name"]: one for one in requests.get(f"{worker}/api/ps", timeout=30).json()["models"]}

    assert post("/api/embed", model="static").json()["embeddings"] == []  # it loads
    wait_for(lambda: "static:latest" in running(), 10)
    assert running()["first:latest"]["size"] > 0
    assert running()["first:latest"]["expires_at"].startswith("2318")
    assert post("/api/embed", model="static", input="text", keep_alive="10m").ok
    wait_for(lambda: not running()["static:latest"]["expires_at"].startswith("2318"), 10)
    assert post("/api/embed", model="static", keep_alive=0).json()["embeddings"] == []
    wait_for(lambda: "static:latest" not in running(), 10)
    tags = {one["name"]: one for one in requests.get(f"{worker}/api/tags", timeout=30).json()["models"]}
    assert {"first:latest", "small:latest", "second:latest", "static:latest", "broken:latest"} <= set(tags)
    assert tags["broken:latest"]["digest"] == ""
    shown = post("/api/show", model="second").json()
    assert shown["model_info"]["embedshare.embedding_length"] == 384
    wrong = post("/api/embed", model="static", input="text", keep_alive="soon")
    assert wrong.status_code == 400
    assert "keep_alive is 'soon'" in wrong.json()["error"]
    assert post("/api/embed", model="static", input="text", keep_alive="-1").ok


@pytest.mark.parametrize("times", [5, pytest.param(20, marks=pytest.mark.long)])
def test_an_unloaded_model_s_memory_goes_back_to_the_system(tmp_path: Path, times: int) -> None:
    entries = f"  - id: base\n    name: {MODEL}\n    preload: true\n  - id: other\n    name: {OTHER_MODEL}\n"
    path = write(tmp_path, f"models:\n  local:\n{entries}")
    server = ModelServer(tmp_path, EMBEDDING_MODELS_FILE=str(path))
    server.start()
    assert server.process is not None
    process = psutil.Process(server.process.pid)
    loaded, unloaded = [], []
    with server.client(EMBEDDING_FALLBACK="none") as client:
        other = client.of_model("other")
        settled = time.monotonic() + 6.0  # the first model has its fixed shapes by then
        while time.monotonic() < settled:
            other.encode("a first text")
            other.manage_model("unload")
            wait_for(lambda: client.models()[1]["state"] == "standby")
        for _ in range(times + 1):
            other.encode([f"text number {number}" for number in range(50)])
            loaded.append(process.memory_info().rss)
            other.manage_model("unload")
            wait_for(lambda: client.models()[1]["state"] == "standby")
            unloaded.append(process.memory_info().rss)
    print(f"\nloaded: {[one >> 20 for one in loaded]} MB, unloaded: {[one >> 20 for one in unloaded]} MB")
    for before, there, after in zip(unloaded, loaded[1:], unloaded[1:], strict=False):
        assert there - after >= 0.8 * (there - before)
    assert unloaded[-1] <= 1.05 * unloaded[0]
    assert server.stop() == 0
