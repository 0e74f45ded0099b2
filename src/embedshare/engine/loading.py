"""Loads the model that the settings name: its weights, its identity, and its runtime.

On a CPU OpenVINO runs the model. It reads the graph of an earlier start, which takes about a second and no
torch, or converts one now. Otherwise torch runs it: packed, padded, or in sentence-transformers itself if no
faster form has its vectors.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np
from loguru import logger

from embedshare import folders, model_files, platforms
from embedshare.engine import families, weights
from embedshare.engine.agreement import KeptOutputs
from embedshare.engine.families import Located
from embedshare.engine.graph_cache import AnyProof, GraphCache
from embedshare.engine.kept_scores import KeptScores
from embedshare.engine.metadata import ModelMetadata
from embedshare.engine.pairs import PairTokenizer
from embedshare.engine.runtimes.base import Runtime
from embedshare.engine.runtimes.heads import ScoresHead, TokensHead
from embedshare.engine.runtimes.static import StaticRuntime
from embedshare.engine.sequences import Tokenizing
from embedshare.engine.task_tokens import TaskTokenizer
from embedshare.engine.tokens import TextTokenizer
from embedshare.engine.trials import LEAST_COSINE, KeptProof, Trial
from embedshare.errors import MissingDependency, UnsupportedModel
from embedshare.identity import ModelDescription, check_identity
from embedshare.settings import Settings

if TYPE_CHECKING:
    import openvino as ov

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
    cache = _graph_cache(settings)
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
    if not _wants_openvino(settings, _known(device)):
        return ""
    folder, _, identity = families.locate(settings)
    check_identity(expected_identity, identity, f"the model in {folder}")
    cache = _graph_cache(settings)
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


class _Parts(NamedTuple):
    """A model that is ready to run."""

    runtime: Runtime
    tokenizer: Tokenizing
    facts: ModelMetadata


def _ready(settings: Settings, device: str, located: Located) -> _Parts:
    try:
        kept = _kept(settings, device, located.identity)
    except UnsupportedModel as error:
        if settings.model.runtime == "openvino":
            raise
        logger.info("Not running {} with OpenVINO ({})", settings.model.name, error)
        kept, settings = None, settings.with_values({"EMBEDDING_RUNTIME": "torch"})
    if kept is not None:
        return kept
    if located.family == "embedding":
        return _made(settings, device, located.identity, located.folder)
    return _made_of_family(settings, device, located)


def _kept(settings: Settings, device: str, identity: str) -> _Parts | None:
    """A runtime over the files of an earlier start.

    Raises UnsupportedModel if they say that OpenVINO does not run the model.
    """
    if not _wants_openvino(settings, device):
        return None
    cache = _graph_cache(settings)
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
            return _Parts(runtime, TextTokenizer(kept.tokenizer, special_tokens=False), facts)
        kind = _kind_of_proof(facts)
        runtime = _in_openvino(settings, identity, kept.graph, facts, partial(cache.proof, identity, kind))
        return _Parts(runtime, _text_tokenizer(kept.tokenizer, facts), facts)
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


def _in_openvino(
    settings: Settings,
    identity: str,
    graph: ov.Model | Path,
    facts: ModelMetadata,
    proof: Callable[[], AnyProof],
) -> Runtime:
    """The graph in the precision that fits it. Raises UnsupportedModel, and the errors of reading the
    graph."""
    from embedshare.engine.runtimes.first_runs import fitting
    from embedshare.engine.runtimes.openvino import OpenVinoRuntime, cpu_kind

    assert facts.layout is not None  # every model with a graph has one
    make = partial(OpenVinoRuntime, graph, facts.layout, head=facts.head)
    return fitting(make, settings.model.dtype, _graph_cache(settings).trials(identity, cpu_kind()), proof)


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


def _made(settings: Settings, device: str, identity: str, folder: Path) -> _Parts:
    """A runtime over the model itself, in the fastest form that matches it."""
    _require("torch", "sentence_transformers")
    folders.check_temporary("torch")
    from embedshare.engine.runtimes import embedder as embedders
    from embedshare.engine.runtimes.proof import prove
    from embedshare.engine.runtimes.torch import resolve_device
    from embedshare.engine.runtimes.whole import WholeRuntime, WholeTokenizer, encode

    device = resolve_device(device)
    _check_device(settings, device)
    trusted = weights.is_among(settings.model.name, settings.model.trust_remote_code)
    model = embedders.load(folder, device, trusted)
    if not (folder / "modules.json").is_file():
        pooling = getattr(model[-1], "pooling_mode", "the model itself")
        logger.warning("Pooling tokens by {} ({} has no modules.json that says how)", pooling, folder)
    proof = prove(model)
    loaded = _Loaded(settings, device, identity, model, proof, embedders.facts_of(model, proof))
    shortens, model.truncate_dim = model.truncate_dim is not None, None
    try:
        if model_files.token_layers(folder) and not shortens and not device.startswith("cuda"):
            return _several(loaded, folder)
        if type(model[0]).__name__ == "StaticEmbedding":
            return _static(loaded)
        if type(model[0]).__name__ == "WordEmbeddings":
            return _words(loaded)
        return _fast(loaded)
    except UnsupportedModel as error:
        if settings.model.runtime == "openvino":
            raise
        if _wants_openvino(settings, device):
            _graph_cache(settings).refuse(identity, str(error))
        logger.info("Running {} with sentence-transformers, at its speed ({})", settings.model.name, error)
    dimension = proof.full_dimension
    runtime = WholeRuntime(model, dimension, encode(model, dimension))
    return _Parts(runtime, WholeTokenizer(model, loaded.facts.max_seq_length), loaded.facts)


class _Loaded(NamedTuple):
    """A model that torch has loaded, on its way to a runtime."""

    settings: Settings
    device: str
    identity: str
    model: Any
    proof: Any
    """What every form must match: a Proof, or an OutputsProof."""

    facts: ModelMetadata

    def with_facts(self, **changes: Any) -> _Loaded:
        """The same with other facts."""
        return self._replace(facts=msgspec.structs.replace(self.facts, **changes))


def _made_of_family(settings: Settings, device: str, located: Located) -> _Parts:
    """A cross-encoder, a sparse or a multi-vector model, in the fastest form that matches it."""
    _require("torch", "sentence_transformers")
    folders.check_temporary("torch")
    from embedshare.engine.runtimes import embedder as embedders
    from embedshare.engine.runtimes import library, outputs_proof, scores_proof, splade, token_vectors
    from embedshare.engine.runtimes.torch import resolve_device
    from embedshare.engine.runtimes.whole import WholeRuntime, WholeTokenizer

    device, (folder, family, identity) = resolve_device(device), located
    _check_device(settings, device)
    trusted = weights.is_among(settings.model.name, settings.model.trust_remote_code)
    model = embedders.load(folder, device, trusted, library.CLASSES[family])
    compute = library.COMPUTES[family](model)
    facts = library.facts_of(model, family)
    if family == "sparse":
        model.max_active_dims = None  # each call has a number of its own, or that of `facts`
    is_scored = family == "cross-encoder"
    proof: Any = scores_proof.prove(model) if is_scored else outputs_proof.prove(model, compute, (family,))
    loaded = _Loaded(settings, device, identity, model, proof, facts)
    try:
        if is_scored:
            return _fast_scores(loaded)
        if family == "sparse":
            loaded = loaded.with_facts(head=splade.head_of(model))
            return _fast_outputs(loaded, splade.Splade)
        loaded = loaded.with_facts(
            head=token_vectors.head_of(model), expansion=token_vectors.expansion_of(model)
        )
        return _fast_outputs(loaded, token_vectors.TokenVectors)
    except UnsupportedModel as error:
        if settings.model.runtime == "openvino":
            raise
        if _wants_openvino(settings, device):
            _graph_cache(settings).refuse(identity, str(error))
        logger.info("Running {} with sentence-transformers, at its speed ({})", settings.model.name, error)
    return _Parts(
        WholeRuntime(model, facts.full_dimension, compute), WholeTokenizer(model, facts.max_seq_length), facts
    )


def _check_device(settings: Settings, device: str) -> None:
    if settings.model.runtime == "openvino" and device != "cpu":
        message = f"EMBEDDING_RUNTIME is openvino, for CPUs; EMBEDDING_DEVICE is {device}"
        raise UnsupportedModel(message, setting="device")


def _fast_scores(loaded: _Loaded) -> _Parts:
    """A cross-encoder's modules over packed pairs. Raises UnsupportedModel."""
    from embedshare.engine.runtimes import chat_templates, scores_proof
    from embedshare.engine.runtimes import embedder as embedders
    from embedshare.engine.runtimes.classifier import Classifier

    serialized = embedders.tokenizer_of(loaded.model, of_pairs=True)
    loaded = loaded.with_facts(
        head=ScoresHead(scores_proof.reads_types(loaded.model)),
        pair_template=chat_templates.of_pairs(loaded.model, serialized),
        template=chat_templates.of_single_texts(loaded.model, serialized),
    )
    tokenizer = _pair_tokenizer(serialized, loaded.facts)
    if not tokenizer.reads_single_texts:
        loaded = loaded._replace(proof=loaded.proof.of_pairs())
    sequences = scores_proof.sequences_of(loaded.model, loaded.proof, tokenizer)
    return _first_form(loaded, Classifier, tokenizer, serialized, sequences)


