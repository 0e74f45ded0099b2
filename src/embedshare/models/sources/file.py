"""The file of models, `models.yaml`: read node by node, so that an error names its line and column.

    models:
      local:
        - id: minilm
          name: all-MiniLM-L6-v2
          aliases: [default]
          preload: true
      openai:
        - id: text-embedding-3-small
          dimensions: 1536

PyYAML's own loader would take the last of two equal keys, and `no` or `1e3` for other things than text.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from embedshare import platforms
from embedshare.errors import InvalidModels
from embedshare.models.registry import Registry
from embedshare.models.sources import fields
from embedshare.models.spec import ModelSpec

#: The most bytes of the file.
MAX_BYTES = 1 << 20


def read(path: Path) -> Registry:
    """The models of the file. Raises InvalidModels."""
    try:
        with path.open("rb") as file:
            fault = platforms.fault_of_trust(os.fstat(file.fileno()))
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InvalidModels(f"{path} cannot be read: {error.strerror or error}", path=str(path)) from None
    if fault is not None:
        message = f"{path} can be changed by others ({fault}), and names what runs here; chmod go-w it"
        raise InvalidModels(message, path=str(path))
    if len(content) > MAX_BYTES:
        raise InvalidModels(f"{path} is larger than {MAX_BYTES:,} bytes, its limit", path=str(path))
    return _File(path).registry(content)


class _File:
    """One reading of the file, for the places in its errors."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._names: dict[str, int] = {}
        """The line of each name for callers."""
        self._default: tuple[str, int] | None = None
        self._failovers: dict[str, yaml.Node] = {}
        """The list of each model that fails over, by the model's id."""

    def registry(self, content: bytes) -> Registry:
        root = self._mapping(self._parsed(content), {"models"}, "the file")
        known = set(fields.OF_PROVIDER)
        found = self._mapping(root["models"], known, "models") if "models" in root else {}
        specs = [self._spec(node, name) for name, entries in found.items() for node in self._list(entries)]
        if not specs:
            raise self._error(None, "there is no model", 'a list of models under "models:" and "local:"')
        registry = Registry(specs, self._default[0] if self._default is not None else None)
        for spec in specs:
            self._check_failover(spec, registry)
        return registry

    def _check_failover(self, spec: ModelSpec, registry: Registry) -> None:
        if not spec.failover:
            return
        mark = self._failovers[spec.id].start_mark
        if spec.space is None:
            raise self._error(mark, f"{spec.id} fails over without a space", "failover together with space")
        others = [one.id for one in registry if one.space == spec.space and one is not spec]
        for name in spec.failover:
            if name not in others or spec.failover.count(name) > 1:
                what = f"{spec.id} cannot fail over to {name!r}"
                allowed = ", ".join(others) or "the id of another model with this space"
                raise self._error(mark, what, f"each once: {allowed}")

    def _parsed(self, content: bytes) -> yaml.Node | None:
        try:
            return yaml.compose(content, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            raise self._error(mark, str(error.problem or error.context), "YAML") from None
        except yaml.reader.ReaderError as error:
            raise self._error(None, f"byte {error.position} is not text: {error.reason}", "UTF-8") from None
        except RecursionError:
            raise self._error(None, "it is nested too deeply", "a list of models") from None

    def _spec(self, node: yaml.Node, provider: Any) -> ModelSpec:
        readers = fields.OF_PROVIDER[provider]
        given = self._mapping(node, {*readers, "default"}, "a model")
        if "id" not in given:
            raise self._error(node.start_mark, "a model has no id", "a name for callers, as `id: minilm`")
        values = {key: self._value(key, given[key], readers) for key in given if key != "default"}
        spec = fields.spec_of(provider, values)
        if spec.failover:
            self._failovers[spec.id] = given["failover"]
        self._check_remote(spec, given)
        for name, where in [(spec.id, given["id"]), *((alias, given["aliases"]) for alias in spec.aliases)]:
            line = where.start_mark.line + 1
            if self._names.setdefault(name, line) != line or [spec.id, *spec.aliases].count(name) > 1:
                what = f"the name {name!r} is given twice (first in line {self._names[name]})"
                raise self._error(where.start_mark, what, "each id and alias once")
        if "default" in given and fields.boolean(self._text(given["default"], "default")):
            line = given["default"].start_mark.line + 1
            if self._default is not None:
                what = f"a second model is the default (the first in line {self._default[1]})"
                raise self._error(given["default"].start_mark, what, "one default")
            self._default = spec.id, line
        return spec

    def _check_remote(self, spec: ModelSpec, given: Mapping[str, yaml.Node]) -> None:
        remote = spec.remote
        if remote is None:
            return
        if remote.budget_per_month is not None and not remote.price_per_million_tokens:
            mark = given["budget_per_month"].start_mark
            raise self._error(mark, "a budget has no price", "budget_per_month with price_per_million_tokens")
        names = [name for name, _ in remote.prompts]
        if remote.default_prompt is not None and remote.default_prompt not in names:
            mark = given["default_prompt"].start_mark
            what = f"there is no prompt {remote.default_prompt[:100]!r}"
            raise self._error(mark, what, ", ".join(names) or "the name of one of the model's prompts")

    def _value(self, key: str, node: yaml.Node, readers: Mapping[str, Callable[[str], Any]]) -> Any:
        try:
            if key in fields.LISTS:
                return tuple(fields.value_of(readers[key], self._text(one, key)) for one in self._list(node))
            if key in fields.MAPPINGS:
                named = self._mapping(node, None, key)
                return tuple((name, self._value_of(readers[key], one, name)) for name, one in named.items())
            return fields.value_of(readers[key], self._text(node, key))
        except InvalidModels:
            raise
        except ValueError as error:
            raise self._error(node.start_mark, f"{key} is not valid", str(error)) from None

    def _value_of(self, reader: Callable[[str], Any], node: yaml.Node, what: str) -> Any:
        return fields.value_of(reader, self._text(node, what))

    def _mapping(
        self, node: yaml.Node | None, allowed: set[str] | None, what: str
    ) -> Mapping[str, yaml.Node]:
        """The nodes by their keys, of which each is allowed once; None allows any."""
        shown = "names with a text each" if allowed is None else f"the keys {', '.join(sorted(allowed))}"
        if not isinstance(node, yaml.MappingNode):
            mark = None if node is None else node.start_mark
            raise self._error(mark, f"{what} is not a mapping", shown)
        found: dict[str, yaml.Node] = {}
        lines: dict[str, int] = {}
        for key, value in node.value:
            name = self._text(key, "a key")
            if allowed is not None and name not in allowed:
                raise self._error(
                    key.start_mark, f"{what} has no key {name[:100]!r}", ", ".join(sorted(allowed))
                )
            if name in found:
                what = f"{name} is given twice (first in line {lines[name]})"
                raise self._error(key.start_mark, what, "once")
            found[name], lines[name] = value, key.start_mark.line + 1
        return found

    def _list(self, node: yaml.Node) -> list[yaml.Node]:
        if not isinstance(node, yaml.SequenceNode):
            raise self._error(node.start_mark, "this is not a list", "items that begin with `- `")
        entries: list[yaml.Node] = node.value
        return entries

    def _text(self, node: yaml.Node, what: str) -> str:
        """A scalar as it is written: `no` and `1e3` are text."""
        if not isinstance(node, yaml.ScalarNode) or (node.style is None and node.value in ("", "~", "null")):
            raise self._error(node.start_mark, f"{what} has no value", "text, a number, true or false")
        text: str = node.value
        return text

    def _error(self, mark: Any, what: str, allowed: str) -> InvalidModels:
        line, column = (1, 1) if mark is None else (mark.line + 1, mark.column + 1)
        return InvalidModels(
            f"{self._path}:{line}:{column}: {what}; allowed: {allowed}",
            path=str(self._path), line=line, column=column, allowed=allowed,
        )  # fmt: skip
