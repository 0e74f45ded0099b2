"""Identity: equal for copies of one model, another for anything that a vector depends on."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from embedshare.engine import weights
from embedshare.errors import ModelMismatch
from embedshare.identity import ModelDescription, check_identity, file_sha256, identity_of

NAME = "all-MiniLM-L6-v2"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the real model; its weights are linked, so write them anew instead of in place."""

    def link_large(source: str, target: str) -> None:
        (os.link if os.path.getsize(source) > 1 << 20 else shutil.copyfile)(source, target)

    original = weights.find(NAME)
    try:
        return Path(shutil.copytree(original, tmp_path / "copy", copy_function=link_large))
    except shutil.Error:  # another file system
        shutil.rmtree(tmp_path / "copy")
        return Path(shutil.copytree(original, tmp_path / "copy", copy_function=shutil.copyfile))


@pytest.fixture(scope="module")
def identity() -> str:
    return identity_of(weights.find(NAME))


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}, indent=7))


def flip_weight_byte(folder: Path, at: int) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.unlink()  # the original is behind a hard link
    path.write_bytes(data)


SAME: dict[str, Callable[[Path], object]] = {
    "nothing": lambda folder: None,
    "another README": lambda folder: (folder / "README.md").write_text("another"),
    "no README": lambda folder: (folder / "README.md").unlink(),
    "volatile keys": lambda folder: edit_json(
        folder / "config.json",
        _name_or_path="/elsewhere", transformers_version="9.9", torch_dtype="bfloat16", dtype="float16",
    ),
    "versions of the writer": lambda folder: edit_json(
        folder / "config_sentence_transformers.json", __version__={"sentence_transformers": "9"}
    ),
    "order and spaces of a configuration": lambda folder: (folder / "config.json").write_text(
        json.dumps(dict(reversed(json.loads((folder / "config.json").read_text()).items())))
    ),
    "the same weights in another format": lambda folder: (folder / "pytorch_model.bin").write_bytes(b"x"),
    "an export to ONNX": lambda folder: (folder / "onnx").mkdir(),
    "notes on the training data": lambda folder: (folder / "data_config.json").unlink(),
}  # fmt: skip
OTHER: dict[str, Callable[[Path], object]] = {
    "the first weight byte": lambda folder: flip_weight_byte(folder, 0),
    "the last weight byte": lambda folder: flip_weight_byte(folder, -1),
    "pooling": lambda folder: edit_json(
        folder / "1_Pooling" / "config.json", pooling_mode_mean_tokens=False, pooling_mode_cls_token=True
    ),
    "tokenizer": lambda folder: edit_json(folder / "tokenizer.json", truncation=None, version="2.0"),
    "lower case": lambda folder: edit_json(folder / "sentence_bert_config.json", do_lower_case=True),
    "longest sequence": lambda folder: edit_json(folder / "sentence_bert_config.json", max_seq_length=512),
    "modules": lambda folder: (folder / "modules.json").write_text(
        json.dumps(json.loads((folder / "modules.json").read_text())[:2])
    ),
    "model configuration": lambda folder: edit_json(folder / "config.json", layer_norm_eps=1e-5),
}


@pytest.mark.parametrize("what", SAME)
def test_a_copy_is_the_same_model_whatever_its_notes_say(what: str, copy: Path, identity: str) -> None:
    SAME[what](copy)
    assert identity_of(copy) == identity


@pytest.mark.parametrize("what", OTHER)
def test_what_a_vector_depends_on_makes_another_model(what: str, copy: Path, identity: str) -> None:
    OTHER[what](copy)
    assert identity_of(copy) != identity


def test_an_identity_is_64_hexadecimal_digits_and_does_not_depend_on_the_folders_name(
    copy: Path, identity: str
) -> None:
    assert len(bytes.fromhex(identity)) == 32
    assert identity_of(copy.rename(copy.with_name("renamed"))) == identity


def test_the_digest_of_a_file_is_its_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_sha256(tmp_path / "abc") == expected
    assert file_sha256(weights.find(NAME) / "model.safetensors") == weights.PACKAGED[NAME].sha256


def test_the_first_identity_and_the_same_again_are_accepted() -> None:
    check_identity(None, "a" * 64, "the server")
    check_identity("a" * 64, "a" * 64, "the server")


def test_another_identity_is_refused_with_both() -> None:
    with pytest.raises(ModelMismatch, match=r"the local model .*bbbbbbbbbbbb.*aaaaaaaaaaaa") as caught:
        check_identity("a" * 64, "b" * 64, "the local model")
    assert caught.value.fields == {"expected": "a" * 64, "found": "b" * 64}


def test_a_description_crosses_msgpack_unchanged() -> None:
    description = ModelDescription(
        "a" * 64,
        NAME,
        384,
        256,
        {"query": "q: "},
        None,
        "cosine",
        ["input_ids"],
        0,
        "cpu",
        "float32",
        "torch",
    )
    data = msgspec.msgpack.encode(description)
    assert msgspec.msgpack.decode(data, type=ModelDescription) == description
