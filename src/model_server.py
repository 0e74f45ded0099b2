"""The earlier worker behind a pipe, kept for its callers; new code imports `embeddingClient`.

ours, theirs = multiprocessing.Pipe()
multiprocessing.Process(target=worker_process, args=(theirs,)).start()
ours.send({"cmd": "search", "query": "what is asked", "max_chars": 2000})
ours.recv()  # {"result": context, "urls": [...]} or {"error": what is wrong}
ours.send({"cmd": "exit"})
"""

from __future__ import annotations

from multiprocessing.connection import Connection
from typing import Any

from loguru import logger

from embeddingClient import get_embedding_model
from embedshare.errors import EmbedshareError


def worker_process(conn: Connection) -> None:
    """Answer the commands of `conn`, one after another, until "exit" or its other end closes.

    The pipe belongs to the program that made it; its other end is trusted.
    """
    while True:
        try:
            command = conn.recv()
        except EOFError:
            return
        if isinstance(command, dict) and command.get("cmd") == "exit":
            return
        try:
            conn.send(_answer(command))
        except BrokenPipeError:  # the caller has left
            return


def _answer(command: Any) -> dict[str, Any]:
    if not isinstance(command, dict) or command.get("cmd") != "search" or "query" not in command:
        known = '{"cmd": "search", "query": ..., "max_chars": ...} and {"cmd": "exit"}'
        return {"error": f"the worker knows {known}"}
    try:
        context, urls = get_embedding_model().web_search_with_embeddings(
            command["query"], max_chars=command.get("max_chars", 2000)
        )
    except EmbedshareError as error:
        return {"error": error.message}
    except Exception as error:
        logger.opt(exception=error).error("Failed to search")
        return {"error": str(error)}
    return {"result": context, "urls": urls}
