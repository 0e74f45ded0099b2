"""The files of a model's folder that its vectors depend on: those that sentence-transformers reads to load
it.

Digests of models are stored with saved vector indexes, and held by workers of an earlier release during a
rolling upgrade. So `counted` yields the files that earlier releases hashed, in their order, then those that
they left out. A file without further information is not among the latter, and most folders keep their digest.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

TOKENIZER_FILES = (
    "tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "sentencepiece.bpe.model", "spiece.model",
    "tokenizer.model",
)  # fmt: skip
_CONFIGURATIONS = (
    "modules.json", "config.json", "sentence_bert_config.json", "config_sentence_transformers.json",
    "tokenizer_config.json",
)  # fmt: skip
#: A Transformer's settings under their earlier names. The first one with content is read, and these only if
#: sentence_bert_config.json has none.
_EARLIER_SETTINGS = tuple(
    f"sentence_{family}_config.json"
    for family in ("roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
#: Files that a module in the model's own folder may read there, besides weights and vocabularies.
_READ_IN_ROOT = (
    "*.jinja", "chat_template.json", "additional_chat_templates/*.jinja", "special_tokens_map.json",
    "added_tokens.json", "tokenizer.*.json", "adapter_config.json", "preprocessor_config.json",
    "processor_config.json", "router_config.json", "wordembedding_config.json",
    "whitespacetokenizer_config.json", "phrasetokenizer_config.json", "cnn_config.json", "lstm_config.json",
)  # fmt: skip
_VOCABULARIES = (
    "*vocab*.txt", "*vocab*.json", "merges.txt", "dict.txt", "*.model", "*.spm", "*.bpe", "*.codes",
    "*.tiktoken", "tekken.json",
)  # fmt: skip
#: Tokenizers that transformers runs in Python: they read their vocabularies in addition to a tokenizer.json.
_SLOW_TOKENIZERS = frozenset(
    f"{family}Tokenizer"
    for family in (
        "BertJapanese", "Bertweet", "BioGpt", "BlenderbotSmall", "ByT5", "CTRL", "Canine", "CpmAnt", "Esm",
        "FSMT", "Flaubert", "GPTNeoXJapanese", "MyT5", "Perceiver", "Phobert", "ProphetNet", "RoCBert",
        "Tapas", "XLM",
    )
)  # fmt: skip
#: Roles of tokens, and their default texts in transformers' families of tokenizers.
_DEFAULT_TOKENS = {
    "unk_token": ("[UNK]", "<unk>"), "sep_token": ("[SEP]", "</s>"), "pad_token": ("[PAD]", "<pad>"),
    "cls_token": ("[CLS]", "<s>"), "mask_token": ("[MASK]", "<mask>"), "bos_token": ("<s>",),
    "eos_token": ("</s>",),
}  # fmt: skip
#: Layers over a BGE-M3's tokens, in torch's own format.
TOKEN_LAYERS = ("sparse_linear.pt", "colbert_linear.pt")
#: Folders that embedding a text never reads: notes, and the same weights in forms for other runtimes.
_NOTES = re.compile(
    r"readme|license|notice|data_config\.json|generation_config\.json|.*\.(md|png|pdf)\Z", re.I
)
_INDEXES = (".safetensors.index.json", ".bin.index.json")  # name the files that hold each weight
_OTHER_RUNTIMES = frozenset({"onnx", "openvino", "coreml"})
_OWN_CLASSES = "sentence_transformers."


def counted(folder: Path) -> Iterator[Path]:
    """The files of the model in `folder`, in an order that does not depend on the disk."""
    seen = []
    for path in _counted_before(folder):
        seen.append(path)
        yield path
    left_out = {path for path in _read(folder) if path.is_file()} - set(seen)
    yield from sorted(left_out, key=lambda path: path.relative_to(folder).as_posix())


def token_layers(folder: Path) -> tuple[Path, Path] | None:
    """The layers of a BGE-M3's folder for weights and vectors of tokens; None for a model without them."""
    sparse, colbert = (folder / name for name in TOKEN_LAYERS)
    return (sparse, colbert) if sparse.is_file() and colbert.is_file() else None


