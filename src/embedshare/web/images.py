"""Requests whose inputs are texts and images."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from embedshare.calls import EmbedResult, placed
from embedshare.errors import InvalidInput
from embedshare.web.model_client import ModelClient


class TextOrImage(msgspec.Struct):
    """A text, or an image: a data URL, base64, or a URL of a host that `EMBEDDING_IMAGE_HOSTS` names."""

    text: str | None = None
    image: str | None = None


def embed(model_client: ModelClient, items: Sequence[TextOrImage], dimensions: int | None) -> EmbedResult:
    """Vectors of length 1 in the items' order, all of one model. Raises what the two kinds raise."""
    for number, item in enumerate(items):
        if (item.text is None) == (item.image is None):
            raise InvalidInput(f"item {number} of the input must have one of `text` and `image`")
    texts = {number: item.text for number, item in enumerate(items) if item.text is not None}
    images = {number: item.image for number, item in enumerate(items) if item.image is not None}
    parts: list[tuple[list[int], EmbedResult]] = []
    if images:  # first: a model of texts refuses them
        parts.append((list(images), model_client.embed_images(images, dimensions=dimensions)))
    if texts:
        found = model_client.embed(list(texts.values()), normalize=True, dimensions=dimensions)
        parts.append((list(texts), found))
    if len({part.identity for _, part in parts}) > 1:  # the model was replaced between the two
        return embed(model_client, items, dimensions)
    return placed(parts)
