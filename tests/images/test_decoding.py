"""Images are decoded in a process with limits, to the pixels that transformers reads."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from transformers.image_utils import load_image

from embedshare import sandbox
from embedshare.errors import DeadlineExceeded, InvalidImage, Overloaded
from embedshare.images import decoding
from embedshare.images.decoding import ImageLimits, Pixels
from tests.images.small_clip import file_of, picture, turned
from tests.processes import wait_for

LIMITS = ImageLimits(bytes=1 << 20, pixels=100_000)


def decode(image: bytes, limits: ImageLimits = LIMITS, limit_s: float = 30.0) -> Pixels:
    return decoding.decode(image, 4, limits, time.monotonic() + limit_s)


def refusal(image: bytes, limits: ImageLimits = LIMITS) -> str:
    with pytest.raises(InvalidImage) as caught:
        decode(image, limits)
    assert caught.value.fields == {"image": 4}
    assert caught.value.message.startswith("image 4 ")
    return caught.value.message


FILES = {
    "png": file_of(picture()),
    "jpeg": file_of(picture(), "JPEG"),
    "webp": file_of(picture(), "WEBP"),
    "gif": file_of(picture(), "GIF"),
    "bmp": file_of(picture(), "BMP"),
    "animated gif": file_of(
        picture("P"), "GIF", save_all=True, append_images=[picture("P", seed=1), picture("P", seed=2)]
    ),
    "turned": turned(),
    "mirrored": turned("PNG", 2),
    "transparent": file_of(picture("RGBA")),
    "transparent webp": file_of(picture("RGBA"), "WEBP", lossless=True),
    "grey": file_of(picture("L")),
    "grey and transparent": file_of(picture("LA")),
    "palette": file_of(picture("P")),
    "palette with a transparent colour": file_of(picture("P"), transparency=3),
    "black and white": file_of(picture("1")),
    "16 bits": file_of(picture("I;16")),
    "CMYK": file_of(picture("CMYK"), "JPEG"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_has_the_pixels_that_transformers_reads(name: str, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(FILES[name])
    expected = np.asarray(load_image(str(path)))
    found = decode(FILES[name])
    assert (found.width, found.height) == (expected.shape[1], expected.shape[0])
    assert bytes(found.rgb) == expected.tobytes()


@pytest.mark.parametrize(
    "image", [b"", b"not an image", file_of(picture(), "TIFF"), file_of(picture(), "PPM")]
)
def test_other_formats_are_refused_with_those_that_are_read(image: bytes) -> None:
    assert "allowed: PNG, JPEG, WEBP, GIF, BMP" in refusal(image)


@pytest.mark.parametrize("name", ["png", "jpeg", "webp", "bmp"])
def test_a_truncated_file_is_refused(name: str) -> None:
    whole = FILES[name]
    assert "is damaged or truncated" in refusal(whole[: len(whole) // 2])


@pytest.mark.parametrize(
    "size", [(400, 251), (600, 400)]
)  # Pillow warns of the one, and raises for the other
def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(size: tuple[int, int]) -> None:
    told = refusal(file_of(Image.new("RGB", size)))
    assert "more pixels than the 100,000 that EMBEDDING_MAX_IMAGE_PIXELS allows" in told
    assert decode(file_of(Image.new("RGB", (400, 250)))).width == 400


def test_a_file_of_too_many_bytes_is_refused_unread() -> None:
    told = refusal(bytes((1 << 20) + 1))
    assert "1,048,577 bytes; EMBEDDING_MAX_IMAGE_BYTES allows 1,048,576" in told


def test_a_strip_is_refused_that_a_processor_would_make_a_huge_image_of() -> None:
    assert "longest side may be 100 times its shortest" in refusal(file_of(Image.new("RGB", (301, 3))))
    assert decode(file_of(Image.new("RGB", (300, 3)))).height == 3


def test_one_process_decodes_many_images() -> None:
    decode(FILES["png"])
    before = {child.pid for child in psutil.Process().children()}
    for image in FILES.values():
        decode(image)
    assert {child.pid for child in psutil.Process().children()} == before


def test_a_process_that_is_killed_costs_at_most_its_own_call() -> None:
    limits = ImageLimits(bytes=1 << 20, pixels=60_000_000)  # processes of its own
    large = file_of(Image.new("RGB", (7000, 7000)))
    before = {child.pid for child in psutil.Process().children()}
    refused: list[InvalidImage] = []

    def decode_large() -> None:
        try:
            decode(large, limits)
        except InvalidImage as error:
            refused.append(error)

    thread = threading.Thread(target=decode_large)
    thread.start()
    child = wait_for(
        lambda: next((one for one in psutil.Process().children() if one.pid not in before), None)
    )
    wait_for(lambda: child.memory_info().rss > 250 << 20, what="the decoding")
    child.kill()
    thread.join()
    assert [re.sub(r"code .*", "", error.message) for error in refused] == [
        "image 4 could not be decoded: it ended the process with "
    ]
    assert decode(FILES["jpeg"], limits).width == 60


def test_no_image_is_decoded_after_the_deadline() -> None:
    with pytest.raises(DeadlineExceeded):
        decode(FILES["png"], limit_s=0.0)


class Slow:
    """Processes without an answer: at the deadline, or earlier, when the work itself is at its limit."""

    def __init__(self, at_deadline: bool) -> None:
        self.at_deadline = at_deadline

    def do(self, work: bytes, deadline: float, limit_s: float) -> bytes:
        while self.at_deadline and time.monotonic() < deadline:
            time.sleep(0.01)
        raise sandbox.Late("it took too long")


def test_an_image_that_waited_for_a_process_is_not_called_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "DECODE_S", 0.05)
    monkeypatch.setattr(decoding, "_processes", lambda limits: Slow(at_deadline=True))
    with pytest.raises(Overloaded, match="image 4 was not decoded: it waited too long"):
        decode(FILES["png"])
    monkeypatch.setattr(decoding, "_processes", lambda limits: Slow(at_deadline=False))
    assert "took over" in refusal(FILES["png"])
