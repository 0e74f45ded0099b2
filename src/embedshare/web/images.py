"""Requests whose inputs are texts and images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from embedshare.calls import EmbedResult, placed
from embedshare.errors import InvalidInput
from embedshare.web.model_client import ModelClient
from embedshare.web.one_model import answered_by_one

#: The numbers of texts or images in a request, and their vectors.
Part = tuple[list[int], EmbedResult]


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

    def of_texts() -> tuple[set[str], list[Part]]:
        found = model_client.embed(list(texts.values()), normalize=True, dimensions=dimensions)
        return {found.identity}, [(list(texts), found)]

    return embed_both(model_client, images, of_texts if texts else None, dimensions)


def embed_both(
    model_client: ModelClient,
    images: dict[int, str],
    of_texts: Callable[[], tuple[set[str], list[Part]]] | None,
    dimensions: int | None,
) -> EmbedResult:
    """Vectors of length 1 of images and texts in the order of their numbers, all of one model.

    `images`: addresses by their numbers. `of_texts`: the models that read the request's texts, and the
    texts' vectors. Raises what the two kinds raise, and ModelMismatch.
    """

    def ask() -> tuple[set[str], EmbedResult]:
        seen: set[str] = set()
        parts: list[Part] = []
        if images:  # first: a model of texts refuses them
            parts.append((list(images), model_client.embed_images(images, dimensions=dimensions)))
        if of_texts is not None:
            seen, texts = of_texts()
            parts += texts
        return seen | {found.identity for _, found in parts}, placed(parts)

    return answered_by_one(ask)
