"""One small model of each family, with random weights that are the same each time.

Tests use the smallest possible models; the benchmark uses realistic sizes: see `sized`.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

from embedshare.engine import weights

DIMENSION = 32
SIZES = {
    "hidden_size": DIMENSION,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "initializer_range": 0.3,  # with less, attention is almost even and hides a wrong mask
}


class Size(NamedTuple):
    """The size of the created models."""

    dimension: int
    layers: int
    heads: int
    weights: float
    """Standard deviation of a transformer's weights."""


SMALL = Size(DIMENSION, 2, 2, SIZES["initializer_range"])
#: The size of all-MiniLM-L6-v2. With such weights attention is as uneven as in a trained model, and values
#: stay small.
REALISTIC = Size(384, 6, 12, 384**-0.5)
_size = ContextVar("size", default=SMALL)
DECODER = {**SIZES, "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 30522, "pad_token_id": 0}
PROMPTS = {"query": "Find: ", "document": "Document: "}
_TEMPLATE = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}[end]"
_WORDS = ["PADDING_TOKEN", "one", "model", "many", "workers", "shared", "the", "quick", "brown", "fox:"]


@contextlib.contextmanager
def sized(size: Size) -> Iterator[None]:
    """Create models of this size within the block."""
    token = _size.set(size)
    try:
        yield
    finally:
        _size.reset(token)


def wide(small: int) -> int:
    """Scale a width of the smallest models to the current size."""
    return small * _size.get().dimension // DIMENSION


def _in_size(config: dict[str, Any]) -> dict[str, Any]:
    """Scale a configuration of the smallest models to the current size."""
    size = _size.get()
    if size == SMALL:
        return config
    numbers = {
        "num_hidden_layers": size.layers, "num_layers": size.layers, "n_layer": size.layers,
        "n_layers": size.layers,
        "num_attention_heads": size.heads, "num_heads": size.heads, "n_head": size.heads,
        "n_heads": size.heads,
        "num_key_value_heads": size.heads // 2,
        "head_dim": size.dimension // size.heads, "d_kv": size.dimension // size.heads,
        "initializer_range": size.weights,
    }  # fmt: skip
    widths = {
        "hidden_size", "d_model", "n_embd", "dim", "intermediate_size", "d_ff", "d_inner", "hidden_dim",
        "embedding_size",
    }  # fmt: skip

    def of(name: str, value: Any) -> Any:
        if name == "attention_window":  # one for each layer
            return value[:1] * size.layers
        return wide(value) if name in widths else numbers.get(name, value)

    return {name: of(name, value) for name, value in config.items()}


def modules() -> Any:
    from sentence_transformers.base.modules import Dense, Router, Transformer
    from sentence_transformers.sentence_transformer import modules

    modules.Dense, modules.Router, modules.Transformer = Dense, Router, Transformer
    return modules


def tokenizer(longest: int = 128, **options: Any) -> Any:
    """The default model's tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(
        str(weights.find("all-MiniLM-L6-v2")), model_max_length=longest, **options
    )


def trunk(folder: Path, family: str, config: dict[str, Any], words: Any = None, **options: Any) -> Any:
    """Return a Transformer module of transformers' `family`."""
    import torch
    import transformers

    torch.manual_seed(7)
    name, _, kind = family.partition(".")
    made = getattr(transformers, f"{name}Config")(**_in_size(config))
    getattr(transformers, f"{name}{kind or 'Model'}")(made).eval().save_pretrained(folder / "trunk")
    (words or tokenizer()).save_pretrained(folder / "trunk")
    return modules().Transformer(str(folder / "trunk"), **options)


def bert(folder: Path, **options: Any) -> Any:
    config = {"vocab_size": 30522, "pad_token_id": 0, "max_position_embeddings": 260, **SIZES}
    return trunk(folder, "Bert", config, **options)


def pooled(first: Any, pooling: str = "mean", *more: Any, **options: Any) -> list[Any]:
    return [first, modules().Pooling(first.get_embedding_dimension(), pooling, **options), *more]


def saved(folder: Path, parts: list[Any], **options: Any) -> Path:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(modules=parts, device="cpu", **options)
    model.save(str(folder / "model"), create_model_card=False)
    return folder / "model"


def edited(folder: Path, file: str, **changes: Any) -> Path:
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def chat(folder: Path, template: str = _TEMPLATE) -> Path:
    words = tokenizer(chat_template=template)
    return saved(folder, pooled(trunk(folder, "Qwen3", DECODER, words), "lasttoken"), prompts=PROMPTS)


