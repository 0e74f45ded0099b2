"""One-layer models, cut from the default model. They are real models with its tokenizer and dimensions.
Conversion and loading take a third of its time."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors.numpy import load_file, save_file

from embedshare.engine import weights

#: The default model, which the tests of its name and its quality use.
DEFAULT = "all-MiniLM-L6-v2"


def cut(layer: int, folder: Path) -> None:
    """Write a model that contains only this layer of the default model."""
    whole = weights.find(DEFAULT)
    unused = shutil.ignore_patterns("model.safetensors", "README.md", "data_config.json")
    shutil.copytree(whole, folder, ignore=unused)
    kept = f"encoder.layer.{layer}."
    tensors = {
        name.replace(kept, "encoder.layer.0."): tensor
        for name, tensor in load_file(whole / "model.safetensors").items()
        if "encoder.layer." not in name or name.startswith(kept)
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((whole / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
