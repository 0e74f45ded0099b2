"""Settings of operation: logs, the number of workers, and the settings' database."""

from __future__ import annotations

import dataclasses

from embedshare.settings import parsing
from embedshare.settings.declaration import Section, setting


@dataclasses.dataclass(frozen=True)
class OperationSettings(Section):
    TITLE = "Operation"

    # fmt: off
    log_format: str = setting("EMBEDDING_LOG_FORMAT", parsing.choice("text", "json"), "text",
        "Format of log lines, one line an event: text or json")
    log_level: str = setting("EMBEDDING_LOG_LEVEL", parsing.choice("debug", "info", "warning", "error"),
        "info",
        "Lowest level that is logged: debug, info, warning or error")
    log_dir: str = setting("EMBEDDING_LOG_DIR", parsing.required_text, "logs",
        "Directory in which service_manager.py writes each process's output")
    log_max_bytes: int = setting("EMBEDDING_LOG_MAX_BYTES", parsing.integer(0, 1 << 40), 10 << 20,
        "Size in bytes at which service_manager.py starts a new log file; 0 sets no limit")
    log_keep: int = setting("EMBEDDING_LOG_KEEP", parsing.integer(0, 1000), 5,
        "Number of older log files that service_manager.py keeps of each process, as NAME.log.1 and up")
    scale_up_s: float = setting("EMBEDDING_SCALE_UP_S", parsing.seconds(0, 86_400), 6.0,
        "Seconds of busy workers after which `--workers LEAST-MOST` starts one more")
    scale_down_s: float = setting("EMBEDDING_SCALE_DOWN_S", parsing.seconds(0, 86_400), 60.0,
        "Seconds of idle workers after which `--workers LEAST-MOST` stops one")
    use_db_settings: bool = setting("EMBEDDING_USE_DB_SETTINGS", parsing.boolean, False,
        "Settings in a database, which `/settings` changes while everything runs. With false the environment "
        "alone gives them")
    db_url: str | None = setting("EMBEDDING_DB_URL", parsing.database_url, None,
        "URL of that database, as `postgresql://user:password@host/name` or `mysql://…`. Default: the SQLite "
        "file `embedshare.db` next to the key file", secret=True)