def _old_layout(folder: Path) -> Path:
    model = saved(folder, pooled(bert(folder)))
    (model / "0_Transformer").mkdir()
    for file in [file for file in model.iterdir() if file.is_file()]:
        if file.name not in ("modules.json", "config_sentence_transformers.json"):
            shutil.move(file, model / "0_Transformer")
    listed = json.loads((model / "modules.json").read_text())
    listed[0]["path"] = "0_Transformer"
    (model / "modules.json").write_text(json.dumps(listed))
    return model


def _vocabulary_alone(folder: Path) -> Path:
    model = saved(folder, pooled(bert(folder)))
    shutil.copy(weights.find("all-MiniLM-L6-v2") / "vocab.txt", model)
    (model / "tokenizer.json").unlink()
    return model


def _plain(folder: Path) -> Path:
    bert(folder)
    return folder / "trunk"


def _cased(folder: Path) -> Path:
    model = saved(folder, pooled(bert(folder)))
    return edited(model, "tokenizer_config.json", tokenizer_class="BertTokenizer", do_lower_case=False)


def _seeded(make: Callable[[], Any]) -> Any:
    import torch

    torch.manual_seed(7)
    return make()


def _dense() -> Any:
    return _seeded(lambda: modules().Dense(wide(DIMENSION), wide(24)))


def cnn() -> Any:
    return _seeded(lambda: modules().CNN(wide(DIMENSION), wide(16), [1, 3]))


def _word_weights() -> Any:
    words = sorted(tokenizer().get_vocab().items(), key=lambda pair: pair[1])
    return modules().WordWeights([word for word, _ in words], {word: 0.1 + id % 7 for word, id in words})


def _lstm() -> list[Any]:
    lstm = _seeded(lambda: modules().LSTM(wide(DIMENSION), wide(16)))
    return [_word_embeddings(), lstm, modules().Pooling(wide(DIMENSION))]


def _word_embeddings() -> Any:
    import torch
    from sentence_transformers.sentence_transformer.modules.tokenizer import WhitespaceTokenizer

    words = _words()
    table = _seeded(lambda: torch.randn(len(words), wide(DIMENSION)))
    splitting = WhitespaceTokenizer(words, stop_words=set(), do_lower_case=True)
    return modules().WordEmbeddings(splitting, table)


def _words() -> list[str]:
    """The words of word-level models: a few, or the most frequent of the default model's vocabulary."""
    if _size.get() == SMALL:
        return _WORDS
    known = (weights.find("all-MiniLM-L6-v2") / "vocab.txt").read_text(encoding="utf8").split()
    return [_WORDS[0], *(word for word in known if word.isalpha() and len(word) > 1)][:2000]


def _static(own_truncation: bool) -> list[Any]:
    import torch
    from tokenizers import Tokenizer

    words = Tokenizer.from_file(str(weights.find("all-MiniLM-L6-v2") / "tokenizer.json"))
    if not own_truncation:
        words.no_truncation()
    table = _seeded(lambda: torch.randn(words.get_vocab_size(), wide(DIMENSION)))
    return [modules().StaticEmbedding(words, embedding_weights=table), modules().Normalize()]


def _router(folder: Path) -> list[Any]:
    (folder / "other").mkdir()
    query, answer = bert(folder), trunk(folder / "other", "DistilBert", {"dim": DIMENSION, "n_layers": 1,
        "n_heads": 2, "hidden_dim": 64, "vocab_size": 30522})  # fmt: skip
    return [modules().Router.for_query_document(pooled(query), pooled(answer, "cls"))]


