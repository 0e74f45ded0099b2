"""Earlier names for the shared model, kept for their callers; new code imports `embeddingClient`.

`get_embedding_model()` gives the same object in both modes (USE_IPC_EMBEDDING true or false), with
SentenceTransformer's methods and the client's own. So a change of mode breaks no caller.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import embeddingClient
from embeddingClient import EmbeddingClient, get_embedding_model
from embedshare.settings import Settings

__all__ = [
    "build_enhanced_vector_index",
    "fast_web_search_with_embeddings",
    "generate_embeddings_concurrent",
    "get_embedding_model",
    "is_using_ipc_embedding",
    "search_enhanced_index",
]


def is_using_ipc_embedding() -> bool:
    """Whether this process's settings make it use the model server (USE_IPC_EMBEDDING)."""
    return Settings.load().client.use_ipc


async def fast_web_search_with_embeddings(
    search_query: str, model: EmbeddingClient, max_concurrent: int = 5, max_chars: int = 2000
) -> tuple[str, list[str]]:
    """The web's answer to a query, as (context, URLs); the event loop keeps running."""
    return await embeddingClient.fast_web_search_with_embeddings(
        search_query, model, max_concurrent, max_chars
    )


def generate_embeddings_concurrent(
    texts: str | list[str], model: EmbeddingClient, batch_size: int = 32
) -> np.ndarray:
    """Float32 (n, dimension) for a list of n texts, (1, dimension) for one text."""
    return model.generate_embeddings(texts, batch_size)


def build_enhanced_vector_index(
    docs: list[str], urls: list[str] | None, model: EmbeddingClient
) -> tuple[Any, np.ndarray, list[dict[str, Any]]]:
    """An index over documents: (index, float32 embeddings (n, dimension), a metadata dict a document)."""
    return model.build_vector_index(docs, urls)


def search_enhanced_index(
    query: str, model: EmbeddingClient, index: Any, metadata: list[dict[str, Any]], top_k: int = 3
) -> list[dict[str, Any]]:
    """The `top_k` documents nearest to a query: their metadata with `relevance_score` and `rank`."""
    return model.search_index(query, index, metadata, top_k)
