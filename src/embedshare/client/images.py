"""The images among a caller's inputs, found as sentence-transformers finds them, and the files to send.

Pillow is not imported here: a caller that has one of its images has imported it.
"""

from __future__ import annotations

import os
import struct
import sys
import zlib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from embedshare.errors import InvalidImage, InvalidInput
from embedshare.images import data_url
from embedshare.images.addresses import ImageAddresses, is_url
from embedshare.settings import Settings

#: Ends of paths, and of URLs' paths, that mean an image.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".tiff", ".webp")
_CHANNELS = 3


def is_single(inputs: Any) -> bool:
    """Whether this is one input, not a batch."""
    if isinstance(inputs, str | bytes | dict | Path):
        return True
    return _is_pillow(inputs) or _is_pixels(inputs)


def may_be_image(item: Any) -> bool:
    """Whether an input is an image to a model that reads them.

    A str is one if it is a data URL of an image, or the path of a file or a URL that ends in EXTENSIONS. To a
    model that reads no images it is a text.
    """
    if isinstance(item, str):
        return _is_address(item)
    if isinstance(item, dict):
        return item.keys() == {"image"}
    return isinstance(item, bytes | Path) or _is_pillow(item) or _is_pixels(item)


def check_unmixed(items: list[Any]) -> None:
    """Raise InvalidInput for texts among images, as sentence-transformers does."""
    if not all(map(may_be_image, items)):
        raise InvalidInput(
            "This batch mixes multiple modalities (image, text), which the model cannot encode in a single "
            "batch. Encode each modality separately (one call per modality)."
        )


class ImageFiles:
    """Gives the content of images' files, by the settings."""

    def __init__(self, settings: Settings) -> None:
        self._max_bytes = settings.server.max_image_bytes
        self._addresses = ImageAddresses(settings)

    def content(self, item: Any, number: int, deadline: float) -> bytes:
        """The file of an image: its content as it is, or a PNG of pixels.

        A URL is fetched from a host of EMBEDDING_IMAGE_HOSTS, by the moment `deadline` of `time.monotonic()`.
        `number`: the image's number in its call, for errors. Raises InvalidInput, InvalidImage and
        MissingDependency.
        """
        item = item["image"] if isinstance(item, dict) else item
        if isinstance(item, bytes):
            return item
        if isinstance(item, str) and (is_url(item) or item.startswith(data_url.PREFIX)):
            return self._addresses.content(item, number, deadline)
        if isinstance(item, str | Path):
            return self._read(str(item), number)
        if _is_pillow(item):
            return png(_rgb(item))
        return png(_pixels(item, number))

    def _read(self, path: str, number: int) -> bytes:
        if not os.path.isfile(path):
            raise InvalidInput(f"image {number}: there is no file {path[:200]!r}")
        with open(path, "rb") as file:
            content = file.read(self._max_bytes + 1)
        if len(content) > self._max_bytes:
            raise InvalidImage(
                f"image {number} has over {self._max_bytes:,} bytes, which EMBEDDING_MAX_IMAGE_BYTES allows",
                image=number,
            )
        return content


def png(pixels: np.ndarray) -> bytes:
    """A PNG of uint8 pixels (height, width, 3), compressed for speed."""
    height, width, channels = pixels.shape
    flat = pixels.reshape(height, width * channels)
    rows = np.empty((height, 1 + flat.shape[1]), np.uint8)
    rows[:, 0] = 1  # the filter "Sub": each pixel is stored as its difference to the one on its left
    rows[:, 1 : 1 + channels] = flat[:, :channels]
    np.subtract(flat[:, channels:], flat[:, :-channels], out=rows[:, 1 + channels :])
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(rows.data, 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in parts)


def _chunk(kind: bytes, data: bytes) -> bytes:
    check = zlib.crc32(data, zlib.crc32(kind))
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)


def _is_address(text: str) -> bool:
    if text.startswith(data_url.PREFIX):
        return True
    if is_url(text):
        try:
            return urlsplit(text).path.lower().endswith(EXTENSIONS)
        except ValueError:
            return False
    return text[-5:].lower().endswith(EXTENSIONS) and os.path.isfile(text)


def _is_pillow(item: Any) -> bool:
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(item, pillow.Image)


def _is_pixels(item: Any) -> bool:
    """Whether this is an array or a tensor of numbers with three dimensions."""
    if getattr(item, "ndim", None) != 3 or not hasattr(item, "__array__"):
        return False
    return not (isinstance(item, np.ndarray) and item.dtype.kind in "UO")  # texts


def _rgb(image: Any) -> np.ndarray:
    """A Pillow image's pixels, on white where it is transparent: as transformers' processors convert it.

    Its EXIF orientation does not count.
    """
    from PIL import Image

    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return np.asarray(image.convert("RGB"))


def _pixels(item: Any, number: int) -> np.ndarray:
    pixels = np.asarray(item)
    if pixels.ndim != 3 or pixels.dtype != np.uint8 or _CHANNELS not in (pixels.shape[0], pixels.shape[2]):
        raise InvalidInput(
            f"image {number} must be an image, or uint8 pixels of shape (height, width, 3) or "
            f"(3, height, width), not {type(item).__name__} {getattr(item, 'dtype', '')} "
            f"{getattr(item, 'shape', '')}"
        )
    channels_first = pixels.shape[0] == _CHANNELS
    return np.ascontiguousarray(np.moveaxis(pixels, 0, 2) if channels_first else pixels)
