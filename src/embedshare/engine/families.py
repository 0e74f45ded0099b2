"""The family of the model in a folder: embedding, cross-encoder, sparse or multi-vector."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple, cast

from embedshare.engine import weights
from embedshare.identity import Family, identity_of
from embedshare.settings import Settings

#: By the class that saved the folder, in its config_sentence_transformers.json; PyLate's is ColBERT.
_OF_CLASS: dict[str, Family] = {
    "SentenceTransformer": "embedding",
    "CrossEncoder": "cross-encoder",
    "SparseEncoder": "sparse",
    "MultiVectorEncoder": "multi-vector",
    "ColBERT": "multi-vector",
}
#: By the last module of a folder whose saver names no class.
_OF_MODULE: dict[str, Family] = {
    "SpladePooling": "sparse",
    "SparseAutoEncoder": "sparse",
    "SparseStaticEmbedding": "sparse",
    "LogitScore": "cross-encoder",
    "MultiVectorMask": "multi-vector",
}


class Located(NamedTuple):
    """The model that settings name, on disk."""

    folder: Path
    family: Family
    identity: str


def locate(settings: Settings) -> Located:
    """Find the model that the settings name. Raises ModelNotFound, WeightsCorrupted."""
    folder = weights.find(settings.model.name, settings.model.cache_dir)
    family = family_of(folder) if settings.model.family == "auto" else cast(Family, settings.model.family)
    return Located(folder, family, identity_of(folder, family))


def family_of(folder: Path) -> Family:
    """The family that the folder's files say. sentence-transformers decides by the same files."""
    said = _read(folder / "config_sentence_transformers.json")
    kind = said.get("model_type") if isinstance(said, dict) else None
    if isinstance(kind, str):
        return _OF_CLASS.get(kind, "embedding")
    found = _read(folder / "config.json")
    named = found.get("architectures") if isinstance(found, dict) else None
    architectures = named if isinstance(named, list) else []
    if "HF_ColBERT" in architectures:
        return "multi-vector"
    modules = _read(folder / "modules.json")
    if not isinstance(modules, list):
        is_classifier = any(str(one).endswith("ForSequenceClassification") for one in architectures)
        return "cross-encoder" if is_classifier else "embedding"
    names = [str(one.get("type", "")).rpartition(".")[2] for one in modules if isinstance(one, dict)]
    return next((_OF_MODULE[name] for name in reversed(names) if name in _OF_MODULE), "embedding")


def _read(file: Path) -> Any:
    """The content of a JSON file; None without one. `identity_of` raises for a broken one."""
    try:
        return json.loads(file.read_text(encoding="utf8"))
    except (OSError, ValueError):
        return None
