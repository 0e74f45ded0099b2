"""The command `cache`: shows, fills and clears the server's cached vectors."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Protocol

from embedshare.errors import InvalidInput
from embedshare.operate import status


class Client(Protocol):
    """The client of one of the server's models."""

    def stats(self) -> dict[str, Any]: ...
    def clear_cache(
        self, every_model: bool, *, texts: list[str] | None = None, prompt: str | None = None
    ) -> int: ...
    def warm_cache(self, every_model: bool) -> int: ...
    def encode(
        self, inputs: Any, prompt_name: str | None = None, *, show_progress_bar: bool | None = None
    ) -> Any: ...


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="action")
    helps = {
        "stats": "show how many vectors are cached, and how many texts were found there",
        "warm": "embed the lines of a file, or the most asked texts of the last day, so that they are cached",
        "clear": "drop the cached vectors of all models, of one, or of some texts of one",
    }
    for name, text in helps.items():
        action = actions.add_parser(name, help=text, description=text)
        action.add_argument("--json", action="store_true", help="for scripts: JSON on standard output")
        if name == "clear":
            _clear_arguments(action)
        if name == "warm":
            _warm_arguments(action)


def _warm_arguments(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "file", type=Path, nargs="?", default=None, help="a text file in UTF-8, one text a line"
    )
    source.add_argument(
        "--yesterday", action="store_true",
        help="embed the most asked texts of the last day, which the server keeps if "
        "EMBEDDING_VECTOR_CACHE_MOST_ASKED says so, in the background",
    )  # fmt: skip
    parser.add_argument(
        "--of", default=None, metavar="NAME",
        help="id or alias of the model (default: the default model; with --yesterday all)",
    )  # fmt: skip
    parser.add_argument("--prompt-name", default=None, help="name of the prompt before each text of the file")


def _clear_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--of", default=None, metavar="NAME",
        help="id or alias of the only model (default: all; with texts, the default model)",
    )  # fmt: skip
    parser.add_argument(
        "--text", action="append", default=[],
        help="drop the vectors of this text alone, with every prompt of the model; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--texts", type=Path, default=None, metavar="FILE",
        help="drop the vectors of the lines of a text file in UTF-8",
    )  # fmt: skip
    parser.add_argument(
        "--prompt", default=None, help="a further prompt that the texts were embedded with"
    )  # fmt: skip


def carry_out(options: argparse.Namespace, client: Client) -> dict[str, Any]:
    """The cache's figures, `cleared` (the number of dropped vectors), `warmed` (the number of texts), or
    `warming` (the number of texts that the server embeds now).

    Raises InvalidInput for a file that cannot be read, and a prompt without texts.
    """
    if options.action == "stats":
        found: dict[str, Any] = client.stats()["cache"]
        return found
    if options.action == "warm" and options.yesterday:
        return {"warming": client.warm_cache(options.of is None)}
    if options.action == "warm":
        texts = _lines(options.file)
        given = [{"text": text} for text in texts]  # never an image's path
        client.encode(given, prompt_name=options.prompt_name, show_progress_bar=not options.json)
        return {"warmed": len(texts)}
    return {"cleared": _clear(options, client)}


def _clear(options: argparse.Namespace, client: Client) -> int:
    if options.text or options.texts is not None:
        texts = [*options.text, *([] if options.texts is None else _lines(options.texts))]
        return client.clear_cache(False, texts=texts, prompt=options.prompt)
    if options.prompt is not None:
        raise InvalidInput("--prompt belongs to --text or --texts")
    return client.clear_cache(options.of is None)


def render(answer: dict[str, Any]) -> str:
    """The answer in a line."""
    if "cleared" in answer:
        return f"dropped {answer['cleared']:,} cached vectors"
    if "warming" in answer:
        return f"embedding {answer['warming']:,} most asked texts in the background"
    if "warmed" in answer:
        return f"embedded {answer['warmed']:,} texts"
    return f"cached vectors: {status.cached(answer)}"


def _lines(file: Path) -> list[str]:
    """The different lines that are not empty, in order."""
    try:
        content = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{file} cannot be read: {error}") from None
    return list(dict.fromkeys(line for line in content.splitlines() if line))
