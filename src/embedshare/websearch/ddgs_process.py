"""Queries public search engines in a separate process: ddgs parses their answers with lxml in several
threads."""

from __future__ import annotations

import time

import msgspec

from embedshare import sandbox
from embedshare.errors import SearchFailed
from embedshare.websearch.types import SearchResult

#: One worker's parallel queries.
AT_ONCE = 4

#: Variables of the environment for web access: proxies, and the certificates to trust.
_ENVIRONMENT = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_", "DDGS_", "PRIMP_")
_REASONS = {"RatelimitException": "they accept no more queries now", "TimeoutException": "they took too long"}


class _Question(msgspec.Struct):
    query: str
    limit: int
    timeout_s: int
    """The time limit of each request of the library, which may make several."""


class _Answer(msgspec.Struct):
    results: list[SearchResult]
    failure: str | None = None


class DdgsProcess:
    """Thread-safe."""

    def __init__(self) -> None:
        sandbox.require("ddgs")
        self._apart = sandbox.Sandbox(__name__, AT_ONCE, _ENVIRONMENT)

    def results(self, query: str, limit: int, limit_s: float) -> list[SearchResult]:
        """At most about `limit` links within `limit_s` seconds. Raises SearchFailed."""
        question = _Question(query, limit, max(1, int(limit_s / 3)))
        try:
            told = self._apart.do(msgspec.msgpack.encode(question), time.monotonic() + limit_s, limit_s)
            answer = msgspec.msgpack.decode(told, type=_Answer)
        except (sandbox.Lost, msgspec.DecodeError) as error:
            raise SearchFailed(f"no search engine answered: {error}") from None
        if answer.failure is not None:
            raise SearchFailed(f"no search engine answered: {answer.failure}")
        return answer.results


def main() -> None:
    """The separate process."""
    import ddgs
    from ddgs.exceptions import DDGSException

    def ask(question: _Question) -> _Answer:
        try:
            with ddgs.DDGS(timeout=question.timeout_s) as engines:
                found = engines.text(question.query, max_results=question.limit)
        except DDGSException as error:  # its message quotes the address, and so the query
            nothing = str(error) == "No results found."
            return _Answer([], None if nothing else _REASONS.get(type(error).__name__, "they failed"))
        links = (
            SearchResult(one.get("href", ""), one.get("title", ""), one.get("body", "")) for one in found
        )
        return _Answer(list(links))

    sandbox.serve(
        lambda message: msgspec.msgpack.encode(ask(msgspec.msgpack.decode(message, type=_Question)))
    )


if __name__ == "__main__":
    main()
