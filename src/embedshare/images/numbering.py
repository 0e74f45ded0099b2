"""The numbers by which errors name images: those that a caller counts by."""

from __future__ import annotations

from embedshare.errors import InvalidImage


def renumbered(error: InvalidImage, numbers: list[int] | range) -> InvalidImage:
    """The error of an image that is number `numbers[i]` to the caller, and i in the error."""
    number: int = error.fields["image"]
    message = error.message.replace(f"image {number} ", f"image {numbers[number]} ", 1)
    return InvalidImage(message, image=numbers[number])
