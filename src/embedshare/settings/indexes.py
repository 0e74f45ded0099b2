"""Settings of vector indexes: the server's limits, and the folder of `/index`."""

from __future__ import annotations

import dataclasses

from embedshare.settings import parsing
from embedshare.settings.declaration import Section, setting


@dataclasses.dataclass(frozen=True)
class IndexSettings(Section):
    TITLE = "Vector indexes"

    # fmt: off
    max_indexes: int = setting("EMBEDDING_MAX_INDEXES", parsing.integer(1, 100_000), 64,
        "Maximum vector indexes in the server's memory. Beyond the limit the server evicts the least "
        "recently used one; its handle sends it again when it is needed")
    max_bytes: int = setting("EMBEDDING_MAX_INDEX_BYTES", parsing.integer(1 << 20, 1 << 40), 1 << 30,
        "Maximum bytes of all vector indexes in the server's memory, with the same eviction. A single index "
        "that is larger is refused")
    directory: str | None = setting("EMBEDDING_INDEX_DIR", parsing.optional_text, None,
        "Directory for indexes created through `/index`, shared by all workers. Default: `indexes/` next to "
        "the key file")
