"""Settings of jobs: long lists of texts that are embedded in the background."""

from __future__ import annotations

import dataclasses

from embedshare.settings import parsing
from embedshare.settings.declaration import Section, setting


@dataclasses.dataclass(frozen=True)
class JobSettings(Section):
    TITLE = "Jobs"

    # fmt: off
    enabled: bool = setting("EMBEDDING_JOBS", parsing.boolean, True,
        "Long lists of texts as jobs (`/api/v1/jobs`, `/v1/files`, `/v1/batches`), which a process of "
        "service_manager.py computes. With false these routes answer 403")
    directory: str | None = setting("EMBEDDING_JOBS_DIR", parsing.optional_text, None,
        "Directory of jobs and uploaded files, shared by all workers. Default: `jobs/` next to the key file")
    max_texts: int = setting("EMBEDDING_MAX_JOB_TEXTS", parsing.integer(1, 100_000_000), 1_000_000,
        "Maximum texts of one job, and lines of one uploaded file. A longer one is refused")
    max_bytes: int = setting("EMBEDDING_MAX_JOB_BYTES", parsing.integer(64 * 1024, 1 << 40), 1 << 30,
        "Maximum bytes of the body of a job or an uploaded file. A caller's jobs and files together may take "
        "eight times as many, results included")
    kept_s: float = setting("EMBEDDING_JOBS_KEPT_S", parsing.seconds(60, 31_536_000), 604_800.0,
        "Seconds after which finished jobs and uploaded files are deleted")
