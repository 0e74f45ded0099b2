"""Every setting: its name in the environment, its type, its default and what it means.

Values come from the environment, else from a `.env` file in the working directory, else from the defaults
here. The table in the README is made from this one (`python -m embedshare.settings README.md`).
"""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import re
import sys
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from loguru import logger

from embedshare import platforms
from embedshare.errors import InvalidSetting

Parser = Callable[[str], Any]
_RATE = re.compile(r"[1-9]\d{0,8}/(?:second|minute|hour|day)")
#: What Kubernetes writes into NAME_PORT for a Service NAME.
_SERVICE_LINK = re.compile(r"(?:tcp|udp|sctp)://")
#: An origin: a scheme (a browser extension or a program has one of its own), a host and at most a port.
_ORIGIN = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://(?:[a-zA-Z0-9._-]+|\[[0-9a-fA-F:.]+\])(?::[0-9]{1,5})?")
_ALLOWED_HOST = re.compile(r"\*|(?:\*\.)?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*")


def _boolean(text: str) -> bool:
    words = {
        "true": True,
        "1": True,
        "yes": True,
        "on": True,
        "false": False,
        "0": False,
        "no": False,
        "off": False,
    }
    try:
        return words[text.lower()]
    except KeyError:
        raise ValueError("true or false") from None


def _text(text: str) -> str:
    if not text:
        raise ValueError("any text that is not empty")
    return text


def _host(text: str) -> str:
    if not text.isascii() or not text.isprintable() or " " in text or not text:
        raise ValueError("a host name or an address, in ASCII")
    return text


def _optional_text(text: str) -> str | None:
    return text or None


def _key(text: str) -> str | None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("text in UTF-8") from None  # and not the error itself, which quotes the key
    return text or None


def _web_address(text: str) -> str | None:
    if text and (not text.isascii() or not text.lower().startswith(("http://", "https://")) or " " in text):
        raise ValueError("an address that begins with http:// or https://")
    return text.rstrip("/") or None


def _hosts(text: str) -> str:
    if not text.isascii() or "/" in text or "*" in text or "@" in text:
        raise ValueError("host names or addresses, each alone or with a port (wiki.example:8080), and commas")
    return text


def _rates(text: str) -> str:
    rates = [one.strip().lower() for one in text.split(";")] if text else []
    if not all(_RATE.fullmatch(one) for one in rates):
        raise ValueError("rates such as 100/second;5000/hour (second, minute, hour, day)")
    return ";".join(rates)


def _redis(text: str) -> str | None:
    if text and not text.startswith(("redis://", "rediss://")):
        raise ValueError("an address that begins with redis:// or rediss://")
    return text or None


def _database(text: str) -> str | None:
    kinds = ("sqlite", "postgres", "postgresql", "mysql", "mariadb")
    if text and text.partition("://")[0].partition("+")[0] not in kinds:
        raise ValueError(f"a URL that begins with {', '.join(f'{kind}://' for kind in kinds)}")
    return text or None


def _origins(text: str) -> tuple[str, ...]:
    origins = tuple(part.strip().rstrip("/") for part in text.split(",") if part.strip())
    for origin in origins:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise ValueError("origins as https://app.example or http://localhost:3000, and commas; or *")
    return origins


def _allowed_hosts(text: str) -> tuple[str, ...]:
    names = tuple(part.strip().lower().removesuffix(".") for part in text.split(",") if part.strip())
    if not all(_ALLOWED_HOST.fullmatch(name) for name in names):
        raise ValueError("names without ports, as embed.example,*.svc.cluster.local, and commas; or *")
    return names


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",")) if text else ()
    if not all(name and name.isprintable() for name in names):
        raise ValueError("names with commas between them, such as text-embedding-3-small,minilm; or *")
    return names


def _trusted(text: str) -> tuple[str, ...]:
    """Names of models; CONFIGURED stands for the one that EMBEDDING_MODEL_NAME names."""
    try:
        return (CONFIGURED,) if _boolean(text) else ()
    except ValueError:
        pass
    names = tuple(name.strip() for name in text.split(","))
    if not all(name and name.isprintable() for name in names):
        raise ValueError("true, false, or names and folders of models with commas between them")
    return tuple(CONFIGURED if name.lower() == CONFIGURED else name for name in names)


