"""Identity: equal for copies of one model, different when anything that affects a vector differs."""

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
    """A copy of the real model; its weights are hard links, so replace them rather than write in place."""

    def link_large(source: str, target: str) -> None:
        (os.link if os.path.getsize(source) > 1 << 20 else shutil.copyfile)(source, target)

    original = weights.find(NAME)
    try:
        return Path(shutil.copytree(original, tmp_path / "copy", copy_function=link_large))
    except shutil.Error:  # a different file system
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
    path.unlink()  # the original is a hard link to this file
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


def test_saved_indexes_and_older_workers_know_the_default_model_by_this_identity(identity: str) -> None:
    assert identity == "9dd3ed4db6b4e05545aacb4923d6ec3cc19ba1306cec6d25b117cdfb8298f6b6"


@pytest.mark.parametrize("what", SAME)
def test_a_copy_is_the_same_model_whatever_its_notes_say(what: str, copy: Path, identity: str) -> None:
    SAME[what](copy)
    assert identity_of(copy) == identity


@pytest.mark.parametrize("what", OTHER)
def test_what_a_vector_depends_on_makes_another_model(what: str, copy: Path, identity: str) -> None:
    OTHER[what](copy)
    assert identity_of(copy) != identity


TOKENS = {"unk_token": "[UNK]", "mask_token": "[MASK]"}
#: A folder with every kind of module and file, by path; the values are not real ones.
FILES: dict[str, Any] = {
    "modules.json": [
        {"path": "", "type": "sentence_transformers.base.modules.Router"},
        {"path": "1_CNN", "type": "sentence_transformers.sentence_transformer.modules.CNN"},
        {"path": "pooling", "type": "sentence_transformers.sentence_transformer.modules.Pooling"},
        {"path": "2_Own", "type": "own.Own"},
    ],
    "config.json": {"hidden_size": 8, "auto_map": {"AutoModel": "own.Model"}},
    "config_sentence_transformers.json": {"model_type": "SentenceTransformer"},
    "tokenizer_config.json": TOKENS,
    "tokenizer.json": {"added_tokens": [{"id": 1, "content": "[MASK]"}, {"id": 2, "content": "é"}]},
    "special_tokens_map.json": {"unk_token": "[UNK]", "mask_token": {"content": "[MASK]", "lstrip": True}},
    "added_tokens.json": {"[MASK]": 1, "é": 2},
    "vocab.txt": "[UNK]",
    "sentencepiece.bpe.model": "x",
    "model.safetensors": "weights",
    "model.safetensors.index.json": {"weight_map": {}},
    "pytorch_model.bin": "weights",
    "generation_config.json": {},
    "README.md": "text",
    "router_config.json": {"types": {"query": "...", "answer_1": "..."}, "structure": {}},
    "query/config.json": {"hidden_size": 8},
    "query/model.safetensors": "weights",
    "query/vocab.txt": "[UNK]",
    "query/part/merges.txt": "a b",
    "answer_1/config.json": {},
    "answer_1/pytorch_model.bin": "weights",
    "1_CNN/cnn_config.json": {"kernel_sizes": [1]},
    "1_CNN/model.safetensors": "weights",
    "1_CNN/README.md": "text",
    "pooling/config.json": {"pooling_mode": "mean"},
    "2_Own/table.dat": "anything",
    "own.py": "class Own: ...",
    "more/own.py": "class Own: ...",
    "onnx/model.onnx": "weights",
}
UNREAD = {
    "model.safetensors.index.json", "pytorch_model.bin", "generation_config.json", "README.md",
    "1_CNN/README.md", "vocab.txt", "sentencepiece.bpe.model", "special_tokens_map.json", "added_tokens.json",
    "onnx/model.onnx",
}  # fmt: skip


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf8")


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    for name, value in FILES.items():
        write(tmp_path / "mixed" / name, value)
    return tmp_path / "mixed"


@pytest.mark.parametrize("name", sorted(set(FILES) - UNREAD))
def test_each_file_that_the_loading_reads_makes_another_model(name: str, mixed: Path) -> None:
    before = identity_of(mixed)
    if name.endswith(".json"):
        value = [*FILES[name][:-1]] if isinstance(FILES[name], list) else {**FILES[name], "more": 1}
        write(mixed / name, value)
    else:
        write(mixed / name, "another")
    assert identity_of(mixed) != before


@pytest.mark.parametrize("name", sorted(UNREAD))
def test_a_file_that_says_nothing_new_leaves_the_identity(name: str, mixed: Path) -> None:
    before = identity_of(mixed)
    (mixed / name).unlink()
    assert identity_of(mixed) == before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("special_tokens_map.json", {"unk_token": "[MASK]"}),
        ("special_tokens_map.json", {"cls_token": "é"}),
        ("special_tokens_map.json", {"unk_token": {"content": "[UNK]", "rstrip": True}}),
        ("special_tokens_map.json", {"additional_special_tokens": ["é"]}),
        ("added_tokens.json", {"unheard": 3}),
        ("chat_template.jinja", "{{ messages }}"),
        ("additional_chat_templates/tool.jinja", "{{ messages }}"),
        ("sentence_roberta_config.json", {"max_seq_length": 8}),
        ("tokenizer.5.0.json", {}),
        ("preprocessor_config.json", {}),
        ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}),
        ("query/chat_template.jinja", "{{ messages }}"),
        ("pooling/more.json", {}),
    ],
)
def test_a_file_that_says_something_new_makes_another_model(name: str, value: Any, mixed: Path) -> None:
    before = identity_of(mixed)
    write(mixed / name, value)
    assert identity_of(mixed) != before


def test_a_vocabulary_counts_where_it_is_the_only_one_or_is_read_too(mixed: Path) -> None:
    def of_vocabulary(word: str) -> str:
        write(mixed / "vocab.txt", word)
        return identity_of(mixed)

    assert of_vocabulary("one") == of_vocabulary("two")
    write(mixed / "tokenizer_config.json", {**TOKENS, "tokenizer_class": "BertJapaneseTokenizer"})
    assert of_vocabulary("one") != of_vocabulary("two")
    write(mixed / "tokenizer_config.json", TOKENS)
    (mixed / "tokenizer.json").unlink()
    assert of_vocabulary("one") != of_vocabulary("two")


def test_of_a_transformer_s_settings_the_first_file_that_says_anything_counts(mixed: Path) -> None:
    write(mixed / "sentence_bert_config.json", {})
    without = identity_of(mixed)
    write(mixed / "sentence_albert_config.json", {"max_seq_length": 8})
    assert identity_of(mixed) != without
    write(mixed / "sentence_bert_config.json", {"max_seq_length": 9})
    before = identity_of(mixed)
    write(mixed / "sentence_albert_config.json", {"max_seq_length": 10})
    assert identity_of(mixed) == before


def test_a_module_outside_the_folder_is_not_looked_for(mixed: Path) -> None:
    write(mixed.parent / "outside" / "secret.dat", "one")
    write(mixed / "modules.json", [{"path": "../outside", "type": "own.Own"}])
    before = identity_of(mixed)
    write(mixed.parent / "outside" / "secret.dat", "two")
    assert identity_of(mixed) == before


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
