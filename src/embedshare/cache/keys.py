"""Keys of cached vectors: a digest of all that a vector depends on."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import cast

import numpy as np

from embedshare.calls import EmbedRequest, are_tokens
from embedshare.identity import ModelDescription

#: The version of keys and rows; another one makes every entry unknown.
FORMAT = 1
#: Bytes of a key.
SIZE = 16
#: The tasks that callers embed a text for.
TASKS = (None, "query", "document")


def space_of(model: ModelDescription) -> bytes:
    """The key of the model's vectors as a whole: its vector space, and the runtime and precision, with which
    they differ a little."""
    return _digest([str(FORMAT), model.identity, model.runtime, model.dtype, model.device]).digest()


def keys_of(request: EmbedRequest, space: bytes) -> list[bytes]:
    """A key for each text, or sequence of token ids, of a request whose prompt is a text.

    Length and normalisation of the returned vectors are not part of it: the whole vector is cached.
    """
    if are_tokens(request.inputs):
        begun = blake2b(space + b"ids", digest_size=SIZE)
        return [_ended(begun, np.asarray(ids, np.int64).tobytes()) for ids in request.inputs]
    texts = cast("list[str]", request.inputs)
    fields = [request.prompt or "", request.task or "", "cut" if request.truncate else "whole"]
    begun = _digest(fields, space + b"text")
    return [_ended(begun, text.encode("utf-8", "surrogatepass")) for text in texts]


def keys_of_forms(texts: list[str], prompts: Iterable[str], space: bytes) -> Iterator[bytes]:
    """The keys of texts with each of these prompts, each task, and truncated or not."""
    for prompt in prompts:
        for task in TASKS:
            for truncate in (True, False):
                yield from keys_of(EmbedRequest(texts, prompt, task=task, truncate=truncate), space)


def _digest(fields: list[str], start: bytes = b"") -> blake2b:
    """Length-prefixed, so that no two lists of fields have one digest's input."""
    digest = blake2b(start, digest_size=SIZE)
    for field in fields:
        data = field.encode("utf-8", "surrogatepass")
        digest.update(struct.pack("<Q", len(data)) + data)
    return digest


def _ended(begun: blake2b, data: bytes) -> bytes:
    digest = begun.copy()
    digest.update(data)
    return digest.digest()
