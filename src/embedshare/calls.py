"""A call of a model: its request, its context and its result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol, TypeGuard

import msgspec
import numpy as np

from embedshare.errors import InvalidInput
from embedshare.identity import ModelDescription

#: Texts, or sequences of the model's own token ids.
Inputs = list[str] | list[list[int]]
#: A token: its id, its text, whether the tokenizer added it, and the positions of its first character and
#: after its last one; None for an added token.
Token = tuple[int, str, bool, int | None, int | None]
#: What a model makes of a text: one vector, weights of a vocabulary's tokens, or a vector for each token.
Output = Literal["dense", "sparse", "multi-vector"]


class Timings(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """The stages of a call on the side that computed it, in milliseconds."""

    tokenize_ms: float = 0.0
    queue_ms: float = 0.0
    compute_ms: float = 0.0

    @property
    def stages(self) -> tuple[float, float, float]:
        """The times in the order of a call's stages."""
        return self.tokenize_ms, self.queue_ms, self.compute_ms


class Prompts(NamedTuple):
    """A caller's own prompts, in place of the model's."""

    texts: dict[str, str]
    identity: str | None
    """The only model that these prompts are for; None: every model."""

    default_name: str | None


class EmbedRequest(msgspec.Struct, frozen=True):
    """Texts or token ids to embed, and how. Token ids take no prompt and are never truncated."""

    inputs: Inputs
    prompt: str | None = None
    """The prompt's text; None: the one that `prompt_name` names."""

    prompt_name: str | tuple[str, ...] | None = None
    """The name of a prompt that the model must have. Of several names the first that it has counts, else its
    default prompt."""

    own_prompts: Prompts | None = None
    normalize: bool = False
    dimensions: int | None = None
    """Values kept of each vector; None: all that the model serves."""

    truncate: bool = True
    """Truncate texts longer than the model's longest sequence; otherwise such a text is TooLarge."""

    task: str | None = None
    """The purpose of the texts, such as "query"; few models embed differently for it."""


class EmbedResult(NamedTuple):
    """Vectors, their token counts and timings, and their model."""

    rows: np.ndarray
    """Float32 (n, dimension)"""

    token_counts: list[int]
    """The number of tokens that the model read for each, special ones included."""

    timings: Timings
    description: ModelDescription
    """The model that made them."""

    @property
    def identity(self) -> str:
        """The vector space of the rows."""
        return self.description.identity

    @property
    def tokens(self) -> int:
        """The number of tokens that the model read for all of them."""
        return sum(self.token_counts)


class OutputsRequest(msgspec.Struct, frozen=True):
    """Texts to encode, and which outputs of the model to give for each, all from one pass."""

    inputs: list[str]
    outputs: tuple[Output, ...]
    """Without repetition."""

    prompt: str | None = None
    prompt_name: str | tuple[str, ...] | None = None
    own_prompts: Prompts | None = None
    """The prompt: as of EmbedRequest."""

    task: str | None = None
    """The purpose of the texts; multi-vector models encode "query" and "document" differently."""

    normalize: bool = False
    """Whether dense vectors, and those of tokens, get the length 1."""

    dimensions: int | None = None
    """Values kept of each dense vector; None: all that the model serves."""

    max_active_dims: int | None = None
    """The most weights kept of each text, the largest ones; None: the model's own number, or all."""

    truncate: bool = True


class SparseRows(NamedTuple):
    """Weights of tokens for n texts, in the form of SciPy's CSR arrays."""

    offsets: np.ndarray
    """Int64 (n + 1,): text i has the items offsets[i] to offsets[i + 1]."""

    indices: np.ndarray
    """Int32: ids of tokens, ascending within a text."""

    values: np.ndarray
    """Float32: their weights, none of them 0."""

    width: int
    """The number of the vocabulary's tokens."""


class TokenRows(NamedTuple):
    """Vectors of tokens for n texts, one text's after the other's."""

    offsets: np.ndarray
    """Int64 (n + 1,): text i has the rows offsets[i] to offsets[i + 1]."""

    rows: np.ndarray
    """Float32 (tokens, dimension)."""


class OutputsResult(NamedTuple):
    """The outputs that were asked for; the others are None."""

    dense: np.ndarray | None
    """Float32 (n, dimension)."""

    sparse: SparseRows | None
    multi_vector: TokenRows | None
    token_counts: list[int]
    timings: Timings
    description: ModelDescription

    @property
    def identity(self) -> str:
        """The model's identity."""
        return self.description.identity

    @property
    def tokens(self) -> int:
        """The number of tokens that the model read for all of them."""
        return sum(self.token_counts)


class ScoreRequest(msgspec.Struct, frozen=True):
    """Texts to score, alone or each for a query."""

    queries: list[str]
    """One for all documents, or one for each, or none: the documents are then classified alone."""

    documents: list[str]
    prompt: str | None = None
    prompt_name: str | tuple[str, ...] | None = None
    own_prompts: Prompts | None = None
    """The prompt: as of EmbedRequest. A multi-vector model without `prompt` and `prompt_name` has its own of
    queries and of documents; else the prompt is that of the queries, and documents have none."""

    truncate: bool = True


class ScoreResult(NamedTuple):
    """Scores before an activation function (logits), or similarities of a multi-vector model."""

    rows: np.ndarray
    """Float32 (documents, labels); (documents, 1) of a multi-vector model."""

    token_counts: list[int]
    """The number of tokens that the model read for each document, its query included."""

    timings: Timings
    description: ModelDescription

    @property
    def identity(self) -> str:
        """The model's identity."""
        return self.description.identity

    @property
    def tokens(self) -> int:
        """The number of tokens that the model read for all of them."""
        return sum(self.token_counts)


