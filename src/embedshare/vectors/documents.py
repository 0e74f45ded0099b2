"""The documents' metadata, and a search's results made of it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from embedshare.errors import InvalidInput

#: The length of a document's `content`, in characters.
SHOWN = 500


def as_documents(docs: Iterable[str]) -> list[str]:
    """The documents of a list, an array or a generator, as a list.

    Raises InvalidInput if there are none, or one is not a str.
    """
    return _strings(docs, "docs")


def metadata_of(docs: Sequence[str], urls: Iterable[str] | None) -> list[dict[str, Any]]:
    """A dict for each document: id, url, content (its beginning), full_content, length.

    `urls`: one each, duplicates allowed; by default each is "". Raises InvalidInput for another number of
    them, or one that is not a str.
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
    """The metadata of the results, best first, each with `relevance_score` and `rank` (from 1)."""
    return [
        {**_entry(metadata, number), "relevance_score": score, "rank": rank}
        for rank, (number, score) in enumerate(zip(ids, scores, strict=True), 1)
    ]


def _entry(metadata: Sequence[dict[str, Any]], number: int) -> dict[str, Any]:
    """The dict of that id: at its position if nothing was removed, else found by order."""
    if number < len(metadata) and metadata[number]["id"] == number:
        return metadata[number]
    at = bisect_left(metadata, number, key=lambda entry: int(entry["id"]))
    if at < len(metadata) and metadata[at]["id"] == number:
        return metadata[at]
    raise InvalidInput(f"the metadata has no entry of id {number}, or its ids are not in order")
