from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class QdrantConfig(_message.Message):
    __slots__ = ("url", "collection", "api_key", "prefer_grpc")
    URL_FIELD_NUMBER: _ClassVar[int]
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    API_KEY_FIELD_NUMBER: _ClassVar[int]
    PREFER_GRPC_FIELD_NUMBER: _ClassVar[int]
    url: str
    collection: str
    api_key: str
    prefer_grpc: bool
    def __init__(self, url: _Optional[str] = ..., collection: _Optional[str] = ..., api_key: _Optional[str] = ..., prefer_grpc: bool = ...) -> None: ...

class CreateSessionRequest(_message.Message):
    __slots__ = ("session_id", "model_name", "qdrant_config", "chunk_size", "chunk_overlap", "metadata_schema", "sparse_model")
    class MetadataSchemaEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    QDRANT_CONFIG_FIELD_NUMBER: _ClassVar[int]
    CHUNK_SIZE_FIELD_NUMBER: _ClassVar[int]
    CHUNK_OVERLAP_FIELD_NUMBER: _ClassVar[int]
    METADATA_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    SPARSE_MODEL_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    model_name: str
    qdrant_config: QdrantConfig
    chunk_size: int
    chunk_overlap: int
    metadata_schema: _containers.ScalarMap[str, str]
    sparse_model: str
    def __init__(self, session_id: _Optional[str] = ..., model_name: _Optional[str] = ..., qdrant_config: _Optional[_Union[QdrantConfig, _Mapping]] = ..., chunk_size: _Optional[int] = ..., chunk_overlap: _Optional[int] = ..., metadata_schema: _Optional[_Mapping[str, str]] = ..., sparse_model: _Optional[str] = ...) -> None: ...

class SessionResponse(_message.Message):
    __slots__ = ("session_id", "success", "message")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    SUCCESS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    success: bool
    message: str
    def __init__(self, session_id: _Optional[str] = ..., success: bool = ..., message: _Optional[str] = ...) -> None: ...

class FileMetadata(_message.Message):
    __slots__ = ("filename", "content_type", "size", "metadata")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    FILENAME_FIELD_NUMBER: _ClassVar[int]
    CONTENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    filename: str
    content_type: str
    size: int
    metadata: _containers.ScalarMap[str, str]
    def __init__(self, filename: _Optional[str] = ..., content_type: _Optional[str] = ..., size: _Optional[int] = ..., metadata: _Optional[_Mapping[str, str]] = ...) -> None: ...

class UploadEnd(_message.Message):
    __slots__ = ("chunks", "bytes", "sha256")
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    chunks: int
    bytes: int
    sha256: bytes
    def __init__(self, chunks: _Optional[int] = ..., bytes: _Optional[int] = ..., sha256: _Optional[bytes] = ...) -> None: ...

class ProcessFileStreamRequest(_message.Message):
    __slots__ = ("session_id", "metadata", "chunk", "end")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    metadata: FileMetadata
    chunk: bytes
    end: UploadEnd
    def __init__(self, session_id: _Optional[str] = ..., metadata: _Optional[_Union[FileMetadata, _Mapping]] = ..., chunk: _Optional[bytes] = ..., end: _Optional[_Union[UploadEnd, _Mapping]] = ...) -> None: ...

class ProcessFileStreamResponse(_message.Message):
    __slots__ = ("success", "message", "chunks_processed", "embeddings_created", "points_stored", "chunk_ids", "document_id")
    SUCCESS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_PROCESSED_FIELD_NUMBER: _ClassVar[int]
    EMBEDDINGS_CREATED_FIELD_NUMBER: _ClassVar[int]
    POINTS_STORED_FIELD_NUMBER: _ClassVar[int]
    CHUNK_IDS_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_ID_FIELD_NUMBER: _ClassVar[int]
    success: bool
    message: str
    chunks_processed: int
    embeddings_created: int
    points_stored: int
    chunk_ids: _containers.RepeatedScalarFieldContainer[str]
    document_id: str
    def __init__(self, success: bool = ..., message: _Optional[str] = ..., chunks_processed: _Optional[int] = ..., embeddings_created: _Optional[int] = ..., points_stored: _Optional[int] = ..., chunk_ids: _Optional[_Iterable[str]] = ..., document_id: _Optional[str] = ...) -> None: ...

class GetEmbeddingsRequest(_message.Message):
    __slots__ = ("session_id", "texts", "packed")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    PACKED_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    texts: _containers.RepeatedScalarFieldContainer[str]
    packed: bool
    def __init__(self, session_id: _Optional[str] = ..., texts: _Optional[_Iterable[str]] = ..., packed: bool = ...) -> None: ...

