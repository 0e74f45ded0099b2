"""Settings of sessions: documents of many callers, each session with its own model."""

from __future__ import annotations

import dataclasses

from embedshare.settings import parsing
from embedshare.settings.declaration import Section, setting


@dataclasses.dataclass(frozen=True)
class SessionSettings(Section):
    TITLE = "Sessions"

    # fmt: off
    enabled: bool = setting("EMBEDDING_SESSIONS", parsing.boolean, True,
        "Routes of sessions in web workers, which reach the session server. With false they answer 404")
    max_file_bytes: int = setting("EMBEDDING_SESSION_MAX_FILE_BYTES", parsing.integer(1 << 10, 1 << 40),
        1 << 30,
        "Maximum bytes of one uploaded file. A larger one is refused")
    # fmt: on