def _several(loaded: _Loaded, folder: Path) -> _Parts:
    """A model that gives a text's vector, and weights and vectors of its tokens. Raises UnsupportedModel."""
    from embedshare.engine.runtimes import bge_m3

    model = loaded.model
    layers = bge_m3.layers_in(folder, model.device)
    proof = bge_m3.prove(model, layers, loaded.proof.samples)
    loaded = loaded._replace(proof=proof).with_facts(
        head=bge_m3.head_of(model),
        full_dimension=None,
        outputs=proof.outputs,
        vocabulary=model[0].auto_model.config.vocab_size,
        token_dimension=layers.vector.out_features,
    )
    return _fast_outputs(loaded, partial(bge_m3.SeveralOutputs, layers=layers))


def _fast_outputs(loaded: _Loaded, make: Callable[..., Any]) -> _Parts:
    """The module over packed rows that `make` makes of the model and a mask. Raises UnsupportedModel."""
    from embedshare.engine.runtimes import embedder as embedders

    model, proof = loaded.model, loaded.proof
    serialized = embedders.tokenizer_of(model)
    loaded = loaded.with_facts(
        task_cuts=embedders.task_cuts(model), template=embedders.template_of(model, serialized)
    )
    tokenizer = _text_tokenizer(serialized, loaded.facts)
    sequences = [tokenizer([text], prompt, task=task)[0] for text, prompt, task in proof.samples]
    embedders.check_cut(model, tokenizer)
    return _first_form(loaded, make, tokenizer, serialized, proof.kept(sequences).inputs())


