"""Data URLs of images (RFC 2397, in base64), as APIs take them, and bare base64."""

from __future__ import annotations

import base64
import binascii

from embedshare.errors import InvalidImage

PREFIX = "data:image/"


def image_in(text: str, max_bytes: int, number: int = 0) -> bytes:
    """The content of the image's file in `data:image/...;base64,...`, or in base64 alone.

    `number`: the image's number in its call, for errors. Raises InvalidImage for another form, and for more
    than `max_bytes`, which are not decoded.
    """
    encoded = text
    if text[:5].lower() == "data:":
        head, comma, encoded = text.partition(",")
        head = head.lower()
        if not (comma and head.startswith(PREFIX) and head.endswith(";base64")):
            raise InvalidImage(
                f"image {number} is no data URL of the form {PREFIX}png;base64,…", image=number
            )
    if len(encoded) > (max_bytes + 2) // 3 * 4:
        raise InvalidImage(
            f"image {number} has about {len(encoded) * 3 // 4:,} bytes; EMBEDDING_MAX_IMAGE_BYTES allows "
            f"{max_bytes:,}",
            image=number,
        )
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidImage(f"image {number} is not in base64", image=number) from None