def holds_model(folder: Path) -> bool:
    """Whether sentence-transformers loads `folder`: by its modules.json, or as a plain transformer."""
    # os.path: pathlib raises for a folder that may not be looked into, which then differs from none
    if os.path.isfile(folder / "modules.json"):
        return True
    config = _json(folder / "config.json")
    return isinstance(config, dict) and isinstance(config.get("model_type"), str)


def module_folders(folder: Path) -> list[str]:
    """Where in `folder` the model's modules are, "" for the folder itself; a Router's parts among them."""
    paths = [path for path, _ in _modules(folder)] or ["."]
    parts = [
        (PurePosixPath(path) / part).as_posix() for path in paths for part in _parts_of_router(folder / path)
    ]
    return ["" if path == "." else f"{path}/" for path in dict.fromkeys([".", *paths, *parts])]


def _counted_before(folder: Path) -> Iterator[Path]:
    """The files that earlier releases hashed.

    In a folder with safetensors, other formats of the same weights do not count.
    """
    modules = [folder, *sorted(path.parent for path in folder.glob("*_*/config.json"))]
    for module in modules:
        weights = sorted(module.glob("*.safetensors")) or sorted(module.glob("*.bin"))
        tokenizer = module / "tokenizer.json"
        vocabulary = [tokenizer] if tokenizer.is_file() else [module / name for name in TOKENIZER_FILES]
        configurations = [module / name for name in _CONFIGURATIONS]
        yield from (path for path in [*configurations, *vocabulary, *weights] if path.is_file())


def _read(folder: Path) -> Iterator[Path]:
    """Every file that loading some module reads."""
    yield from _read_in_root(folder)
    yield from token_layers(folder) or ()
    yield from (path for path in folder.rglob("*.py") if not _is_hidden(path.relative_to(folder)))
    for path, kind in _modules(folder):
        if path != ".":
            yield from _read_in(folder / path)
        elif not kind.startswith(_OWN_CLASSES):  # code of the model's own may read anything
            yield from _without_the_unread(file for file in folder.glob("*") if not _is_hidden(file))
    for part in _parts_of_router(folder):
        yield from _read_in(folder / part)


def _modules(folder: Path) -> list[tuple[str, str]]:
    """Each module's path in the folder and its class, as modules.json has it."""
    entries = _json(folder / "modules.json")
    found = []
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("path"), str):
            path = PurePosixPath(entry["path"].replace("\\", "/"))
            if not path.is_absolute() and ".." not in path.parts:  # else sentence-transformers refuses it
                found.append((str(path), str(entry.get("type", ""))))
    return found


def _parts_of_router(folder: Path) -> list[str]:
    """Folders of the modules that a Router in `folder` chooses from."""
    for name in ("router_config.json", "config.json"):
        config = _json(folder / name)
        if isinstance(config, dict) and isinstance(config.get("types"), dict) and "structure" in config:
            return [part for part in config["types"] if ".." not in PurePosixPath(part).parts]
    return []


def _read_in_root(folder: Path) -> Iterator[Path]:
    candidates = [path for pattern in _READ_IN_ROOT for path in folder.glob(pattern)]
    candidates += [path for pattern in _VOCABULARIES for path in folder.glob(pattern)]
    candidates += [folder / name for name in _EARLIER_SETTINGS]
    candidates += [path for pattern in ("*.bin", "*.gguf") for path in folder.glob(pattern)]
    yield from _without_the_unread(candidates)


def _read_in(module: Path) -> Iterator[Path]:
    """The files of a module with a folder of its own, and of modules within it."""
    yield from _without_the_unread(
        path for path in module.rglob("*") if not _is_hidden(path.relative_to(module))
    )


