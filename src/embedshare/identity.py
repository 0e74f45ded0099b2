"""A model's identity, by which vectors of two models may be mixed, and its description."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any, Literal

import msgspec

from embedshare import model_files
from embedshare.errors import ModelMismatch, WeightsCorrupted

# Facts about how a folder was written, which differ between copies of one model and do not change a vector.
_VOLATILE_KEYS = {
    "_name_or_path", "name_or_path", "transformers_version", "torch_dtype", "dtype", "__version__",
    "model_type",
}  # fmt: skip


#: The four kinds of models, as sentence-transformers has them: SentenceTransformer, CrossEncoder,
#: SparseEncoder and MultiVectorEncoder.
Family = Literal["embedding", "cross-encoder", "sparse", "multi-vector"]


_DENSE, _TEXT = ("dense",), ("text",)


class ModelDescription(msgspec.Struct, frozen=True, omit_defaults=True):
    """A client's knowledge of the model that answers it."""

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
    family: Family = "embedding"
    outputs: tuple[str, ...] = _DENSE
    """What it makes of a text: "dense", "sparse", "multi-vector", or "scores" (see calls.Output)."""

    modalities: tuple[str, ...] = _TEXT
    """What it reads: "text", "image"."""

    labels: tuple[str, ...] = ()
    """Names of a cross-encoder's scores, in their order; one of a reranker."""

    activation: str | None = None
    """The function that a cross-encoder's scores go through by default (see activations.py)."""

    vocabulary: int | None = None
    """The number of tokens that sparse weights are for."""

    token_dimension: int | None = None
    """Values of each vector of a multi-vector output."""

    max_active_dims: int | None = None
    """The most weights that it gives a text; None: as many as there are."""

    def __post_init__(self) -> None:
        # msgspec leaves out a default that is the same object: earlier releases know no such field
        for field, default in (("outputs", _DENSE), ("modalities", _TEXT)):
            if getattr(self, field) == default:
                msgspec.structs.force_setattr(self, field, default)

    @property
    def can(self) -> str:
        """What the model can do, for an error's message."""
        done = {
            "dense": "embeddings",
            "sparse": "sparse embeddings",
            "multi-vector": "multi-vector embeddings, and scores by them",
            "scores": "scores of pairs" if len(self.labels) < 2 else "classification",
        }
        images = ["embeddings of images"] if "image" in self.modalities else []
        return ", ".join([*(done.get(output, output) for output in self.outputs), *images])


def names_of(model_name: str) -> tuple[str, str]:
    """The names that a caller may use for a model: its own, and that without the part before its last
    slash."""
    return model_name, re.split(r"[\\/]", model_name.rstrip("\\/"))[-1] or model_name


def identity_of(folder: Path, family: Family = "embedding") -> str:
    """The identity of the model in `folder`, served as one of this family: 64 hexadecimal digits.

    Reads every weight once: about 0.1 s for 100 MB. It covers everything that a vector depends on: weights,
    tokenizer, configurations, code (see model_files). Precision is not part of it: bf16 and fp32 of one model
    agree to a cosine of 0.9999.
    """
    digest = hashlib.sha256()
    for path in model_files.counted(folder):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
        if path.suffix == ".json" and path.name not in model_files.TOKENIZER_FILES:
            try:
                stable = _without_volatile(json.loads(path.read_text(encoding="utf8")))
            except ValueError as error:
                raise WeightsCorrupted(f"{path} is not JSON: {error}") from None
            digest.update(json.dumps(stable, sort_keys=True).encode())
        else:
            digest.update(file_sha256(path).encode())
        digest.update(b"\0")
    digest.update(_converted_from(folder))
    if family != "embedding":  # whose vectors are stored by the digest without it
        digest.update(b"\0family\0" + family.encode())
    return digest.hexdigest()


def declared_identity(space: str | None, provider: str, model_name: str, dimension: int) -> str:
    """The identity of a remote model, whose weights cannot be read here: 64 hexadecimal digits.

    It is that of its vector space, if one is declared, else that of the provider's model.
    """
    declared = ["space", space, dimension] if space is not None else [provider, model_name, dimension]
    return hashlib.sha256(b"declared\0" + json.dumps(declared).encode()).hexdigest()


def check_identity(expected: str | None, found: str, who: str) -> None:
    """Raise ModelMismatch if `who`, of identity `found`, is not of the vector space in use so far."""
    if expected is not None and found != expected:
        raise ModelMismatch(
            f"{who} is of another vector space ({found[:12]}) than the vectors so far "
            f"({expected[:12]}); restart this process to use it, and embed again what was stored",
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


def _converted_from(folder: Path) -> bytes:
    """The kind of model in `folder`, unless it is a SentenceTransformer; such a kind is loaded with its own
    pooling, not with the folder's modules."""
    try:
        said = json.loads((folder / "config_sentence_transformers.json").read_text(encoding="utf8"))
    except OSError:
        return b""
    kind = said.get("model_type", "SentenceTransformer") if isinstance(said, dict) else ""
    return b"" if kind == "SentenceTransformer" else str(kind).encode()


def _without_volatile(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_volatile(item) for key, item in value.items() if key not in _VOLATILE_KEYS}
    if isinstance(value, list):
        return [_without_volatile(item) for item in value]
    return value