def _choice(*allowed: str) -> Parser:
    def parse(text: str) -> str:
        if text.lower() not in allowed:
            raise ValueError(", ".join(allowed))
        return text.lower()

    return parse


def _whole(low: int, high: int) -> Parser:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return value

    return parse


def _seconds(low: float, high: float) -> Parser:
    def parse(text: str) -> float:
        allowed = f"seconds, a number from {low:g} to {high:g}"
        try:
            value = float(text)
        except ValueError:
            raise ValueError(allowed) from None
        if not low <= value <= high:
            raise ValueError(allowed)
        return value

    return parse


def _device(text: str) -> str:
    kind, _, index = text.lower().partition(":")
    known = kind in ("auto", "cpu", "cuda", "mps")
    if not known or (index and not (kind == "cuda" and index.isdecimal())) or text.endswith(":"):
        raise ValueError("auto, cpu, cuda, cuda:N (N a device number) or mps")
    return text.lower()


def _setting(
    name: str,
    parse: Parser,
    default: Any,
    meaning: str,
    secret: bool = False,
    other_name: str | None = None,
    shown: str | None = None,
) -> Any:
    """`other_name` is read where `name` is not given; `shown` is the default as a person writes it."""
    metadata = {
        "name": name, "parse": parse, "meaning": meaning, "secret": secret, "other_name": other_name,
        "shown": shown,
    }  # fmt: skip
    return dataclasses.field(default=default, metadata=metadata, repr=not secret)


_MIB = 1 << 20
#: Among the names of a model: whatever a request calls it.
ANY_NAME = "*"
#: Among the models whose code is run: the one that EMBEDDING_MODEL_NAME names.
CONFIGURED = "true"


