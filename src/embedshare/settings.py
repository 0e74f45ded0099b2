"""Every setting: its name in the environment, its type, its default and what it means.

Values come from the environment, else from a `.env` file in the working directory, else from the defaults
here. The table in the README is made from this one (`python -m embedshare.settings README.md`).
"""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from embedshare.errors import InvalidSetting

Parser = Callable[[str], Any]


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


def _setting(name: str, parse: Parser, default: Any, meaning: str, secret: bool = False) -> Any:
    metadata = {"name": name, "parse": parse, "meaning": meaning, "secret": secret}
    return dataclasses.field(default=default, metadata=metadata, repr=not secret)


_MIB = 1 << 20


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
    trust_remote_code: bool = _setting(
        "EMBEDDING_TRUST_REMOTE_CODE", _boolean, False, "Run Python code that comes with the model's weights"
    )
    device: str = _setting(
        "EMBEDDING_DEVICE", _device, "auto", "auto (a GPU where there is one), cpu, cuda, cuda:1, …, mps"
    )
    dtype: str = _setting(
        "EMBEDDING_DTYPE",
        _choice("auto", "float32", "bfloat16", "float16"),
        "auto",
        "What the model computes in; auto is half precision on a GPU or CPU that has it, else float32",
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
        "Seconds the server finishes accepted work for when told to stop",
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
        "Seconds that one batch may be in the runtime; then the server ends, to be started again",
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
    web_port: int = _setting("PORT", _whole(1, 65535), 5000, "A web worker's port")
    web_threads: int = _setting(
        "EMBEDDING_WEB_THREADS", _whole(1, 256), 8, "Requests a web worker answers at once"
    )

    web_search: str = _setting(
        "EMBEDDING_WEB_SEARCH",
        _choice("auto", "true", "false"),
        "auto",
        "Whether a web worker searches the web for those who ask it (POST /search); auto does where "
        "EMBEDDING_HOST is this machine alone",
    )

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None, dotenv: Path | None = None) -> Settings:
        """Read the settings from `environ` (the process's) and the `.env` file (the working directory's).

        Raises InvalidSetting with the name, the value and what is allowed.
        """
        given = _dotenv_values(dotenv or Path(".env"))
        given.update(os.environ if environ is None else environ)
        values = {}
        for field in dataclasses.fields(cls):
            text = given.get(field.metadata["name"])
            if text is not None:
                values[field.name] = _parse(field.metadata, text.strip())
        return cls(**values)

    def environment(self) -> dict[str, str]:
        """These values for the environment of another process, which `load` reads there; no secrets."""
        values = {field.metadata["name"]: getattr(self, field.name) for field in _public_fields()}
        shown = {name: str(value) for name, value in values.items() if value is not None}
        return {name: text.lower() if text in ("True", "False") else text for name, text in shown.items()}

    @property
    def server_address(self) -> tuple[str, int]:
        return self.server_host, self.server_port

    @property
    def on_loopback(self) -> bool:
        return _is_loopback(self.server_host)

    @property
    def searches_the_web(self) -> bool:
        return self.web_search == "true" or (self.web_search == "auto" and _is_loopback(self.web_host))


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name, which may come to mean any address


def _public_fields() -> list[dataclasses.Field[Any]]:
    return [field for field in dataclasses.fields(Settings) if not field.metadata["secret"]]


def _parse(metadata: Mapping[str, Any], text: str) -> Any:
    try:
        return metadata["parse"](text)
    except ValueError as error:
        name, shown = metadata["name"], "(hidden)" if metadata["secret"] else repr(text)
        message = f"{name} is {shown}; allowed: {error}"
        raise InvalidSetting(message, name=name, value=shown, allowed=str(error)) from None


def _dotenv_values(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    from dotenv import dotenv_values  # only where there is such a file: a worker's import stays light

    try:
        return {name: value for name, value in dotenv_values(path).items() if value is not None}
    except (OSError, UnicodeDecodeError) as error:
        message = f"{path.resolve()} cannot be read as settings: {error}"
        raise InvalidSetting(message, name=".env", value=str(path), allowed="a text file in UTF-8") from None


def markdown_table() -> str:
    """The settings as the README shows them."""
    lines = ["| setting | default | meaning |", "|---|---|---|"]
    for field in dataclasses.fields(Settings):
        default = str(field.default).lower() if isinstance(field.default, bool) else field.default
        shown = "" if default is None else f"`{default}`"
        lines.append(f"| `{field.metadata['name']}` | {shown} | {field.metadata['meaning']} |")
    return "\n".join(lines)


def write_table(document: Path) -> None:
    """Put the table between the document's `settings` marks."""
    before, begin, rest = document.read_text(encoding="utf8").partition("<!-- settings -->\n")
    _, end, after = rest.partition("<!-- /settings -->")
    document.write_text(f"{before}{begin}{markdown_table()}\n{end}{after}", encoding="utf8")


if __name__ == "__main__":
    write_table(Path(sys.argv[1]))