class Embedding(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, values: _Optional[_Iterable[float]] = ...) -> None: ...

class GetEmbeddingsResponse(_message.Message):
    __slots__ = ("embeddings", "packed", "dimension", "model", "identity")
    EMBEDDINGS_FIELD_NUMBER: _ClassVar[int]
    PACKED_FIELD_NUMBER: _ClassVar[int]
    DIMENSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    embeddings: _containers.RepeatedCompositeFieldContainer[Embedding]
    packed: bytes
    dimension: int
    model: str
    identity: bytes
    def __init__(self, embeddings: _Optional[_Iterable[_Union[Embedding, _Mapping]]] = ..., packed: _Optional[bytes] = ..., dimension: _Optional[int] = ..., model: _Optional[str] = ..., identity: _Optional[bytes] = ...) -> None: ...

class DestroySessionRequest(_message.Message):
    __slots__ = ("session_id",)
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    def __init__(self, session_id: _Optional[str] = ...) -> None: ...

class GetSessionRequest(_message.Message):
    __slots__ = ("session_id",)
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    def __init__(self, session_id: _Optional[str] = ...) -> None: ...

class Session(_message.Message):
    __slots__ = ("session_id", "model", "identity", "dimension", "chunk_size", "chunk_overlap", "metadata_schema", "qdrant_url", "collection", "documents", "chunks", "bytes", "tokens", "searches", "created_at", "used_at", "expires_at", "sparse_model")
    class MetadataSchemaEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    DIMENSION_FIELD_NUMBER: _ClassVar[int]
    CHUNK_SIZE_FIELD_NUMBER: _ClassVar[int]
    CHUNK_OVERLAP_FIELD_NUMBER: _ClassVar[int]
    METADATA_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    QDRANT_URL_FIELD_NUMBER: _ClassVar[int]
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    SEARCHES_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    USED_AT_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    SPARSE_MODEL_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    model: str
    identity: bytes
    dimension: int
    chunk_size: int
    chunk_overlap: int
    metadata_schema: _containers.ScalarMap[str, str]
    qdrant_url: str
    collection: str
    documents: int
    chunks: int
    bytes: int
    tokens: int
    searches: int
    created_at: float
    used_at: float
    expires_at: float
    sparse_model: str
    def __init__(self, session_id: _Optional[str] = ..., model: _Optional[str] = ..., identity: _Optional[bytes] = ..., dimension: _Optional[int] = ..., chunk_size: _Optional[int] = ..., chunk_overlap: _Optional[int] = ..., metadata_schema: _Optional[_Mapping[str, str]] = ..., qdrant_url: _Optional[str] = ..., collection: _Optional[str] = ..., documents: _Optional[int] = ..., chunks: _Optional[int] = ..., bytes: _Optional[int] = ..., tokens: _Optional[int] = ..., searches: _Optional[int] = ..., created_at: _Optional[float] = ..., used_at: _Optional[float] = ..., expires_at: _Optional[float] = ..., sparse_model: _Optional[str] = ...) -> None: ...

class ListSessionsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListSessionsResponse(_message.Message):
    __slots__ = ("sessions",)
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    sessions: _containers.RepeatedCompositeFieldContainer[Session]
    def __init__(self, sessions: _Optional[_Iterable[_Union[Session, _Mapping]]] = ...) -> None: ...

class UpdateSessionRequest(_message.Message):
    __slots__ = ("session_id", "chunk_size", "chunk_overlap")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    CHUNK_SIZE_FIELD_NUMBER: _ClassVar[int]
    CHUNK_OVERLAP_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    chunk_size: int
    chunk_overlap: int
    def __init__(self, session_id: _Optional[str] = ..., chunk_size: _Optional[int] = ..., chunk_overlap: _Optional[int] = ...) -> None: ...

class SearchRequest(_message.Message):
    __slots__ = ("session_id", "query", "top_k", "filters", "score_threshold", "mode", "rerank", "rerank_candidates")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    FILTERS_FIELD_NUMBER: _ClassVar[int]
    SCORE_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    RERANK_FIELD_NUMBER: _ClassVar[int]
    RERANK_CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    query: str
    top_k: int
    filters: str
    score_threshold: float
    mode: str
    rerank: str
    rerank_candidates: int
    def __init__(self, session_id: _Optional[str] = ..., query: _Optional[str] = ..., top_k: _Optional[int] = ..., filters: _Optional[str] = ..., score_threshold: _Optional[float] = ..., mode: _Optional[str] = ..., rerank: _Optional[str] = ..., rerank_candidates: _Optional[int] = ...) -> None: ...

