"""Turns pages into documents, in a separate process."""

from __future__ import annotations

import msgspec

from embedshare import sandbox
from embedshare.errors import FetchFailed
from embedshare.websearch.types import Document, Page

#: Seconds for one page: the longest take two on an idle machine, and others wait meanwhile.
PARSE_S = 5.0


class PageProcess:
    """Thread-safe. One page at a time: a page takes some hundredths of a second, a second process memory."""

    def __init__(self) -> None:
        sandbox.require("trafilatura")
        self._apart = sandbox.Sandbox(__name__, at_once=1)

    def prepare(self) -> None:
        """Start the process: a page is coming."""
        self._apart.prepare()

    def readable(self, page: Page, deadline: float) -> Document:
        """The page's title and its readable text, by the moment `deadline` of `time.monotonic()`.

        Raises FetchFailed if that takes longer, or crashes the process.
        """
        try:
            answer = self._apart.do(msgspec.msgpack.encode(page), deadline, PARSE_S)
            return msgspec.msgpack.decode(answer, type=Document)
        except (sandbox.Lost, msgspec.DecodeError) as error:
            raise FetchFailed(f"the page could not be read: {error}") from None


def main() -> None:
    """The separate process."""
    from embedshare.websearch.extraction import readable  # its imports stay out of the worker

    sandbox.serve(
        lambda message: msgspec.msgpack.encode(readable(msgspec.msgpack.decode(message, type=Page)))
    )


if __name__ == "__main__":
    main()
