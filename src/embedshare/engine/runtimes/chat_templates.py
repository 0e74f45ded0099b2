"""The texts that a cross-encoder's chat template puts around a query and a document."""

from __future__ import annotations

from itertools import product
from typing import Any

import msgspec

from embedshare.engine.pairs import PairTokenizer
from embedshare.engine.runtimes.embedder import PROBES, numbers, template_of
from embedshare.engine.tokens import LONGEST, PairTemplate, Template
from embedshare.errors import UnsupportedModel


def of_single_texts(model: Any, serialized: str) -> Template | None:
    """The template around a text that comes alone; None if there is none, or one that takes no such text."""
    try:
        return template_of(model, serialized)
    except UnsupportedModel:
        return None


def of_pairs(model: Any, serialized: str) -> PairTemplate | None:
    """The template around pairs; None without one. `serialized`: the text of the model's tokenizer.

    Raises UnsupportedModel if the template does more than put words around two texts.
    """
    first = model[0]
    if "message" not in first.modality_config:
        return None
    if first.processor is not model.tokenizer:
        raise UnsupportedModel("the model's chat template is not its tokenizer's")
    options = dict(first.processing_kwargs.get("chat_template", {}))
    options.pop("restore_suffix", None)  # sentence-transformers' own option, visible in its result

    def rendered(query: str, document: str, prompt: str) -> str:
        _, inputs = first.input_formatter.batch_to_message("text", {"text": [(query, document)]})
        messages = inputs["message"]
        if prompt:
            messages = first.input_formatter.prepend_prompt_to_messages(messages, prompt)
        found: str = model.tokenizer.apply_chat_template(messages[0], tokenize=False, **options)
        return found

    query, document, prompt = PROBES[0], PROBES[1], "k3Wp"
    try:
        before, rest = rendered(query, document, "").split(query)
        between, after = rest.split(document)
        head, _ = rendered(query, document, prompt).split(query)
        before_prompt, after_prompt = head.split(prompt)
    except ValueError:
        raise UnsupportedModel("the model's chat template does not repeat two texts once") from None
    template = PairTemplate(before, before_prompt, after_prompt, between, after, [])
    for one, other in product(PROBES, PROBES):
        for told in ("", prompt, other):
            if rendered(one, other, told) != template.render(one, other, told):
                raise UnsupportedModel("the model's chat template does more than put words around texts")
    return msgspec.structs.replace(template, suffix=_suffix(model, serialized, template))


def _suffix(model: Any, serialized: str, template: PairTemplate) -> list[int]:
    """The token ids that the model ends a truncated text with."""
    tokenizer = PairTokenizer(serialized, around=template)
    if tokenizer.max_seq_length >= LONGEST:
        return []
    long_text = numbers(tokenizer.max_seq_length + 32)
    read: list[int] = model.preprocess([("one", long_text)])["input_ids"][0].tolist()
    (cut,) = tokenizer.pairs(["one"], [long_text])
    apart = [at for at, (one, other) in enumerate(zip(read, cut, strict=False)) if one != other]
    return read[apart[0] :] if apart else []
