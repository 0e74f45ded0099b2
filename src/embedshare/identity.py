"""What makes two models one vector space, and what a model says of itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from embedshare.errors import ModelMismatch, WeightsCorrupted

TOKENIZER_FILES = (
    "tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "sentencepiece.bpe.model", "spiece.model",
    "tokenizer.model",
)  # fmt: skip
_CONFIGURATIONS = (
    "modules.json", "config.json", "sentence_bert_config.json", "config_sentence_transformers.json",
    "tokenizer_config.json",
)  # fmt: skip
# Facts about how a folder was written, which copies of one model differ in; they do not move a vector.
_VOLATILE_KEYS = frozenset(
    {
        "_name_or_path",
        "name_or_path",
        "transformers_version",
        "torch_dtype",
        "dtype",
        "__version__",
        "model_type",
    }
)


class ModelDescription(msgspec.Struct, frozen=True):
    """What a client needs to know of the model that answers it."""

    identity: str
    """Digest of weights, tokenizer, pooling, normalisation and dimensions; equal identities share a vector
    space."""

    model_name: str
    dimension: int
    max_seq_length: int
    prompts: dict[str, str]
    default_prompt_name: str | None
    similarity_fn_name: str
    tokenizer_inputs: list[str]
    """The tensors that the tokenizer makes, such as input_ids."""

    padding_token_id: int
    device: str
    dtype: str
    runtime: str


def identity_of(folder: Path) -> str:
    """The identity of the model in `folder` (a SentenceTransformer's): 64 hexadecimal digits.

    Reads every weight once: about 0.1 s for 100 MB. What a vector depends on goes in (weights, tokenizer,
    configurations); precision does not (bf16 and fp32 of one model agree to a cosine of 0.9999).
    """
    digest = hashlib.sha256()
    for path in _relevant_files(folder):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
        if path.suffix == ".json" and path.name not in TOKENIZER_FILES:
            try:
                stable = _without_volatile(json.loads(path.read_text(encoding="utf8")))
            except ValueError as error:
                raise WeightsCorrupted(f"{path} is not JSON: {error}") from None
            digest.update(json.dumps(stable, sort_keys=True).encode())
        else:
            digest.update(file_sha256(path).encode())
        digest.update(b"\0")
    return digest.hexdigest()


def check_identity(expected: str | None, found: str, who: str) -> None:
    """Raise ModelMismatch where `who`, of identity `found`, is not of the vector space in use so far."""
    if expected is not None and found != expected:
        raise ModelMismatch(
            f"{who} is of another vector space ({found[:12]}) than the vectors so far ({expected[:12]}); "
            "start this process anew to use it, and embed again what was stored",
            expected=expected,
            found=found,
        )


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _relevant_files(folder: Path) -> Iterator[Path]:
    """Weights, tokenizer and configurations of the modules, in an order that does not depend on the disk.

    Where a folder has safetensors, other formats of the same weights beside them do not count.
    """
    modules = [folder, *sorted(path.parent for path in folder.glob("*_*/config.json"))]
    for module in modules:
        weights = sorted(module.glob("*.safetensors")) or sorted(module.glob("*.bin"))
        tokenizer = module / "tokenizer.json"
        vocabulary = [tokenizer] if tokenizer.is_file() else [module / name for name in TOKENIZER_FILES]
        configurations = [module / name for name in _CONFIGURATIONS]
        yield from (path for path in [*configurations, *vocabulary, *weights] if path.is_file())


def _without_volatile(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_volatile(item) for key, item in value.items() if key not in _VOLATILE_KEYS}
    if isinstance(value, list):
        return [_without_volatile(item) for item in value]
    return value
