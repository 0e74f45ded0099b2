"""OpenAI's files and batches, through OpenAI's own client."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
from openai.types import Batch

from embeddingClient import EmbeddingClient
from tests.jobs.running import JobWorker, runner_of, worker_of
from tests.processes import MODEL, ModelServer, wait_for


@pytest.fixture(scope="module")
def worker(server: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[JobWorker]:
    folder = tmp_path_factory.mktemp("batches")
    place = {"EMBEDDING_JOBS_DIR": str(folder / "store")}
    with (
        worker_of(server, folder, EMBEDDING_MAX_MESSAGE_BYTES="65536", **place) as running,
        runner_of(server, folder, **place),
    ):
        yield running


@pytest.fixture
def client(worker: JobWorker) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key="none", base_url=f"{worker.url}/v1", max_retries=0) as client:
        yield client


def line(custom_id: str, **body: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/embeddings", "body": body}


def upload(client: openai.OpenAI, lines: list[Any]) -> str:
    content = "".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines).encode()
    return client.files.create(file=("input.jsonl", content), purpose="batch").id


def create(client: openai.OpenAI, lines: list[Any], **more: Any) -> Batch:
    return client.batches.create(
        input_file_id=upload(client, lines), endpoint="/v1/embeddings", completion_window="24h", **more
    )


def ended(client: openai.OpenAI, batch: Batch) -> Batch:
    def look() -> Batch | None:
        found = client.batches.retrieve(batch.id)
        return None if found.status in ("validating", "in_progress", "finalizing") else found

    return wait_for(look, 60, "the end of a batch")  # type: ignore[return-value]


def content(client: openai.OpenAI, file: str | None) -> list[dict[str, Any]]:
    assert file is not None
    return [json.loads(one) for one in client.files.content(file).text.splitlines()]


def test_a_batch_has_the_vectors_and_errors_of_its_lines(
    client: openai.OpenAI, model: EmbeddingClient
) -> None:
    ids = [int(one) for one in model.tokenize(["token ids"])["input_ids"][0]]
    batch = create(
        client,
        [
            line("one", model=MODEL, input="a text"),
            line("two", model=MODEL, input=["one", "two"], encoding_format="base64"),
            line("wrong", model=MODEL, input=[]),
            line("ids", model=MODEL, input=ids),
            line("short", model=MODEL, input="a text", dimensions=8),
            line("too many", model=MODEL, input="a text", dimensions=999),
            line("foreign ids", model=MODEL, input=[5, 6]),
        ],
        metadata={"kind": "a test"},
    )
    assert (batch.object, batch.status, batch.metadata) == ("batch", "in_progress", {"kind": "a test"})
    done = ended(client, batch)
    assert (done.status, done.endpoint) == ("completed", "/v1/embeddings")
    assert done.request_counts is not None
    assert done.request_counts.to_dict() == {"total": 7, "completed": 4, "failed": 3}
    assert done.created_at <= (done.in_progress_at or 0) <= (done.completed_at or 0)
    output = {one["custom_id"]: one for one in content(client, done.output_file_id)}
    assert list(output) == ["one", "two", "ids", "short"]
    assert {(one["response"]["status_code"], one["error"]) for one in output.values()} == {(200, None)}
    expected = model.encode(["a text", "one", "two", "token ids"], normalize_embeddings=True)

    def vectors(name: str) -> list[Any]:
        return [each["embedding"] for each in output[name]["response"]["body"]["data"]]

    assert np.allclose(vectors("one"), expected[:1], atol=5e-3)
    decoded = [np.frombuffer(base64.b64decode(one), "<f4") for one in vectors("two")]
    assert np.allclose(decoded, expected[1:3], atol=5e-3)
    assert np.allclose(vectors("ids"), expected[3:], atol=5e-3)
    assert len(vectors("short")[0]) == 8
    assert output["one"]["response"]["body"]["usage"]["total_tokens"] == 4
    assert output["one"]["response"]["body"]["model"] == MODEL
    failed = {one["custom_id"]: one["response"] for one in content(client, done.error_file_id)}
    assert list(failed) == ["wrong", "too many", "foreign ids"]
    assert {one["status_code"] for one in failed.values()} == {400}
    assert "allows 1 to 384" in failed["too many"]["body"]["error"]["message"]
    assert failed["foreign ids"]["body"]["error"]["type"] == "invalid_request_error"


def test_files_are_stored_listed_read_and_deleted(client: openai.OpenAI) -> None:
    written = [line("a", input="x" * 200), line("b", input="y")]
    name = upload(client, written)
    shown = client.files.retrieve(name)
    assert (shown.filename, shown.purpose, shown.object) == ("input.jsonl", "batch", "file")
    assert client.files.content(name).content == b"".join(json.dumps(one).encode() + b"\n" for one in written)
    assert shown.bytes == len(client.files.content(name).content)
    assert name in [one.id for one in client.files.list(purpose="batch")]
    batch = client.batches.create(input_file_id=name, endpoint="/v1/embeddings", completion_window="24h")
    assert client.files.delete(name).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(name)
    done = ended(client, batch)
    assert done.status == "completed"  # a batch keeps its input
    assert done.output_file_id in [one.id for one in client.files.list(purpose="batch_output")]
    assert done.output_file_id is not None
    assert client.files.delete(done.output_file_id).deleted
    assert client.batches.retrieve(batch.id).output_file_id is None
    with pytest.raises(openai.NotFoundError):
        client.files.content(done.output_file_id)


def test_batches_are_listed_in_pages_newest_first(client: openai.OpenAI) -> None:
    made = [create(client, [line("a", input=f"text {number}")]).id for number in range(3)]
    first = client.batches.list(limit=2)
    assert [one.id for one in first.data] == made[:0:-1]
    assert first.has_more
    assert client.batches.list(limit=1, after=made[1]).data[0].id == made[0]
    assert [one.id for one in client.batches.list(limit=2)][:3] == made[::-1]  # page after page
    with pytest.raises(openai.BadRequestError, match="no id of this list"):
        client.batches.list(after="batch_nowhere")


@pytest.mark.parametrize(
    ("lines", "code", "number"),
    [
        ([line("a", input="x"), "no json"], "invalid_json_line", 2),
        ([{"custom_id": "a", "method": "GET", "url": "/v1/embeddings", "body": {}}], "invalid_json_line", 1),
        ([line("a", input="x"), line("b", input="y"), line("a", input="z")], "duplicate_custom_id", 3),
        ([line("a", model="one", input="x"), line("b", model="two", input="x")], "mismatched_model", 2),
        ([], "empty_file", None),
    ],
)
def test_a_file_with_faults_is_a_failed_batch_that_names_the_lines(
    client: openai.OpenAI, lines: list[Any], code: str, number: int | None
) -> None:
    batch = create(client, lines)
    assert batch.status == "failed"
    assert batch.errors is not None
    assert batch.errors.data is not None
    assert [(one.code, one.line) for one in batch.errors.data] == [(code, number)]
    assert (batch.output_file_id, batch.failed_at) == (None, batch.created_at)


def test_what_a_batch_cannot_be_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.batches.create(
            input_file_id="file-" + "0" * 32, endpoint="/v1/embeddings", completion_window="24h"
        )
    with pytest.raises(openai.BadRequestError, match="endpoint"):
        client.batches.create(
            input_file_id="file-" + "0" * 32, endpoint="/v1/completions", completion_window="24h"
        )
    with pytest.raises(openai.BadRequestError, match="purpose"):
        client.files.create(file=("a.jsonl", b"{}"), purpose="fine-tune")
    for name in ("file-nowhere", "file-" + "0" * 32 + "-input", "x", "note.json"):
        with pytest.raises(openai.NotFoundError):
            client.files.retrieve(name)
    with pytest.raises(openai.NotFoundError):
        client.batches.retrieve("batch_" + "0" * 32)


def test_a_cancelled_batch_has_what_was_computed(client: openai.OpenAI, worker: JobWorker) -> None:
    batch = create(client, [line(str(number), input=f"text {number}") for number in range(12_000)])
    hexadecimal = batch.id.removeprefix("batch_")
    wait_for(lambda: worker.job(hexadecimal)["done"] > 0, what="the first part")
    cancelled = client.batches.cancel(batch.id)
    assert (cancelled.status, cancelled.cancelled_at is not None) == ("cancelled", True)
    found = client.batches.retrieve(batch.id)
    assert found.request_counts is not None
    done = found.request_counts.completed
    assert 0 < done < 12_000
    assert len(content(client, found.output_file_id)) >= done
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(ended(client, create(client, [line("a", input="x")])).id)


def test_a_large_file_is_taken(client: openai.OpenAI) -> None:
    lines = [line(str(number), input="one of many texts " * 8) for number in range(3000)]
    assert client.files.retrieve(upload(client, lines)).bytes > 500_000
