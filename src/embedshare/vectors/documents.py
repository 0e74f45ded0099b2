"""What is known of each document beside its vector, and what a search says of it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from embedshare.errors import InvalidInput

#: Characters of a document that its `content` shows.
SHOWN = 500


def as_documents(docs: Iterable[str]) -> list[str]:
    """The documents as a list, whatever holds them: a list, an array, a generator.

    Raises InvalidInput where they are none, or one is no str.
    """
    return _strings(docs, "docs")


def metadata_of(docs: Sequence[str], urls: Iterable[str] | None) -> list[dict[str, Any]]:
    """A dict for each document: id, url, content (its beginning), full_content, length.

    `urls`: one each, the same ones too; without them each is "". Raises InvalidInput where their number is
    another, or one is no str.
    """
    addresses = [""] * len(docs) if urls is None else _strings(urls, "urls")
    if len(addresses) != len(docs):
        raise InvalidInput(
            f"there are {len(addresses):,} urls for {len(docs):,} docs; give one for each, or None"
        )
    return [
        {
            "id": number,
            "url": url,
            "content": doc[:SHOWN] + "..." if len(doc) > SHOWN else doc,
            "full_content": doc,
            "length": len(doc),
        }
        for number, (doc, url) in enumerate(zip(docs, addresses, strict=True))
    ]


def _strings(given: Any, name: str) -> list[str]:
    try:
        found = None if isinstance(given, str | bytes | Mapping) else list(given)
    except TypeError:
        found = None
    if found is None:
        raise InvalidInput(f"{name} is a {type(given).__name__}; allowed: a list of str")
    for number, one in enumerate(found):
        if not isinstance(one, str):
            raise InvalidInput(f"{name}[{number}] is a {type(one).__name__}, not a str")
    return [str(one) for one in found]


def results_of(
    ids: Sequence[int], scores: Sequence[float], metadata: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The metadata of what was found, best first, each with `relevance_score` and `rank` (from 1)."""
    return [
        {**_entry(metadata, number), "relevance_score": score, "rank": rank}
        for rank, (number, score) in enumerate(zip(ids, scores, strict=True), 1)
    ]


def _entry(metadata: Sequence[dict[str, Any]], number: int) -> dict[str, Any]:
    """The dict of that id: in its place where nothing was removed, else among those in order."""
    if number < len(metadata) and metadata[number]["id"] == number:
        return metadata[number]
    at = bisect_left(metadata, number, key=lambda entry: int(entry["id"]))
    if at < len(metadata) and metadata[at]["id"] == number:
        return metadata[at]
    raise InvalidInput(f"the metadata has no entry of id {number}, or its ids are not in order")
