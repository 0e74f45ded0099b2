"""`pip install .` in virtual environments: a worker's base install, with each Python on this machine."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from embeddingClient import EmbeddingClient
from embedshare.errors import ServerUnavailable
from tests.e2e.test_after_main import WARM
from tests.processes import ROOT, ModelServer, environment, run_python

SUPPORTED = ("3.10", "3.11", "3.12", "3.13")


def _interpreters() -> dict[str, str]:
    """The supported Pythons on this machine, by version; the tests' own Python is always included."""
    found = {"{}.{}".format(*sys.version_info): sys.executable}
    candidates = [shutil.which(f"python{version}") for version in SUPPORTED]
    candidates += [str(path) for path in Path.home().glob(".pyenv/versions/*/bin/python3")]
    for candidate in filter(None, candidates):
        asked = subprocess.run(
            [candidate, "-c", "import sys; print('{}.{}'.format(*sys.version_info))"],
            capture_output=True,
            text=True,
        )
        version = asked.stdout.strip()
        if asked.returncode == 0 and version in SUPPORTED:
            found.setdefault(version, candidate)
    return found


INTERPRETERS = _interpreters()


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The virtual environments that this run has created, by version."""
    return {}


def _install(version: str, folder: Path, installed: dict[str, str]) -> str:
    """Return the python of a new virtual environment that contains only the base install."""
    if version not in installed:
        source = folder / "source"
        shutil.copytree(
            ROOT, source, ignore=shutil.ignore_patterns(".git", ".venv", "logs", ".peers", "__pycache__")
        )
        subprocess.run([INTERPRETERS[version], "-m", "venv", str(folder / "venv")], check=True)
        python = folder / "venv" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
        done = subprocess.run(
            [str(python), "-m", "pip", "install", "--quiet", str(source)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        installed[version] = str(python)
    return installed[version]


ENCODES = """
import importlib.util, sys
assert importlib.util.find_spec("torch") is None
from importlib.resources import files
pages = files("embedshare.web") / "pages"
assert all((pages / "static" / name).is_file() for name in ("page.js", "search.js"))
assert all((pages / "templates" / name).is_file() for name in ("base.html", "dashboard.html", "search.html"))
import numpy as np
from embeddingClient import get_embedding_model
model = get_embedding_model()
rows = model.encode(["from another Python", "twice"])
assert rows.dtype == np.float32 and rows.shape == (2, 384)
assert model.similarity(rows, rows).shape == (2, 2)
assert model.tokenize(["two words"])["input_ids"].shape == (1, 4)
import model_server, textEmbedModel
assert textEmbedModel.get_embedding_model() is model and textEmbedModel.is_using_ipc_embedding()
loaded = [name for name in ("torch", "transformers", "faiss", "sentence_transformers") if name in sys.modules]
assert not loaded
np.save(sys.argv[1], rows)
"""


@pytest.mark.parametrize(
    "version",
    [
        pytest.param(version, marks=() if version == min(INTERPRETERS) else pytest.mark.long)
        for version in sorted(INTERPRETERS)
    ],
)
def test_a_base_install_encodes_through_the_server(
    version: str, server: ModelServer, model: EmbeddingClient, tmp_path: Path, installed: dict[str, str]
) -> None:
    python = _install(version, tmp_path, installed)
    env = server.environment()
    del env["PYTHONPATH"]
    done = subprocess.run(
        [python, "-c", ENCODES, str(tmp_path / "rows.npy")],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    expected = model.encode(["from another Python", "twice"])
    assert (np.load(tmp_path / "rows.npy") * expected).sum(1).min() > 0.9999
    late = run_python(WARM, env, python=python)
    assert late.splitlines() == ["a thread connected", "a thread connected", "atexit connected"]
    _says_what_to_do_without_a_server(python, tmp_path)


def _says_what_to_do_without_a_server(python: str, folder: Path) -> None:
    """Fail unless the error names both remedies: the base install cannot load a model itself."""
    away = ModelServer(folder)
    env = environment(**away.given)
    del env["PYTHONPATH"]
    said = run_python(
        "from embeddingClient import get_embedding_model\n"
        "from embedshare.errors import ServerUnavailable\n"
        "try: get_embedding_model().encode('text')\n"
        "except ServerUnavailable as error: print(error)\n",
        env, python=python,
    )  # fmt: skip
    assert ServerUnavailable.http_status == 503
    assert "python start_embedding_server.py" in said
    assert "pip install 'embedshare[server]'" in said


def test_a_worker_stays_light(server: ModelServer) -> None:
    """At most 45 MB in a process that has imported the client and encoded with it."""
    code = """
import sys
from embeddingClient import get_embedding_model
get_embedding_model().encode(["one text", "and another"])
loaded = [name for name in ("torch", "transformers", "faiss", "sentence_transformers") if name in sys.modules]
assert not loaded, loaded
import psutil
process = psutil.Process()
print((process.memory_info().rss if sys.platform == "win32" else process.memory_full_info().uss) / 1e6)
"""
    assert float(run_python(code, server.environment())) < 45
