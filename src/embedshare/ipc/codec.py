"""Encodes and decodes messages: msgpack by msgspec, decoded into the types declared here alone.

A message is one msgpack array whose first item is its type. Vectors do not go through msgpack: a `Rows` or
`Arrays` message announces them and their raw little-endian bytes follow it, so that the receiver reads them
into the arrays that it returns.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import msgspec

from embedshare.calls import Output, Timings
from embedshare.errors import EmbedshareError, InvalidInput, ProtocolError, from_wire
from embedshare.identity import ModelDescription
from embedshare.telemetry import request_ids

QUERIES = ("describe", "health", "stats", "active_operations", "models", "vocabulary")
#: The id of a request, or of several coalesced ones, from the worker to the server and into both logs.
RequestId = Annotated[str, msgspec.Meta(pattern=rf"^{request_ids.SEVERAL}\Z")]
#: A vector index's random id, which cannot be guessed.
IndexName = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
#: A token's number in the vocabulary, whose size the server checks.
TokenId = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
#: The name of a model, or the path of its folder.
ModelName = Annotated[str, msgspec.Meta(max_length=4096)]
#: The purpose of an embedding, such as "query".
Task = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]
#: The longest name of a program.
PROGRAM_LENGTH = 64


class _Call(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """A call of the server. What is true of all calls of a kind is an attribute of its class: a look at it
    takes a fifth of the time of an isinstance, which for msgspec's classes asks their metaclass."""

    id: int
    time_left_s: float
    """Seconds until the caller stops waiting."""

    since: ClassVar[int] = 1
    """The first version of the protocol that has it."""

    needs_description: ClassVar[bool] = True
    """Whether its caller must know its model."""

    @property
    def raw_bytes(self) -> int:
        """The size of the raw bytes that follow its message."""
        return 0

    @property
    def rows(self) -> int:
        """The number of rows in an answer that consists of Rows."""
        return 0


class Encode(_Call, tag=1):
    """Embed `texts`.

    `time_left_s`: seconds until the caller stops waiting; `request_id`: the request that the call belongs to.
    Without `truncate` a text longer than the model's longest sequence is an error. Few models use `task`;
    version 1 lacks it (see `encode` and `for_version_1`).
    """

    texts: list[str]
    prompt: str
    normalize: bool
    truncate_dim: int | None
    request_id: RequestId | None = None
    truncate: bool = True
    task: Task | None = None

    @property
    def rows(self) -> int:
        """See _Call."""
        return len(self.texts)


class Tokenize(_Call, tag=2):
    """The token ids of `texts`, special tokens included, truncated at the model's longest sequence.

    `detailed`: the fields of an engine.sequences.Token in place of each id, without truncation, and special
    tokens as `special_tokens` says.
    """

    texts: list[str]
    prompt: str
    request_id: RequestId | None = None
    detailed: bool = False
    special_tokens: bool = True


