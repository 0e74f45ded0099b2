"""Proof that models share a vector space: each embeds the same eight texts, and the vectors agree."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import msgspec
import numpy as np

from embedshare import private_file
from embedshare.calls import CallContext, EmbedRequest
from embedshare.errors import ModelMismatch
from embedshare.models.spec import ModelSpec
from embedshare.providers.base import LoadedProvider

#: Texts of several kinds and languages: models that differ at all differ in one of them.
TEXTS = [
    "The bridge was closed for repairs until Thursday.",
    "def mean(values): return sum(values) / len(values)",
    "Wie lange dauert der Versand nach Österreich?",
    "東京の明日の天気を教えてください。",
    "Invoice 20391-B: 14 pallets, 3.5 t, EUR 1,280.00",
    "The patient reported mild dizziness after the second dose of the new medication.",
    "¿Dónde puedo cambiar la contraseña de mi cuenta?",
    "no",
]
#: The smallest cosine of two vectors of one text, and the largest share by which their lengths differ.
LEAST_COSINE, MOST_LENGTH = 0.999, 0.01


class _Note(msgspec.Struct):
    """The file of a space: the model whose vectors were the first, and those as float32."""

    space: str
    model: str
    dimension: int
    rows: bytes


class Canaries:
    """The vectors of the first model of each space, which later ones must match; thread-safe.

    They are kept in `folder`, so that a model is proved while the others are away.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()

    def check(self, spec: ModelSpec, provider: LoadedProvider, context: CallContext) -> None:
        """Raise ModelMismatch if the model is not of the space that its specification names; and what
        embedding raises. The first model of a space defines it."""
        if spec.space is None:
            return
        rows = provider.embed(EmbedRequest(TEXTS, ""), context).rows
        path = self._folder / f"{hashlib.sha256(spec.space.encode()).hexdigest()[:32]}.json"
        with self._lock:
            note = private_file.read_note(path, _Note)
            if note is None:
                content = _Note(spec.space, spec.name, rows.shape[1], rows.astype("<f4").tobytes())
                private_file.replace(path, msgspec.json.encode(content))
                return
        fault = _fault(np.frombuffer(note.rows, "<f4").reshape(-1, note.dimension), rows)
        if fault is not None:
            raise ModelMismatch(
                f"{spec.id} is not of the space {spec.space!r}, which {note.model} defined: {fault}; give it "
                f"another space, or, if no vector of {note.model} is left anywhere, delete {path}"
            )


def _fault(expected: np.ndarray, found: np.ndarray) -> str | None:
    """The difference of two models' vectors; None if they agree."""
    if expected.shape != found.shape:
        return f"{found.shape[1]} dimensions, not {expected.shape[1]}"
    lengths = np.linalg.norm(expected, axis=1), np.linalg.norm(found, axis=1)
    if not (lengths[0].all() and lengths[1].all()):
        return "a vector is zero"
    cosine = float(np.min(np.sum(expected * found, axis=1) / (lengths[0] * lengths[1])))
    if cosine < LEAST_COSINE:
        return f"the vectors of a test text have a cosine of {cosine:.4f}, and {LEAST_COSINE} is needed"
    if float(np.max(np.abs(lengths[1] / lengths[0] - 1))) > MOST_LENGTH:
        return "its vectors have other lengths (one of them normalises)"
    return None
