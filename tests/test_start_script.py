"""start_services.ps1 is parsed, not run: no PowerShell runs where the tests do."""

from __future__ import annotations

from collections.abc import Iterator

import tree_sitter_powershell
from tree_sitter import Language, Node, Parser

from tests.processes import ROOT

SCRIPT = (ROOT / "start_services.ps1").read_bytes()


def _nodes(node: Node) -> Iterator[Node]:
    yield node
    for child in node.children:
        yield from _nodes(child)


TREE = Parser(Language(tree_sitter_powershell.language())).parse(SCRIPT)


def test_it_parses() -> None:
    assert not [node.start_point for node in _nodes(TREE.root_node) if node.is_error or node.is_missing]


def test_its_parameters_are_the_documented_ones() -> None:
    parameters = next(node for node in _nodes(TREE.root_node) if node.type == "param_block")
    names = [
        node.text.decode()
        for parameter in _nodes(parameters)
        if parameter.type == "script_parameter"
        for node in parameter.children
        if node.type == "variable" and node.text
    ]
    assert names == ["$Workers", "$BasePort", "$SrcDir", "$Help"]


def test_it_hands_everything_to_the_supervisor() -> None:
    script = SCRIPT.decode()
    assert "--workers $Workers --port $BasePort --src-dir $SrcDir" in script
    assert script.rstrip().endswith("exit $LASTEXITCODE")
