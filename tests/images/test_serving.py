"""Images through the shared server have the vectors of SentenceTransformer.encode."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embeddingClient import EmbeddingClient
from embedshare.errors import InvalidImage, InvalidInput, NotServed, TooLarge
from tests.images.site import Site, serving
from tests.images.small_clip import clip, file_of, picture, turned
from tests.processes import ModelServer, run_python

TOLERANCE = 1e-5
LIMITS = {"EMBEDDING_MAX_IMAGE_BYTES": "65536", "EMBEDDING_MAX_IMAGE_PIXELS": "50000"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def library(folder: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu")


@pytest.fixture(scope="module")
def images_server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    server = ModelServer(
        tmp_path_factory.mktemp("server"),
        EMBEDDING_MODEL_NAME=str(folder),
        EMBEDDING_DTYPE="float32",
        **LIMITS,
    )
    yield server.start()
    if not server.ended:
        assert server.stop() == 0, server.said().decode()


@pytest.fixture(scope="module")
def client(images_server: ModelServer) -> Iterator[EmbeddingClient]:
    with images_server.client(EMBEDDING_FALLBACK="none") as client:
        yield client


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with image files."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "plain.png").write_bytes(file_of(picture()))
    (folder / "turned.jpg").write_bytes(turned())
    (folder / "transparent.webp").write_bytes(file_of(picture("RGBA"), "WEBP", lossless=True))
    (folder / "no-extension").write_bytes(file_of(picture(seed=2)))
    return folder


@pytest.fixture
def site() -> Iterator[str]:
    with serving() as url:
        yield url


def same(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), atol=TOLERANCE)


MODES = ("RGB", "RGBA", "L", "LA", "P", "PA", "1", "I;16", "I", "F", "CMYK", "YCbCr", "HSV", "LAB", "RGBX")


@pytest.mark.parametrize("mode", MODES)
def test_a_pillow_image_of_any_mode(client: EmbeddingClient, library: Any, mode: str) -> None:
    same(client.encode([picture(mode)]), library.encode([picture(mode)]))


def test_a_pillow_image_is_not_turned_as_its_exif_says_and_a_file_is(
    client: EmbeddingClient, library: Any, files: Path
) -> None:
    from PIL import Image

    path = str(files / "turned.jpg")
    with Image.open(path) as opened:
        same(client.encode(opened), library.encode(opened))
        assert not np.allclose(client.encode(opened), client.encode(path), atol=1e-2)
    same(client.encode(path), library.encode(path))


def test_one_image_in_each_form(client: EmbeddingClient, library: Any, files: Path) -> None:
    image, path = picture(), str(files / "plain.png")
    content = (files / "plain.png").read_bytes()
    url = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    pixels = np.asarray(image)
    forms = [image, path, url, pixels, pixels.transpose(2, 0, 1), torch.from_numpy(pixels.copy())]
    forms += [{"image": form} for form in forms]
    for form in forms:
        same(client.encode(form), library.encode(form))
        same(client.encode([form]), library.encode([form]))
    expected = library.encode(image)
    for form in (content, files / "plain.png", {"image": content}, {"image": str(files / "plain.png")}):
        same(client.encode(form), expected)
    same(
        client.encode({"image": str(files / "no-extension")}),
        library.encode({"image": str(files / "no-extension")}),
    )
    same(client.encode(str(files / "transparent.webp")), library.encode(str(files / "transparent.webp")))


def test_many_images_come_back_in_order(client: EmbeddingClient, library: Any) -> None:
    images = [picture(size=(20 + number, 60 - number), seed=number) for number in range(40)]
    same(client.encode(images), library.encode(images))
    same(client.encode(tuple(images)), library.encode(images))


def test_the_options_of_encode(client: EmbeddingClient, library: Any) -> None:
    images = [picture(), picture(seed=1)]
    for options in (
        {"normalize_embeddings": True},
        {"truncate_dim": 8},
        {"truncate_dim": 8, "normalize_embeddings": True},
        {"convert_to_tensor": True},
        {"prompt": "of no effect"},
        {"prompt_name": "query"},
        {"task": "document"},
    ):
        same(client.encode(images, **options), library.encode(images, **options))
    same(client.encode(images, precision="ubinary"), library.encode(images, precision="ubinary"))
    same(client.encode_query(images), library.encode_query(images))
    listed = client.encode(images, convert_to_numpy=False)
    assert isinstance(listed, list)
    same(torch.stack(listed), library.encode(images, convert_to_tensor=True))
    with pytest.raises(InvalidInput, match="unknown prompt 'other'"):
        client.encode(images, prompt_name="other")


def test_texts_are_in_the_same_space(client: EmbeddingClient, library: Any) -> None:
    texts = ["a photo of a cat", "", "one word " * 100, "https://shop.example/about", "missing.png"]
    same(client.encode(texts[:4]), library.encode(texts[:4]))
    same(client.encode([{"text": one} for one in texts]), library.encode([{"text": one} for one in texts]))
    same(client.encode(["plain", {"text": "x.png"}]), library.encode(["plain", {"text": "x.png"}]))
    scores = client.similarity(client.encode(texts[:2]), client.encode([picture()]))
    expected = library.similarity(library.encode(texts[:2]), library.encode([picture()]))
    np.testing.assert_allclose(scores, expected, atol=TOLERANCE)


def test_texts_among_images_are_refused_as_the_library_refuses_them(
    client: EmbeddingClient, library: Any
) -> None:
    mixed = ["a text", picture()]
    with pytest.raises(ValueError, match="This batch mixes multiple modalities") as theirs:
        library.encode(mixed)
    with pytest.raises(InvalidInput, match="This batch mixes multiple modalities") as ours:
        client.encode(mixed)
    assert str(ours.value).split("which")[0] == str(theirs.value).split("which")[0]
    with pytest.raises(NotServed):
        client.encode([{"text": "both", "image": picture()}])


def test_the_server_opens_and_fetches_nothing_that_a_text_names(
    client: EmbeddingClient, library: Any, files: Path, site: str
) -> None:
    texts = [str(files / "plain.png"), f"{site}/plain.png"]
    expected = library.encode([{"text": one} for one in texts])
    for found in (client.embed(texts).rows, client.generate_embeddings(texts)):
        np.testing.assert_allclose(found, expected, atol=TOLERANCE)
    assert Site.asked == []


def test_the_model_tells_what_it_reads(client: EmbeddingClient, library: Any, model: EmbeddingClient) -> None:
    assert client.modalities == library.modalities
    for modality in ("text", "image", "audio", "message", ("image", "text")):
        assert client.supports(modality) == library.supports(modality)
    for inputs in ("text", picture(), {"image": picture()}, [picture()], (picture(),), np.zeros((4, 4, 3))):
        assert client.is_singular_input(inputs) == library.is_singular_input(inputs)
    assert model.modalities == ["text"]


def test_a_model_of_texts_reads_no_image(model: EmbeddingClient, reference: Any, files: Path) -> None:
    for image in (picture(), b"content", np.zeros((4, 4, 3), np.uint8), {"image": "a.png"}, Path("a.png")):
        with pytest.raises(NotServed, match=r"does not give embeddings of images; it gives embeddings"):
            model.encode([image])
    with pytest.raises(NotServed, match="embeddings of images"):
        model.embed_images([file_of(picture())])
    path = str(files / "plain.png")
    np.testing.assert_allclose(model.encode(path), reference.encode(path), atol=2e-2)


def test_what_is_wrong_is_said_with_the_images_number(client: EmbeddingClient, tmp_path: Path) -> None:
    fine = file_of(picture())
    with pytest.raises(InvalidImage, match="image 35 is no image that is read") as caught:
        client.encode([*[fine] * 35, b"words", fine])
    assert caught.value.fields == {"image": 35}
    with pytest.raises(InvalidImage, match="image 1 is damaged or truncated"):
        client.encode([fine, fine[:2000]])
    with pytest.raises(InvalidImage, match="image 0 has 70,000 bytes; EMBEDDING_MAX_IMAGE_BYTES allows"):
        client.encode([bytes(70_000)])
    with pytest.raises(InvalidImage, match="image 0 has more pixels than the 50,000"):
        client.encode([np.zeros((300, 300, 3), np.uint8)])
    (tmp_path / "large.png").write_bytes(bytes(70_000))
    with pytest.raises(InvalidImage, match="image 0 has over 65,536 bytes"):
        client.encode(str(tmp_path / "large.png"))
    with pytest.raises(InvalidInput, match="image 1: there is no file"):
        client.encode([fine, Path("nowhere.png")])
    for pixels in (np.zeros((4, 4, 3)), np.zeros((4, 4, 4), np.uint8)):
        with pytest.raises(InvalidInput, match="image 0 must be an image, or uint8 pixels"):
            client.encode([pixels])


def test_a_call_has_at_most_64_images(client: EmbeddingClient) -> None:
    from embedshare.calls import CallContext, EmbedRequest

    served = client._embedder.failover.served
    with pytest.raises(TooLarge, match="65 images; 64 are allowed"):
        served.embed_images([file_of(picture())] * 65, EmbedRequest([]), CallContext(time.monotonic() + 30))


def test_a_url_is_fetched_from_a_host_that_the_setting_names(
    images_server: ModelServer, library: Any, site: str
) -> None:
    host = site.removeprefix("http://")
    with images_server.client(EMBEDDING_FALLBACK="none", EMBEDDING_IMAGE_HOSTS=host) as client:
        same(client.encode([f"{site}/plain.png"]), library.encode([f"{site}/plain.png"]))
        same(client.encode({"image": f"{site}/to/{site}/plain.png"}), library.encode(picture()))
        with pytest.raises(InvalidImage, match=r"image 0 was not fetched: 127.0.0.1 answered 404"):
            client.encode(f"{site}/none.png")
        with pytest.raises(InvalidImage, match="over 65,536 bytes"):
            client.encode(f"{site}/large.png")
        with pytest.raises(InvalidImage, match=r"EMBEDDING_IMAGE_HOSTS does not name elsewhere.example"):
            client.encode({"image": f"{site}/to/http://elsewhere.example/plain.png"})


def test_no_url_is_fetched_without_the_setting(client: EmbeddingClient, site: str) -> None:
    with pytest.raises(InvalidImage, match=r"EMBEDDING_IMAGE_HOSTS does not name 127\.0\.0\.1"):
        client.encode([f"{site}/plain.png"])
    assert Site.asked == []


def test_images_count_in_the_servers_stats(client: EmbeddingClient) -> None:
    before = client.stats()
    client.encode([picture(), picture(seed=1)])
    after = client.stats()
    counted = {name: after[name] - before[name] for name in ("sequences", "tokens", "successful_requests")}
    assert counted == {"sequences": 2, "tokens": 2 * 17, "successful_requests": 1}
    assert client.embed_images([file_of(picture())]).token_counts == [17]


def test_a_worker_needs_neither_pillow_nor_torch_to_send_files(
    images_server: ModelServer, files: Path
) -> None:
    code = (
        "import sys\n"
        "from embeddingClient import get_embedding_model\n"
        f"rows = get_embedding_model().encode([{str(files / 'plain.png')!r}])\n"
        "heavy = {'PIL', 'torch', 'transformers', 'requests', 'scipy'} & {*sys.modules}\n"
        "print(rows.shape, heavy)\n"
    )
    assert run_python(code, images_server.environment()) == "(1, 32) set()\n"


def test_the_local_model_embeds_images_while_the_server_is_away(
    images_server: ModelServer, library: Any
) -> None:
    images = [picture(), picture(seed=1)]
    with images_server.client(EMBEDDING_FALLBACK="local") as client:
        before = client.encode(images)
        images_server.kill()
        found = client.encode(images)
    same(found, before)
    same(found, library.encode(images))