@dataclasses.dataclass(frozen=True)
class Settings:
    """The values in force.

    `Settings()` holds the defaults, `Settings.load()` the environment's.
    """

    use_ipc: bool = _setting(
        "USE_IPC_EMBEDDING",
        _boolean,
        True,
        "Workers use the shared model server; false gives each process a local model behind the same object",
    )
    server_host: str = _setting(
        "EMBEDDING_SERVER_HOST",
        _host,
        "localhost",
        "Where the model server listens and where clients look for it",
    )
    server_port: int = _setting("EMBEDDING_SERVER_PORT", _whole(1, 65535), 5002, "The model server's port")
    authkey: str | None = _setting(
        "EMBEDDING_AUTHKEY",
        _key,
        None,
        "The key that server and clients share; without one the server makes its own, in this user's file",
        secret=True,
    )
    authkey_file: str | None = _setting(
        "EMBEDDING_AUTHKEY_FILE",
        _optional_text,
        None,
        "Where that file is, such as a container's secret; without one, `embedshare/authkey` in this user's "
        "state folder",
    )
    model_name: str = _setting(
        "EMBEDDING_MODEL_NAME",
        _text,
        "all-MiniLM-L6-v2",
        "The model: a folder, a name whose weights come as a package, or a name on the Hugging Face hub",
    )
    model_cache_dir: str | None = _setting(
        "EMBEDDING_MODEL_CACHE_DIR",
        _optional_text,
        None,
        "Where weights from the hub are kept and looked for; without one, the Hugging Face cache",
    )
    model_aliases: tuple[str, ...] = _setting(
        "EMBEDDING_MODEL_ALIASES",
        _names,
        (ANY_NAME,),
        "Names that OpenAI and Ollama clients may ask for the model by, beside its own; `*` is any name, "
        "nothing its own alone",
    )
    trust_remote_code: tuple[str, ...] = _setting(
        "EMBEDDING_TRUST_REMOTE_CODE",
        _trusted,
        (),
        "Models whose own Python code is run: names and folders with commas between them, or true for that "
        "of `EMBEDDING_MODEL_NAME`. A swap to another model runs none",
        shown="false",
    )
    device: str = _setting(
        "EMBEDDING_DEVICE", _device, "auto", "auto (a GPU where there is one), cpu, cuda, cuda:1, …, mps"
    )
    dtype: str = _setting(
        "EMBEDDING_DTYPE",
        _choice("auto", "float32", "bfloat16", "float16"),
        "auto",
        "What the model computes in; auto is half precision on a GPU or CPU that gains by it, else float32",
    )
    runtime: str = _setting(
        "EMBEDDING_RUNTIME",
        _choice("auto", "torch", "openvino"),
        "auto",
        "What runs the model; auto is OpenVINO on a CPU where it is installed and fits the model, else torch",
    )
    max_concurrent_operations: int = _setting(
        "MAX_CONCURRENT_OPERATIONS",
        _whole(1, 64),
        3,
        "Batches inside the runtime at the same time, at most; a CPU runs three, of both kinds together",
    )
    max_batch_tokens: int = _setting(
        "EMBEDDING_MAX_BATCH_TOKENS",
        _whole(0, 1_000_000),
        0,
        "Tokens in one batch, at most; 0 leaves it to the runtime (1,024 on a CPU, 16,384 on a GPU)",
    )
    max_batch_size: int = _setting(
        "EMBEDDING_MAX_BATCH_SIZE",
        _whole(0, 1_000_000),
        0,
        "Texts in one batch, at most, beside the limit in tokens; 0 has no such limit",
    )
    max_waiting_tokens: int = _setting(
        "EMBEDDING_MAX_WAITING_TOKENS",
        _whole(1_000, 1_000_000_000),
        1_000_000,
        "Tokens that may wait in the server; beyond that callers get Overloaded with a time to retry after",
    )
    max_message_bytes: int = _setting(
        "EMBEDDING_MAX_MESSAGE_BYTES",
        _whole(64 * 1024, 1 << 30),
        32 * _MIB,
        "The largest message the server reads, in bytes",
    )
    max_held_bytes: int = _setting(
        "EMBEDDING_MAX_HELD_BYTES",
        _whole(1 << 20, 1 << 40),
        256 * _MIB,
        "Bytes of calls the server holds at once; beyond that large messages wait unread for room",
    )
    max_texts: int = _setting(
        "EMBEDDING_MAX_TEXTS",
        _whole(1, 1_000_000),
        8192,
        "Texts in one message, at most; the client cuts longer lists by itself",
    )
    max_text_chars: int = _setting(
        "EMBEDDING_MAX_TEXT_CHARS",
        _whole(0, 1 << 30),
        0,
        "Characters of one text that a web worker takes, at most; 0 sets no limit but the body's",
    )
    max_request_chars: int = _setting(
        "EMBEDDING_MAX_REQUEST_CHARS",
        _whole(0, 1 << 30),
        0,
        "Characters of all texts of one request to a web worker, likewise",
    )
    max_indexes: int = _setting(
        "EMBEDDING_MAX_INDEXES",
        _whole(1, 100_000),
        64,
        "Vector indexes that the server holds; beyond that the least recently used goes, and comes "
        "again from its handle when it is needed",
    )
    max_index_bytes: int = _setting(
        "EMBEDDING_MAX_INDEX_BYTES",
        _whole(1 << 20, 1 << 40),
        1 << 30,
        "Bytes that they may take in all, likewise; a single index that is larger is refused",
    )
    index_dir: str | None = _setting(
        "EMBEDDING_INDEX_DIR",
        _optional_text,
        None,
        "Where web workers keep the indexes of `/index`, for each other too; without one, `indexes` beside "
        "the key's file",
    )
    max_connections: int = _setting(
        "EMBEDDING_MAX_CONNECTIONS", _whole(1, 100_000), 1024, "Connections the server holds at once, at most"
    )
    handshake_s: float = _setting(
        "EMBEDDING_HANDSHAKE_S",
        _seconds(0.1, 300),
        5.0,
        "Seconds a new connection has to prove that it holds the key",
    )
    drain_s: float = _setting(
        "EMBEDDING_DRAIN_S",
        _seconds(0, 600),
        10.0,
        "Seconds the server, or a web worker, finishes accepted work for when told to stop",
    )
    timeout_s: float = _setting(
        "EMBEDDING_TIMEOUT_S",
        _seconds(0.01, 86_400),
        60.0,
        "Seconds one call to the server may take, all tries included; "
        "a long list goes out in pieces, each a call of its own",
    )
    fallback: str = _setting(
        "EMBEDDING_FALLBACK",
        _choice("local", "none"),
        "local",
        "Who answers while the server is away: a local model, or nobody (none): calls wait, then fail",
    )
    fallback_device: str = _setting(
        "EMBEDDING_FALLBACK_DEVICE",
        _device,
        "cpu",
        "Where that local model runs: cpu, cuda, cuda:1, …, mps or auto",
    )
    local_release_s: float = _setting(
        "EMBEDDING_LOCAL_RELEASE_S",
        _seconds(0, 86_400),
        60.0,
        "Seconds after the return to the server until a worker lets its local model go",
    )
    on_model_change: str = _setting(
        "EMBEDDING_ON_MODEL_CHANGE",
        _choice("refuse", "follow"),
        "refuse",
        "What a client does when the server comes back with another model: refuse it (ModelMismatch), or "
        "follow: use it from then on, and never both in one call",
    )
    allow_swap: bool = _setting(
        "EMBEDDING_ALLOW_SWAP",
        _boolean,
        True,
        "Whoever holds the key may have the running server change its model; false refuses it to all",
    )
    stuck_s: float = _setting(
        "EMBEDDING_STUCK_S",
        _seconds(1, 86_400),
        120.0,
        "Seconds that one batch may be in the runtime; then the server ends, to be started again. Also "
        "seconds that a process may answer nothing; then the supervisor kills and restarts it",
    )
    async_threads: int = _setting(
        "EMBEDDING_ASYNC_THREADS",
        _whole(1, 1024),
        16,
        "Calls of `aencode` that one client has under way at once; the rest wait their turn",
    )
    search_engine: str = _setting(
        "EMBEDDING_SEARCH_ENGINE",
        _choice("ddgs", "searxng"),
        "ddgs",
        "Who finds the pages of a web search: ddgs (public engines) or searxng (EMBEDDING_SEARXNG_URL)",
    )
    searxng_url: str | None = _setting(
        "EMBEDDING_SEARXNG_URL",
        _web_address,
        None,
        "Where the SearXNG is that searxng asks; it must offer the format json",
    )
    fetch_allowed_hosts: str = _setting(
        "EMBEDDING_FETCH_ALLOWED_HOSTS",
        _hosts,
        "",
        "Internal hosts that a web search may fetch pages from, as `wiki.example,10.0.0.5:8080`; public ones "
        "need no entry",
    )
    cache_dir: str | None = _setting(
        "EMBEDDING_CACHE_DIR",
        _optional_text,
        None,
        "Where converted models are kept for the next start; without one, this user's cache folder",
    )
    autostart: bool = _setting(
        "EMBEDDING_AUTOSTART",
        _boolean,
        False,
        "The first process that needs the model server and finds none starts one in the background, for all",
    )
    idle_exit_s: float = _setting(
        "EMBEDDING_IDLE_EXIT_S",
        _seconds(1, 31_536_000),
        600.0,
        "Seconds without a call after which a server that was started so ends by itself",
    )
    log_format: str = _setting(
        "EMBEDDING_LOG_FORMAT", _choice("text", "json"), "text", "One line an event: text or json"
    )
    log_level: str = _setting(
        "EMBEDDING_LOG_LEVEL",
        _choice("debug", "info", "warning", "error"),
        "info",
        "The least that is logged",
    )
    log_dir: str = _setting(
        "EMBEDDING_LOG_DIR", _text, "logs", "Where service_manager.py writes each process's output"
    )
    log_max_bytes: int = _setting(
        "EMBEDDING_LOG_MAX_BYTES",
        _whole(0, 1 << 40),
        10 * _MIB,
        "Bytes of a log file after which service_manager.py begins a new one; 0 never does",
    )
    log_keep: int = _setting(
        "EMBEDDING_LOG_KEEP", _whole(0, 1000), 5, "Older log files that it keeps, as NAME.log.1 and on"
    )
    scale_up_s: float = _setting(
        "EMBEDDING_SCALE_UP_S",
        _seconds(0, 86_400),
        6.0,
        "With --workers LEAST-MOST: seconds that the workers must be busy until one more is started",
    )
    scale_down_s: float = _setting(
        "EMBEDDING_SCALE_DOWN_S",
        _seconds(0, 86_400),
        60.0,
        "Seconds that the workers must be idle until one is stopped",
    )
    metrics_port: int = _setting(
        "EMBEDDING_METRICS_PORT",
        _whole(0, 65535),
        0,
        "Where the model server shows its metrics to Prometheus, at /metrics; 0 shows them nowhere",
    )
    metrics_host: str = _setting(
        "EMBEDDING_METRICS_HOST", _host, "127.0.0.1", "The address that it does so at"
    )
    web_host: str = _setting("EMBEDDING_HOST", _host, "127.0.0.1", "Where a web worker listens")
    web_port: int = _setting(
        "PORT",
        _whole(1, 65535),
        5000,
        "A web worker's port; where it is not set, `EMBEDDING_PORT`",
        other_name="EMBEDDING_PORT",
    )
    web_threads: int = _setting(
        "EMBEDDING_WEB_THREADS", _whole(1, 256), 16, "Requests a web worker answers at once"
    )
    web_loop: str = _setting(
        "EMBEDDING_WEB_LOOP",
        _choice("own", "waitress"),
        "own",
        "The loop of a web worker: `waitress` is that library's, which costs more with each open connection",
    )

    api_keys: str = _setting(
        "EMBEDDING_API_KEYS",
        _choice("auto", "required", "off"),
        "auto",
        "Whether a web worker answers callers with an API key alone; auto does where EMBEDDING_HOST is not "
        "this machine alone",
    )
    admin_key_file: str | None = _setting(
        "EMBEDDING_ADMIN_KEY_FILE",
        _optional_text,
        None,
        "A file with an API key that may do everything, such as a container's secret; needs no database",
    )
    rate_limit: str = _setting(
        "EMBEDDING_RATE_LIMIT",
        _rates,
        "",
        "Requests of one caller that a web worker answers, as `100/second;5000/hour`; empty sets no limit",
    )
    redis_url: str | None = _setting(
        "EMBEDDING_REDIS_URL",
        _redis,
        None,
        "The Redis in which all workers count these together; without one each counts for itself",
        secret=True,
    )
    redis_prefix: str | None = _setting(
        "EMBEDDING_REDIS_PREFIX",
        _optional_text,
        None,
        "Name of this deployment in that Redis: workers with one name count together. Default: derived from "
        "the model server's key",
    )
    trusted_proxies: int = _setting(
        "EMBEDDING_TRUSTED_PROXIES",
        _whole(0, 10),
        0,
        "Proxies in front of a web worker whose X-Forwarded-For and X-Forwarded-Proto it believes, one "
        "behind another",
    )
    normalize: bool = _setting(
        "EMBEDDING_NORMALIZE",
        _boolean,
        False,
        "The HTTP routes give vectors of length 1, also of a model that does not by itself",
    )
    allowed_hosts: tuple[str, ...] = _setting(
        "EMBEDDING_ALLOWED_HOSTS",
        _allowed_hosts,
        (),
        "Names besides localhost, IP addresses and `EMBEDDING_HOST` under which a worker without API keys is "
        "called, as `embed.example,*.internal`; `*` is any",
    )
    cors_origins: tuple[str, ...] = _setting(
        "CORS_ORIGINS",
        _origins,
        (),
        "Web pages that may call a worker from a browser, as `https://app.example,http://localhost:3000`; "
        "`*` is any",
    )
    web_search: str = _setting(
        "EMBEDDING_WEB_SEARCH",
        _choice("auto", "true", "false"),
        "auto",
        "Whether a web worker searches the web for those who ask it (POST /search); auto does where "
        "EMBEDDING_HOST is this machine alone",
    )

    use_db_settings: bool = _setting(
        "EMBEDDING_USE_DB_SETTINGS",
        _boolean,
        False,
        "Settings that can be changed while everything runs are kept in a database (`/settings`)",
    )
    db_url: str | None = _setting(
        "EMBEDDING_DB_URL",
        _database,
        None,
        "That database, as `postgresql://user:password@host/name` or `mysql://…`; without one, the SQLite "
        "file `embedshare.db` beside the key's file",
        secret=True,
    )

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None, dotenv: Path | None = None) -> Settings:
        """Read the settings from `environ` (the process's) and the `.env` file (the working directory's).

        Raises InvalidSetting with the name, the value and what is allowed. `tell_notes` logs which values
        were ignored.
        """
        given = _dotenv_values(dotenv or Path(".env"))
        given.update(_without_service_links(os.environ if environ is None else environ))
        values = {}
        for field in dataclasses.fields(cls):
            name = field.metadata["name"]
            if name not in given and field.metadata["other_name"] is not None:
                name = field.metadata["other_name"]
            text = given.get(name)
            if text is not None:
                values[field.name] = _parse(field.metadata, text.strip(), name)
        if CONFIGURED in values.get("trust_remote_code", ()):  # by its name: another may be swapped in
            configured = values.get("model_name", cls.model_name)
            trusted = (configured if name == CONFIGURED else name for name in values["trust_remote_code"])
            values["trust_remote_code"] = tuple(trusted)
        if values.get("use_db_settings"):  # the model is meant to change then
            values.setdefault("on_model_change", "follow")
        return cls(**values)

    def __reduce__(self) -> tuple[Any, ...]:
        """A pickle holds no secret: they are read where it is loaded, as `load` reads them there."""
        return _from_pickle, ({field.name: getattr(self, field.name) for field in _public_fields()},)

    def __copy__(self) -> Settings:
        """The same object, which never changes."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Settings:
        """The same object, which never changes."""
        return self

    def environment(self) -> dict[str, str]:
        """These values for the environment of another process, which `load` reads there; no secrets."""
        values = {field: getattr(self, field.name) for field in _public_fields()}
        return {
            field.metadata["name"]: _written(value) or field.metadata["shown"] or ""
            for field, value in values.items()
            if value is not None
        }

    @property
    def server_address(self) -> tuple[str, int]:
        return self.server_host, self.server_port

    @property
    def on_loopback(self) -> bool:
        return _is_loopback(self.server_host)

    @property
    def searches_the_web(self) -> bool:
        return self.web_search == "true" or (self.web_search == "auto" and _is_loopback(self.web_host))

    @property
    def asks_for_keys(self) -> bool:
        return self.api_keys == "required" or (self.api_keys == "auto" and not _is_loopback(self.web_host))


def _written(value: Any) -> str:
    """A value as it is written in the environment."""
    if isinstance(value, tuple):
        return ",".join(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name, which may come to mean any address


def _public_fields() -> list[dataclasses.Field[Any]]:
    return [field for field in dataclasses.fields(Settings) if not field.metadata["secret"]]


def _from_pickle(public: dict[str, Any]) -> Settings:
    """These settings, and the environment's for what a pickle does not hold: secrets, and settings that are
    newer than it."""
    known = Settings.__dataclass_fields__
    return dataclasses.replace(
        Settings.load(), **{name: value for name, value in public.items() if name in known}
    )


def parse(field: str, text: str, name: str) -> Any:
    """The value that `text` is for a field of Settings, which is called `name` in the InvalidSetting that
    this raises."""
    return _parse(Settings.__dataclass_fields__[field].metadata, text, name)


def _parse(metadata: Mapping[str, Any], text: str, name: str) -> Any:
    try:
        return metadata["parse"](text)
    except ValueError as error:
        shown = "(hidden)" if metadata["secret"] else repr(text)
        message = f"{name} is {shown}; allowed: {error}"
        raise InvalidSetting(message, name=name, value=shown, allowed=str(error)) from None


def _without_service_links(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without what Kubernetes puts into each pod for a Service of a setting's name: one that
    is called embedding-server gives every pod EMBEDDING_SERVER_PORT=tcp://10.0.0.1:5002."""
    kept = dict(environ)
    for name in _names_in_use():
        if name.endswith("_PORT") and _SERVICE_LINK.match(kept.get(name, "")):
            _note(
                f"ignoring {name}={kept.pop(name)}: Kubernetes sets it in every pod for a Service of that "
                "name. To use the setting, set it in the pod's specification; enableServiceLinks: false "
                "there ends this line"
            )
    return kept


