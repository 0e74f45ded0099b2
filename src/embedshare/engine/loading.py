"""Loads the model that the settings name: its weights, its identity, and its runtime.

On a CPU OpenVINO runs the model. It reads the graph of an earlier start, which takes about a second and no
torch, or converts one now. Otherwise torch runs it: packed, padded, or in sentence-transformers itself if no
faster form has its vectors.
"""

from __future__ import annotations

import importlib.util
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec
from loguru import logger

from embedshare import folders, platforms
from embedshare.engine import families, weights
from embedshare.engine.agreement import KeptOutputs
from embedshare.engine.families import Located
from embedshare.engine.graph_cache import AnyProof, GraphCache
from embedshare.engine.kept_scores import KeptScores
from embedshare.engine.metadata import ModelMetadata
from embedshare.engine.ready_model import (
    ReadyModel,
    graph_cache,
    in_openvino,
    require,
    text_tokenizer,
    wants_openvino,
)
from embedshare.engine.runtimes.base import Runtime
from embedshare.engine.runtimes.heads import ScoresHead
from embedshare.engine.runtimes.static import StaticRuntime
from embedshare.engine.sequences import Tokenizing
from embedshare.engine.tokens import TextTokenizer
from embedshare.engine.trials import KeptProof, Trial
from embedshare.errors import UnsupportedModel
from embedshare.identity import ModelDescription, check_identity
from embedshare.settings import Settings

if TYPE_CHECKING:
    from embedshare.engine.runtimes.vision import VisionRuntime

#: Texts that warm a runtime up: lengths from one word to several lines.
SAMPLE = [
    "model",
    "one model, many workers",
    "How is an embedding shared between processes? " * 3,
    "vector " * 60,
]


class EngineParts(NamedTuple):
    """The parts of an engine."""

    runtime: Runtime
    tokenizer: Tokenizing
    description: ModelDescription
    full_dimension: int | None
    """The values of the runtime's rows: `description.dimension` or more, or a cross-encoder's labels. None:
    rows have different sizes (see text_outputs)."""

    vision: VisionRuntime | None
    """The runtime of images, if the model reads them."""


def load(
    settings: Settings, device: str, expected_identity: str | None, reads_images: bool = True
) -> EngineParts:
    """Find, verify and load the model that the settings name, on `device`; without its image side unless
    `reads_images`.

    Raises MissingDependency, ModelNotFound, WeightsCorrupted, UnsupportedModel; and ModelMismatch, before
    loading, if the model is not of the vector space that `expected_identity` names.
    """
    located = families.locate(settings)
    check_identity(expected_identity, located.identity, f"the model in {located.folder}")
    device = _known(device)
    runtime, tokenizer, facts = _ready(settings, device, located)
    try:
        vision = _vision(settings, runtime.device, located.folder, facts) if reads_images else None
    except BaseException:
        runtime.close()
        raise
    facts = facts if vision else msgspec.structs.replace(facts, modalities=("text",))
    described = facts.description(
        located.identity, settings.model.name, runtime.device, runtime.dtype, runtime.name
    )
    return EngineParts(runtime, tokenizer, described, facts.full_dimension, vision)


def needs_first_runs(settings: Settings, device: str, expected_identity: str | None) -> bool:
    """Whether `load` would convert the model, or run its graph in a precision for the first time.
    Conversion takes torch, memory and time; a first run crashes some processes.

    Raises ModelNotFound, WeightsCorrupted, ModelMismatch.
    """
    return bool(_untried(settings, device, expected_identity))


def after_fault(settings: Settings, device: str, how: str) -> Settings:
    """Record what crashed the preparing process; returns the settings for the next try.

    `how` says how it ended. Raises what `needs_first_runs` raises, and UnsupportedModel if no form is left
    because EMBEDDING_RUNTIME is openvino.
    """
    untried = _untried(settings, device, None)
    identity = families.locate(settings).identity
    cache = graph_cache(settings)
    if untried in ("bfloat16", "float32"):
        from embedshare.engine.runtimes.openvino import cpu_kind

        cache.trials(identity, cpu_kind()).keep(untried, Trial(None))
    else:
        cache.refuse(identity, f"converting the model ended the process ({how})")
    if untried == "bfloat16":
        logger.warning(
            "Computing in float32, not bfloat16 (OpenVINO ended the process that tried {}: {})",
            settings.model.name, how,
        )  # fmt: skip
        return settings.with_values({"EMBEDDING_DTYPE": "float32"})
    why = f"the process that converted or tried {settings.model.name} ended with {how}"
    if settings.model.runtime == "openvino":
        raise UnsupportedModel(f"{why}; set EMBEDDING_RUNTIME=torch to serve it")
    logger.warning("Running the model with torch, not OpenVINO ({})", why)
    return settings.with_values({"EMBEDDING_RUNTIME": "torch"})


