"""Brings a model that torch has loaded into its fastest form that matches the proof.

On a CPU that is a graph for OpenVINO, else a module of torch over packed rows or padded batches, or
sentence-transformers itself. Importing this imports torch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from loguru import logger

from embedshare import model_files
from embedshare.engine import weights
from embedshare.engine.families import Located
from embedshare.engine.metadata import ModelMetadata
from embedshare.engine.ready_model import (
    ReadyModel,
    graph_cache,
    in_openvino,
    pair_tokenizer,
    text_tokenizer,
    wants_openvino,
)
from embedshare.engine.runtimes import (
    bge_m3,
    chat_templates,
    library,
    outputs_proof,
    scores_proof,
    splade,
    token_vectors,
)
from embedshare.engine.runtimes import embedder as embedders
from embedshare.engine.runtimes import torch as torch_runtime
from embedshare.engine.runtimes.base import Runtime
from embedshare.engine.runtimes.classifier import Classifier
from embedshare.engine.runtimes.heads import ScoresHead
from embedshare.engine.runtimes.padded import PaddedRuntime, rows_in
from embedshare.engine.runtimes.proof import in_batches, prove
from embedshare.engine.runtimes.static import StaticRuntime
from embedshare.engine.runtimes.torch import TorchRuntime
from embedshare.engine.runtimes.whole import WholeRuntime, WholeTokenizer, WordTokenizer, encode
from embedshare.engine.tokens import TextTokenizer
from embedshare.engine.trials import LEAST_COSINE
from embedshare.errors import UnsupportedModel
from embedshare.settings import Settings


def fastest(settings: Settings, device: str, located: Located) -> ReadyModel:
    """A runtime over the model itself, in the fastest form that matches it.

    Raises UnsupportedModel, WeightsCorrupted.
    """
    if located.family == "embedding":
        return _of_embedding(settings, device, located.identity, located.folder)
    return _of_other_family(settings, device, located)


def _of_embedding(settings: Settings, device: str, identity: str, folder: Path) -> ReadyModel:
    """A runtime over the model itself, in the fastest form that matches it."""
    device = torch_runtime.resolve_device(device)
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
        if wants_openvino(settings, device):
            graph_cache(settings).refuse(identity, str(error))
        logger.info("Running {} with sentence-transformers, at its speed ({})", settings.model.name, error)
    dimension = proof.full_dimension
    runtime = WholeRuntime(model, dimension, encode(model, dimension))
    return ReadyModel(runtime, WholeTokenizer(model, loaded.facts.max_seq_length), loaded.facts)


def _of_other_family(settings: Settings, device: str, located: Located) -> ReadyModel:
    """A cross-encoder, a sparse or a multi-vector model, in the fastest form that matches it."""
    device, (folder, family, identity) = torch_runtime.resolve_device(device), located
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
        if wants_openvino(settings, device):
            graph_cache(settings).refuse(identity, str(error))
        logger.info("Running {} with sentence-transformers, at its speed ({})", settings.model.name, error)
    return ReadyModel(
        WholeRuntime(model, facts.full_dimension, compute), WholeTokenizer(model, facts.max_seq_length), facts
    )


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


def _check_device(settings: Settings, device: str) -> None:
    if settings.model.runtime == "openvino" and device != "cpu":
        message = f"EMBEDDING_RUNTIME is openvino, for CPUs; EMBEDDING_DEVICE is {device}"
        raise UnsupportedModel(message, setting="device")


def _fast_scores(loaded: _Loaded) -> ReadyModel:
    """A cross-encoder's modules over packed pairs. Raises UnsupportedModel."""
    serialized = embedders.tokenizer_of(loaded.model, of_pairs=True)
    loaded = loaded.with_facts(
        head=ScoresHead(scores_proof.reads_types(loaded.model)),
        pair_template=chat_templates.of_pairs(loaded.model, serialized),
        template=chat_templates.of_single_texts(loaded.model, serialized),
    )
    tokenizer = pair_tokenizer(serialized, loaded.facts)
    if not tokenizer.reads_single_texts:
        loaded = loaded._replace(proof=loaded.proof.of_pairs())
    sequences = scores_proof.sequences_of(loaded.model, loaded.proof, tokenizer)
    return _first_form(loaded, Classifier, tokenizer, serialized, sequences)


