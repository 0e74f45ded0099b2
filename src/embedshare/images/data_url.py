"""Data URLs of images (RFC 2397, in base64), as APIs take them."""

from __future__ import annotations

import base64
import binascii

from embedshare.errors import InvalidImage

PREFIX = "data:image/"


def image_in(url: str, max_bytes: int, number: int = 0) -> bytes:
    """The content of the image's file in `data:image/...;base64,...`.

    `number`: the image's number in its call, for errors. Raises InvalidImage for another form, and for more
    than `max_bytes`, which are not decoded.
    """
    head, comma, encoded = url.partition(",")
    if not (head.lower().startswith(PREFIX) and head.lower().endswith(";base64") and comma):
        raise InvalidImage(f"image {number} is no data URL of the form {PREFIX}png;base64,…", image=number)
    if len(encoded) > (max_bytes + 2) // 3 * 4 + 4:
        raise InvalidImage(
            f"image {number} has about {len(encoded) * 3 // 4:,} bytes; EMBEDDING_MAX_IMAGE_BYTES allows "
            f"{max_bytes:,}",
            image=number,
        )
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidImage(f"image {number} is no base64", image=number) from None
