"""Settings of the model server: its address, its key, and its limits."""

from __future__ import annotations

import dataclasses

from embedshare.hosts import is_loopback
from embedshare.settings import parsing
from embedshare.settings.declaration import Section, setting


@dataclasses.dataclass(frozen=True)
class ServerSettings(Section):
    TITLE = "Model server"

    # fmt: off
    host: str = setting("EMBEDDING_SERVER_HOST", parsing.host, "localhost",
        "Host name or address that the model server listens on and clients connect to")
    port: int = setting("EMBEDDING_SERVER_PORT", parsing.integer(1, 65535), 5002,
        "TCP port of the model server")
    authkey: str | None = setting("EMBEDDING_AUTHKEY", parsing.key, None,
        "Secret key that the server and its clients share. Default: a key that the server generates and "
        "keeps in the key file", secret=True)
    authkey_file: str | None = setting("EMBEDDING_AUTHKEY_FILE", parsing.optional_text, None,
        "Path of the key file, such as a container's secret. Default: `embedshare/authkey` in the user's "
        "state folder")
    max_connections: int = setting("EMBEDDING_MAX_CONNECTIONS", parsing.integer(1, 100_000), 1024,
        "Maximum open connections of clients. Further connections get `Overloaded` and a time to retry after")
    handshake_s: float = setting("EMBEDDING_HANDSHAKE_S", parsing.seconds(0.1, 300), 5.0,
        "Seconds in which a new connection must prove that it holds the key. The server then closes it")
    max_message_bytes: int = setting("EMBEDDING_MAX_MESSAGE_BYTES", parsing.integer(1 << 16, 1 << 30),
        32 << 20,
        "Maximum size of one message to the server, and of one HTTP request's body, in bytes. A larger one "
        "is refused unread")
    max_texts: int = setting("EMBEDDING_MAX_TEXTS", parsing.integer(1, 1_000_000), 8192,
        "Maximum texts in one message or HTTP request. The client splits longer lists; a longer HTTP request "
        "is refused")
    max_image_bytes: int = setting("EMBEDDING_MAX_IMAGE_BYTES", parsing.integer(1 << 10, 1 << 30), 20 << 20,
        "Maximum size of one image's file, in bytes. Images count in `EMBEDDING_MAX_MESSAGE_BYTES` and, each "
        "as a text, in `EMBEDDING_MAX_TEXTS` too")
    max_image_pixels: int = setting("EMBEDDING_MAX_IMAGE_PIXELS", parsing.integer(1, 1 << 28), 50_000_000,
        "Maximum pixels of one image. The process that decodes images gets memory for this many")
    max_held_bytes: int = setting("EMBEDDING_MAX_HELD_BYTES", parsing.integer(1 << 20, 1 << 40), 256 << 20,
        "Maximum bytes of all calls in the server. Beyond the limit, large messages stay unread until calls "
        "end")
    max_waiting_tokens: int = setting("EMBEDDING_MAX_WAITING_TOKENS", parsing.integer(1_000, 1_000_000_000),
        1_000_000,
        "Maximum queued tokens in the server. Further calls get `Overloaded` and a time to retry after")
    vector_cache_bytes: int = setting("EMBEDDING_VECTOR_CACHE_BYTES", parsing.integer(0, 1 << 40), 64 << 20,
        "Maximum memory of cached vectors in the server, in bytes. Beyond the limit those of texts that were "
        "not requested lately go. 0 disables the cache")
    vector_cache_ttl_s: float = setting("EMBEDDING_VECTOR_CACHE_TTL_S", parsing.seconds(0, 31_536_000),
        86_400.0,
        "Seconds after which a cached vector is computed again, give or take a tenth. 0 is never")
    vector_cache_redis_url: str | None = setting("EMBEDDING_VECTOR_CACHE_REDIS_URL", parsing.redis_url, None,
        "URL of a Redis that holds cached vectors too, for several servers of one model and for the next "
        "start. Whoever can write there decides what vectors callers get", secret=True)
    vector_cache_database: bool = setting("EMBEDDING_VECTOR_CACHE_DATABASE", parsing.boolean, False,
        "Cached vectors are in the database of `EMBEDDING_DB_URL` too, after memory and Redis. Whoever can "
        "write there decides what vectors callers get")
    vector_cache_database_bytes: int = setting("EMBEDDING_VECTOR_CACHE_DATABASE_BYTES",
        parsing.integer(1 << 20, 1 << 44), 1 << 30,
        "Maximum bytes of cached vectors in the database, of all servers that share it. Beyond the limit the "
        "oldest go")
    vector_cache_most_asked: int = setting("EMBEDDING_VECTOR_CACHE_MOST_ASKED",
        parsing.integer(0, 100_000), 0,
        "Number of texts that the server keeps of each model and day, the most requested ones, in a file "
        "next to the key file. Its next start embeds them again. 0 keeps none")
    drain_s: float = setting("EMBEDDING_DRAIN_S", parsing.seconds(0, 600), 10.0,
        "Seconds that the server or a web worker has to finish accepted work when it is told to stop. Work "
        "that takes longer is cut off")
    stuck_s: float = setting("EMBEDDING_STUCK_S", parsing.seconds(1, 86_400), 120.0,
        "Seconds that one batch may take in the runtime. The server then exits, to be restarted. Also "
        "seconds without an answer after which the supervisor kills and restarts a process")
    idle_exit_s: float = setting("EMBEDDING_IDLE_EXIT_S", parsing.seconds(1, 31_536_000), 600.0,
        "Seconds without a call after which a server that `EMBEDDING_AUTOSTART` started exits")
    allow_swap: bool = setting("EMBEDDING_ALLOW_SWAP", parsing.boolean, True,
        "Permission for every holder of the key to swap the running server's model. With false the server "
        "refuses every swap")
    metrics_host: str = setting("EMBEDDING_METRICS_HOST", parsing.host, "127.0.0.1",
        "Address that the model server's metrics listen on")
    metrics_port: int = setting("EMBEDDING_METRICS_PORT", parsing.integer(0, 65535), 0,
        "Port of the model server's metrics for Prometheus, at `/metrics`; 0 disables them")
    # fmt: on

    @property
    def address(self) -> tuple[str, int]:
        return self.host, self.port

    @property
    def on_loopback(self) -> bool:
        return is_loopback(self.host)