class Caller(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """The caller's description of itself, for operators; it grants and denies nothing."""

    pid: Annotated[int, msgspec.Meta(ge=1, le=2**32)]
    program: Annotated[str, msgspec.Meta(max_length=PROGRAM_LENGTH, pattern=r"^[ -~]+\Z")]


class Query(_Call, tag=3):
    """A query about the server; `what` is one of QUERIES."""

    needs_description: ClassVar[bool] = False

    what: str
    caller: Caller | None = None


class ModelSettings(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """How to serve a model, in the settings' names."""

    device: str
    max_batch_size: int
    model_cache_dir: str | None
    version: int
    """The version of the database's settings that this changes."""


class Swap(_Call, tag=4):
    """Replace the model by `model_name` for every caller; by default with the present one's options.

    Answered by a Reply with the fields of the new model's ModelDescription, and `seconds`.
    """

    needs_description: ClassVar[bool] = False

    model_name: str
    settings: ModelSettings | None = None


class Put(_Call, tag=5):
    """Vectors of a vector index: `count` int64 ids and `count` x `dimension` float32 values follow this
    message as raw little-endian bytes.

    They are number `start` and on of `total`. `identity`: the model that made them; `version`: the index's
    version with them. Answered by a Reply with the index's count.
    """

    index: IndexName
    identity: Annotated[str, msgspec.Meta(max_length=128)]
    version: int
    metric: Literal["l2", "cosine", "ip"]
    kind: Literal["auto", "flat", "hnsw", "ivf,pq"]
    dimension: Annotated[int, msgspec.Meta(ge=1, le=1 << 16)]
    start: _Count
    total: _Count
    count: _Count

    @property
    def raw_bytes(self) -> int:
        """See _Call."""
        return self.count * (8 + 4 * self.dimension)


class Search(_Call, tag=6):
    """Embed `text` and find its `k` nearest in an index. Answered by Hits."""

    index: IndexName
    version: int
    text: str
    prompt: str
    k: int
    truncate_dim: int | None = None
    request_id: RequestId | None = None

    @property
    def texts(self) -> list[str]:
        return [self.text]


class Remove(_Call, tag=7):
    """Remove vectors from an index of version `before`, which becomes `version`.

    Answered by a Reply with their number.
    """

    index: IndexName
    before: int
    version: int
    ids: list[Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]]


class Inspect(_Call, tag=8):
    """Describe an index. Answered by a Reply with its version, count, kind, built, recall, bytes."""

    index: IndexName


class Forget(_Call, tag=9):
    """Drop indexes. Answered by a Reply with the number of those that existed."""

    needs_description: ClassVar[bool] = False

    indexes: list[IndexName]


class EncodeTokens(_Call, tag=10):
    """Embed sequences of token ids, as they are: the caller adds special tokens. Answered by Rows."""

    sequences: list[list[TokenId]]
    normalize: bool
    truncate_dim: int | None
    request_id: RequestId | None = None

    @property
    def rows(self) -> int:
        """See _Call."""
        return len(self.sequences)


class Manage(_Call, tag=11):
    """Change which models are loaded: `model` is a name of one, "" the default's; `reload` reads the registry
    again. `clear cache` drops the cached vectors of the model, `clear caches` those of all; `warm cache` and
    `warm caches` embed the most asked texts of the last day.

    `keep_alive_s`: seconds without a call after which a loaded model is unloaded, in place of its own; -1 is
    never. Answered by a Reply with the entry of the model, or for `reload` with all entries, as "models" has
    them; for caches with the number of vectors or texts.
    """

    needs_description: ClassVar[bool] = False

    action: Literal[
        "load", "unload", "pin", "unpin", "reload", "clear cache", "clear caches", "warm cache", "warm caches"
    ]
    model: ModelName = ""
    keep_alive_s: Annotated[float, msgspec.Meta(ge=-1, le=1e9)] | None = None


class SetModels(_Call, tag=13):
    """Serve these models, the fields of rows of the settings' database, in place of all; for none, those that
    the server serves without rows.

    `version`: that of the settings, which the caller is about to change. Answered by a Reply with the entries
    of all, as "models" has them.
    """

    needs_description: ClassVar[bool] = False

    models: list[dict[str, Any]]
    version: int


class ClearTexts(_Call, tag=14):
    """Drop the cached vectors of `texts`, whatever they were embedded for: without a prompt, with each of the
    model's and with `prompt`. `model`: as of Manage.

    Answered by a Reply with the number of vectors.
    """

    needs_description: ClassVar[bool] = False

    texts: list[str]
    model: ModelName = ""
    prompt: str | None = None


class Score(_Call, tag=16):
    """Score `documents`, from version 5 on: alone, all for one query, or each for its own.

    `prompt`: None for a multi-vector model's own of queries and of documents. Answered by Rows, a row for
    each document: logits, or similarities of a multi-vector model.
    """

    since: ClassVar[int] = 5

    queries: list[str]
    documents: list[str]
    prompt: str | None
    truncate: bool = True
    request_id: RequestId | None = None

    @property
    def texts(self) -> list[str]:
        return [*self.queries, *self.documents]

    @property
    def rows(self) -> int:
        """See _Call."""
        return len(self.documents)


class EncodeOutputs(_Call, tag=17):
    """Embed `texts` and give several outputs of one pass, from version 5 on. Answered by Arrays.

    The fields are those of calls.OutputsRequest; `truncate_dim` is its `dimensions`.
    """

    since: ClassVar[int] = 5

    texts: list[str]
    prompt: str
    outputs: Annotated[list[Output], msgspec.Meta(min_length=1, max_length=3)]
    normalize: bool
    truncate_dim: int | None = None
    max_active_dims: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)] | None = None
    truncate: bool = True
    task: Task | None = None
    request_id: RequestId | None = None


class EncodeImages(_Call, tag=18):
    """Embed images, from version 5 on: the files' bytes follow this message, one after the other.

    `sizes`: the bytes of each. Answered by Rows.
    """

    sizes: list[Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]]
    normalize: bool
    truncate_dim: int | None = None
    request_id: RequestId | None = None

    since: ClassVar[int] = 5

    @property
    def raw_bytes(self) -> int:
        """See _Call."""
        return sum(self.sizes)

    @property
    def rows(self) -> int:
        """See _Call."""
        return len(self.sizes)


class Routed(msgspec.Struct, tag=12, array_like=True, forbid_unknown_fields=True):
    """A call of one of the server's models, from version 3 on.

    `model`: its id or an alias, "" for the default; `identity`: the vector space that the caller holds, None
    for any. A call for another one is not executed, and answered with ModelSwapped. `is_check`: a health
    check, which neither loads a model nor counts as its use.
    """

    model: ModelName
    identity: Annotated[str, msgspec.Meta(max_length=128)] | None
    is_check: bool
    call: Call

    @property
    def id(self) -> int:
        return self.call.id


class Traced(msgspec.Struct, tag=15, array_like=True, forbid_unknown_fields=True):
    """A call that belongs to a trace, from version 4 on: the caller's span, as in W3C Trace Context."""

    traceparent: Annotated[str, msgspec.Meta(pattern=r"^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}\Z")]
    tracestate: Annotated[str, msgspec.Meta(max_length=512, pattern=r"^[ -~]*\Z")]
    message: Call | Routed

    @property
    def id(self) -> int:
        return self.message.id