def _names_in_use() -> list[str]:
    """Every name that a setting is read by."""
    metadata = [field.metadata for field in dataclasses.fields(Settings)]
    return [each[name] for each in metadata for name in ("name", "other_name") if each[name] is not None]


def _dotenv_values(path: Path) -> dict[str, str]:
    """Our settings in the file. Raises InvalidSetting where others can have written them."""
    if not path.is_file():
        return {}
    from dotenv import dotenv_values  # only where there is such a file: a worker's import stays light

    try:
        with path.open(encoding="utf-8") as file:
            status = os.fstat(file.fileno())
            values = dotenv_values(stream=file)
    except (OSError, UnicodeDecodeError) as error:
        message = f"{path.resolve()} cannot be read as settings: {error}"
        raise InvalidSetting(message, name=".env", value=str(path), allowed="a text file in UTF-8") from None
    names = _names_in_use()
    ours = {name: value for name, value in values.items() if name in names and value is not None}
    _check_others(path.resolve(), status, ours)
    return ours


def _check_others(path: Path, status: os.stat_result, found: Mapping[str, str]) -> None:
    """Refuse settings that others can have written, and note secrets that they can read."""
    fault = platforms.fault_of_trust(status) if found else None
    if fault is not None:
        allowed = "a file that root or this user owns, and that others cannot write to"
        raise InvalidSetting(
            f"{path} sets {', '.join(found)}, and others can write to it or own it ({fault}): chown it to "
            "this user and chmod 600 it, or take these settings out of it",
            name=".env", value=str(path), allowed=allowed,
        )  # fmt: skip
    secrets = [
        field.metadata["name"]
        for field in dataclasses.fields(Settings)
        if field.metadata["secret"] and _is_secret(found.get(field.metadata["name"], ""))
    ]
    if secrets and status.st_mode & 0o004 and not platforms.WINDOWS:
        _note(f"every user of this machine can read {path}, which holds {', '.join(secrets)}: chmod 600 it")


