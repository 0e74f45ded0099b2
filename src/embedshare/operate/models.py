"""The command `models`: lists, loads, unloads and pins the server's models, and reads their file again."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, Protocol

from rich import box
from rich.table import Table

#: Seconds for loading a model, converting it included.
LOAD_S = 1800.0
_OF_ONE_MODEL = ("load", "unload", "pin", "unpin")


class Client(Protocol):
    """The client of one of the server's models."""

    def models(self) -> list[dict[str, Any]]: ...
    def manage_model(self, action: str, keep_alive_s: float | None = None, timeout: float = ...) -> Any: ...


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="action")
    helps = {
        "list": "show every model: its state, memory, last use, calls a second, what it gives",
        "load": "load a model now",
        "unload": "unload a model after its last call; the next call loads it again",
        "pin": "never unload a model to make room for another",
        "unpin": "undo pin",
        "reload": "read EMBEDDING_MODELS_FILE again, all or nothing",
    }
    for name, text in helps.items():
        action = actions.add_parser(name, help=text, description=text)
        action.add_argument("--json", action="store_true", help="for scripts: JSON on standard output")
        if name in _OF_ONE_MODEL:
            action.add_argument("name", help="the id or an alias of a model")
        if name == "load":
            action.add_argument(
                "--keep-alive", type=float, default=None, metavar="SECONDS",
                help="from now on unload it after this time without a call; -1 is never",
            )  # fmt: skip


def carry_out(options: argparse.Namespace, client: Client) -> Any:
    """The answer of one action: a model's entry, or all; see EmbeddingClient.models."""
    if options.action == "list":
        return client.models()
    keep_alive_s = getattr(options, "keep_alive", None)
    return client.manage_model(options.action, keep_alive_s, timeout=LOAD_S)


def render(entries: Sequence[dict[str, Any]], before: Sequence[dict[str, Any]], seconds: float) -> Table:
    """The models as a table for a terminal; `before`: their entries that many seconds earlier, 0 for none."""
    calls_before = {one["id"]: one.get("calls", 0) for one in before}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("model", "state", "memory", "last call", "calls/s", "gives", "vectors of"):
        table.add_column(column, overflow="fold")
    for one in entries:
        rate = (one.get("calls", 0) - calls_before.get(one["id"], 0)) / seconds if seconds else 0.0
        names = ", ".join([one["id"], *one["aliases"]]) + (" (default)" if one["default"] else "")
        state = one["state"] + (", pinned" if one.get("pinned") else "") + _service(one)
        idle_s, size, model = one.get("idle_s"), one.get("bytes", 0), one.get("model")
        table.add_row(
            names,
            state if not one.get("error") else f"{state}: {one['error']}",
            f"{size / 1e6:,.0f} MB" if size else "",
            "" if idle_s is None else f"{idle_s:,.0f} s ago",
            f"{rate:.1f}" if seconds else "",
            "" if model is None else _gives(model),
            "" if model is None else f"{model['model_name']} ({model['identity'][:12]}){_provider(one)}",
        )
    return table


def _gives(model: dict[str, Any]) -> str:
    """What a model makes of texts, with its family where that says more."""
    family, outputs = model.get("family", "embedding"), ", ".join(model.get("outputs", ["dense"]))
    return outputs if family in ("embedding", outputs) else f"{outputs} ({family})"


def _provider(entry: dict[str, Any]) -> str:
    provider = entry.get("provider", "local")
    return "" if provider == "local" else f" by {provider}"


def _service(entry: dict[str, Any]) -> str:
    """Whether a remote model's service is asked now, and why not."""
    service = entry.get("service")
    if not service or service["breaker"] == "closed":
        return ""
    return f", not asked for {service['retry_after_s']:.0f} s: {service['error']}"
