"""The client's search half: vector indexes in the model server, and the web search in this process."""

from __future__ import annotations

import abc
import os
import time
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from embedshare.client.sentence_transformers import DropIn, wants_progress
from embedshare.embedding import Inputs, Options, Part
from embedshare.errors import EmbedshareError, InvalidInput, InvalidSetting, MissingDependency
from embedshare.fallback import Both, Failover
from embedshare.identity import ModelDescription
from embedshare.ipc import codec
from embedshare.settings import Settings
from embedshare.vectors import choice
from embedshare.vectors.documents import as_documents, metadata_of, results_of
from embedshare.vectors.handle import VectorIndex
from embedshare.vectors.sending import Embedded

if TYPE_CHECKING:
    from embedshare.websearch.pipeline import Found, WebSearch

#: To tell the server which indexes are needed no more takes this long at most.
RELEASE_S = 1.0


class Searching(DropIn):
    """What a client offers to those who search; `vectors.handle.Model` for its indexes."""

    _settings: Settings
    _failover: Failover

    def __init__(self) -> None:
        super().__init__()
        self.released: deque[bytes] = deque()
        """Vector indexes whose handles are gone: the server is told with the next call."""
        self._searcher: tuple[int, WebSearch] | None = None

    @abc.abstractmethod
    def _embed_by(
        self,
        texts: Inputs,
        options: Options,
        show_progress_bar: bool,
        limit: float,
    ) -> Part:
        """As `_embed`; the rows are of one model, whose identity comes with them."""

    @abc.abstractmethod
    def _counted(self, method: str, both: Both[Any], deadline: float) -> Any:
        """The answer to a call that brings no timings, which is counted."""

    def web_search_with_embeddings(
        self, search_query: str, max_concurrent: int = 5, max_chars: int = 2000
    ) -> tuple[str, list[str]]:
        """A web search in this process: the best passages as a context for a language model, and their URLs.

        Where nothing is found, or the search fails, the context says so in a sentence. Raises InvalidInput,
        InvalidSetting, and MissingDependency where the extra `search` is not installed.
        """
        try:
            found = self.web_search(search_query, max_concurrent, max_chars)
        except (InvalidInput, InvalidSetting, MissingDependency):
            raise
        except EmbedshareError as error:
            return f"Search error: {error.message[:100]}...", []
        return found.context, found.urls

    def web_search(self, search_query: str, max_concurrent: int = 5, max_chars: int = 2000) -> Found:
        """As `web_search_with_embeddings`, with the passages, their titles and scores, and timings.

        Raises what fails: SearchFailed, and what `encode` raises.
        """

        def count(texts: list[str]) -> list[int]:
            *ids, none = self._token_ids([*texts, ""], "")
            # without the marks that every text begins and ends with
            return [len(own) - len(none) for own in ids]

        return self._web_search().search(search_query, self.encode, max_concurrent, max_chars, count)

    def build_vector_index(
        self,
        docs: Iterable[str],
        urls: Iterable[str] | None = None,
        *,
        metric: str = "l2",
        kind: str = "auto",
        show_progress_bar: bool | None = None,
    ) -> tuple[VectorIndex, np.ndarray, list[dict[str, Any]]]:
        """Embed documents and index them in the model server: `(index, embeddings, metadata)`.

        `index` is a handle; embeddings are float32 (n, dimension); metadata dicts hold id, url, content (the
        first 500 characters), full_content and length. `metric`: l2 (squared distance), cosine or ip; `kind`:
        flat (exact), hnsw, "ivf,pq", or auto, which takes one by size. A large index is searched exactly
        until what its kind asks for is made. Raises InvalidInput, TooLarge, and what `encode` raises.
        """
        texts = as_documents(docs)
        choice.check(metric, kind)
        metadata = metadata_of(texts, urls)
        truncate_dim = self.truncate_dim
        embedded = self.embed_documents(texts, show_progress_bar)
        index = VectorIndex(self, embedded, metadata, metric=metric, kind=kind, truncate_dim=truncate_dim)
        index.send()
        return index, embedded.rows, metadata

    def search_index(
        self, query: str, index: VectorIndex, metadata: list[dict[str, Any]] | None = None, top_k: int = 3
    ) -> list[dict[str, Any]]:
        """The `top_k` documents nearest to the query, best first; all of them, where there are fewer.

        Each is its metadata dict (of `index.metadata`, without one given) with `relevance_score`, by the
        index's metric, and `rank`, from 1. Raises InvalidInput; ModelMismatch where the index holds another
        model's vectors; what `encode` raises.
        """
        if not isinstance(index, VectorIndex):
            raise InvalidInput(f"index must be what build_vector_index returned, not {type(index).__name__}")
        if metadata is None or metadata is index.metadata:
            return index.find(query, top_k)
        ids, scores = index.search(query, top_k)
        return results_of(ids, scores, metadata)

    def load_vector_index(
        self, path: str | os.PathLike[str]
    ) -> tuple[VectorIndex, np.ndarray, list[dict[str, Any]]]:
        """What `index.save(path)` wrote, as `build_vector_index` returns it.

        Raises IndexCorrupted, ModelMismatch where it is of another vector space, OSError.
        """
        index = VectorIndex.load(path, self)
        return index, index.embeddings, index.metadata

    def embed_documents(self, docs: list[str], show_progress_bar: bool | None) -> Embedded:
        """See vectors.handle.Model: as `encode_document`, and whose vectors they are."""
        limit = float("inf")
        while True:
            prompt = self._prompt_of("document", "passage", "corpus")
            if not docs:
                rows, identity = np.empty((0, self.get_embedding_dimension()), np.float32), None
            else:
                shown = wants_progress(show_progress_bar)
                options = Options(prompt, False, self.truncate_dim, task="document")
                rows, identity, *_ = self._embed_by(docs, options, shown, limit)
            if prompt == self._prompt_of("document", "passage", "corpus"):
                return Embedded(rows, identity or self._describe().identity)

    def query_prompt(self) -> str:
        """See vectors.handle.Model."""
        return self._prompt_of("query")

    def describe(self) -> ModelDescription:
        """The model that answers."""
        return self._describe()

    def deadline(self) -> float:
        """When a call that begins now is over, a moment of `time.monotonic()`."""
        return time.monotonic() + self._settings.timeout_s

    @property
    def piece_bytes(self) -> int:
        """See vectors.handle.Model."""
        return self._settings.max_message_bytes

    def ask_of_index(self, method: str, both: Both[Any], deadline: float) -> Any:
        """See vectors.handle.Model."""
        self._tell_released()
        return self._counted(method, both, deadline)

    def _tell_released(self) -> None:
        names: list[bytes] = []
        while self.released:
            try:
                names.append(self.released.popleft())
            except IndexError:
                break  # another thread was quicker
        if names:
            self._failover.tell_server(
                lambda call_id, left: codec.Forget(call_id, left, names), time.monotonic() + RELEASE_S
            )

    def _web_search(self) -> WebSearch:
        """Made when first needed, and anew in a forked child, whose copy may hold a closed lock."""
        made = self._searcher
        if made is None or made[0] != os.getpid():
            made = os.getpid(), _load_web_search(self._settings)
            self._searcher = made
        return made[1]

    def _prompt_of(self, *names: str) -> str:
        """The first of these prompts that the model has, else the default one."""
        name = next((name for name in names if name in self.prompts), None)
        return self._resolve_prompt(None, name)


def _load_web_search(settings: Settings) -> WebSearch:
    """Only who searches pays for its imports, and needs its packages."""
    try:
        from embedshare.websearch.pipeline import WebSearch

        return WebSearch(settings)
    except ImportError as error:
        raise MissingDependency(
            f"a web search needs more than this installation has ({error}): pip install 'embedshare[search]'"
        ) from None
