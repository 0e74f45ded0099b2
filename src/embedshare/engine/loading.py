"""Settings to a loaded model: where its weights are, what it is, and which runtime is to run it.

On a CPU OpenVINO runs the model: from a graph that an earlier start kept, which takes about a second and no
torch, else from one that is converted now. Everything else is torch's: packed, padded, or
sentence-transformers itself for a model whose vectors no faster form has.
"""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec
from loguru import logger

from embedshare import folders, platforms
from embedshare.engine import weights
from embedshare.engine.facts import ModelFacts
from embedshare.engine.graphs import GraphCache
from embedshare.engine.runtimes.interface import Runtime
from embedshare.engine.runtimes.static import StaticRuntime
from embedshare.engine.sequences import Tokenizing
from embedshare.engine.tokens import TextTokenizer
from embedshare.errors import MissingDependency, UnsupportedModel
from embedshare.identity import ModelDescription, check_identity, identity_of
from embedshare.settings import Settings

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from embedshare.engine.runtimes.proof import Proof

#: What a runtime is warmed up with: lengths from one word to several lines.
SAMPLE = [
    "model",
    "one model, many workers",
    "How is an embedding shared between processes? " * 3,
    "vector " * 60,
]


class LoadedModel(NamedTuple):
    """What an engine is made of."""

    runtime: Runtime
    tokenizer: Tokenizing
    description: ModelDescription
    full_dimension: int
    """What the runtime computes: `description.dimension`, or more."""


def load(settings: Settings, device: str, expected_identity: str | None) -> LoadedModel:
    """Find, verify and load the model that the settings name, on `device`.

    Raises MissingDependency, ModelNotFound, WeightsCorrupted, UnsupportedModel; and ModelMismatch, before
    anything is loaded, where the model is not of the vector space that `expected_identity` names.
    """
    folder = weights.find(settings.model.name, settings.model.cache_dir)
    identity = identity_of(folder)
    check_identity(expected_identity, identity, f"the model in {folder}")
    device = _known(device)
    runtime, tokenizer, facts = _kept(settings, device, identity) or _made(settings, device, identity, folder)
    described = facts.description(identity, settings.model.name, runtime.device, runtime.dtype, runtime.name)
    return LoadedModel(runtime, tokenizer, described, facts.full_dimension)


def needs_conversion(settings: Settings, device: str) -> bool:
    """Whether `load` would begin by converting the model, which takes torch, memory and a while.

    Raises ModelNotFound, WeightsCorrupted.
    """
    if not _wants_openvino(settings, _known(device)):
        return False
    found = _graph_cache(settings).find(
        identity_of(weights.find(settings.model.name, settings.model.cache_dir))
    )
    return found is None


def same_device(one: str, other: str) -> bool:
    """Whether two settings of the device are plainly one device."""
    return _known(one) == _known(other)


def _known(device: str) -> str:
    """`device`, where "auto" is the CPU if there is plainly no other."""
    return "cpu" if device == "auto" and not platforms.may_have_gpu() else device


class _Parts(NamedTuple):
    """A model that is ready to run."""

    runtime: Runtime
    tokenizer: Tokenizing
    facts: ModelFacts


def _kept(settings: Settings, device: str, identity: str) -> _Parts | None:
    """A runtime over what an earlier start has kept."""
    if not _wants_openvino(settings, device):
        return None
    from embedshare.engine.runtimes.openvino import OpenVinoRuntime

    cache = _graph_cache(settings)
    kept = cache.find(identity)
    if kept is None:
        return None
    try:
        if kept.facts.normalized_rows is not None:
            runtime: Runtime = StaticRuntime.read(kept.graph.parent, kept.facts.normalized_rows)
            return _Parts(runtime, TextTokenizer(kept.tokenizer, special_tokens=False), kept.facts)
        if kept.facts.layout is None:
            return None
        runtime = OpenVinoRuntime(kept.graph, kept.facts.layout, settings.model.dtype)
        return _Parts(runtime, _text_tokenizer(kept.tokenizer, kept.facts), kept.facts)
    except (RuntimeError, OSError, ValueError) as error:
        logger.warning(
            "the converted graph in {} does not load and is made anew: {}", kept.graph.parent, error
        )
        cache.forget(identity)
        return None
    except UnsupportedModel as error:
        if settings.model.runtime == "openvino":
            raise
        logger.info("{}; torch runs it instead", error)
        return None


def _made(settings: Settings, device: str, identity: str, folder: Path) -> _Parts:
    """A runtime over the model itself, loaded with torch, in the fastest form that agrees with it."""
    _require("torch", "sentence_transformers")
    folders.check_temporary("torch")
    from embedshare.engine.runtimes import embedder as embedders
    from embedshare.engine.runtimes.proof import prove
    from embedshare.engine.runtimes.torch import resolve_device
    from embedshare.engine.runtimes.whole import WholeRuntime, WholeTokenizer

    device = resolve_device(device)
    if settings.model.runtime == "openvino" and device != "cpu":
        message = f"EMBEDDING_RUNTIME is openvino, for CPUs; EMBEDDING_DEVICE is {device}"
        raise UnsupportedModel(message, setting="device")
    trusted = weights.is_among(settings.model.name, settings.model.trust_remote_code)
    model = embedders.load(folder, device, trusted)
    if not (folder / "modules.json").is_file():
        pooling = getattr(model[-1], "pooling_mode", "the model itself")
        logger.warning("Pooling tokens by {} ({} has no modules.json that says how)", pooling, folder)
    proof = prove(model)
    facts = embedders.facts_of(model, proof)
    model.truncate_dim = None
    try:
        if type(model[0]).__name__ == "StaticEmbedding":
            return _static(settings, device, identity, model, proof, facts)
        return _fast(settings, device, identity, model, proof, facts)
    except UnsupportedModel as error:
        if settings.model.runtime == "openvino":
            raise
        logger.info("Running {} with sentence-transformers, at its speed ({})", settings.model.name, error)
    runtime = WholeRuntime(model, facts.full_dimension)
    return _Parts(runtime, WholeTokenizer(model, facts.max_seq_length), facts)