def _untried(settings: Settings, device: str, expected_identity: str | None) -> str:
    """What `load` would do for the first time: "conversion", or a precision to run the graph in; else ""."""
    if not wants_openvino(settings, _known(device)):
        return ""
    folder, _, identity = families.locate(settings)
    check_identity(expected_identity, identity, f"the model in {folder}")
    cache = graph_cache(settings)
    if cache.refusal(identity) is not None:
        return ""
    kept = cache.find(identity)
    if kept is None:
        return "conversion"
    if kept.facts.layout is None:  # no graph
        return ""
    from embedshare.engine.runtimes.first_runs import untried
    from embedshare.engine.runtimes.openvino import cpu_kind

    return untried(settings.model.dtype, cache.trials(identity, cpu_kind()))


def load_libraries(settings: Settings, device: str) -> None:
    """Load what all models on the CPU need, and choose their precision: memory that no one model takes."""
    if _known(device) == "cpu" and settings.model.runtime != "torch" and importlib.util.find_spec("openvino"):
        from embedshare.engine.runtimes import openvino

        with suppress(UnsupportedModel):  # the load itself raises it, or falls back to torch
            openvino.resolve_dtype(settings.model.dtype)


def kept_bytes(settings: Settings) -> int:
    """The memory that the model took when it was loaded here before; 0 if that is not known.

    Raises ModelNotFound, WeightsCorrupted.
    """
    return _memory_notes(settings).bytes_of(families.locate(settings).identity)


def keep_bytes(settings: Settings, identity: str, size: int) -> None:
    """Store the memory that the model took, for `kept_bytes`."""
    _memory_notes(settings).keep_bytes(identity, size)


def same_device(one: str, other: str) -> bool:
    """Whether two settings of the device certainly mean one device."""
    return _known(one) == _known(other)


def _known(device: str) -> str:
    """`device`, with "auto" as the CPU if there is certainly no other."""
    return "cpu" if device == "auto" and not platforms.may_have_gpu() else device


def _ready(settings: Settings, device: str, located: Located) -> ReadyModel:
    try:
        kept = _kept(settings, device, located.identity)
    except UnsupportedModel as error:
        if settings.model.runtime == "openvino":
            raise
        logger.info("Not running {} with OpenVINO ({})", settings.model.name, error)
        kept, settings = None, settings.with_values({"EMBEDDING_RUNTIME": "torch"})
    if kept is not None:
        return kept
    require("torch", "sentence_transformers")
    folders.check_temporary("torch")
    from embedshare.engine import forms

    return forms.fastest(settings, device, located)


def _kept(settings: Settings, device: str, identity: str) -> ReadyModel | None:
    """A runtime over the files of an earlier start.

    Raises UnsupportedModel if they say that OpenVINO does not run the model.
    """
    if not wants_openvino(settings, device):
        return None
    cache = graph_cache(settings)
    refusal = cache.refusal(identity)
    if refusal is not None:
        raise UnsupportedModel(refusal)
    kept = cache.find(identity)
    if kept is None:
        return None
    facts = kept.facts
    try:
        if facts.normalized_rows is not None:
            runtime: Runtime = StaticRuntime.read(kept.graph.parent, facts.normalized_rows)
            return ReadyModel(runtime, TextTokenizer(kept.tokenizer, special_tokens=False), facts)
        kind = _kind_of_proof(facts)
        runtime = in_openvino(settings, identity, kept.graph, facts, partial(cache.proof, identity, kind))
        return ReadyModel(runtime, text_tokenizer(kept.tokenizer, facts), facts)
    except (RuntimeError, OSError, ValueError) as error:
        logger.warning(
            "Converting the model again (the graph in {} does not load: {})", kept.graph.parent, error
        )
        cache.forget(identity)
        return None


def _kind_of_proof(facts: ModelMetadata) -> type[AnyProof]:
    if facts.head is None:
        return KeptProof
    return KeptScores if isinstance(facts.head, ScoresHead) else KeptOutputs


def _vision(settings: Settings, device: str, folder: Path, facts: ModelMetadata) -> VisionRuntime | None:
    """The runtime of a model's images; None if it reads none, or none as sentence-transformers does."""
    if "image" not in facts.modalities or facts.full_dimension is None:
        return None
    from embedshare.engine.runtimes import vision

    trusted = weights.is_among(settings.model.name, settings.model.trust_remote_code)
    try:
        return vision.load(folder, device, trusted, facts.full_dimension)
    except UnsupportedModel as error:
        logger.warning("Serving no images with {} ({})", settings.model.name, error)
        return None


def _memory_notes(settings: Settings) -> GraphCache:
    """The cache for models that need no graph too."""
    has_openvino = importlib.util.find_spec("openvino") is not None
    return graph_cache(settings) if has_openvino else GraphCache(folders.cache(settings) / "graphs", "none")
