"""The file of models, `models.yaml`: read node by node, so that an error names its line and column.

    models:
      local:
        - id: minilm
          name: all-MiniLM-L6-v2
          aliases: [default]
          preload: true

PyYAML's own loader would take the last of two equal keys, and `no` or `1e3` for other things than text.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
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
#: Providers of models, by their names in the file.
PROVIDERS = ("local",)


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

    def registry(self, content: bytes) -> Registry:
        root = self._mapping(self._parsed(content), {"models"}, "the file")
        providers = self._mapping(root["models"], set(PROVIDERS), "models") if "models" in root else {}
        specs = [self._spec(node) for entries in providers.values() for node in self._list(entries)]
        if not specs:
            raise self._error(None, "there is no model", 'a list of models under "models:" and "local:"')
        return Registry(specs, self._default[0] if self._default is not None else None)

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

    def _spec(self, node: yaml.Node) -> ModelSpec:
        given = self._mapping(node, {*fields.FIELDS, "default"}, "a model")
        if "id" not in given:
            raise self._error(node.start_mark, "a model has no id", "a name for callers, as `id: minilm`")
        values = {key: self._value(key, given[key]) for key in given if key != "default"}
        spec = ModelSpec(**{"name": values["id"], **values})
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

    def _value(self, key: str, node: yaml.Node) -> Any:
        try:
            if key == "aliases":
                return tuple(fields.value_of(key, self._text(one, key)) for one in self._list(node))
            return fields.value_of(key, self._text(node, key))
        except InvalidModels:
            raise
        except ValueError as error:
            raise self._error(node.start_mark, f"{key} is not valid", str(error)) from None

    def _mapping(self, node: yaml.Node | None, allowed: set[str], what: str) -> Mapping[str, yaml.Node]:
        shown = ", ".join(sorted(allowed))
        if not isinstance(node, yaml.MappingNode):
            mark = None if node is None else node.start_mark
            raise self._error(mark, f"{what} is not a mapping", f"the keys {shown}")
        found: dict[str, yaml.Node] = {}
        lines: dict[str, int] = {}
        for key, value in node.value:
            name = self._text(key, "a key")
            if name not in allowed:
                raise self._error(key.start_mark, f"{what} has no key {name[:100]!r}", shown)
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
