"""One line an event (a traceback adds its own), on standard error: text for people, JSON for machines."""

from __future__ import annotations

import os
import sys

from loguru import logger

from embedshare.settings import Settings


def configure(settings: Settings, process: str) -> None:
    """Send this process's log to standard error in the form that the settings ask for.

    For programs, not libraries.
    """
    json_lines = settings.log_format == "json"
    logger.remove()
    logger.configure(extra={"process": process})
    logger.add(
        sys.stderr,
        level=settings.log_level.upper(),
        format="{time:YYYY-MM-DD HH:mm:ss.SSS} {level: <7} {extra[process]}["
        + str(os.getpid())
        + "] {message}",
        serialize=json_lines,
        backtrace=False,
        diagnose=False,  # a traceback must not print the values of variables: texts and keys are among them
    )
