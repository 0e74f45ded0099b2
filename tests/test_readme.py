"""What the README says of the code is what the code says."""

from __future__ import annotations

from embedshare.settings import markdown_table
from tests.processes import ROOT

README = (ROOT / "README.md").read_text(encoding="utf8")


def _between(mark: str) -> str:
    return README.partition(f"<!-- {mark} -->\n")[2].partition(f"<!-- /{mark} -->")[0]


def test_its_settings_table_is_made_from_the_settings() -> None:
    assert _between("settings").strip() == markdown_table(), "run: python -m embedshare.settings README.md"