_T5 = {"vocab_size": 30522, "d_model": DIMENSION, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
_ROBERTA = {"vocab_size": 30522, "pad_token_id": 1, "max_position_embeddings": 66, **SIZES}
MODERN = {
    "vocab_size": 30522, "pad_token_id": 0, "cls_token_id": 101, "sep_token_id": 102, "bos_token_id": 101,
    "eos_token_id": 102, "max_position_embeddings": 2048, "global_attn_every_n_layers": 4, **SIZES,
}  # fmt: skip
_WIDE = {**MODERN, "local_attention": 800}
_SENTENCES = "sentence-transformers"

#: By name: the function that writes the folder, and the runtime that serves it on a CPU.
FAMILIES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "BERT": (lambda at: saved(at, pooled(bert(at)), prompts=PROMPTS), "openvino"),
    "BERT, Dense, Normalize": (
        lambda at: saved(at, pooled(bert(at), "cls", _dense(), modules().Normalize())), "openvino",
    ),
    "BERT, truncate_dim": (lambda at: saved(at, pooled(bert(at)), truncate_dim=8), "openvino"),
    "BERT, do_lower_case": (lambda at: saved(at, pooled(bert(at, do_lower_case=True))), "openvino"),
    "BERT, a tokenizer of cased letters": (_cased, "openvino"),
    "BERT, vocab.txt alone": (_vocabulary_alone, "openvino"),
    "BERT, 0_Transformer": (_old_layout, "openvino"),
    "BERT, no modules.json": (_plain, "openvino"),
    "BERT, the end of a text is read": (
        lambda at: edited(saved(at, pooled(bert(at))), "tokenizer_config.json", truncation_side="left"),
        "openvino",
    ),
    "BERT, prompts left out": (
        lambda at: saved(at, pooled(bert(at), include_prompt=False), prompts=PROMPTS), "openvino",
    ),
    "BERT, processing_kwargs": (
        lambda at: saved(at, pooled(bert(at, processing_kwargs={"text": {"max_length": 20}}))), "openvino",
    ),
    "BERT, query_length and document_length": (
        lambda at: saved(at, pooled(bert(at, query_length=8, document_length=24)), prompts=PROMPTS),
        "openvino",
    ),
    "BERT, CNN": (lambda at: saved(at, [bert(at), cnn(), modules().Pooling(wide(32))]), _SENTENCES),
    "BERT, WordWeights": (
        lambda at: saved(at, [bert(at), _word_weights(), modules().Pooling(wide(DIMENSION))]), "openvino",
    ),
    "RoBERTa, more tokens than positions": (
        lambda at: saved(at, pooled(trunk(at, "Roberta", _ROBERTA, max_seq_length=66))), "openvino",
    ),
    "T5, no longest sequence": (
        lambda at: saved(at, pooled(trunk(at, "T5.EncoderModel", _T5, tokenizer(10**30)))), "openvino",
    ),
    "ModernBERT, a wide window": (
        lambda at: saved(at, pooled(trunk(at, "ModernBert", _WIDE, tokenizer(1024)), "cls")), "openvino",
    ),
    "Qwen3": (lambda at: saved(at, pooled(trunk(at, "Qwen3", DECODER), "lasttoken")), "openvino"),
    "Qwen3, chat template": (chat, "openvino"),
    "WordEmbeddings": (lambda at: saved(at, pooled(_word_embeddings())), "static"),
    "WordEmbeddings, LSTM": (lambda at: saved(at, _lstm()), _SENTENCES),
    "bag of words": (lambda at: saved(at, [modules().BoW(_words(), {"model": 2.0})]), _SENTENCES),
    "StaticEmbedding": (lambda at: saved(at, _static(False), prompts=PROMPTS), "static"),
    "StaticEmbedding, truncation of its own": (lambda at: saved(at, _static(True)), "static"),
    "Router": (lambda at: saved(at, _router(at)), _SENTENCES),
}  # fmt: skip
#: Families in which a text's vector depends on its batch's padding, in sentence-transformers too.
BATCHES_MATTER = {"BERT, CNN", "FNet", "ConvBert"}
#: More models of the same kinds, which only EMBEDSHARE_LONG=1 runs.
MORE = {
    f"{name}, {pooling}": (config, pooling)
    for name, config in {
        "Bert": {"vocab_size": 30522, "pad_token_id": 0, **SIZES},
        "Electra": {"vocab_size": 30522, "embedding_size": 32, **SIZES},
        "MPNet": {"vocab_size": 30522, **SIZES},
        "Albert": {"vocab_size": 30522, "embedding_size": 16, **SIZES},
        "DebertaV2": {"vocab_size": 30522, **SIZES},
        "XLMRoberta": {"vocab_size": 30522, **SIZES},
        "ModernBert": {**MODERN, "local_attention": 64},
        "Mistral": {**DECODER, "sliding_window": 32},
        "Gemma3Text": {**DECODER, "sliding_window": 32},
        "Llama": DECODER,
        "Qwen2": DECODER,
        "GPT2": {"vocab_size": 30522, "n_embd": DIMENSION, "n_layer": 2, "n_head": 2, "pad_token_id": 0},
        "GPTNeoX": {"vocab_size": 30522, **SIZES},
        "XLNet": {"vocab_size": 30522, "d_model": DIMENSION, "n_layer": 2, "n_head": 2, "d_inner": 64},
        "BigBird": {"vocab_size": 30522, "block_size": 16, **SIZES},
        "Longformer": {"vocab_size": 30522, "attention_window": [16, 16], **SIZES},
        "FNet": {"vocab_size": 30522, **SIZES},
        "ConvBert": {"vocab_size": 30522, "embedding_size": 32, **SIZES},
    }.items()
    for pooling in ("mean", "cls", "max", "lasttoken", "weightedmean", "mean_sqrt_len_tokens")
}  # fmt: skip


def more(folder: Path, name: str) -> Path:
    config, pooling = MORE[name]
    family = name.partition(",")[0]
    # GPT-2's own tokenizer emits no token types; with token types, the model adds a word embedding to each
    # token.
    words = tokenizer(model_input_names=["input_ids", "attention_mask"]) if family == "GPT2" else None
    return saved(folder, pooled(trunk(folder, family, config, words), pooling))
