"""docs/settings.md equals the text generated from the code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from embedshare.settings.declaration import declared
from embedshare.settings.document import markdown
from embedshare.settings.settings import PLACES, SECTIONS
from tests.processes import ROOT

ROWS = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*) \|$", markdown(), re.MULTILINE)
#: The most words in an English sentence, and words that begin no noun phrase.
LONGEST = 25
NO_SUBJECT = {"Who", "Whoever", "What", "Where", "Whether", "How", "Of", "The", "That", "It"}


def test_the_document_is_made_from_the_code() -> None:
    written = (ROOT / "docs" / "settings.md").read_text(encoding="utf8")
    assert written == markdown(), "run: python -m embedshare.settings docs/settings.md"


def test_the_command_writes_it(tmp_path: Path) -> None:
    target = tmp_path / "settings.md"
    command = [sys.executable, "-m", "embedshare.settings", str(target)]
    subprocess.run(command, cwd=ROOT / "src", check=True, timeout=60)
    assert target.read_text(encoding="utf8") == markdown()


def test_it_has_a_table_for_each_section_and_a_row_for_each_setting() -> None:
    assert re.findall(r"^## (.*)$", markdown(), re.MULTILINE) == [one.TITLE for one in SECTIONS.values()]
    assert [name for name, _, _ in ROWS] == [
        declaration.name for section in SECTIONS.values() for declaration in declared(section).values()
    ]
    assert len(ROWS) == len(PLACES)


def test_it_shows_defaults_as_they_are_written_in_the_environment() -> None:
    shown = {name: default for name, default, _ in ROWS}
    assert shown["PORT"] == "`5000`"
    assert shown["USE_IPC_EMBEDDING"] == "`true`"
    assert shown["EMBEDDING_AUTHKEY"] == shown["CORS_ORIGINS"] == ""
    assert shown["EMBEDDING_TRUST_REMOTE_CODE"] == "`false`"


@pytest.mark.parametrize(("name", "meaning"), [(name, meaning) for name, _, meaning in ROWS])
def test_a_meaning_is_a_noun_phrase_of_short_sentences(name: str, meaning: str) -> None:
    assert meaning.split()[0] not in NO_SUBJECT, name
    assert not meaning.endswith("."), name
    for sentence in re.split(r"\. |; |: ", meaning):
        assert len(sentence.split()) <= LONGEST, (name, sentence)
