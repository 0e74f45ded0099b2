"""Splits a long list of texts into pieces for the server, some of which are in flight at once."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

from embedshare import threads
from embedshare.errors import InvalidInput, TooLarge

T = TypeVar("T")
X = TypeVar("X")
#: A piece has at most this many texts and bytes.
PIECE_TEXTS = 512
PIECE_BYTES = 1 << 20
#: The bytes of a piece whose answer has a vector for each token.
PIECE_BYTES_OF_TOKENS = 1 << 17
#: The most images of a piece, and its bytes.
PIECE_IMAGES = 32
PIECE_BYTES_OF_IMAGES = 4 << 20
#: Pieces of one call in flight at once: while one is computed the next is already on the server.
IN_FLIGHT = 2


def cut(
    texts: Sequence[str | list[int] | tuple[str, str] | bytes],
    max_texts: int,
    max_message_bytes: int,
    piece_bytes: int = PIECE_BYTES,
    query_bytes: int = 0,
    piece_items: int = PIECE_TEXTS,
) -> Iterator[range]:
    """Ranges of texts, token ids, pairs of texts, or files' contents, that fit into one message each.

    `query_bytes`: the size of the one query that the server pairs with each text.

    Raises TooLarge for a text that fits into none, InvalidInput for one without a UTF-8 form (a lone
    surrogate). Both name it by its position in the whole list.
    """
    allowed = max_message_bytes - 4096
    most = min(piece_items, max_texts)
    start, size = 0, 0
    for index, text in enumerate(texts):
        try:
            length = _bytes_of(text) + query_bytes
        except UnicodeEncodeError as error:
            raise InvalidInput(
                f"text {index} holds a lone surrogate, {error.object[error.start]!r}, at position "
                f"{error.start}; encode it with errors='replace' first"
            ) from None
        if length > allowed:
            kind = "image" if isinstance(text, bytes) else "text"
            raise TooLarge(
                f"{kind} {index} has {length:,} bytes; EMBEDDING_MAX_MESSAGE_BYTES allows {allowed:,}"
            )
        if index > start and (size + length > piece_bytes or index - start >= most):
            yield range(start, index)
            start, size = index, 0
        size += length
    yield range(start, len(texts))


def each(
    texts: Sequence[X], pieces: list[range], call: Callable[[Sequence[X]], T], show_progress_bar: bool
) -> list[T]:
    """`call` for the texts of each piece; the results in the pieces' order.

    IN_FLIGHT pieces are in flight at once: one in this thread, the others each in a thread, and so on a
    connection, of its own, if threads can still start. An error or an interrupt is raised when the pieces in
    flight have ended; no further one begins.
    """
    results: dict[int, T] = {}
    errors: list[BaseException] = []
    left = enumerate(pieces)
    next_piece = threading.Lock()

    def work(advance: Callable[[int], object]) -> None:
        while True:
            with next_piece:
                number, piece = next(left, (0, None))
            if piece is None:
                return
            part = texts[piece.start : piece.stop]
            results[number] = call(part)
            advance(len(part))

    def stop() -> None:
        nonlocal left
        with next_piece:
            left = enumerate([])

    def help_out(advance: Callable[[int], object]) -> None:
        try:
            work(advance)
        except BaseException as error:
            errors.append(error)
            stop()

    with _progress(len(texts), show_progress_bar) as advance:
        helpers: list[threading.Thread | None] = []
        try:
            for _ in range(min(IN_FLIGHT, len(pieces)) - 1):
                context = contextvars.copy_context()
                helper = partial(context.run, help_out, advance)
                helpers.append(threads.start(helper, "embedshare-piece", daemon=False))
            work(advance)
        finally:
            stop()
            for thread in filter(None, helpers):
                thread.join()
    try:
        if errors:
            raise errors[0]
    finally:
        errors.clear()  # an error that holds this frame while the frame holds it would keep the texts
    return [results[number] for number in range(len(pieces))]


def _bytes_of(text: str | list[int] | tuple[str, str] | bytes) -> int:
    if isinstance(text, bytes):
        return len(text)
    if isinstance(text, tuple):
        return sum(map(_bytes_of, text))
    if isinstance(text, str):
        return len(text) if text.isascii() else len(text.encode())
    return 5 * (len(text) + 1)  # a number's longest form, and the array's head


@contextmanager
def _progress(total: int, shown: bool) -> Iterator[Callable[[int], object]]:
    """A function that is called with the number of finished texts."""
    if not shown:
        yield lambda done: None
        return
    from tqdm.auto import tqdm  # imported when shown: 20 ms, and a fork meanwhile breaks the import lock

    with tqdm(total=total, desc="Texts", unit="text") as bar:
        yield bar.update
