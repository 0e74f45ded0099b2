"""The embedded text: paragraphs and short queries from the standard library's docstrings.

The same Python version gives the same text, in the same order, on every machine.
"""

from __future__ import annotations

import ast
import dataclasses
import itertools
import random
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

SHORTEST, LONGEST, QUERY_LONGEST = 20, 1500, 60
#: Enough for every row, and found in a few seconds.
WANTED = 8000


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Paragraphs of 20 to 1,500 characters, and queries of at most 60. A query is the start of a paragraph
    that is not among `paragraphs`."""

    paragraphs: list[str]
    queries: list[str]

    def many(self, count: int) -> list[str]:
        """Return `count` different texts: the paragraphs, and then the same with a number."""
        endless = (
            f"{text} {turn}" if turn else text for turn in itertools.count() for text in self.paragraphs
        )
        return list(itertools.islice(endless, count))


def load(seed: int = 20) -> Corpus:
    """Load the corpus: half of the paragraphs stay whole, and the other half become queries."""
    found: dict[str, None] = {}
    sources = sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py"))
    sources = [path for path in sources if "site-packages" not in path.parts]
    order = random.Random(seed)
    order.shuffle(sources)
    for path in sources:
        found.update(dict.fromkeys(paragraphs_of(path)))
        if len(found) >= WANTED:
            break
    texts = list(found)
    order.shuffle(texts)
    half = len(texts) // 2
    queries = dict.fromkeys(_first_words(text) for text in texts[half:])
    return Corpus(texts[:half], list(queries))


def paragraphs_of(path: Path) -> Iterator[str]:
    """Return the paragraphs of a source file's docstrings."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in the library's own sources
            tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError, ValueError):
        return  # the library's tests hold deliberately broken files
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            for block in (ast.get_docstring(node) or "").split("\n\n"):
                text = " ".join(block.split())
                if SHORTEST <= len(text) <= LONGEST:
                    yield text


def _first_words(text: str) -> str:
    if len(text) <= QUERY_LONGEST:
        return text
    return text[: QUERY_LONGEST + 1].rpartition(" ")[0] or text[:QUERY_LONGEST]
