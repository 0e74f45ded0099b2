"""A crash of the process that converts a model, or first runs its graph, never ends the serving process."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from loguru import logger

from embedshare import conversion
from embedshare.calls import EmbedRequest
from embedshare.engine import loading
from embedshare.errors import EngineFailed, UnsupportedModel
from embedshare.providers.local import Local
from embedshare.settings import Settings
from tests.engine.small_models import bert, pooled, saved
from tests.engine.test_loading import TEXTS, settings_for

#: The conversion process. It dies in its first runs in the precisions given at its start.
DYING = """
import os, sys
from embedshare import conversion
from embedshare.engine.runtimes import first_runs

first = first_runs.first_runs

def run(runtime, proof):
    if runtime.dtype in sys.argv[1:]:
        os.abort()
    return first(runtime, proof)

first_runs.first_runs = run
conversion.main()
"""
NEVER = (sys.executable, "-c", "raise SystemExit('no process is needed any more')")


class Converted(NamedTuple):
    model: Path
    cache: Path
    texts: np.ndarray


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """A model, the files that a separate process kept of it, and its vectors."""
    folder = tmp_path_factory.mktemp("converted")
    model = saved(folder, pooled(bert(folder, max_seq_length=64)))
    settings = settings_for(folder, str(model))
    assert conversion.prepared(settings, "cpu") == settings
    assert not loading.needs_first_runs(settings, "cpu", None)
    assert conversion.prepared(settings, "cpu", command=NEVER) == settings
    engine = Local.load(settings, "cpu")
    assert (engine.description.runtime, engine.description.dtype) == ("openvino", "float32")
    return Converted(model, folder / "cache", engine.embed(EmbedRequest(TEXTS, "")).rows)


@pytest.fixture
def untried(converted: Converted, tmp_path: Path) -> Settings:
    """Settings for that model, whose graph has never run on this kind of CPU."""
    shutil.copytree(converted.cache, tmp_path / "cache")
    for trial in (tmp_path / "cache" / "graphs").glob("*/*float*.json"):
        trial.unlink()
    return settings_for(tmp_path, str(converted.model), dtype="bfloat16")


@pytest.fixture
def warned() -> Iterator[list[str]]:
    lines: list[str] = []
    sink = logger.add(lambda line: lines.append(str(line)), format="{message}", level="WARNING")
    yield lines
    logger.remove(sink)


def dying_in(*dtypes: str) -> tuple[str, ...]:
    return (sys.executable, "-c", DYING, *dtypes)


def test_a_precision_that_ends_the_process_gives_way_to_float32_once_and_for_all(
    untried: Settings, converted: Converted, warned: list[str]
) -> None:
    found = conversion.prepared(untried, "cpu", command=dying_in("bfloat16"))
    assert found == untried.with_values({"EMBEDDING_DTYPE": "float32"})
    (line,) = warned
    assert line.startswith("Computing in float32, not bfloat16 (OpenVINO ended the process that tried")
    assert os.name == "nt" or "signal 6 (SIGABRT)" in line
    assert conversion.prepared(untried, "cpu", command=NEVER) == untried  # no first run is retried
    engine = Local.load(untried, "cpu")
    assert (engine.description.runtime, engine.description.dtype) == ("openvino", "float32")
    np.testing.assert_allclose(engine.embed(EmbedRequest(TEXTS, "")).rows, converted.texts, atol=1e-5)


def test_what_ends_the_process_in_float32_too_runs_in_torch(
    untried: Settings, converted: Converted, warned: list[str]
) -> None:
    found = conversion.prepared(untried, "cpu", command=dying_in("bfloat16", "float32"))
    assert (found.model.dtype, found.model.runtime) == ("float32", "torch")
    assert [line.partition(" (")[0] for line in warned] == [
        "Computing in float32, not bfloat16",
        "Running the model with torch, not OpenVINO",
    ]
    assert conversion.prepared(untried, "cpu", command=NEVER) == untried
    engine = Local.load(untried.with_values({"EMBEDDING_DTYPE": "float32"}), "cpu")
    assert engine.description.runtime == "torch"
    np.testing.assert_allclose(engine.embed(EmbedRequest(TEXTS, "")).rows, converted.texts, atol=1e-4)


def test_an_operator_who_asks_for_openvino_is_told(untried: Settings) -> None:
    settings = untried.with_values({"EMBEDDING_RUNTIME": "openvino", "EMBEDDING_DTYPE": "float32"})
    with pytest.raises(UnsupportedModel, match="set EMBEDDING_RUNTIME=torch"):
        conversion.prepared(settings, "cpu", command=dying_in("float32"))


@pytest.mark.skipif(os.name == "nt", reason="exit codes of signals")
def test_a_process_that_is_killed_says_nothing_of_the_model(untried: Settings) -> None:
    killed = (sys.executable, "-c", "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(EngineFailed, match="ended with code -9, as it does where memory runs out"):
        conversion.prepared(untried, "cpu", command=killed)
    assert loading.needs_first_runs(untried, "cpu", None)


def test_where_no_other_process_can_be_had_this_one_converts(
    untried: Settings, monkeypatch: pytest.MonkeyPatch, warned: list[str]
) -> None:
    with pytest.raises(ChildProcessError, match="code 1 and without a message"):
        conversion.prepared(untried, "cpu", command=NEVER)
    with pytest.raises(FileNotFoundError):
        conversion.prepared(untried, "cpu", command=("/no/such/python",))

    def prepared(*_: object) -> Settings:
        raise ChildProcessError("the process that converts ended with code 1 and said nothing")

    monkeypatch.setattr(conversion, "prepared", prepared)
    engine = conversion.load(untried.with_values({"EMBEDDING_DTYPE": "float32"}), "cpu")
    assert engine.description.runtime == "openvino"
    assert [line.startswith("Converting ") for line in warned] == [True]


def test_a_model_that_ends_the_process_while_it_is_converted_runs_in_torch(
    tmp_path: Path, warned: list[str]
) -> None:
    folder = saved(tmp_path, pooled(bert(tmp_path, max_seq_length=64)))
    (folder / "own_code.py").write_text(
        "import os, torch\n"
        "from sentence_transformers.sentence_transformer.modules import Normalize\n"
        "class Own(Normalize):\n"
        "    def forward(self, features):\n"
        "        if torch.jit.is_tracing():\n"
        "            os.abort()\n"
        "        return super().forward(features)\n"
    )
    (folder / "own").mkdir()
    (folder / "own" / "config.json").write_text("{}")
    listed = json.loads((folder / "modules.json").read_text())
    listed.append({"idx": len(listed), "name": "own", "path": "own", "type": "own_code.Own"})
    (folder / "modules.json").write_text(json.dumps(listed))
    settings = settings_for(tmp_path, str(folder), trust_remote_code=(str(folder),))
    engine = conversion.load(settings, "cpu")
    assert engine.description.runtime == "torch"
    (line,) = warned
    assert line.startswith("Running the model with torch, not OpenVINO (the process that converted or tried")
    assert not loading.needs_first_runs(settings, "cpu", None)
    again = Local.load(settings, "cpu")
    assert again.description.runtime == "torch"
    np.testing.assert_allclose(
        np.linalg.norm(again.embed(EmbedRequest(TEXTS, "")).rows, axis=1), 1.0, atol=1e-5
    )