class SearchHit(_message.Message):
    __slots__ = ("id", "score", "document_id", "chunk", "text", "start", "end", "page", "heading", "metadata", "rerank_score")
    ID_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_ID_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    PAGE_FIELD_NUMBER: _ClassVar[int]
    HEADING_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    RERANK_SCORE_FIELD_NUMBER: _ClassVar[int]
    id: str
    score: float
    document_id: str
    chunk: int
    text: str
    start: int
    end: int
    page: int
    heading: str
    metadata: str
    rerank_score: float
    def __init__(self, id: _Optional[str] = ..., score: _Optional[float] = ..., document_id: _Optional[str] = ..., chunk: _Optional[int] = ..., text: _Optional[str] = ..., start: _Optional[int] = ..., end: _Optional[int] = ..., page: _Optional[int] = ..., heading: _Optional[str] = ..., metadata: _Optional[str] = ..., rerank_score: _Optional[float] = ...) -> None: ...

class SearchResponse(_message.Message):
    __slots__ = ("hits",)
    HITS_FIELD_NUMBER: _ClassVar[int]
    hits: _containers.RepeatedCompositeFieldContainer[SearchHit]
    def __init__(self, hits: _Optional[_Iterable[_Union[SearchHit, _Mapping]]] = ...) -> None: ...

class ListDocumentsRequest(_message.Message):
    __slots__ = ("session_id",)
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    def __init__(self, session_id: _Optional[str] = ...) -> None: ...

class Document(_message.Message):
    __slots__ = ("document_id", "filename", "content_type", "state", "error", "size", "bytes", "chunks", "stored", "tokens", "metadata", "created_at")
    DOCUMENT_ID_FIELD_NUMBER: _ClassVar[int]
    FILENAME_FIELD_NUMBER: _ClassVar[int]
    CONTENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    document_id: str
    filename: str
    content_type: str
    state: str
    error: str
    size: int
    bytes: int
    chunks: int
    stored: int
    tokens: int
    metadata: str
    created_at: float
    def __init__(self, document_id: _Optional[str] = ..., filename: _Optional[str] = ..., content_type: _Optional[str] = ..., state: _Optional[str] = ..., error: _Optional[str] = ..., size: _Optional[int] = ..., bytes: _Optional[int] = ..., chunks: _Optional[int] = ..., stored: _Optional[int] = ..., tokens: _Optional[int] = ..., metadata: _Optional[str] = ..., created_at: _Optional[float] = ...) -> None: ...

class ListDocumentsResponse(_message.Message):
    __slots__ = ("documents",)
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    documents: _containers.RepeatedCompositeFieldContainer[Document]
    def __init__(self, documents: _Optional[_Iterable[_Union[Document, _Mapping]]] = ...) -> None: ...

class GetDocumentRequest(_message.Message):
    __slots__ = ("session_id", "document_id")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    document_id: str
    def __init__(self, session_id: _Optional[str] = ..., document_id: _Optional[str] = ...) -> None: ...

class DeleteDocumentRequest(_message.Message):
    __slots__ = ("session_id", "document_id")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    document_id: str
    def __init__(self, session_id: _Optional[str] = ..., document_id: _Optional[str] = ...) -> None: ...

class DeleteDocumentResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("version", "uptime_s", "sessions", "documents", "chunks", "uploads", "calls", "p99_ms")
    class CallsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class P99MsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    VERSION_FIELD_NUMBER: _ClassVar[int]
    UPTIME_S_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    UPLOADS_FIELD_NUMBER: _ClassVar[int]
    CALLS_FIELD_NUMBER: _ClassVar[int]
    P99_MS_FIELD_NUMBER: _ClassVar[int]
    version: str
    uptime_s: float
    sessions: int
    documents: int
    chunks: int
    uploads: int
    calls: _containers.ScalarMap[str, int]
    p99_ms: _containers.ScalarMap[str, float]
    def __init__(self, version: _Optional[str] = ..., uptime_s: _Optional[float] = ..., sessions: _Optional[int] = ..., documents: _Optional[int] = ..., chunks: _Optional[int] = ..., uploads: _Optional[int] = ..., calls: _Optional[_Mapping[str, int]] = ..., p99_ms: _Optional[_Mapping[str, float]] = ...) -> None: ...
