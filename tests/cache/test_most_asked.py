"""The most asked texts: by day and model, in a private file, over a restart."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from loguru import logger

from embedshare import platforms
from embedshare.cache import most_asked
from embedshare.cache.most_asked import MAX_CHARACTERS, Asked, MostAsked
from embedshare.calls import EmbedRequest


class Clock:
    def __init__(self) -> None:
        self.day = "2026-03-01"

    def __call__(self) -> str:
        return self.day


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "most-asked-5002.json"


def ask(counted: MostAsked, model: str, texts: list[str], times: int = 1, prompt: str = "") -> None:
    for _ in range(times):
        counted.count(model, EmbedRequest(texts, prompt))


def texts_of(counted: MostAsked, model: str = "bge") -> list[str]:
    return [one.text for one in counted.of_last_day().get(model, [])]


def test_the_most_asked_texts_of_each_model_are_kept_over_a_restart(path: Path, clock: Clock) -> None:
    counted = MostAsked(path, 3, clock)
    for times, text in enumerate(["rare", "at times", "often", "always"], start=1):
        ask(counted, "bge", [text], times)
    ask(counted, "other", ["theirs"])
    counted.close()
    again = MostAsked(path, 3, clock)
    assert texts_of(again) == ["always", "often", "at times"]
    ask(again, "bge", ["often"], 2)  # the day goes on
    assert texts_of(again) == ["often", "always", "at times"]
    assert texts_of(again, "other") == ["theirs"]
    assert platforms.fault_of_secret(path.stat()) is None


def test_a_text_is_kept_with_its_prompt_task_and_truncation(path: Path, clock: Clock) -> None:
    counted = MostAsked(path, 9, clock)
    counted.count("bge", EmbedRequest(["text"], "query: ", task="query", truncate=False))
    counted.count("bge", EmbedRequest(["text", "text"]))
    counted.close()
    kept = MostAsked(path, 9, clock).of_last_day()["bge"]
    assert kept == [Asked("text", "", None, True), Asked("text", "query: ", "query", False)]


def test_token_ids_and_long_texts_are_not_kept(path: Path, clock: Clock) -> None:
    counted = MostAsked(path, 9, clock)
    counted.count("bge", EmbedRequest([[1, 2, 3]]))
    ask(counted, "bge", ["x" * (MAX_CHARACTERS + 1), "y" * MAX_CHARACTERS])
    ask(counted, "bge", ["z" * MAX_CHARACTERS], prompt="a")
    ask(counted, "bge", ["z" * (MAX_CHARACTERS + 1)])
    ask(counted, "bge", ["a"], prompt="z" * (MAX_CHARACTERS + 1))
    assert texts_of(counted) == ["y" * MAX_CHARACTERS]


def test_the_last_full_day_counts_and_two_days_are_kept(path: Path, clock: Clock) -> None:
    counted = MostAsked(path, 9, clock)
    for day in ("2026-03-01", "2026-03-02", "2026-03-05"):
        clock.day = day
        ask(counted, "bge", [day])
        counted.of_last_day()  # counts what waits
    assert texts_of(counted) == ["2026-03-02"]
    counted.close()
    assert list(msgspec.json.decode(path.read_bytes())["days"]) == ["2026-03-02", "2026-03-05"]
    clock.day = "2026-03-06"
    again = MostAsked(path, 9, clock)
    assert texts_of(again) == ["2026-03-05"]
    again.close()
    assert texts_of(MostAsked(path, 9, clock)) == ["2026-03-05"]


def test_texts_that_wait_to_be_counted_are_bounded(
    path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(most_asked, "WAITING", 10)
    monkeypatch.setattr(most_asked, "COUNT_S", 1000.0)
    counted = MostAsked(path, 100, clock)
    for number in range(100):
        ask(counted, "bge", [f"text {number}"])
    assert len(texts_of(counted)) == 11
    ask(counted, "bge", ["later"])
    assert "later" in texts_of(counted)


@pytest.mark.parametrize("content", [b"", b"{}", b'{"days": {"2026-03-01": {"bge": [["no text", 1]]}}}'])
def test_a_file_that_is_none_of_ours_is_ignored_and_replaced(
    path: Path, clock: Clock, content: bytes
) -> None:
    path.write_bytes(content)
    path.chmod(0o600)
    counted = MostAsked(path, 9, clock)
    assert counted.of_last_day() == {}
    ask(counted, "bge", ["text"])
    counted.close()
    assert texts_of(MostAsked(path, 9, clock)) == ["text"]


def test_a_file_that_cannot_be_written_is_told_without_a_text(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "file").write_text("not a folder")
    lines: list[str] = []
    sink = logger.add(lines.append, format="{level} {message}")
    counted = MostAsked(tmp_path / "file" / "most-asked.json", 9, clock)
    ask(counted, "bge", ["a secret text"])
    counted.close()
    logger.remove(sink)
    assert any(line.startswith("ERROR Could not write the most asked texts") for line in lines)
    assert "secret" not in "".join(lines)