def _first_form(
    loaded: _Loaded,
    make: Callable[..., Any],
    tokenizer: TextTokenizer,
    serialized: str,
    sequences: list[list[int]],
) -> _Parts:
    """The first form over packed rows that matches the proof, whose texts are `sequences`. Raises
    UnsupportedModel."""
    from embedshare.engine.runtimes import embedder as embedders
    from embedshare.engine.runtimes.proof import in_batches
    from embedshare.engine.runtimes.torch import TorchRuntime

    settings, device, _, model, proof, facts = loaded
    head = facts.head
    form = embedders.find_form(model, proof, sequences, make, head)
    if form is None:
        raise UnsupportedModel("no layout of batches reproduces the model's outputs")
    module, layout = form
    loaded = loaded.with_facts(layout=layout)
    if _wants_openvino(settings, device):
        try:
            runtime: Runtime = _converted(loaded, module, serialized, sequences)
            return _Parts(runtime, tokenizer, loaded.facts)
        except UnsupportedModel as error:
            if settings.model.runtime == "openvino":
                raise
            logger.info("Running the model with torch ({})", error)

    def rows(dtype: str) -> np.ndarray:
        return in_batches(sequences, TorchRuntime(copy.deepcopy(module), device, layout, dtype, head).run)

    runtime = TorchRuntime(module, device, layout, _torch_dtype(loaded, rows), head)
    return _Parts(runtime, tokenizer, loaded.facts)