def _without_the_unread(paths: Iterator[Path] | list[Path]) -> Iterator[Path]:
    for path in paths:
        if not _NOTES.match(path.name) and not path.name.endswith(_INDEXES) and not _is_unread(path):
            yield path


def _is_unread(path: Path) -> bool:
    """Whether the counted files next to a file already say all that it says."""
    folder, name = path.parent, path.name
    if name in _EARLIER_SETTINGS:
        return path != _settings_in(folder)
    if path.suffix in (".bin", ".gguf", ".pt"):
        return any(folder.glob("model*.safetensors"))
    if name == "special_tokens_map.json":
        return _names_known_tokens(path)
    if name == "added_tokens.json":
        return _adds_known_tokens(path)
    return _is_vocabulary(path) and (folder / "tokenizer.json").is_file() and not _reads_vocabulary(folder)


def _settings_in(folder: Path) -> Path | None:
    """The file of a Transformer's settings."""
    for name in ("sentence_bert_config.json", *_EARLIER_SETTINGS):
        if _json(folder / name):
            return folder / name
    return None


def _is_vocabulary(path: Path) -> bool:
    return path.name != "tokenizer.json" and (
        path.name in TOKENIZER_FILES or any(path.match(pattern) for pattern in _VOCABULARIES)
    )


def _reads_vocabulary(folder: Path) -> bool:
    """Whether the tokenizer of a tokenizer.json reads its vocabulary too."""
    config = _json(folder / "tokenizer_config.json")
    named = config if isinstance(config, dict) else {}
    return named.get("tokenizer_class") in _SLOW_TOKENIZERS or "auto_map" in named


def _names_known_tokens(path: Path) -> bool:
    """Whether a special_tokens_map.json gives each token its default role.

    transformers 5 reads the file if tokenizer_config.json has no `added_tokens_decoder`, before the tokens
    named there. How a token is matched comes from tokenizer.json, if it says so.
    """
    config, named = _json(path.parent / "tokenizer_config.json"), _json(path)
    config = config if isinstance(config, dict) else {}
    if "added_tokens_decoder" in config:
        return True
    if not isinstance(named, dict):
        return False
    tokenizer = _text(path.parent / "tokenizer.json")

    def says_nothing(role: str, token: Any) -> bool:
        if role not in _DEFAULT_TOKENS:
            return bool(config.get(role) == token)
        content = _content(token)
        known = _content(config[role]) == content if role in config else content in _DEFAULT_TOKENS[role]
        return known and (isinstance(token, str) or _has_token(tokenizer, content))

    return all(says_nothing(role, token) for role, token in named.items())


def _adds_known_tokens(path: Path) -> bool:
    """Whether an added_tokens.json holds only tokens of tokenizer.json, or is not read."""
    config, added = _json(path.parent / "tokenizer_config.json"), _json(path)
    if isinstance(config, dict) and "added_tokens_decoder" in config:
        return True
    tokenizer = _text(path.parent / "tokenizer.json")
    return isinstance(added, dict) and all(_has_token(tokenizer, token) for token in added)


def _content(token: Any) -> str:
    """A special token's text, written alone or with its matching rules."""
    return str(token.get("content")) if isinstance(token, dict) else str(token)


def _has_token(tokenizer: str, content: str) -> bool:
    """Whether the text of a tokenizer.json has `content` among its added tokens."""
    spelled = "|".join(re.escape(json.dumps(content, ensure_ascii=escaped)) for escaped in (False, True))
    return re.search(rf'"content"\s*:\s*({spelled})', tokenizer) is not None


def _is_hidden(path: Path) -> bool:
    """Whether some part of a path within the model is hidden."""
    return any(part.startswith((".", "__")) or part in _OTHER_RUNTIMES for part in path.parts[:-1]) or (
        path.name.startswith(".")
    )


def _json(path: Path) -> Any:
    """The content of a JSON file; None if it is missing or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf8"))
    except (OSError, ValueError):
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf8")
    except (OSError, ValueError):
        return ""
