"""A SentenceTransformer as one module from packed token ids to vectors: transformer, pooling, dense,
normalise.

The fast runtimes run this module, or its conversion. A model's packing is not guessed from its name: each
mask and layout is checked against the proof (see `proof`), and the first that matches is used.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from loguru import logger
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from transformers.utils import logging as transformers_logging

from embedshare.engine.metadata import ModelMetadata
from embedshare.engine.runtimes.heads import DenseHead, Head
from embedshare.engine.runtimes.masks import MASKS, Mask, own, whole_text
from embedshare.engine.runtimes.packing import Layout, Packed, pack
from embedshare.engine.runtimes.proof import (
    TASKS,
    Proof,
    in_batches,
    may_read_task,
    set_longest,
    shows_windows,
    tokenizer_in,
)
from embedshare.engine.tokens import LONGEST, Template, TextTokenizer, with_truncation
from embedshare.errors import UnsupportedModel, WeightsCorrupted

#: A text and a prompt that no template holds, and texts that a template may read as more than words.
_PROBES = [
    "q7Zk", "V9xw", " \n Café\n\n", "<think> no </think> /no_think", "{{ 1 }}{% raw %}", "<|im_end|>",
    "[INST] & <s>",
]  # fmt: skip
#: Truncation at fewer tokens than this is detected, if a model reads more.
_CUTS_BELOW = 8192


class Embedder(torch.nn.Module):  # type: ignore[misc]  # torch is not analysed: minutes and gigabytes
    """Packed batches (see `packing.Packed`) to float32 vectors (texts, dimension).

    `mask`: tells the transformer which tokens see each other.
    """

    def __init__(self, model: SentenceTransformer, mask: Mask = whole_text) -> None:
        super().__init__()
        first, *rest = list(model)
        self.transformer = first.auto_model
        self.rest = torch.nn.ModuleList(rest)
        self.heads = len(rest)  # the most products at its end, one after another
        self.mask = mask

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        segments: torch.Tensor,
        places: torch.Tensor,
    ) -> torch.Tensor:
        return self.pooled(self.mask(self.transformer, input_ids, position_ids, segments), input_ids, places)

    def pooled(self, hidden: torch.Tensor, input_ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """The vectors of the texts whose hidden states (rows, width, size) these are."""
        found = places.clamp(min=0)
        tokens = hidden.reshape(-1, hidden.shape[-1])[found]
        # Pooling adds up many values: it stays in float32 in every precision of the transformer.
        features = {
            "token_embeddings": tokens.float(),
            "attention_mask": (places >= 0).long(),
            "input_ids": input_ids.reshape(-1)[found],
        }
        for module in self.rest:
            features = module(features)
        return features["sentence_embedding"]


def load(folder: Path, device: str, trust_remote_code: bool, make: Any = SentenceTransformer) -> Any:
    """The model in `folder`, in float32, ready to compute, as one of the class `make`.

    Raises UnsupportedModel if it cannot be shared.
    """
    transformers_logging.disable_progress_bar()  # one line an event: the log says when the model is ready
    transformers_logging.set_verbosity_error()
    try:
        model = make(
            str(folder),
            device=device,
            trust_remote_code=trust_remote_code,
            local_files_only=True,
            model_kwargs={"torch_dtype": "float32"},
        )
    except SafetensorError as error:
        raise WeightsCorrupted(f"the weights in {folder} cannot be read: {error}") from None
    except torch.OutOfMemoryError:
        raise
    except (ValueError, KeyError, OSError, ImportError, AttributeError, TypeError, RuntimeError) as error:
        if not trust_remote_code and "trust_remote_code" in str(error):
            raise UnsupportedModel(
                f"the model in {folder} needs Python code of its own; if you trust it, add its name "
                "to EMBEDDING_TRUST_REMOTE_CODE and restart"
            ) from None
        raise UnsupportedModel(f"the model in {folder} does not load: {error}") from error
    model.float().eval()
    set_longest(model)
    return model


def tokenizer_of(model: SentenceTransformer) -> str:
    """The text of sentence-transformers' tokenizer, which truncates as the model does.

    Raises UnsupportedModel for a model that is not a text transformer with a fast tokenizer.
    """
    if not isinstance(model[0], Transformer):
        raise UnsupportedModel(f"the model begins with {type(model[0]).__name__}, not with a transformer")
    tokenizer = model.tokenizer
    if not getattr(tokenizer, "is_fast", False):
        raise UnsupportedModel(f"the model's {type(tokenizer).__name__} is not a fast tokenizer")
    try:
        return with_truncation(tokenizer.backend_tokenizer.to_str(), _cut(model), tokenizer.truncation_side)
    except Exception as error:  # parts of a tokenizer that are written in Python have no text
        raise UnsupportedModel(f"the model's tokenizer has no form without Python: {error}") from None


def template_of(model: SentenceTransformer, serialized: str) -> Template | None:
    """The text that the model's chat template puts around texts; None without a template. `serialized`: the
    text of its tokenizer.

    Raises UnsupportedModel if the template does more.
    """
    first = model[0]
    if "message" not in first.modality_config:
        return None
    if first.processor is not model.tokenizer:
        raise UnsupportedModel("the model's chat template is not its tokenizer's")
    options = dict(first.processing_kwargs.get("chat_template", {}))
    options.pop("restore_suffix", None)  # sentence-transformers' own option, visible in its result

    def rendered(text: str, prompt: str) -> str:
        _, inputs = first.input_formatter.batch_to_message("text", {"text": [text]})
        messages = inputs["message"]
        if prompt:
            messages = first.input_formatter.prepend_prompt_to_messages(messages, prompt)
        found: str = model.tokenizer.apply_chat_template(messages[0], tokenize=False, **options)
        return found

    text, prompt = _PROBES[0], _PROBES[1]
    try:
        before, after = rendered(text, "").split(text)
        head, tail = rendered(text, prompt).split(text)
        before_prompt, between = head.split(prompt)
    except ValueError:
        raise UnsupportedModel("the model's chat template does not repeat a text once") from None
    template = Template(before, before_prompt, between, after, [])
    for text, prompt in ((text, prompt) for text in _PROBES for prompt in ("", *_PROBES)):
        if tail != after or rendered(text, prompt) != template.render(text, prompt):
            raise UnsupportedModel("the model's chat template does more than put words around a text")
    tokenizer = TextTokenizer(serialized, template=template)
    if tokenizer.max_seq_length >= LONGEST:
        return template
    long_text = _numbers(tokenizer.max_seq_length + 32)
    read, cut = _ids(model, long_text, None), tokenizer([long_text])[0]
    apart = [at for at, (one, other) in enumerate(zip(read, cut, strict=False)) if one != other]
    return msgspec.structs.replace(template, suffix=read[apart[0] :] if apart else [])


def task_cuts(model: SentenceTransformer) -> dict[str, int]:
    """The longest sequences of texts for a task, if they differ from the usual one."""
    if not may_read_task(model):
        return {}
    plain = _cut(model)
    return {task: cut for task in TASKS if (cut := _cut(model, task)) != plain}


def check_cut(model: SentenceTransformer, tokenizer: TextTokenizer) -> None:
    """Raise UnsupportedModel if a too long text is not truncated as in sentence-transformers."""
    if tokenizer.max_seq_length >= LONGEST:
        return
    text = _numbers(tokenizer.max_seq_length + 64)
    for task in (None, *TASKS) if may_read_task(model) else (None,):
        if _ids(model, text, task) != tokenizer([text], task=task)[0]:
            raise UnsupportedModel("the model truncates long texts in a way of its own")


def _cut(model: SentenceTransformer, task: str | None = None) -> int:
    """Tokens at which sentence-transformers truncates a text: fewer than the model's longest sequence if its
    settings for texts, or for this task, say so."""
    longest = int(min(model.max_seq_length, LONGEST))
    words = min(longest, _CUTS_BELOW) + 64
    ids = _ids(model, _numbers(words), task)
    return len(ids) if len(ids) < words else longest


def _numbers(words: int) -> str:
    """A text of this many different words, of at least one token each."""
    return " ".join(map(str, range(words)))


def _ids(model: SentenceTransformer, text: str, task: str | None) -> list[int]:
    options = {} if task is None else {"task": task}
    ids: list[int] = model.preprocess([text], **options)["input_ids"][0].tolist()
    return ids


def facts_of(model: SentenceTransformer, proof: Proof) -> ModelMetadata:
    """The model's own description; its layout is not known yet."""
    longest, tokenizer = model.max_seq_length, tokenizer_in(model)
    return ModelMetadata(
        dimension=proof.expected.shape[1],
        full_dimension=proof.full_dimension,
        max_seq_length=LONGEST if longest is None else int(min(longest, LONGEST)),
        prompts={name: prompt or "" for name, prompt in model.prompts.items()},
        default_prompt_name=model.default_prompt_name,
        similarity_fn_name=model.similarity_fn_name,
        tokenizer_inputs=list(getattr(tokenizer, "model_input_names", ["input_ids"])),
        padding_token_id=getattr(tokenizer, "pad_token_id", None) or 0,
        layout=None,
        modalities=served_modalities(model),
    )


