"""Real weights that packages include: all-MiniLM-L6-v2, also with another head, and wordllama's."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from embedshare.engine import weights
from tests.engine.small_models import modules, saved
from tests.layers import DEFAULT

#: The package whose weights and tokenizer `wordllama` takes as files; it is never imported.
WORDLLAMA = "wordllama==0.4.0.post1"


def minilm() -> Path:
    """The default model's folder."""
    return weights.find(DEFAULT)


def minilm_with_dense(folder: Path) -> Path:
    """all-MiniLM-L6-v2 with a random Dense head of 256 values after its mean."""
    import torch

    known = modules()
    torch.manual_seed(7)
    first = known.Transformer(str(minilm()))
    width = first.get_embedding_dimension()
    return saved(folder, [first, known.Pooling(width, "mean"), known.Dense(width, 256), known.Normalize()])


def wordllama_package() -> Path | None:
    """The installed package's folder."""
    found = importlib.util.find_spec("wordllama")
    return Path(found.submodule_search_locations[0]) if found and found.submodule_search_locations else None


def wordllama(folder: Path, package: Path) -> Path:
    """The 32,000 x 256 weights of the package as a StaticEmbedding."""
    from safetensors.torch import load_file
    from tokenizers import Tokenizer

    words = Tokenizer.from_file(str(package / "tokenizers" / "l2_supercat_tokenizer_config.json"))
    table = load_file(str(package / "weights" / "l2_supercat_256.safetensors"))["embedding.weight"].float()
    return saved(folder, [modules().StaticEmbedding(words, embedding_weights=table)])
