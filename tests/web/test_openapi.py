"""The description holds for what a worker does, whatever a client sends."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from openapi_spec_validator import validate

from embedshare.web.apis.embed import BASE64
from embedshare.web.errors import JSON
from tests.processes import LONG, ModelServer
from tests.searching import searching
from tests.sessions_worker import SessionsWorker, sessions_worker

#: Bodies and the like that are made up for each operation.
EXAMPLES = 200 if LONG else 5
#: What no schema can say: URLs of another number than the documents, more dimensions than the model has, ids
#: that are not its tokenizer's, prompts that it does not have, a text that is blank or in neither place, a
#: name that is in neither field.
CONFIGURATION = """
[[operations]]
include-path-regex = "^/(embed(/single)?|tokenize|v[12]/embed(dings)?|api/embed|api/show)?$"
checks.positive_data_acceptance.expected-statuses = ["2xx", "400", "413", "422"]

# The server's only model gives embeddings.
[[operations]]
include-path-regex = "^/(embed_all|embed_sparse|predict|(v[12]/)?rerank|(v1/)?score)$"
checks.positive_data_acceptance.expected-statuses = ["400", "413", "424"]

[[operations]]
include-path-regex = "^/api/v1/(embed|generate)(/batch)?$"
checks.positive_data_acceptance.expected-statuses = ["2xx", "400", "413", "422"]

[[operations]]
include-path-regex = "^/index(/[{]index[}]/documents)?$"
checks.positive_data_acceptance.expected-statuses = ["2xx", "404", "422"]

# The only model reranks nothing.
[[operations]]
include-path-regex = "^/(search|index/[{]index[}]/search)$"
checks.positive_data_acceptance.expected-statuses = ["2xx", "400", "404"]

# A body of any text is no list of texts, and a job of a made-up id does not exist.
[[operations]]
include-path-regex = "^/(api/v1/jobs|v1/batches|v1/files)"
checks.positive_data_acceptance.expected-statuses = ["2xx", "400", "404", "409", "413"]

# A made-up session does not exist, chunks are no longer than the model's longest sequence, and a made-up file
# has no name, or none that says how to read it.
[[operations]]
include-path-regex = "^/(sessions|process-file|embeddings)"
checks.positive_data_acceptance.expected-statuses = ["2xx", "400", "404", "409", "413", "415", "422"]

# Clients of OpenAI may send parameters of its lists that this API does not have.
[[operations]]
include-path-regex = "^/v1/(batches|files)$"
include-method = "GET"
checks.negative_data_rejection.expected-statuses = ["2xx", "4xx"]

