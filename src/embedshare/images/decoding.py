"""Decodes images in a separate process, which a file may crash, hang or fill: pixels alone come back.

A file is read as transformers' `load_image` reads it: the first frame, turned as its EXIF orientation says,
as RGB without its transparency.
"""

from __future__ import annotations

import io
import os
import struct
import time
from functools import cache
from typing import NamedTuple

from embedshare import platforms, sandbox
from embedshare.errors import DeadlineExceeded, InvalidImage, MissingDependency, Overloaded

#: Formats that are read, by Pillow's names. Others have decoders with a longer record of faults.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
#: The longest side of an image for each pixel of its shortest one. Processors make the shortest side as long
#: as the model's, and the longest one in proportion.
MAX_RATIO = 100
#: Seconds that one image may take.
DECODE_S = 10.0
#: Images that are decoded at once.
AT_ONCE = min(4, os.cpu_count() or 1)
#: Memory of the process: for its libraries, and for each pixel while an image is turned and converted.
_BASE_BYTES, _PIXEL_BYTES = 256 << 20, 24
_CHANNELS = 3
_LIMITS = struct.Struct("<QQ")
_SIZE = struct.Struct("<II")
_DECODED, _REFUSED = b"\0", b"\1"


class Pixels(NamedTuple):
    """A decoded image."""

    width: int
    height: int
    rgb: memoryview
    """Height x width x 3 bytes."""


class ImageLimits(NamedTuple):
    """The largest image."""

    bytes: int
    pixels: int


def require() -> None:
    """Raise MissingDependency if the package that reads images is not installed."""
    try:
        sandbox.require("PIL")
    except ImportError as error:
        raise MissingDependency(
            f"images need a package that is not installed ({error}): pip install 'embedshare[server]'"
        ) from None


def decode(image: bytes, number: int, limits: ImageLimits, deadline: float) -> Pixels:
    """The pixels of an image's file, by the moment `deadline` of `time.monotonic()`.

    `number`: the image's number in its call, for errors. Raises InvalidImage, DeadlineExceeded, and
    Overloaded if no process was free in time.
    """
    if len(image) > limits.bytes:
        raise refused(number, f"has {len(image):,} bytes; EMBEDDING_MAX_IMAGE_BYTES allows {limits.bytes:,}")
    if time.monotonic() >= deadline:
        raise DeadlineExceeded(f"there was no time left to decode image {number}")
    until = min(deadline, time.monotonic() + 2 * DECODE_S)
    try:
        answer = _processes(limits).do(_LIMITS.pack(*limits) + image, until, DECODE_S)
    except sandbox.Busy as error:
        if time.monotonic() >= deadline:
            raise DeadlineExceeded("no process was free in time to decode an image") from None
        raise Overloaded(f"image {number} was not decoded: {error}", retry_after_s=1.0) from None
    except sandbox.Late:
        if time.monotonic() >= deadline:
            raise DeadlineExceeded(f"image {number} was not decoded in time") from None
        if time.monotonic() >= until:  # it waited for a process most of the time: the file need not be wrong
            raise Overloaded(
                f"image {number} was not decoded: it waited too long", retry_after_s=1.0
            ) from None
        raise refused(number, f"took over {DECODE_S:g} s to decode") from None
    except sandbox.Lost as error:
        raise refused(number, f"could not be decoded: {error}") from None
    if answer[:1] != _DECODED:
        raise refused(number, answer[1:].decode(errors="replace"))
    return _pixels(answer, number, limits)


def refused(number: int, why: str) -> InvalidImage:
    """The error for an image of a call."""
    return InvalidImage(f"image {number} {why}", image=number)


def _pixels(answer: bytes, number: int, limits: ImageLimits) -> Pixels:
    """The child's answer, which is not trusted either."""
    if len(answer) >= 1 + _SIZE.size:
        width, height = _SIZE.unpack_from(answer, 1)
        rgb = memoryview(answer)[1 + _SIZE.size :]
        if 0 < width * height <= limits.pixels and len(rgb) == width * height * _CHANNELS:
            return Pixels(width, height, rgb)
    raise refused(number, "could not be decoded: the process gave no whole image")


@cache
def _processes(limits: ImageLimits) -> sandbox.Sandbox:
    longest = max(limits.bytes + _LIMITS.size, limits.pixels * _CHANNELS + _SIZE.size + 1)
    return sandbox.Sandbox(__name__, at_once=AT_ONCE, longest=longest)


def main() -> None:
    """The separate process."""
    from PIL import Image

    Image.preinit()  # the formats are imported before the first image
    sandbox.serve(_answer, longest=_LONGEST_SETTING)


#: A file's largest size by any setting; the parent sends none that its own setting refuses.
_LONGEST_SETTING = 1 << 31


def _answer(message: bytes) -> bytes:
    limits = ImageLimits(*_LIMITS.unpack_from(message))
    platforms.limit_own_memory(_BASE_BYTES + len(message) + _PIXEL_BYTES * limits.pixels)
    try:
        return _decoded(message[_LIMITS.size :], limits.pixels)
    except InvalidImage as error:
        why = error.message
    except MemoryError:
        why = "needs more memory to decode than an image may take"
    except Exception as error:  # a decoder of untrusted input: whatever it raises, the file is what is wrong
        why = f"is damaged or truncated ({type(error).__name__}: {str(error)[:200]})"
    return _REFUSED + why.encode()


def _decoded(image: bytes, max_pixels: int) -> bytes:
    from PIL import Image, ImageOps, UnidentifiedImageError

    Image.MAX_IMAGE_PIXELS = max_pixels  # beyond twice as many Pillow raises, before it only warns
    try:
        opened = Image.open(io.BytesIO(image), formats=FORMATS)
    except Image.DecompressionBombError:
        raise _too_many_pixels(max_pixels) from None
    except UnidentifiedImageError:
        raise InvalidImage(f"is no image that is read; allowed: {', '.join(FORMATS)}") from None
    with opened:
        _check_size(*opened.size, max_pixels)
        rgb = ImageOps.exif_transpose(opened).convert("RGB")
    return b"".join((_DECODED, _SIZE.pack(*rgb.size), rgb.tobytes()))


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise _too_many_pixels(max_pixels)
    if max(width, height) > MAX_RATIO * min(width, height):
        raise InvalidImage(
            f"has {width:,} x {height:,} pixels; its longest side may be {MAX_RATIO} times its shortest"
        )


def _too_many_pixels(max_pixels: int) -> InvalidImage:
    return InvalidImage(f"has more pixels than the {max_pixels:,} that EMBEDDING_MAX_IMAGE_PIXELS allows")


if __name__ == "__main__":
    main()