def _fast(loaded: _Loaded) -> _Parts:
    """The model's modules over token ids, in the first form that matches the proof.

    Raises UnsupportedModel if none does.
    """
    from embedshare.engine.runtimes import embedder as embedders
    from embedshare.engine.runtimes.padded import PaddedRuntime, rows_in
    from embedshare.engine.runtimes.proof import in_batches
    from embedshare.engine.runtimes.torch import TorchRuntime

    settings, device, _, model, proof, facts = loaded
    serialized = embedders.tokenizer_of(model)
    template = embedders.template_of(model, serialized)
    prompts_out = template is None and embedders.leaves_prompts_out(model)
    facts = msgspec.structs.replace(
        facts, task_cuts=embedders.task_cuts(model), template=template, leaves_prompts_out=prompts_out
    )
    tokenizer = _text_tokenizer(serialized, facts)
    sequences = [tokenizer([text], prompt, task=task)[0] for text, prompt, task in proof.samples]
    if not prompts_out:  # its padded forward does not learn where a prompt ends
        plain = in_batches(sequences, partial(embedders.plain_forward, model))
        proof.check(plain, "its modules over token ids")
    embedders.check_cut(model, tokenizer)
    if device.startswith("cuda"):
        _check_padded(facts)
        dtype = _torch_dtype(loaded, lambda dtype: rows_in(dtype, model, sequences))
        return _Parts(PaddedRuntime(model, dtype), tokenizer, facts)
    form = embedders.find_form(model, proof, sequences)
    loaded = loaded._replace(facts=msgspec.structs.replace(facts, layout=form[1] if form else None))
    if _wants_openvino(settings, device):
        try:
            runtime = _converted(loaded, form[0] if form else None, serialized, sequences)
            return _Parts(runtime, tokenizer, loaded.facts)
        except UnsupportedModel as error:
            if settings.model.runtime == "openvino":
                raise
            logger.info("Running the model with torch ({})", error)
    if form is None or form[1].one_text_a_row:
        _check_padded(facts)
        logger.info("Padding batches (the model does not take packed ones)")
        dtype = _torch_dtype(loaded, lambda dtype: rows_in(dtype, model, sequences))
        return _Parts(PaddedRuntime(model, dtype), tokenizer, loaded.facts)
    embedder, layout = form

    def rows(dtype: str) -> np.ndarray:
        return in_batches(sequences, TorchRuntime(copy.deepcopy(embedder), device, layout, dtype).run)

    dtype = _torch_dtype(loaded, rows)
    return _Parts(TorchRuntime(embedder, device, layout, dtype), tokenizer, loaded.facts)


def _check_padded(facts: ModelMetadata) -> None:
    """Raise UnsupportedModel if padded batches do not give the model's vectors."""
    if facts.leaves_prompts_out:
        raise UnsupportedModel("the model leaves prompts out of pooling, which padded batches do not")


def _converted(loaded: _Loaded, embedder: Any, serialized: str, sequences: list[list[int]]) -> Runtime:
    """The model as a graph, which is stored. Raises UnsupportedModel."""
    from embedshare.engine.runtimes.conversion import convert
    from embedshare.engine.runtimes.openvino import resolve_dtype, write_graph

    settings, _, identity, _, proof, facts = loaded
    resolve_dtype(settings.model.dtype)  # OpenVINO's lack of it is not the model's fault
    try:
        if embedder is None or facts.layout is None:
            raise UnsupportedModel("no layout for a single graph reproduces the model's vectors")
        graph = convert(embedder, facts.layout, proof, sequences, facts.head)
    except UnsupportedModel as error:
        _graph_cache(settings).refuse(identity, str(error))
        raise
    kept = proof.kept(sequences)
    _graph_cache(settings).keep(identity, facts, serialized, lambda path: write_graph(graph, path), kept)
    return _in_openvino(settings, identity, graph, facts, lambda: kept)