def _fast(
    settings: Settings,
    device: str,
    identity: str,
    model: SentenceTransformer,
    proof: Proof,
    facts: ModelFacts,
) -> _Parts:
    """The model's modules over token ids, in the first form that agrees with the proof.

    Raises UnsupportedModel where none does.
    """
    from embedshare.engine.runtimes import embedder as embedders
    from embedshare.engine.runtimes.padded import PaddedRuntime
    from embedshare.engine.runtimes.proof import in_batches
    from embedshare.engine.runtimes.torch import TorchRuntime, resolve_dtype

    serialized = embedders.tokenizer_of(model)
    template = embedders.template_of(model, serialized)
    facts = msgspec.structs.replace(facts, task_cuts=embedders.task_cuts(model), template=template)
    tokenizer = _text_tokenizer(serialized, facts)
    sequences = [tokenizer([text], prompt, task=task)[0] for text, prompt, task in proof.samples]
    proof.check(in_batches(sequences, partial(embedders.plain_forward, model)), "its modules over token ids")
    embedders.check_cut(model, tokenizer)
    if device.startswith("cuda"):
        return _Parts(PaddedRuntime(model, resolve_dtype(settings.model.dtype, device)), tokenizer, facts)
    form = embedders.find_form(model, proof, sequences)
    facts = msgspec.structs.replace(facts, layout=form[1] if form else None)
    if _wants_openvino(settings, device):
        from embedshare.engine.runtimes.conversion import convert
        from embedshare.engine.runtimes.openvino import OpenVinoRuntime, write_graph

        try:
            if form is None:
                raise UnsupportedModel("the model agrees with itself in no layout that one graph can take")
            embedder, layout = form
            graph = convert(embedder, layout, proof, sequences)
            runtime = OpenVinoRuntime(graph, layout, settings.model.dtype)
            _graph_cache(settings).keep(identity, facts, serialized, lambda path: write_graph(graph, path))
            return _Parts(runtime, tokenizer, facts)
        except UnsupportedModel as error:
            if settings.model.runtime == "openvino":
                raise
            logger.info("{}; torch runs it instead", error)
    dtype = resolve_dtype(settings.model.dtype, device)
    if form is None or form[1].one_text_a_row:
        logger.info("the model does not take packed batches; they are padded instead")
        return _Parts(PaddedRuntime(model, dtype), tokenizer, facts)
    embedder, layout = form
    return _Parts(TorchRuntime(embedder, device, layout, dtype), tokenizer, facts)


def _static(
    settings: Settings,
    device: str,
    identity: str,
    model: SentenceTransformer,
    proof: Proof,
    facts: ModelFacts,
) -> _Parts:
    """A StaticEmbedding in NumPy. Raises UnsupportedModel where that does not agree with the proof."""
    serialized = model.tokenizer.to_str()
    tokenizer = TextTokenizer(serialized, special_tokens=False)
    others = [type(module).__name__ for module in model][1:]
    if others not in ([], ["Normalize"]):
        raise UnsupportedModel(f"{others[0]} follows its StaticEmbedding")
    runtime = StaticRuntime(model[0].embedding.weight.detach().cpu().numpy(), bool(others))
    proof.check(
        runtime.run([tokenizer([text], prompt)[0] for text, prompt, _ in proof.samples]), "means of rows"
    )
    facts = msgspec.structs.replace(
        facts, max_seq_length=tokenizer.max_seq_length, normalized_rows=bool(others)
    )
    if _wants_openvino(settings, device):  # whose version the cache of all that is kept goes by
        _graph_cache(settings).keep(identity, facts, serialized, lambda path: runtime.write(path.parent))
    return _Parts(runtime, tokenizer, facts)


def _text_tokenizer(serialized: str, facts: ModelFacts) -> TextTokenizer:
    return TextTokenizer(serialized, task_cuts=facts.task_cuts, template=facts.template)


def _wants_openvino(settings: Settings, device: str) -> bool:
    if settings.model.runtime == "torch" or device != "cpu":
        return False
    if settings.model.runtime == "openvino":
        _require("openvino")
    return importlib.util.find_spec("openvino") is not None


def _graph_cache(settings: Settings) -> GraphCache:
    from embedshare.engine.runtimes.openvino import VERSION

    return GraphCache(folders.cache(settings) / "graphs", VERSION)


def _require(*packages: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependency(
            f"a local model needs {' and '.join(missing)}, which this installation does not have: "
            "pip install 'embedshare[server]'"
        )
