"""The table of `models list`."""

from __future__ import annotations

from rich.console import Console

from embedshare.operate import models


def test_a_model_is_listed_with_what_it_gives_and_its_family() -> None:
    described = {"model_name": "name", "identity": "a" * 64}
    told = [
        {},
        {"outputs": ["dense", "sparse", "multi-vector"]},
        {"family": "cross-encoder", "outputs": ["scores"]},
        {"family": "sparse", "outputs": ["sparse"]},
    ]
    entries = [
        {
            "id": f"m{number}",
            "aliases": [],
            "default": False,
            "state": "ready",
            "model": {**described, **more},
        }
        for number, more in enumerate(told)
    ]
    unloaded = {"id": "m4", "aliases": [], "default": False, "state": "standby"}
    console = Console(width=200, record=True)
    console.print(models.render([*entries, unloaded], [], 0))
    lines = [line.split() for line in console.export_text().splitlines()[3:8]]
    assert [line[2:] for line in lines] == [
        ["dense", "name", "(aaaaaaaaaaaa)"],
        ["dense,", "sparse,", "multi-vector", "name", "(aaaaaaaaaaaa)"],
        ["scores", "(cross-encoder)", "name", "(aaaaaaaaaaaa)"],
        ["sparse", "name", "(aaaaaaaaaaaa)"],
        [],
    ]
