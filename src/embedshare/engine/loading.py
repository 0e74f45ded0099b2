"""Settings to a loaded model: where its weights are, what it is, and which runtime is to run it.

On a CPU OpenVINO runs the model: from a graph that an earlier start kept, which takes about a second and no
torch, else from one that is converted now. Everything else is torch's.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import NamedTuple

import msgspec
from loguru import logger

from embedshare import folders, platforms
from embedshare.engine import weights
from embedshare.engine.facts import ModelFacts
from embedshare.engine.graphs import GraphCache
from embedshare.engine.runtimes.interface import Runtime
from embedshare.engine.tokens import TextTokenizer
from embedshare.errors import MissingDependency, UnsupportedModel
from embedshare.identity import ModelDescription, check_identity, identity_of
from embedshare.settings import Settings

#: What a runtime is warmed up with: lengths from one word to several lines.
SAMPLE = [
    "model",
    "one model, many workers",
    "How is an embedding shared between processes? " * 3,
    "vector " * 60,
]
#: What a layout proves itself on: a long text as well, since some models see only so far, and one whose words
#: differ, since among equal ones it does not show.
_PROOF = [*SAMPLE, " ".join(map(str, range(320)))]


class LoadedModel(NamedTuple):
    """What an engine is made of."""

    runtime: Runtime
    tokenizer: TextTokenizer
    description: ModelDescription


def load(settings: Settings, device: str, expected_identity: str | None) -> LoadedModel:
    """Find, verify and load the model that the settings name, on `device`.

    Raises MissingDependency, ModelNotFound, WeightsCorrupted, UnsupportedModel; and ModelMismatch, before
    anything is loaded, where the model is not of the vector space that `expected_identity` names.
    """
    folder = weights.find(settings.model_name, settings.model_cache_dir)
    identity = identity_of(folder)
    check_identity(expected_identity, identity, f"the model in {folder}")
    device = _known(device)
    runtime, facts = _kept(settings, device, identity) or _made(settings, device, identity, folder)
    described = facts.description(identity, settings.model_name, runtime.device, runtime.dtype, runtime.name)
    return LoadedModel(runtime, _tokenizer(folder, facts), described)


def needs_conversion(settings: Settings, device: str) -> bool:
    """Whether `load` would begin by converting the model, which takes torch, memory and a while.

    Raises ModelNotFound, WeightsCorrupted.
    """
    if not _wants_openvino(settings, _known(device)):
        return False
    found = _graph_cache(settings).find(
        identity_of(weights.find(settings.model_name, settings.model_cache_dir))
    )
    return found is None or found[1].layout is None


def same_device(one: str, other: str) -> bool:
    """Whether two settings of the device are plainly one device."""
    return _known(one) == _known(other)


def _known(device: str) -> str:
    """`device`, where "auto" is the CPU if there is plainly no other."""
    return "cpu" if device == "auto" and not platforms.may_have_gpu() else device


def _kept(settings: Settings, device: str, identity: str) -> tuple[Runtime, ModelFacts] | None:
    """A runtime over the graph that an earlier start has kept."""
    if not _wants_openvino(settings, device):
        return None
    from embedshare.engine.runtimes.openvino import OpenVinoRuntime

    cache = _graph_cache(settings)
    found = cache.find(identity)
    if found is None:
        return None
    graph, facts = found
    if facts.layout is None:
        return None
    try:
        return OpenVinoRuntime(graph, facts.layout, settings.dtype), facts
    except RuntimeError as error:
        logger.warning("the converted graph in {} does not load and is made anew: {}", graph.parent, error)
        cache.forget(identity)
        return None
    except UnsupportedModel as error:
        if settings.runtime == "openvino":
            raise
        logger.info("{}; torch runs it instead", error)
        return None


def _made(settings: Settings, device: str, identity: str, folder: Path) -> tuple[Runtime, ModelFacts]:
    """A runtime over the model itself, loaded with torch."""
    _require("torch", "sentence_transformers")
    folders.check_temporary("torch")
    from embedshare.engine.runtimes import embedder as embedders
    from embedshare.engine.runtimes.padded import PaddedRuntime
    from embedshare.engine.runtimes.torch import TorchRuntime, resolve_device, resolve_dtype

    device = resolve_device(device)
    if settings.runtime == "openvino" and device != "cpu":
        message = f"EMBEDDING_RUNTIME is openvino, for CPUs; EMBEDDING_DEVICE is {device}"
        raise UnsupportedModel(message, setting="device")
    trusted = weights.is_among(settings.model_name, settings.trust_remote_code)
    model = embedders.load(folder, device, trusted)
    facts = embedders.facts_of(model)
    if device.startswith("cuda"):
        return PaddedRuntime(model, resolve_dtype(settings.dtype, device)), facts
    embedder = embedders.Embedder(model).eval()
    sample = _tokenizer(folder, facts)(_PROOF)
    facts = msgspec.structs.replace(facts, layout=embedders.find_layout(model, embedder, sample))
    if _wants_openvino(settings, device):
        from embedshare.engine.runtimes.conversion import convert
        from embedshare.engine.runtimes.openvino import OpenVinoRuntime, write_graph

        try:
            if facts.layout is None:
                raise UnsupportedModel("the model agrees with itself in no layout that one graph can take")
            graph = convert(model, embedder, facts.layout, sample)
            runtime = OpenVinoRuntime(graph, facts.layout, settings.dtype)
            _graph_cache(settings).keep(identity, facts, lambda path: write_graph(graph, path))
            return runtime, facts
        except UnsupportedModel as error:
            if settings.runtime == "openvino":
                raise
            logger.info("{}; torch runs it instead", error)
    dtype = resolve_dtype(settings.dtype, device)
    if facts.layout is None:
        logger.info("the model does not take packed batches; they are padded instead")
        return PaddedRuntime(model, dtype), facts
    return TorchRuntime(embedder, device, facts.layout, dtype), facts


def _wants_openvino(settings: Settings, device: str) -> bool:
    if settings.runtime == "torch" or device != "cpu":
        return False
    if settings.runtime == "openvino":
        _require("openvino")
    return importlib.util.find_spec("openvino") is not None


def _graph_cache(settings: Settings) -> GraphCache:
    from embedshare.engine.runtimes.openvino import VERSION

    return GraphCache(folders.cache(settings) / "graphs", VERSION)


def _tokenizer(folder: Path, facts: ModelFacts) -> TextTokenizer:
    return TextTokenizer(folder, facts.max_seq_length, facts.lowercase)


def _require(*packages: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependency(
            f"a local model needs {' and '.join(missing)}, which this installation does not have: "
            "pip install 'embedshare[server]'"
        )
