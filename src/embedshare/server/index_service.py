"""The model server's answers to the calls of vector indexes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from embedshare.calls import CallContext, EmbedRequest, EmbedResult
from embedshare.errors import UnknownIndex
from embedshare.identity import ModelDescription
from embedshare.ipc import codec
from embedshare.ipc.callers import Callers, Process
from embedshare.ipc.server import Answered
from embedshare.settings import IndexSettings
from embedshare.vectors.server.index import Index
from embedshare.vectors.server.store import IndexStore, Sender

#: Calls of stored vectors, which no model computes.
Stored = codec.Put | codec.Remove | codec.Inspect | codec.Forget


class IndexService:
    """Answers with the indexes of a store. An index belongs to the model of its vectors."""

    def __init__(self, settings: IndexSettings, callers: Callers) -> None:
        self._callers = callers
        self.store = IndexStore(settings.max_indexes, settings.max_bytes, callers.is_living)

    def answer(self, identity: str | None, call: Stored, raw: bytearray, context: CallContext) -> object:
        """The reply to a call by the holder of the vector space `identity`.

        Raises UnknownIndex for an index of another one.
        """
        if isinstance(call, codec.Forget):
            return self.store.forget(call.indexes)
        process, identity = self._callers.process_of(context.caller), identity or ""
        match call:
            case codec.Put():
                return self._put(identity, call, raw, process, context)
            case codec.Remove():
                ids = np.array(call.ids, np.int64)
                return self.store.remove(process, call.index, identity, call.before, call.version, ids)
            case codec.Inspect():
                return self.store.describe(process, call.index, identity)

    def _put(
        self, identity: str, call: codec.Put, raw: bytearray, process: Process, context: CallContext
    ) -> int:
        if call.identity != identity:
            raise UnknownIndex("the vectors are of another model than the served one")
        return self.store.put(
            Sender(context.caller, process, context.is_gone),
            call.index,
            identity,
            call.version,
            call.start,
            call.total,
            Index(call.dimension, call.metric, call.kind),
            np.frombuffer(raw, "<i8", call.count),
            np.frombuffer(raw, "<f4", offset=8 * call.count).reshape(call.count, call.dimension),
        )

    def search(
        self,
        model: ModelDescription,
        embed: Callable[[EmbedRequest], EmbedResult],
        call: codec.Search,
        context: CallContext,
    ) -> Answered:
        """The documents nearest to a text, which `embed` embeds with `model`.

        Raises UnknownIndex for an index of another model.
        """
        process = self._callers.process_of(context.caller)
        index, identity, version = call.index, model.identity, call.version
        self.store.check(process, index, identity, version)  # before any computing
        query = EmbedRequest([call.text], call.prompt, dimensions=call.truncate_dim, task="query")
        found = embed(query)
        ids, scores = self.store.search(process, index, identity, version, found.rows, call.k)
        raw = ids[0].astype("<i8").tobytes() + scores[0].astype("<f4").tobytes()
        return codec.Hits(call.id, len(ids[0]), found.timings), (memoryview(raw),) if raw else ()
