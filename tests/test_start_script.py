"""start_services.ps1 is parsed and not run: there is no PowerShell where the tests run."""

from __future__ import annotations

import re
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


def _parameters() -> dict[str, str]:
    """The full text of each parameter, by name."""
    block = next(node for node in _nodes(TREE.root_node) if node.type == "param_block")
    found = {}
    for parameter in (node for node in _nodes(block) if node.type == "script_parameter"):
        assert parameter.text
        name = next(node for node in parameter.children if node.type == "variable")
        assert name.text
        found[name.text.decode()] = parameter.text.decode()
    return found


def _commands(node: Node) -> list[str]:
    return [each.text.decode() for each in _nodes(node) if each.type == "command" and each.text]


def test_its_parameters_are_the_documented_ones() -> None:
    names = ["$Workers", "$BasePort", "$SrcDir", "$Sessions", "$Stop", "$Status", "$Help"]
    assert list(_parameters()) == names
    documented = re.findall(r"^\.PARAMETER (\w+)$", SCRIPT.decode(), re.MULTILINE)
    assert [f"${name}" for name in documented] == names


def test_stop_and_status_cannot_be_combined_with_each_other_or_with_a_start() -> None:
    sets = {
        name: re.findall(r'ParameterSetName = "(\w+)"(, Mandatory = \$true)?', text)
        for name, text in _parameters().items()
    }
    start = [("Start", "")]
    assert sets == {
        "$Workers": start, "$BasePort": start, "$SrcDir": start, "$Sessions": start,
        "$Stop": [("Stop", ", Mandatory = $true")],
        "$Status": [("Status", ", Mandatory = $true")],
        "$Help": [("Help", ", Mandatory = $true")],
    }  # fmt: skip
    assert '[CmdletBinding(DefaultParameterSetName = "Start")]' in SCRIPT.decode()


def test_it_hands_everything_to_the_supervisor() -> None:
    script = SCRIPT.decode()
    assert "& $python $manager --workers $Workers --port $BasePort --src-dir $SrcDir @more" in script
    assert 'if ($Sessions) {\n    $more += "--sessions"\n}' in script.replace("\r\n", "\n")
    assert script.rstrip().endswith("exit $LASTEXITCODE")


def test_stop_and_status_ask_the_supervisor_before_anything_is_made_or_installed() -> None:
    top = [node for node in _nodes(TREE.root_node) if node.type == "if_statement"]
    asks = next(node for node in top if node.text and node.text.startswith(b"if ($Stop -or $Status)"))
    assert asks.text
    commands = _commands(asks)
    assert '& $python $manager $(if ($Stop) { "stop" } else { "status" })' in commands
    assert not any("venv" in command or "pip" in command for command in commands if command.startswith("&"))
    assert asks.text.decode().rstrip(" }\n").endswith("exit $LASTEXITCODE")
    assert asks.end_byte < SCRIPT.index(b"-m venv") < SCRIPT.index(b"-m pip install")