# The settings come from the environment here, which is a 400 whatever is sent.
[[operations]]
include-path-regex = "^/(settings|update-model-config)"
checks.positive_data_acceptance.expected-statuses = ["2xx", "400", "404"]
"""

#: What any operation that needs a scope may answer: who is it, may they, how often, and what went wrong.
GATED = ("401", "429", "500", "403", "421")
#: Answers of any operation of a worker without keys: another site's page, another host, a fault.
OPEN = ("403", "421", "500")
OF_THE_MODEL = ("503", "504")


@pytest.fixture(scope="module")
def worker(server: ModelServer) -> Iterator[SessionsWorker]:
    with (
        searching() as web,
        sessions_worker(server, EMBEDDING_MAX_MESSAGE_BYTES="65536", **web.settings) as running,
    ):
        yield running


@pytest.mark.skipif(sys.version_info < (3, 11), reason="schemathesis needs Python 3.11")
def test_every_answer_is_as_described(worker: SessionsWorker, tmp_path: Path) -> None:
    (tmp_path / "schemathesis.toml").write_text(CONFIGURATION)
    done = subprocess.run(
        [str(Path(sys.executable).with_name("schemathesis")), "run", f"{worker.url}/openapi.json",
         "--checks=all", "--mode=all", f"--max-examples={EXAMPLES}", "--seed=1",
         "--generation-database=none"],
        cwd=tmp_path, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    described = requests.get(f"{worker.url}/openapi.json", timeout=30).json()
    count = sum(map(len, described["paths"].values()))
    assert f"{count} selected / {count} total" in done.stdout


def test_the_description_is_openapi_and_holds_what_the_views_declare(worker: SessionsWorker) -> None:
    description = requests.get(f"{worker.url}/openapi.json", timeout=30).json()
    assert description["openapi"] == "3.1.0"
    found = {
        (path, method): set(operation["responses"])
        for path, operations in description["paths"].items()
        for method, operation in operations.items()
    }
    changed = {"200", "400", "404", "409", "413", "415", "422", *GATED, *OF_THE_MODEL}
    embeds = {"200", "400", "404", "413", "415", *GATED, *OF_THE_MODEL}
    assert found == {
        ("/dashboard", "get"): {"200", "304", *OPEN},
        ("/dashboard/data", "get"): {"200", *GATED},
        ("/dashboard/static/{name}", "get"): {"200", "304", "404", *OPEN},
        ("/docs", "get"): {"200", "304", *OPEN},
        ("/embedding/health", "get"): {"200", "503", *GATED},
        ("/embedding/stats", "get"): {"200", *GATED, *OF_THE_MODEL},
        ("/metrics", "get"): {"200", *GATED},
        ("/model/info", "get"): {"200", *GATED, *OF_THE_MODEL},
        ("/", "post"): {*embeds, "424"},
        ("/", "get"): {"200", *OPEN},
        ("/api/embed", "post"): embeds - {"415"},
        ("/api/embeddings", "post"): embeds - {"415"},
        ("/api/ps", "get"): {"200", *GATED, *OF_THE_MODEL},
        ("/api/show", "post"): embeds - {"415"},
        ("/api/tags", "get"): {"200", *GATED, *OF_THE_MODEL},
        ("/api/version", "get"): {"200", *GATED},
        ("/embed", "post"): {*embeds, "424"},
        ("/embed/single", "post"): {*embeds, "422"},
        ("/embed_all", "post"): {*embeds, "424"},
        ("/embed_sparse", "post"): {*embeds, "424"},
        ("/predict", "post"): {*embeds, "424"},
        ("/rerank", "post"): {*embeds, "424"},
        ("/score", "post"): embeds,
        ("/v1/embed", "post"): {*embeds, "422"},
        ("/v1/rerank", "post"): embeds,
        ("/v1/score", "post"): embeds,
        ("/v2/embed", "post"): {*embeds, "422"},
        ("/v2/rerank", "post"): embeds,
        ("/info", "get"): {"200", "404", *GATED, *OF_THE_MODEL},
        ("/tokenize", "post"): {*embeds, "424"},
        ("/v1/embeddings", "post"): {*embeds, "422"},
        ("/v1/batches", "get"): {"200", "400", *GATED},
        ("/v1/batches", "post"): {"200", "400", "404", "413", "415", "507", *GATED, *OF_THE_MODEL},
        ("/v1/batches/{id}", "get"): {"200", "404", *GATED},
        ("/v1/batches/{id}/cancel", "post"): {"200", "404", "409", *GATED},
        ("/v1/files", "get"): {"200", "400", *GATED},
        ("/v1/files", "post"): {"200", "400", "413", "415", "507", *GATED},
        ("/v1/files/{id}", "delete"): {"200", "404", *GATED},
        ("/v1/files/{id}", "get"): {"200", "404", *GATED},
        ("/v1/files/{id}/content", "get"): {"200", "404", *GATED},
        ("/v1/models", "get"): {"200", *GATED, *OF_THE_MODEL},
        ("/v1/models/{name}", "get"): {"200", "404", *GATED, *OF_THE_MODEL},
        ("/api/v1/embed", "post"): embeds,
        ("/api/v1/embed/batch", "post"): embeds,
        ("/api/v1/generate", "post"): embeds,
        ("/api/v1/generate/batch", "post"): embeds,
        ("/api/v1/models", "get"): {"200", *GATED, *OF_THE_MODEL},
        ("/api/v1/models/{id}", "get"): {"200", "404", *GATED, *OF_THE_MODEL},
        ("/api/v1/jobs", "get"): {"200", *GATED},
        ("/api/v1/jobs", "post"): {"202", "400", "404", "413", "415", "507", *GATED, *OF_THE_MODEL},
        ("/api/v1/jobs/{job}", "delete"): {"204", "404", *GATED},
        ("/api/v1/jobs/{job}", "get"): {"200", "404", *GATED},
        ("/api/v1/jobs/{job}/cancel", "post"): {"200", "404", "409", *GATED},
        ("/api/v1/jobs/{job}/result", "get"): {"200", "400", "404", "409", *GATED},
        ("/health", "get"): {"200", *OPEN},
        ("/index", "post"): {"201", "400", "413", "415", "422", *GATED, *OF_THE_MODEL},
        ("/index/{index}", "delete"): {"204", "404", "503", *GATED},
        ("/index/{index}/documents", "post"): {
            "200", "400", "404", "413", "415", "422", *GATED, *OF_THE_MODEL,
        },
        ("/index/{index}/search", "post"): {"200", "400", "404", "413", "415", *GATED, *OF_THE_MODEL},
        ("/load", "get"): {"200", *GATED},
        ("/openapi.json", "get"): {"200", *OPEN},
        ("/settings", "get"): {"200", *GATED},
        ("/settings", "post"): changed,
        ("/settings/bulk", "post"): changed,
        ("/settings/{key}", "delete"): {"200", "400", "404", "409", "422", *GATED, *OF_THE_MODEL},
        ("/update-model-config", "post"): changed,
        ("/settings/audit", "get"): {"200", "400", "503", *GATED},
        ("/settings/models", "get"): {"200", *GATED},
        ("/settings/models", "post"): changed,
        ("/settings/models", "put"): changed,
        ("/settings/models/{id}", "delete"): changed - {"413", "415"},
        ("/sessions.html", "get"): {"200", "304", *OPEN},
        ("/sessions", "get"): {"200", "404", "503", *GATED},
        ("/sessions", "post"): {"201", "400", "404", "409", "413", "415", *GATED, *OF_THE_MODEL},
        ("/sessions/{session}", "get"): {"200", "404", "503", *GATED},
        ("/sessions/{session}", "patch"): {"200", "400", "404", "409", "413", "415", "503", *GATED},
        ("/sessions/{session}", "delete"): {"204", "404", "503", *GATED},
        ("/sessions/{session}/embeddings", "post"): embeds,
        ("/sessions/{session}/search", "post"): embeds,
        ("/sessions/{session}/files", "get"): {"200", "404", "503", *GATED},
        ("/sessions/{session}/files", "post"): {*embeds, "207", "422"},
        ("/sessions/{session}/files/{document}", "get"): {"200", "404", "503", *GATED},
        ("/sessions/{session}/files/{document}", "delete"): {"204", "404", "503", *GATED},
        ("/process-file", "post"): {*embeds, "422"},
        ("/embeddings", "post"): embeds,
        ("/status", "get"): {"200", "404", "503", *GATED},
        ("/models", "get"): {"200", *GATED, *OF_THE_MODEL},
        ("/search", "get"): {"200", "304", *OPEN},
        ("/search", "post"): {*embeds, "502"},
    }  # fmt: skip
    validate(description)
    assert all(operation["tags"] for path in description["paths"].values() for operation in path.values())
    embed = description["paths"]["/embed"]["post"]
    assert set(embed["responses"]["200"]["content"]) == {JSON, BASE64}
    assert "Retry-After" in embed["responses"]["503"]["headers"]
    texts = description["components"]["schemas"]["EmbedRequest"]["properties"]["texts"]
    assert texts == {"type": "array", "items": {"type": "string"}}


def shape(value: Any) -> Any:
    """The structure of a JSON value, whatever its texts and numbers, and however long its vectors."""
    if isinstance(value, dict):
        return {name: shape(one) for name, one in value.items()}
    if isinstance(value, list):
        return "vector" if value and isinstance(value[0], float) else [shape(one) for one in value]
    return "number" if isinstance(value, int | float) else type(value)


def test_an_example_of_an_answer_is_what_the_example_of_a_body_is_answered_with(
    worker: SessionsWorker,
) -> None:
    paths = requests.get(f"{worker.url}/openapi.json", timeout=30).json()["paths"]
    tried = []
    for path, operations in paths.items():
        for operation in operations.values():
            sent = examples(operation.get("requestBody", {}))
            answered = examples(operation["responses"].get("200", {}))
            assert sent.keys() == answered.keys()
            for name, body in sent.items():
                answer = requests.post(f"{worker.url}{path}", json=body, timeout=30)
                assert answer.status_code == 200, answer.text
                assert shape(answer.json()) == shape(answered[name]), path
                tried.append((path, name))
    assert len(tried) == 8
    assert {
        ("/embed", "own form"),
        ("/embed", "text-embeddings-inference"),
        ("/v1/embeddings", "only"),
        ("/v2/embed", "only"),
    } <= set(tried)


def examples(part: dict[str, Any]) -> dict[str, Any]:
    """The examples of a body or an answer, by name."""
    content = part.get("content", {}).get(JSON, {})
    if "example" in content:
        return {"only": content["example"]}
    return {name: one["value"] for name, one in content.get("examples", {}).items()}