def _several(loaded: _Loaded, folder: Path) -> ReadyModel:
    """A model that gives a text's vector, and weights and vectors of its tokens. Raises UnsupportedModel."""
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


def _fast_outputs(loaded: _Loaded, make: Callable[..., Any]) -> ReadyModel:
    """The module over packed rows that `make` makes of the model and a mask. Raises UnsupportedModel."""
    model, proof = loaded.model, loaded.proof
    serialized = embedders.tokenizer_of(model)
    loaded = loaded.with_facts(
        task_cuts=embedders.task_cuts(model), template=embedders.template_of(model, serialized)
    )
    tokenizer = text_tokenizer(serialized, loaded.facts)
    sequences = [tokenizer([text], prompt, task=task)[0] for text, prompt, task in proof.samples]
    embedders.check_cut(model, tokenizer)
    return _first_form(loaded, make, tokenizer, serialized, proof.kept(sequences).inputs())


def _first_form(
    loaded: _Loaded,
    make: Callable[..., Any],
    tokenizer: TextTokenizer,
    serialized: str,
    sequences: list[list[int]],
) -> ReadyModel:
    """The first form over packed rows that matches the proof, whose texts are `sequences`. Raises
    UnsupportedModel."""
    settings, device, _, model, proof, facts = loaded
    head = facts.head
    form = embedders.find_form(model, proof, sequences, make, head)
    if form is None:
        raise UnsupportedModel("no layout of batches reproduces the model's outputs")
    module, layout = form
    loaded = loaded.with_facts(layout=layout)
    if wants_openvino(settings, device):
        try:
            runtime: Runtime = _converted(loaded, module, serialized, sequences)
            return ReadyModel(runtime, tokenizer, loaded.facts)
        except UnsupportedModel as error:
            if settings.model.runtime == "openvino":
                raise
            logger.info("Running the model with torch ({})", error)

    def rows(dtype: str) -> np.ndarray:
        return in_batches(sequences, TorchRuntime(copy.deepcopy(module), device, layout, dtype, head).run)

    runtime = TorchRuntime(module, device, layout, _torch_dtype(loaded, rows), head)
    return ReadyModel(runtime, tokenizer, loaded.facts)


def _fast(loaded: _Loaded) -> ReadyModel:
    """The model's modules over token ids, in the first form that matches the proof.

    Raises UnsupportedModel if none does.
    """
    settings, device, _, model, proof, facts = loaded
    serialized = embedders.tokenizer_of(model)
    template = embedders.template_of(model, serialized)
    prompts_out = template is None and embedders.leaves_prompts_out(model)
    facts = msgspec.structs.replace(
        facts, task_cuts=embedders.task_cuts(model), template=template, leaves_prompts_out=prompts_out
    )
    tokenizer = text_tokenizer(serialized, facts)
    sequences = [tokenizer([text], prompt, task=task)[0] for text, prompt, task in proof.samples]
    if not prompts_out:  # its padded forward does not learn where a prompt ends
        plain = in_batches(sequences, partial(embedders.plain_forward, model))
        proof.check(plain, "its modules over token ids")
    embedders.check_cut(model, tokenizer)
    if device.startswith("cuda"):
        _check_padded(facts)
        dtype = _torch_dtype(loaded, lambda dtype: rows_in(dtype, model, sequences))
        return ReadyModel(PaddedRuntime(model, dtype), tokenizer, facts)
    form = embedders.find_form(model, proof, sequences)
    loaded = loaded._replace(facts=msgspec.structs.replace(facts, layout=form[1] if form else None))
    if wants_openvino(settings, device):
        try:
            runtime = _converted(loaded, form[0] if form else None, serialized, sequences)
            return ReadyModel(runtime, tokenizer, loaded.facts)
        except UnsupportedModel as error:
            if settings.model.runtime == "openvino":
                raise
            logger.info("Running the model with torch ({})", error)
    if form is None or form[1].one_text_a_row:
        _check_padded(facts)
        logger.info("Padding batches (the model does not take packed ones)")
        dtype = _torch_dtype(loaded, lambda dtype: rows_in(dtype, model, sequences))
        return ReadyModel(PaddedRuntime(model, dtype), tokenizer, loaded.facts)
    embedder, layout = form

    def rows(dtype: str) -> np.ndarray:
        return in_batches(sequences, TorchRuntime(copy.deepcopy(embedder), device, layout, dtype).run)

    dtype = _torch_dtype(loaded, rows)
    return ReadyModel(TorchRuntime(embedder, device, layout, dtype), tokenizer, loaded.facts)