def _is_secret(value: str) -> bool:
    """A URL is one where it holds a password."""
    return "@" in value if "://" in value else bool(value)


#: Remarks on the environment that are not logged yet, and all that were made.
_notes: deque[str] = deque()
_noted: set[str] = set()


def _note(line: str) -> None:
    if line not in _noted:
        _noted.add(line)
        _notes.append(line)


def tell_notes() -> None:
    """Log what `Settings.load` noticed, each thing once in a process: for when the log has its form."""
    with suppress(IndexError):  # several threads may be here
        while True:
            logger.warning("{}", _notes.popleft())


def markdown_table() -> str:
    """The settings as the README shows them."""
    lines = ["| setting | default | meaning |", "|---|---|---|"]
    for field in dataclasses.fields(Settings):
        default = field.metadata["shown"] or ("" if field.default is None else _written(field.default))
        shown = f"`{default}`" if default or isinstance(field.default, str) else ""
        lines.append(f"| `{field.metadata['name']}` | {shown} | {field.metadata['meaning']} |")
    return "\n".join(lines)


def write_table(document: Path) -> None:
    """Put the table between the document's `settings` marks."""
    before, begin, rest = document.read_text(encoding="utf8").partition("<!-- settings -->\n")
    _, end, after = rest.partition("<!-- /settings -->")
    document.write_text(f"{before}{begin}{markdown_table()}\n{end}{after}", encoding="utf8")


if __name__ == "__main__":
    write_table(Path(sys.argv[1]))