def served_modalities(model: SentenceTransformer) -> tuple[str, ...]:
    """What is served of the model's modalities: images only where no chat template puts a prompt before
    them."""
    found = model.modalities
    return ("text", "image") if "image" in found and "message" not in found else ("text",)


def find_form(
    model: Any,
    proof: Any,
    sequences: list[list[int]],
    make: Callable[[Any, Mask], torch.nn.Module] = Embedder,
    head: Head | None = None,
) -> tuple[Any, Layout] | None:
    """The module over packed rows and the layout of its batches that match the proof, packed if possible;
    None if none match.

    `sequences`: the token ids of the proof's samples. `make`: makes the module of the model and a mask.
    """
    head = head or DenseHead()
    transformer = model[0].auto_model
    tried = MASKS if shows_windows(model) else (own,)  # its windows are right even if no sample shows them
    padding_id = getattr(transformer.config, "pad_token_id", None) or 0
    attention = transformer.config._attn_implementation
    for one_text_a_row in (False, True):
        for mask in tried:
            embedder = make(model, mask).eval()
            for first_position, skipped in ((0, None), (padding_id + 1, padding_id), (padding_id + 1, None)):
                layout = Layout(first_position, one_text_a_row, skipped)
                if _agrees(embedder, head, layout, model.device, proof, sequences):
                    return embedder, layout
    transformer.set_attn_implementation(attention)
    return None


