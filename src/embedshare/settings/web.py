"""Settings of a web worker: its address, its callers, and their limits."""

from __future__ import annotations

import dataclasses

from embedshare.hosts import is_loopback
from embedshare.settings import parsing
from embedshare.settings.declaration import Section, setting


@dataclasses.dataclass(frozen=True)
class WebSettings(Section):
    TITLE = "Web worker"

    # fmt: off
    host: str = setting("EMBEDDING_HOST", parsing.host, "127.0.0.1", "Address that a web worker listens on")
    port: int = setting("PORT", parsing.integer(1, 65535), 5000,
        "TCP port of a web worker. `EMBEDDING_PORT` is used where `PORT` is not set",
        other_name="EMBEDDING_PORT")
    threads: int = setting("EMBEDDING_WEB_THREADS", parsing.integer(1, 256), 16,
        "Maximum HTTP requests that a web worker answers at the same time. Further requests are queued")
    loop: str = setting("EMBEDDING_WEB_LOOP", parsing.choice("own", "waitress"), "own",
        "Loop that serves a web worker's connections: own or waitress. The library's own one, waitress, "
        "costs more with each open connection")
    api_keys: str = setting("EMBEDDING_API_KEYS", parsing.choice("auto", "required", "off"), "auto",
        "API keys for callers of a web worker: required, off, or auto (required unless `EMBEDDING_HOST` is "
        "reachable from this machine alone)")
    admin_key_file: str | None = setting("EMBEDDING_ADMIN_KEY_FILE", parsing.optional_text, None,
        "Path of a file with an API key that has every scope, such as a container's secret. It needs no "
        "database")
    rate_limit: str = setting("EMBEDDING_RATE_LIMIT", parsing.rates, "",
        "Maximum requests of one caller, as `100/second;5000/hour`; empty sets no limit. Further requests "
        "get status 429")
    redis_url: str | None = setting("EMBEDDING_REDIS_URL", parsing.redis_url, None,
        "URL of the Redis in which all workers count requests together. Without one each worker counts its "
        "own", secret=True)
    redis_prefix: str | None = setting("EMBEDDING_REDIS_PREFIX", parsing.optional_text, None,
        "Name of this deployment in that Redis; workers with the same name count together. Default: derived "
        "from the model server's key")
    trusted_proxies: int = setting("EMBEDDING_TRUSTED_PROXIES", parsing.integer(0, 10), 0,
        "Number of proxies in front of a web worker, one behind another, whose X-Forwarded-For and "
        "X-Forwarded-Proto it trusts; 0 trusts none")
    allowed_hosts: tuple[str, ...] = setting("EMBEDDING_ALLOWED_HOSTS", parsing.host_patterns, (),
        "Host names under which a worker without API keys is called, as `embed.example,*.internal`; `*` is "
        "any. Localhost, IP addresses and `EMBEDDING_HOST` are always allowed; other names are refused")
    cors_origins: tuple[str, ...] = setting("CORS_ORIGINS", parsing.origins, (),
        "Origins of web pages that may call a worker from a browser, as "
        "`https://app.example,http://localhost:3000`; `*` is any")
    max_text_chars: int = setting("EMBEDDING_MAX_TEXT_CHARS", parsing.integer(0, 1 << 30), 0,
        "Maximum characters of one text in an HTTP request; 0 sets no limit but the body's. A longer text is "
        "refused")
    max_request_chars: int = setting("EMBEDDING_MAX_REQUEST_CHARS", parsing.integer(0, 1 << 30), 0,
        "Maximum characters of all texts in one HTTP request; 0 sets no limit but the body's. A longer "
        "request is refused")
    normalize: bool = setting("EMBEDDING_NORMALIZE", parsing.boolean, False,
        "Normalization of vectors to length 1 by the HTTP routes, for models that do not normalize by "
        "themselves")
    model_rate_limits: tuple[str, ...] = setting("EMBEDDING_MODEL_RATE_LIMITS", parsing.model_rates, (),
        "Maximum requests of one caller for a model, by an id or alias of it, as "
        "`bge=10/second;500/hour,minilm=1000/minute`, besides `EMBEDDING_RATE_LIMIT`; empty sets no limit. "
        "Further requests get status 429")
    audit_log: str | None = setting("EMBEDDING_AUDIT_LOG", parsing.optional_text, None,
        "Path of a file with a line of JSON for each request that reads or embeds texts, changes something "
        "or is refused: who, when, which model, how much; never texts. Default: none")
    # fmt: on

    @property
    def on_loopback(self) -> bool:
        return is_loopback(self.host)

    @property
    def rates_by_model(self) -> dict[str, str]:
        found = (one.rpartition("=") for one in self.model_rate_limits)
        return {name: rates for name, _, rates in found}

    @property
    def asks_for_keys(self) -> bool:
        return self.api_keys == "required" or (self.api_keys == "auto" and not self.on_loopback)
