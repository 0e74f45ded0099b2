"""The texts that callers ask for most, by day and model, in a file of this user's."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import NamedTuple, cast

import msgspec
from loguru import logger

from embedshare import private_file
from embedshare.cache.frequent import Frequent
from embedshare.calls import EmbedRequest, are_tokens

#: Longer texts are not kept; characters of the text and its prompt.
MAX_CHARACTERS = 2000
#: Texts that wait to be counted; further ones are not.
WAITING = 20_000
#: Seconds between two counts, and between two writes of the file.
COUNT_S, WRITE_S = 0.5, 900.0
#: Texts that are counted for each one that is kept: the fewer, the less certain are the counts.
_COUNTED = 2


class Asked(NamedTuple):
    """A text, and how it was asked for."""

    text: str
    prompt: str
    task: str | None
    truncate: bool


#: A day as the file names it, such as 2026-01-31; days sort by their names.
Day = str
#: Texts and how often they came, the most asked first.
_Counted = list[tuple[Asked, int]]


class _File(msgspec.Struct):
    """The file's content: by day, then by model's id."""

    days: dict[Day, dict[str, _Counted]]


class MostAsked:
    """Counts the texts of calls and keeps the `number` most asked ones of each model and day at `path`.

    Of the local time's days two are kept. Thread-safe.
    """

    def __init__(self, path: Path, number: int, today: Callable[[], Day] | None = None) -> None:
        self._path = path
        self._number = number
        self._today = today or _today
        self._asked: deque[tuple[str, list[str], str | None, str | None, bool]] = deque()
        self._waiting = 0
        self._lock = threading.Lock()
        """Held over the counts, never by a call."""
        found = private_file.read_note(path, _File)
        self._days: dict[Day, dict[str, _Counted]] = {} if found is None else found.days
        self._day = self._today()
        self._counts = {model: self._counted(kept) for model, kept in self._days.pop(self._day, {}).items()}
        self._closed = threading.Event()
        threading.Thread(target=self._work, name="most-asked", daemon=True).start()

    def count(self, model: str, request: EmbedRequest) -> None:
        """Count the texts of a call of the model with this id, one or more; token ids are none."""
        if self._waiting > WAITING or are_tokens(request.inputs):
            return
        if request.prompt and len(request.prompt) > MAX_CHARACTERS:
            return
        texts = cast("list[str]", request.inputs)
        # The rest is done by the thread: a call has no microsecond for it.
        if len(texts) > 1 or len(texts[0]) > MAX_CHARACTERS:
            texts = [text for text in texts if len(text) <= MAX_CHARACTERS]
        # An addition that is lost to another thread's costs nothing: each count begins at 0 again.
        self._waiting += len(texts)
        self._asked.append((model, texts, request.prompt, request.task, request.truncate))

    def of_last_day(self) -> dict[str, list[Asked]]:
        """By model's id, the most asked texts of the last day before today that the file has, else of today;
        the most asked first."""
        with self._lock:
            self._take()
            days = self._days if self._days else {self._day: self._now()}
            return {model: [one for one, _ in kept] for model, kept in days[max(days)].items()}

    def close(self) -> None:
        """Write the file; what comes later is not counted."""
        self._closed.set()
        self._write()

    def _work(self) -> None:
        waited_s = 0.0
        while not self._closed.wait(COUNT_S):
            with self._lock:
                self._take()
            waited_s += COUNT_S
            if waited_s >= WRITE_S:
                waited_s = 0.0
                self._write()

    def _take(self) -> None:
        """Count what waits. Called with the lock held."""
        today = self._today()
        if today != self._day:
            before = self._now()
            self._days = {self._day: before} if before else self._days
            self._day, self._counts = today, {}
        self._waiting = 0
        while self._asked:
            model, texts, prompt, task, truncate = self._asked.popleft()
            counts = self._counts.get(model)
            if counts is None:
                counts = self._counts[model] = self._counted([])
            most = MAX_CHARACTERS - len(prompt or "")
            counts.add(Asked(text, prompt or "", task, truncate) for text in texts if len(text) <= most)

    def _counted(self, kept: _Counted) -> Frequent[Asked]:
        """The counts of texts that were kept; those of the others are lost."""
        counts: Frequent[Asked] = Frequent(_COUNTED * self._number)
        counts.counts = dict(kept[: self._number])
        counts.total = sum(counts.counts.values())
        return counts

    def _now(self) -> dict[str, _Counted]:
        """Today's most asked texts."""
        return {model: counts.top(self._number) for model, counts in self._counts.items() if counts.counts}

    def _write(self) -> None:
        with self._lock:
            self._take()
            now = self._now()
            last = {max(self._days): self._days[max(self._days)]} if self._days else {}
            content = msgspec.json.encode(_File({**last, **({self._day: now} if now else {})}))
        try:
            private_file.replace(self._path, content)
        except OSError as error:
            logger.error("Could not write the most asked texts to {}: {}", self._path, error)


def _today() -> Day:
    return datetime.now().astimezone().date().isoformat()