def rows_of(module: Any, head: Head, batch: list[list[int]], packed: Packed, device: Any) -> np.ndarray:
    """What each sequence of a batch gets from a module over packed rows."""
    with torch.inference_mode():
        found = module(*(torch.from_numpy(array).to(device) for array in head.inputs(batch, packed)))
    outputs = found if isinstance(found, tuple) else (found,)
    return head.rows(batch, packed, [one.float().cpu().numpy() for one in outputs])


def _agrees(
    embedder: Any, head: Head, layout: Layout, device: torch.device, proof: Any, sequences: list[list[int]]
) -> bool:
    def run(batch: list[list[int]]) -> np.ndarray:
        return rows_of(embedder, head, batch, pack(batch, layout), device)

    what = f"batches in {layout} with the mask {embedder.mask.__name__}"
    try:
        proof.check(in_batches(sequences, run), what)
    except UnsupportedModel as error:
        logger.debug("{}", error)
    except Exception as error:  # a model without this kind of mask may raise anything
        logger.debug("{} do not run: {}", what, error)
    else:
        return True
    return False


def leaves_prompts_out(model: SentenceTransformer) -> bool:
    """Whether pooling leaves the tokens of a prompt out, as Instructor models do."""
    return any(getattr(module, "include_prompt", True) is False for module in model)


def plain_forward(model: SentenceTransformer, sequences: list[list[int]]) -> np.ndarray:
    """The model's own forward over padded token ids: float32 (n, dimension)."""
    padding_id = getattr(model.tokenizer, "pad_token_id", None) or 0
    width = max(map(len, sequences))
    input_ids = np.full((len(sequences), width), padding_id, np.int64)
    attention_mask = np.zeros_like(input_ids)
    for row, ids in enumerate(sequences):
        input_ids[row, : len(ids)] = ids
        attention_mask[row, : len(ids)] = 1
    features = {
        "input_ids": torch.from_numpy(input_ids).to(model.device),
        "attention_mask": torch.from_numpy(attention_mask).to(model.device),
    }
    with torch.inference_mode():
        vectors: np.ndarray = model(features)["sentence_embedding"].float().cpu().numpy()
    return vectors