def _check_padded(facts: ModelMetadata) -> None:
    """Raise UnsupportedModel if padded batches do not give the model's vectors."""
    if facts.leaves_prompts_out:
        raise UnsupportedModel("the model leaves prompts out of pooling, which padded batches do not")


def _converted(loaded: _Loaded, embedder: Any, serialized: str, sequences: list[list[int]]) -> Runtime:
    """The model as a graph, which is stored. Raises UnsupportedModel."""
    from embedshare.engine.runtimes.conversion import convert  # needs OpenVINO
    from embedshare.engine.runtimes.openvino import resolve_dtype, write_graph

    settings, _, identity, _, proof, facts = loaded
    resolve_dtype(settings.model.dtype)  # OpenVINO's lack of it is not the model's fault
    try:
        if embedder is None or facts.layout is None:
            raise UnsupportedModel("no layout for a single graph reproduces the model's vectors")
        graph = convert(embedder, facts.layout, proof, sequences, facts.head)
    except UnsupportedModel as error:
        graph_cache(settings).refuse(identity, str(error))
        raise
    kept = proof.kept(sequences)
    graph_cache(settings).keep(identity, facts, serialized, lambda path: write_graph(graph, path), kept)
    return in_openvino(settings, identity, graph, facts, lambda: kept)


def _torch_dtype(loaded: _Loaded, rows: Callable[[str], np.ndarray]) -> str:
    """The precision for torch: "auto" is the first in which `rows`, the proof's vectors, are near enough.

    A precision that the operator names is used however near its vectors are.
    """
    wanted = torch_runtime.resolve_dtype(loaded.settings.model.dtype, loaded.device)
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


def _static(loaded: _Loaded) -> ReadyModel:
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
    if wants_openvino(settings, device):  # its version is part of the cache's key
        graph_cache(settings).keep(identity, facts, serialized, lambda path: runtime.write(path.parent))
    return ReadyModel(runtime, tokenizer, facts)


def _words(loaded: _Loaded) -> ReadyModel:
    """Means of word embeddings in NumPy, of words that the model's own code finds.

    Raises UnsupportedModel if they do not match the proof.
    """
    settings, device, identity, model, proof, facts = loaded
    others = [type(module).__name__ for module in model][1:]
    if others not in (["Pooling"], ["Pooling", "Normalize"]):
        raise UnsupportedModel("more than pooling follows its WordEmbeddings")
    tokenizer = WordTokenizer(model, facts.max_seq_length)
    runtime = StaticRuntime(model[0].emb_layer.weight.detach().cpu().numpy(), "Normalize" in others)
    sequences = [tokenizer([text], prompt, task=task)[0] for text, prompt, task in proof.samples]
    proof.check(runtime.run(sequences), "means of its words")
    if wants_openvino(settings, device):
        graph_cache(settings).refuse(identity, "the model looks words up, and NumPy runs it")
    return ReadyModel(runtime, tokenizer, facts)