class Rows(msgspec.Struct, tag=1, array_like=True, forbid_unknown_fields=True):
    """`count` x `dimension` float32 values follow this message as raw bytes.

    `token_counts`: the number of tokens that the model read for each.
    """

    id: int
    count: int
    dimension: int
    timings: Timings
    token_counts: list[int] = []


class Reply(msgspec.Struct, tag=2, array_like=True, forbid_unknown_fields=True):
    """The answer to every call that has no raw bytes behind its answer."""

    id: int
    value: Any


class Failure(msgspec.Struct, tag=3, array_like=True, forbid_unknown_fields=True):
    """An error of embedshare/errors.py: its class name, its message, its fields."""

    id: int
    error: str
    message: str
    fields: dict[str, Any]


class Hits(msgspec.Struct, tag=4, array_like=True, forbid_unknown_fields=True):
    """`count` int64 ids and as many float32 scores, best first, follow this message as raw bytes."""

    id: int
    count: int
    timings: Timings


class ArrayHead(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """An array whose little-endian bytes follow a message."""

    name: Annotated[str, msgspec.Meta(max_length=32)]
    dtype: Literal["<f4", "<i4", "<i8"]
    shape: Annotated[list[Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]], msgspec.Meta(max_length=2)]


class Arrays(msgspec.Struct, tag=5, array_like=True, forbid_unknown_fields=True):
    """The bytes of `arrays` follow this message in their order (see ipc/arrays.py); from version 5 on.

    `token_counts`: as of Rows.
    """

    id: int
    timings: Timings
    token_counts: list[int]
    arrays: Annotated[list[ArrayHead], msgspec.Meta(max_length=8)]


Call = (
    Encode
    | Tokenize
    | Query
    | Swap
    | Put
    | Search
    | Remove
    | Inspect
    | Forget
    | EncodeTokens
    | Manage
    | SetModels
    | ClearTexts
    | Score
    | EncodeOutputs
    | EncodeImages
)
#: Calls whose texts have a prompt.
Prompted = Encode | Tokenize | Search | Score | EncodeOutputs
Answer = Rows | Reply | Failure | Hits | Arrays
#: The id and the seconds left of a call before its connection sends it.
UNSENT = 0, 0.0

_ENCODE_TAG = Encode.__struct_config__.tag
_encoder = msgspec.msgpack.Encoder()
_calls: msgspec.msgpack.Decoder[Call | Routed | Traced] = msgspec.msgpack.Decoder(Call | Routed | Traced)
_answers: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)


def encode(message: Call | Routed | Traced | Answer) -> bytes:
    """The bytes of a message; an Encode without a task has those of version 1.

    Raises InvalidInput for text without a UTF-8 form (a lone surrogate).
    """
    try:
        if isinstance(message, Encode) and message.task is None:
            return _encoder.encode((_ENCODE_TAG, *msgspec.structs.astuple(message)[:-1]))
        return _encoder.encode(message)
    except UnicodeEncodeError as error:
        texts = getattr(_call_in(message), "texts", [])
        raise InvalidInput(_surrogate_message(texts, error)) from None
    except OverflowError:
        raise InvalidInput("a number is beyond 64 bits") from None


def for_version_1(call: Call) -> Call:
    """`call` in the form of version 1."""
    return msgspec.structs.replace(call, task=None) if isinstance(call, Encode) else call


def decode_call(data: bytes | bytearray) -> Call | Routed | Traced:
    """The call in `data`. Raises ProtocolError for anything else."""
    try:
        return _calls.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"not a call: {error}") from None


def decode_answer(data: bytes | bytearray) -> Answer:
    """The answer in `data`. Raises ProtocolError for anything else."""
    try:
        return _answers.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"not an answer: {error}") from None


def failure(call_id: int, error: EmbedshareError) -> Failure:
    """The answer that carries `error`."""
    return Failure(call_id, type(error).__name__, error.message, error.fields)


def error_in(answer: Failure) -> EmbedshareError:
    """The error that `answer` carries, as the class it was raised as."""
    return from_wire(answer.error, answer.message, answer.fields)


def description_in(answer: Answer) -> ModelDescription:
    """The model description in an answer to "describe". Raises ProtocolError for any other answer."""
    try:
        return msgspec.convert(answer.value if isinstance(answer, Reply) else answer, ModelDescription)
    except msgspec.ValidationError as error:
        raise ProtocolError(f"not a model description: {error}") from None


def _call_in(message: Call | Routed | Traced | Answer) -> Call | Answer:
    message = message.message if isinstance(message, Traced) else message
    return message.call if isinstance(message, Routed) else message


def _surrogate_message(texts: list[str], error: UnicodeEncodeError) -> str:
    for index, text in enumerate(texts):
        try:
            text.encode()
        except UnicodeEncodeError as found:
            where = f"text {index} holds {text[found.start]!r} at position {found.start}"
            return f"{where}, a lone surrogate; encode it with errors='replace' first"
    return f"the prompt holds a lone surrogate at position {error.start}"
