"""Images over HTTP have the vectors of SentenceTransformer.encode, in Jina's and in Cohere's form."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cohere
import numpy as np
import openai
import pytest
import requests

from tests.images.site import Site
from tests.images.site import serving as serving_site
from tests.images.small_clip import clip, file_of, picture
from tests.processes import MODEL, ModelServer
from tests.web.conftest import Worker, serving

TOLERANCE = 1e-5
FILE = """
models:
  local:
    - {{id: clip, name: {clip}, default: true, preload: true}}
    - {{id: texts, name: {texts}}}
"""
CONTENT = [file_of(picture(size=(30, 24), seed=seed)) for seed in range(3)]
BASE64 = [b64encode(content).decode() for content in CONTENT]
URLS = [f"data:image/png;base64,{text}" for text in BASE64]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def library(folder: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu")


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    with serving_site() as url:
        yield url


@pytest.fixture(scope="module")
def worker(folder: Path, site: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    place = tmp_path_factory.mktemp("worker")
    path = place / "models.yaml"
    path.touch(0o600)
    path.write_text(FILE.format(clip=folder, texts=MODEL))
    server = ModelServer(place, EMBEDDING_MODELS_FILE=str(path), EMBEDDING_DTYPE="float32")
    server.start_at_once()
    hosts = site.removeprefix("http://")
    yield from serving(Worker(server, place / "worker.log", EMBEDDING_IMAGE_HOSTS=hosts))
    assert server.stop() == 0, server.said().decode()


def images_of(library: Any, seeds: range = range(3)) -> np.ndarray:
    found: np.ndarray = library.encode(
        [picture(size=(30, 24), seed=seed) for seed in seeds], normalize_embeddings=True
    )
    return found


def texts_of(library: Any, *texts: str) -> np.ndarray:
    found: np.ndarray = library.encode([{"text": text} for text in texts], normalize_embeddings=True)
    return found


def ask(worker: Worker, body: dict[str, Any], status: int = 200, path: str = "/v1/embeddings") -> Any:
    answer = requests.post(f"{worker.url}{path}", json=body, timeout=60)
    assert answer.status_code == status, answer.text
    return answer.json()


def vectors(answer: Any) -> np.ndarray:
    assert [one["index"] for one in answer["data"]] == list(range(len(answer["data"])))
    return np.array([one["embedding"] for one in answer["data"]], np.float32)


def refusal(worker: Worker, status: int, *items: Any, model: str = "clip") -> str:
    told: str = ask(worker, {"model": model, "input": list(items)}, status)["error"]["message"]
    return told


def test_texts_and_images_in_jinas_form_come_back_in_order(worker: Worker, library: Any) -> None:
    items = [{"image": URLS[0]}, {"text": "a cat"}, {"image": BASE64[1]}, "a dog", {"image": URLS[2]}]
    answer = ask(worker, {"model": "clip", "input": items})
    images, texts = images_of(library), texts_of(library, "a cat", "a dog")
    expected = [images[0], texts[0], images[1], texts[1], images[2]]
    np.testing.assert_allclose(vectors(answer), expected, atol=TOLERANCE)
    lengths = [len(ids) for ids in library.tokenizer(["a cat", "a dog"])["input_ids"]]
    assert answer["usage"]["prompt_tokens"] == 3 * 17 + sum(lengths)


def test_images_alone_with_fewer_dimensions(worker: Worker, library: Any) -> None:
    answer = ask(worker, {"input": [{"image": url} for url in URLS], "dimensions": 8})
    images = [picture(size=(30, 24), seed=seed) for seed in range(3)]
    expected = library.encode(images, truncate_dim=8, normalize_embeddings=True)
    np.testing.assert_allclose(vectors(answer), expected, atol=TOLERANCE)


def test_openais_client_sends_them_too(worker: Worker, library: Any) -> None:
    gpt = openai.OpenAI(base_url=f"{worker.url}/v1", api_key="none", max_retries=0)
    items: Any = [{"image": URLS[1]}]
    found = gpt.embeddings.create(model="clip", input=items)
    np.testing.assert_allclose([found.data[0].embedding], images_of(library)[1:2], atol=TOLERANCE)


def test_an_image_of_an_allowed_host_is_fetched(worker: Worker, library: Any, site: str) -> None:
    answer = ask(worker, {"input": [{"image": f"{site}/plain.png"}]})
    expected = library.encode([picture()], normalize_embeddings=True)
    np.testing.assert_allclose(vectors(answer), expected, atol=TOLERANCE)
    told = refusal(worker, 422, {"image": URLS[0]}, {"image": "https://elsewhere.example/a.png"})
    assert told == "image 1 was not fetched: EMBEDDING_IMAGE_HOSTS does not name elsewhere.example"


def test_a_text_is_never_an_address(worker: Worker, library: Any, site: str, tmp_path: Path) -> None:
    Site.asked.clear()
    path = tmp_path / "plain.png"
    path.write_bytes(CONTENT[0])
    texts = [f"{site}/plain.png", str(path), URLS[0][:60]]
    expected = texts_of(library, *texts)
    np.testing.assert_allclose(vectors(ask(worker, {"input": texts})), expected, atol=TOLERANCE)
    items = [{"text": text} for text in texts]
    np.testing.assert_allclose(vectors(ask(worker, {"input": items})), expected, atol=TOLERANCE)
    assert "image 0 is not in base64" in refusal(worker, 422, {"image": str(path)})
    assert Site.asked == []


def test_what_is_wrong_is_said(worker: Worker) -> None:
    assert "item 1 of the input must have one of" in refusal(
        worker, 400, "a", {"text": "a", "image": URLS[0]}
    )
    assert "item 0 of the input must have one of" in refusal(worker, 400, {})
    assert "no token ids among" in refusal(worker, 400, {"text": "a"}, [1, 2])
    words = b64encode(b"words").decode()
    assert "image 2 is no image that is read" in refusal(
        worker, 422, "a", {"image": URLS[0]}, {"image": words}
    )
    assert "image 1 is no image that is read" in refusal(worker, 422, {"image": URLS[0]}, {"image": words})
    told = refusal(worker, 400, {"image": URLS[0]}, model="texts")
    assert told == f"{MODEL} does not give embeddings of images; it gives embeddings"
    body = {"input": [{"image": URLS[0]}], "embedding_types": ["sparse"]}
    assert "not images" in ask(worker, body, 400)["error"]["message"]


def test_coheres_client_embeds_images(worker: Worker, library: Any) -> None:
    client = cohere.ClientV2(api_key="none", base_url=worker.url)
    found = client.embed(
        model="clip", images=URLS, input_type="image", embedding_types=["float", "ubinary", "base64"]
    )
    expected = images_of(library)
    np.testing.assert_allclose(found.embeddings.float_, expected, atol=TOLERANCE)
    assert np.array_equal(np.array(found.embeddings.ubinary, np.uint8), np.packbits(expected > 0, axis=1))
    contents: Any = [
        {"content": [{"type": "image_url", "image_url": {"url": URLS[2]}}]},
        {"content": [{"type": "text", "text": "a cat"}]},
    ]
    mixed = client.embed(
        model="clip", inputs=contents, input_type="search_document", embedding_types=["float"]
    )
    expected = np.stack([images_of(library)[2], texts_of(library, "a cat")[0]])
    np.testing.assert_allclose(mixed.embeddings.float_, expected, atol=TOLERANCE)


def test_coheres_errors_of_images(worker: Worker) -> None:
    both = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": URLS[0]}}]
    told = ask(worker, {"inputs": [{"content": both}]}, 400, "/v2/embed")["message"]
    assert "an input of a text and an image" in told
    told = ask(worker, {"images": URLS, "texts": ["a"]}, 400, "/v2/embed")["message"]
    assert "one of the fields `texts`, `images` and `inputs`" in told
    told = ask(worker, {"images": ["data:image/png;base64,?"]}, 422, "/v2/embed")["message"]
    assert told == "image 0 is not in base64"
