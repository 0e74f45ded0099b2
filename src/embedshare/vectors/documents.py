"""What is known of each document beside its vector, and what a search says of it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from embedshare.errors import InvalidInput

#: Characters of a document that its `content` shows.
SHOWN = 500


def metadata_of(docs: Sequence[str], urls: Sequence[str] | None, first_id: int = 0) -> list[dict[str, Any]]:
    """A dict for each document: id, url, content (its beginning), full_content, length.

    `urls`: one each; without them each is "". Raises InvalidInput where their number is another.
    """
    if urls is None:
        urls = [""] * len(docs)
    if isinstance(urls, str) or len(urls) != len(docs):
        count = "a str" if isinstance(urls, str) else f"{len(urls):,} urls"
        raise InvalidInput(f"{count} came for {len(docs):,} docs; one for each is needed, or None")
    return [
        {
            "id": number,
            "url": url,
            "content": doc[:SHOWN] + "..." if len(doc) > SHOWN else doc,
            "full_content": doc,
            "length": len(doc),
        }
        for number, (doc, url) in enumerate(zip(docs, urls, strict=True), first_id)
    ]


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
