"""The client finds images among inputs as sentence-transformers does."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from embedshare.client.images import EXTENSIONS, may_be_image, png
from tests.images.small_clip import picture


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for name in ("a.png", "B.JPG", "c.webp", "d.tiff", "e.txt", "png"):
        (folder / name).touch()
    (folder / "folder.png").mkdir()
    return folder


ADDRESSES = [
    "a.png", "B.JPG", "c.webp", "d.tiff", "e.txt", "png", "folder.png", "missing.png", "a.png ", "",
    "a photo.png of a cat", ".png",
]  # fmt: skip
OTHERS = [
    "https://a.example/b.png", "http://a.example/b.JPEG?width=3#top", "https://a.example/b",
    "https://a b/c.png",
    "https://[[invalid]]/a.png", "HTTPS://a.example/b.png", "ftp://a.example/b.png", "https://a.example/?x.png",
    "data:image/png;base64,abcd", "data:text/plain,x", "data:image/", "image", picture(), picture("L"),
    np.zeros((4, 4, 3), np.uint8), {"image": "x"}, {"image": picture()}, {"text": "x.png"},
]  # fmt: skip


def is_image(sample: Any) -> bool:
    from sentence_transformers.base.modality import infer_modality

    return infer_modality(sample, supported_modalities=["text", "image"]) == "image"


@pytest.mark.parametrize("name", ADDRESSES)
def test_a_path_is_an_image_if_sentence_transformers_says_so(name: str, folder: Path) -> None:
    path = str(folder / name) if name else name
    assert may_be_image(path) == is_image(path)


@pytest.mark.parametrize("sample", OTHERS, ids=lambda one: str(one)[:40])
def test_an_input_is_an_image_if_sentence_transformers_says_so(sample: Any) -> None:
    assert may_be_image(sample) == is_image(sample)


@given(st.text(max_size=30))
def test_a_text_is_a_text(text: str) -> None:
    assert may_be_image(text) == is_image(text)


def test_content_and_paths_are_images_here_too() -> None:
    assert may_be_image(b"content")
    assert may_be_image(Path("anywhere.png"))


def test_the_extensions_are_those_of_sentence_transformers(tmp_path: Path) -> None:
    for extension in (*EXTENSIONS, ".tif", ".avif", ".svg", ".ppm", ".heic"):
        path = tmp_path / f"image{extension}"
        path.touch()
        assert (extension in EXTENSIONS) == is_image(str(path))


sizes = st.tuples(st.integers(1, 40), st.integers(1, 40), st.just(3))


@given(arrays.arrays(np.uint8, sizes))
def test_a_png_has_the_pixels_that_it_was_written_from(pixels: np.ndarray) -> None:
    with Image.open(io.BytesIO(png(pixels)), formats=("PNG",)) as opened:
        assert opened.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(opened), pixels)