def _torch_dtype(loaded: _Loaded, rows: Callable[[str], np.ndarray]) -> str:
    """The precision for torch: "auto" is the first in which `rows`, the proof's vectors, are near enough.

    A precision that the operator names is used however near its vectors are.
    """
    from embedshare.engine.runtimes.torch import resolve_dtype

    wanted = resolve_dtype(loaded.settings.model.dtype, loaded.device)
    to_try: list[str] = [wanted, "float16"] if loaded.device.startswith("cuda") else [wanted]
    for dtype in dict.fromkeys(to_try):
        if dtype == "float32":
            return dtype
        cosine = loaded.proof.agreement(rows(dtype))
        if cosine >= LEAST_COSINE:
            return dtype
        why = f"in {dtype} the model agrees with sentence-transformers to {cosine:.5f}"
        if dtype == loaded.settings.model.dtype:
            logger.warning("Computing in {} as EMBEDDING_DTYPE asks ({})", dtype, why)
            return dtype
        logger.info("Not computing in {} ({})", dtype, why)
    return "float32"


def _static(loaded: _Loaded) -> _Parts:
    """A StaticEmbedding in NumPy. Raises UnsupportedModel if it does not match the proof."""
    settings, device, identity, model, proof, facts = loaded
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
    if _wants_openvino(settings, device):  # its version is part of the cache's key
        _graph_cache(settings).keep(identity, facts, serialized, lambda path: runtime.write(path.parent))
    return _Parts(runtime, tokenizer, facts)


def _words(loaded: _Loaded) -> _Parts:
    """Means of word embeddings in NumPy, of words that the model's own code finds.

    Raises UnsupportedModel if they do not match the proof.
    """
    from embedshare.engine.runtimes.whole import WordTokenizer

    settings, device, identity, model, proof, facts = loaded
    others = [type(module).__name__ for module in model][1:]
    if others not in (["Pooling"], ["Pooling", "Normalize"]):
        raise UnsupportedModel("more than pooling follows its WordEmbeddings")
    tokenizer = WordTokenizer(model, facts.max_seq_length)
    runtime = StaticRuntime(model[0].emb_layer.weight.detach().cpu().numpy(), "Normalize" in others)
    sequences = [tokenizer([text], prompt, task=task)[0] for text, prompt, task in proof.samples]
    proof.check(runtime.run(sequences), "means of its words")
    if _wants_openvino(settings, device):
        _graph_cache(settings).refuse(identity, "the model looks words up, and NumPy runs it")
    return _Parts(runtime, tokenizer, facts)


def _pair_tokenizer(serialized: str, facts: ModelMetadata) -> PairTokenizer:
    typed = isinstance(facts.head, ScoresHead) and facts.head.reads_types
    return PairTokenizer(serialized, typed, facts.pair_template, facts.template)


def _text_tokenizer(serialized: str, facts: ModelMetadata) -> TextTokenizer:
    if isinstance(facts.head, ScoresHead):
        return _pair_tokenizer(serialized, facts)
    make: Callable[..., TextTokenizer] = TextTokenizer
    if isinstance(facts.head, TokensHead):
        make = partial(TaskTokenizer, expansion=facts.expansion)
    return make(
        serialized,
        task_cuts=facts.task_cuts,
        template=facts.template,
        counts_prompts=facts.leaves_prompts_out,
    )


def _wants_openvino(settings: Settings, device: str) -> bool:
    if settings.model.runtime == "torch" or device != "cpu":
        return False
    if settings.model.runtime == "openvino":
        _require("openvino")
    return importlib.util.find_spec("openvino") is not None


def _graph_cache(settings: Settings) -> GraphCache:
    from embedshare.engine.runtimes.openvino import VERSION

    return GraphCache(folders.cache(settings) / "graphs", VERSION)


def _memory_notes(settings: Settings) -> GraphCache:
    """The cache for models that need no graph too."""
    has_openvino = importlib.util.find_spec("openvino") is not None
    return _graph_cache(settings) if has_openvino else GraphCache(folders.cache(settings) / "graphs", "none")


def _require(*packages: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependency(
            f"a local model needs {' and '.join(missing)}, which this installation lacks: pip install "
            "'embedshare[server]'"
        )