#: The answers that a model computes.
Computed = EmbedResult | ScoreResult | OutputsResult


class Prompted(Protocol):
    """A request whose texts may have a prompt before them."""

    @property
    def prompt(self) -> str | None: ...
    @property
    def prompt_name(self) -> str | tuple[str, ...] | None: ...
    @property
    def own_prompts(self) -> Prompts | None: ...


def _never() -> bool:
    return False


class CallContext(msgspec.Struct, frozen=True):
    """The caller that waits for an answer, and its deadline."""

    deadline: float = float("inf")
    """A moment of `time.monotonic()`."""

    caller: int = 0
    """A number for the connection that the call came by."""

    is_gone: Callable[[], bool] = _never
    """True once the caller has left; asked without waiting."""

    is_check: bool = False
    """A health check, which neither loads a model nor counts as its use."""

    may_wait: bool = True
    """Whether a remote provider may be waited for and asked again; False if another one can answer."""


#: The text of health checks.
WELL_TEXT = "Is the model well?"
#: A call without a deadline, from this process.
UNBOUNDED = CallContext()


def are_tokens(inputs: Inputs) -> TypeGuard[list[list[int]]]:
    """True for sequences of token ids."""
    return bool(inputs) and not isinstance(inputs[0], str)


def prompt_of(request: Prompted, model: ModelDescription) -> str:
    """The text before each of the request's texts where `model` answers. Raises InvalidInput for an unknown
    name."""
    if request.prompt is not None:
        return request.prompt
    texts, default, own = model.prompts, model.default_prompt_name, request.own_prompts
    if own is not None and own.identity in (None, model.identity):
        texts, _, default = own
    name = request.prompt_name
    if name is not None and not isinstance(name, tuple):
        if name not in texts:
            raise InvalidInput(f"unknown prompt {name!r}; the model has {list(texts)}")
        return texts[name]
    found = next((one for one in name or () if one in texts), default)
    return "" if found is None else texts.get(found, "")


def check_queries(queries: list[str], documents: list[str]) -> None:
    """Raise InvalidInput unless there is no query, one for all documents, or one for each."""
    if len(queries) not in (0, 1, len(documents)):
        raise InvalidInput(
            f"{len(queries):,} queries came for {len(documents):,} documents; allowed: none, one, or one for "
            "each document"
        )


def no_outputs(outputs: Sequence[Output], dimension: int, model: ModelDescription) -> OutputsResult:
    """The outputs for no texts; `dimension`: values of each dense vector."""
    starts, width = np.zeros(1, np.int64), model.vocabulary or 0
    sparse = SparseRows(starts, np.empty(0, np.int32), np.empty(0, np.float32), width)
    tokens = TokenRows(starts, np.empty((0, model.token_dimension or 0), np.float32))
    return OutputsResult(
        np.empty((0, dimension), np.float32) if "dense" in outputs else None,
        sparse if "sparse" in outputs else None,
        tokens if "multi-vector" in outputs else None,
        [],
        Timings(),
        model,
    )


def joined(parts: list[EmbedResult]) -> EmbedResult:
    """The parts of one long list as one."""
    return parts[0] if len(parts) == 1 else EmbedResult(_joined_rows(parts), *_joined_facts(parts))


def joined_scores(parts: list[ScoreResult]) -> ScoreResult:
    """`joined`, of scores."""
    return parts[0] if len(parts) == 1 else ScoreResult(_joined_rows(parts), *_joined_facts(parts))


def joined_outputs(parts: list[OutputsResult]) -> OutputsResult:
    """`joined`, of several outputs."""
    if len(parts) == 1:
        return parts[0]
    dense = [part.dense for part in parts if part.dense is not None]
    sparse = [part.sparse for part in parts if part.sparse is not None]
    tokens = [part.multi_vector for part in parts if part.multi_vector is not None]
    return OutputsResult(
        np.concatenate(dense) if dense else None,
        SparseRows(
            _joined_offsets([part.offsets for part in sparse]),
            np.concatenate([part.indices for part in sparse]),
            np.concatenate([part.values for part in sparse]),
            sparse[0].width,
        )
        if sparse
        else None,
        TokenRows(
            _joined_offsets([part.offsets for part in tokens]), np.concatenate([part.rows for part in tokens])
        )
        if tokens
        else None,
        *_joined_facts(parts),
    )


def _joined_rows(parts: Sequence[EmbedResult | ScoreResult]) -> np.ndarray:
    return np.concatenate([part.rows for part in parts])


def _joined_offsets(parts: list[np.ndarray]) -> np.ndarray:
    """Offsets of texts in parts as offsets of the texts of all."""
    begins = np.cumsum([0, *(part[-1] for part in parts)])
    moved = (part[1:] + begin for part, begin in zip(parts, begins[:-1], strict=True))
    return np.concatenate([np.zeros(1, np.int64), *moved])


def _joined_facts(
    parts: Sequence[EmbedResult | ScoreResult | OutputsResult],
) -> tuple[list[int], Timings, ModelDescription]:
    return (
        [count for part in parts for count in part.token_counts],
        Timings(*map(sum, zip(*(part.timings.stages for part in parts), strict=True))),
        parts[0].description,
    )


def placed(parts: Sequence[tuple[Sequence[int], EmbedResult]]) -> EmbedResult:
    """Parts as one, each row at the number that its part gives it."""
    whole = joined([part for _, part in parts])
    order = np.argsort([number for numbers, _ in parts for number in numbers])
    return whole._replace(rows=whole.rows[order], token_counts=[whole.token_counts[at] for at in order])
