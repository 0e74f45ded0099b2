"""The file of models says what is wrong with it, and where."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from embedshare.errors import InvalidModels, UnknownModel
from embedshare.models.registry import Registry
from embedshare.models.sources import file
from embedshare.models.spec import ModelSpec, RemoteSpec
from embedshare.settings import Settings

#: The beginning of a file with local models.
L = "models:\n  local:\n"
#: The beginning of one with models of OpenAI.
R = "models:\n  openai:\n"
WHOLE = """
models:
  local:
    - id: minilm
      name: all-MiniLM-L6-v2
      aliases: [small, text-embedding-3-small]
      preload: true
    - id: bge
      name: /models/bge
      dimensions: 768
      default: true
      pinned: true
      keep_alive_s: 300
      device: cpu
      dtype: float32
      max_batch_size: 16
      trust_remote_code: true
    - id: no
      keep_alive_s: -1
    - id: 1e3
"""


def read(tmp_path: Path, text: str | bytes) -> Registry:
    path = tmp_path / "models.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(0o600)
    return file.read(path)


def test_the_models_of_a_file(tmp_path: Path) -> None:
    registry = read(tmp_path, WHOLE)
    minilm, bge, no, number = registry
    assert (minilm.id, minilm.name, minilm.preload) == ("minilm", "all-MiniLM-L6-v2", True)
    assert bge == ModelSpec(
        id="bge", name="/models/bge", dimensions=768, pinned=True, keep_alive_s=300.0, device="cpu",
        dtype="float32", max_batch_size=16, trust_remote_code=True,
    )  # fmt: skip
    assert (no.id, no.name, number.id, number.name) == ("no", "no", "1e3", "1e3")  # text, as written
    assert registry.default is bge
    assert registry.find("small") is minilm
    with pytest.raises(UnknownModel, match="'all-MiniLM-L6-v2' is not served; served: minilm, small"):
        registry.find("all-MiniLM-L6-v2")


def test_a_model_s_settings_are_those_of_the_server_with_its_own(tmp_path: Path) -> None:
    base = Settings().with_values({"EMBEDDING_DTYPE": "bfloat16", "EMBEDDING_TRUST_REMOTE_CODE": ("other",)})
    minilm, bge, *_ = read(tmp_path, WHOLE)
    assert minilm.settings(base).model.name == "all-MiniLM-L6-v2"
    assert minilm.settings(base).model.dtype == "bfloat16"
    assert minilm.settings(base).model.trust_remote_code == ("other",)
    assert bge.settings(base).model.dtype == "float32"
    assert bge.settings(base).model.trust_remote_code == ("/models/bge",)


def test_one_of_several_models_may_take_every_other_name(tmp_path: Path) -> None:
    registry = read(tmp_path, "models:\n  local:\n  - id: a\n  - {id: b, aliases: ['*', bee]}\n")
    assert [registry.find(name).id for name in ("a", "b", "bee", "whatever", "")] == ["a", "b", "b", "b", "a"]
    assert registry.find("bee").names == ["b", "bee"]


@pytest.mark.parametrize(
    ("text", "where", "what", "allowed"),
    [
        ("", "1:1", "the file is not a mapping", "the keys models"),
        ("models: []", "1:9", "models is not a mapping", "the keys local"),
        ("models:\n  cohere:\n  - id: a", "2:3", "models has no key 'cohere'", "local"),
        ("models:\n  local: {}", "2:10", "this is not a list", "items that begin with `- `"),
        ("models:\n  local: []", "1:1", "there is no model", "a list of models"),
        (L + "  - name: a", "3:5", "a model has no id", "as `id: minilm`"),
        (L + "  - id: a\n    id: b", "4:5", "id is given twice (first in line 3)", "once"),
        (L + "  - id: a\nmodels: {}", "4:1", "models is given twice (first in line 1)", "once"),
        (L + "  - id: a\n  - id: a", "4:9", "the name 'a' is given twice (first in line 3)", "each"),
        (L + "  - {id: a, aliases: [b, b]}", "3:22", "the name 'b' is given twice", "each"),
        (L + "  - id: a\n  - id: b\n    aliases: [a]", "5:14", "the name 'a' is", "each id"),
        (L + "  - id:", "3:8", "id has no value", "text, a number"),
        (L + "  - id: ~", "3:9", "id has no value", "text, a number"),
        (L + "  - id: '*'", "3:9", "id is not valid", "a printable name"),
        (L + "  - id: a\n    preload: yes", "4:14", "preload is not valid", "true or false"),
        (L + "  - id: a\n    dimensions: 1e3", "4:17", "dimensions is not valid", "a whole number"),
        (L + "  - id: a\n    keep_alive_s: .nan", "4:19", "keep_alive_s is not valid", "-1 for ever"),
        (L + "  - id: a\n    keep_alive_s: -2", "4:19", "keep_alive_s is not valid", "seconds from 0"),
        (L + "  - id: a\n    device: tpu", "4:13", "device is not valid", "cpu"),
        (L + "  - id: a\n    dtype: int8", "4:12", "dtype is not valid", "bfloat16"),
        (L + "  - id: a\n    dimension: 3", "4:5", "a model has no key 'dimension'", "dimensions"),
        (L + "  - id: a\n    default: true\n  - id: b\n    default: true", "6:14",
         "a second model is the default (the first in line 4)", "one default"),
        (L + "  - id: [a", "3:11", "expected ',' or ']'", "YAML"),
        ("models: &x\n  local: *y", "2:10", "found undefined alias", "YAML"),
        ("a: 1\n---\nb: 2", "2:1", "but found another document", "YAML"),
        (b"models: \xff", "1:1", "is not text", "UTF-8"),
        ("[" * 2000, "1:1", "nested too deeply", "a list of models"),
        (R + "  - id: a\n    device: cpu", "4:5", "a model has no key 'device'", "base_url"),
        (R + "  - id: a\n    base_url: ftp://x", "4:15", "base_url is not valid", "http or https"),
        (R + "  - id: a\n    base_url: http://u:p@x", "4:15", "base_url is not valid", "without user"),
        (R + "  - id: a\n    api_key_env: sk-123", "4:18", "api_key_env is not valid", "not the key itself"),
        (R + "  - id: a\n    api_key_file: key", "4:19", "api_key_file is not valid", "absolute path"),
        (R + "  - id: a\n    requests_per_minute: 0", "4:26", "requests_per_minute is not valid", "from 1"),
        (R + "  - id: a\n    budget_per_month: 5", "4:23", "a budget has no price", "price_per_million"),
        (R + "  - id: a\n    prompts: [a]", "4:14", "prompts is not a mapping", "names with a text each"),
        (R + "  - id: a\n    prompts: {q: a}\n    default_prompt: d", "5:21", "no prompt 'd'", "q"),
        (R + "  - id: a\n    failover: [b]", "4:15", "a fails over without a space", "space"),
        (R + "  - id: a\n    space: s\n    failover: [b]\n  - id: b", "5:15",
         "cannot fail over to 'b'", "space"),
        (R + "  - id: a\n    space: s\n    failover: [a]", "5:15",
         "cannot fail over to 'a'", "another model"),
        ("models: &x\n  local:\n  - *x", "2:3", "a model has no key 'local'", "id"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_with_its_place(
    tmp_path: Path, text: str | bytes, where: str, what: str, allowed: str
) -> None:
    with pytest.raises(InvalidModels) as raised:
        read(tmp_path, text)
    message, fields = raised.value.message, raised.value.fields
    assert what in message
    assert allowed in message
    assert f"{fields['line']}:{fields['column']}" == where, message
    assert message.startswith(f"{tmp_path / 'models.yaml'}:{where}: ")


def test_a_missing_or_overlong_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidModels, match="cannot be read: No such file"):
        file.read(tmp_path / "none.yaml")
    with pytest.raises(InvalidModels, match="larger than 1,048,576 bytes"):
        read(tmp_path, "#" * (file.MAX_BYTES + 1))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no mode bits: the folder's access list decides")
def test_a_file_that_others_can_change_is_refused(tmp_path: Path) -> None:
    read(tmp_path, WHOLE)
    path = tmp_path / "models.yaml"
    path.chmod(0o666)
    with pytest.raises(InvalidModels, match=r"can be changed by others .*0666.*; chmod go-w it"):
        file.read(path)


def test_remote_models_of_a_file(tmp_path: Path) -> None:
    text = """
