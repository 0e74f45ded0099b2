"""JSON, also many values in one file: each value becomes a line with the names that lead to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from embedshare.errors import DocumentUnreadable
from embedshare.text.documents.pieces import Piece

#: Arrays and objects inside of each other.
MAX_DEPTH = 500
#: Bytes without the end of a value.
MAX_VALUE = 8 << 20
#: Characters of the names that lead to a value; the nearest ones are kept.
_MAX_NAMES = 200


class JsonValues:
    """Strings, numbers and truth values, without indexes and nulls. An empty line follows each value of a
    file, or each object in a list of them."""

    def __init__(self) -> None:
        import ijson  # an optional package

        self._ijson = ijson
        self._events: list[tuple[str, Any]] = ijson.sendable_list()
        self._parser = ijson.basic_parse_coro(self._events, multiple_values=True)
        self._bytes_waiting = 0
        #: The names that lead to the current value, and to each that it is in.
        self._paths: list[str] = []
        self._is_list = False

    def feed(self, text: str) -> Iterator[Piece]:
        """The pieces that this text completes."""
        data = text.encode()
        if data:
            yield from self._pieces(self._parser.send, data)
            self._bytes_waiting += len(data)
            if self._bytes_waiting > MAX_VALUE:
                raise DocumentUnreadable(
                    f"a value of the JSON has over {MAX_VALUE:,} bytes", reason="too_large"
                )

    def end(self) -> Iterator[Piece]:
        """The rest."""
        yield from self._pieces(self._parser.close)

    def _pieces(self, parse: Any, *data: bytes) -> Iterator[Piece]:
        try:
            parse(*data)
        except (ValueError, SystemError):  # SystemError: what C code makes of Python's error
            raise DocumentUnreadable("a number of the JSON has too many digits", reason="damaged") from None
        except self._ijson.JSONError as error:
            raise DocumentUnreadable(
                f"the file is not valid JSON: {_said(error)}", reason="damaged"
            ) from None
        if self._events:
            self._bytes_waiting = 0
        text = "".join(map(self._line, *zip(*self._events, strict=True))) if self._events else ""
        del self._events[:]
        if text:
            yield Piece(text)

    def _line(self, event: str, value: Any) -> str:
        paths = self._paths
        match event:
            case "map_key":
                paths[-1] = ".".join(filter(None, [*paths[-2:-1], value[:_MAX_NAMES]]))[-_MAX_NAMES:]
            case "start_map" | "start_array":
                if len(paths) >= MAX_DEPTH:
                    raise DocumentUnreadable(
                        f"the JSON is nested more than {MAX_DEPTH} deep", reason="too_large"
                    )
                self._is_list = event == "start_array" if not paths else self._is_list
                paths.append(paths[-1] if paths else "")
            case "end_map" | "end_array":
                paths.pop()
                return "\n" if len(paths) <= self._is_list else ""
            case "null":
                return ""
            case _:
                return self._named(str(value).lower() if event == "boolean" else str(value))
        return ""

    def _named(self, value: str) -> str:
        path = self._paths[-1] if self._paths else ""
        line = f"{path}: {value}\n" if path else f"{value}\n"
        return line.encode("utf-8", "replace").decode()  # escapes can stand for halves of characters


def _said(error: Exception) -> str:
    message = error.args[0] if error.args else type(error).__name__
    shown = message.decode("utf-8", "replace") if isinstance(message, bytes) else str(message)
    return shown.splitlines()[0].strip() if shown.strip() else type(error).__name__
