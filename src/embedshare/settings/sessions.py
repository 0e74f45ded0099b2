"""Settings of sessions: the session server's address, its folder, and the quotas."""

from __future__ import annotations

import dataclasses

from embedshare.hosts import is_loopback
from embedshare.settings import parsing
from embedshare.settings.declaration import Section, setting


@dataclasses.dataclass(frozen=True)
class SessionSettings(Section):
    TITLE = "Sessions"

    # fmt: off
    enabled: bool = setting("EMBEDDING_SESSIONS", parsing.boolean, True,
        "Routes of sessions in web workers, which reach the session server. With false they answer 404")
    directory: str | None = setting("EMBEDDING_SESSIONS_DIR", parsing.optional_text, None,
        "Directory of the session server's vectors. Default: `sessions/` next to the key file")
    host: str = setting("EMBEDDING_SESSIONS_HOST", parsing.host, "127.0.0.1",
        "Address that the session server listens on (gRPC) and workers connect to. Beyond loopback callers "
        "need API keys, unless `EMBEDDING_API_KEYS` is off")
    port: int = setting("EMBEDDING_SESSIONS_PORT", parsing.integer(1, 65535), 50051,
        "TCP port of the session server")
    ttl_s: float = setting("EMBEDDING_SESSION_TTL_S", parsing.seconds(0, 31_536_000), 604_800.0,
        "Seconds without a call after which a session is destroyed with its documents. 0 is never")
    max_sessions: int = setting("EMBEDDING_MAX_SESSIONS", parsing.integer(1, 100_000), 100,
        "Maximum sessions of one API key, or of all callers without keys. A further one is refused")
    max_documents: int = setting("EMBEDDING_SESSION_MAX_DOCUMENTS", parsing.integer(1, 10_000_000), 10_000,
        "Maximum documents of one session. A further one is refused")
    max_chunks: int = setting("EMBEDDING_SESSION_MAX_CHUNKS", parsing.integer(1, 100_000_000), 1_000_000,
        "Maximum chunks of all documents of one session. A document that would exceed it is refused")
    max_bytes: int = setting("EMBEDDING_SESSION_MAX_BYTES", parsing.integer(1 << 20, 1 << 44), 8 << 30,
        "Maximum bytes of all files of one session, as they were uploaded. A file that would exceed it is "
        "refused")
    max_file_bytes: int = setting("EMBEDDING_SESSION_MAX_FILE_BYTES", parsing.integer(1 << 10, 1 << 40),
        1 << 30,
        "Maximum bytes of one uploaded file. A larger one is refused")
    max_day_tokens: int = setting("EMBEDDING_SESSION_TOKENS_A_DAY", parsing.integer(0, 1 << 50), 0,
        "Maximum tokens that the sessions of one API key, or of all callers without keys, read on one day "
        "(UTC); 0 sets no limit. Further calls are refused")
    qdrant_urls: tuple[str, ...] = setting("EMBEDDING_SESSIONS_QDRANT_URLS", parsing.web_addresses, (),
        "URLs of Qdrant servers that a session may name in place of the session server's own store, as "
        "`http://qdrant.internal:6333`. Others are refused")
    # fmt: on

    @property
    def address(self) -> str:
        """The address in gRPC's form."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def on_loopback(self) -> bool:
        return is_loopback(self.host)