models:
  ollama:
    - id: nomic-embed-text
      name: Nomic Embed Text
      dimensions: 768
      preload: true
      prompts: {query: "search_query: ", document: 'search_document: '}
      default_prompt: document
      space: nomic
      failover: [here]
  openai:
    - id: large
      model: text-embedding-3-large
      base_url: https://proxy.example/v1/
      api_key_env: PROXY_KEY
      requests_per_minute: 60
      price_per_million_tokens: 0.13
      budget_per_month: 20
  local:
    - id: here
      name: /models/nomic
      space: nomic
"""
    nomic, large, here = read(tmp_path, text)
    assert (nomic.name, nomic.title, nomic.provider) == ("nomic-embed-text", "Nomic Embed Text", "ollama")
    assert nomic.remote is not None
    assert nomic.remote.prompts == (("query", "search_query: "), ("document", "search_document: "))
    assert (nomic.remote.default_prompt, nomic.failover) == ("document", ("here",))
    assert large == ModelSpec(
        id="large", name="text-embedding-3-large", provider="openai",
        remote=RemoteSpec(
            base_url="https://proxy.example/v1", api_key_env="PROXY_KEY", requests_per_minute=60,
            price_per_million_tokens=0.13, budget_per_month=20.0,
        ),
    )  # fmt: skip
    assert (here.is_local, here.space) == (True, "nomic")
