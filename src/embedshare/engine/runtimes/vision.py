"""A model's image side: the image processor and the modules of sentence-transformers itself, over batches."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import batch_to_device

from embedshare.engine.runtimes import embedder as embedders
from embedshare.engine.runtimes.torch import as_out_of_memory
from embedshare.engine.trials import LEAST_COSINE, smallest_cosine
from embedshare.errors import InvalidInput, UnsupportedModel
from embedshare.images.decoding import Pixels

#: Tokens of an image where the model's configuration does not tell them.
_USUAL_TOKENS = 256
#: Sizes of the images that prove a runtime.
_SAMPLES = ((48, 64), (120, 90), (33, 33))


@dataclass(slots=True, eq=False)
class Picture:
    """An image as its model's processor has read it; its length is that in the model's tokens."""

    features: dict[str, Any]
    tokens: int

    def __len__(self) -> int:
        return self.tokens

    @property
    def shape(self) -> Hashable:
        """Equal for pictures that one batch can hold; None if it can hold no other."""
        tensors = {name: tuple(one.shape) for name, one in self.features.items() if torch.is_tensor(one)}
        alone = any(shape[:1] != (1,) for shape in tensors.values())
        return None if alone else tuple(sorted(tensors.items()))


class VisionRuntime:
    """Runs one batch at a time. `dimension`: values of a row."""

    name = "sentence-transformers"
    dtype = "float32"
    #: The most images of a batch, for each lane.
    interactive_images, bulk_images = 8, 32

    def __init__(self, model: SentenceTransformer, dimension: int) -> None:
        self.device = str(model.device)
        self._model = model
        self._dimension = dimension
        self._processor = threading.Lock()
        self.tokens = _tokens(model)
        """Tokens that the model makes of an image."""

    def read(self, pixels: Pixels) -> Picture:
        """The image as the model reads it. Raises InvalidInput if its processor refuses it."""
        size = pixels.width, pixels.height
        image = Image.frombytes("RGB", size, bytes(pixels.rgb))
        try:
            with self._processor:
                return Picture(self._model.preprocess([image]), self.tokens)
        except ValueError as error:
            raise InvalidInput(f"the served model rejects this image: {error}") from None

    def run(self, pictures: list[Picture]) -> np.ndarray:
        """Float32 (n, dimension). Raises OutOfMemory."""
        rows = np.empty((len(pictures), self._dimension), np.float32)
        groups: dict[Hashable, list[int]] = {}
        for place, picture in enumerate(pictures):
            shape = picture.shape
            groups.setdefault(place if shape is None else shape, []).append(place)
        try:
            for places in groups.values():
                rows[places] = self._batch([pictures[place].features for place in places])
            return rows
        except (RuntimeError, MemoryError) as error:
            failure = as_out_of_memory(error, self.device, len(pictures))
            if failure is None:
                raise
        raise failure

    def check(self) -> None:
        """Raise UnsupportedModel if batches do not give the vectors of `encode`."""
        dice = np.random.default_rng(0)
        images = [dice.integers(0, 256, (*size, 3), np.uint8) for size in _SAMPLES]
        read = [self.read(Pixels(one.shape[1], one.shape[0], memoryview(one.tobytes()))) for one in images]
        expected = self._model.encode([Image.fromarray(one) for one in images], show_progress_bar=False)
        cosine = smallest_cosine(self.run(read), expected)
        if cosine < LEAST_COSINE:
            raise UnsupportedModel(f"batches of images have a cosine of {cosine:.5f} to encode's vectors")

    def _batch(self, features: list[dict[str, Any]]) -> np.ndarray:
        joined = {
            name: torch.cat([one[name] for one in features]) if torch.is_tensor(value) else value
            for name, value in features[0].items()
        }
        with torch.inference_mode():
            found = self._model(batch_to_device(joined, self._model.device))["sentence_embedding"]
        rows: np.ndarray = found.float().cpu().numpy()
        return rows


def load(folder: Path, device: str, trust_remote_code: bool, dimension: int) -> VisionRuntime:
    """The image side of the model in `folder`, proved. Raises UnsupportedModel."""
    model = embedders.load(folder, device, trust_remote_code)
    model.truncate_dim = None
    transformer: Any = getattr(model[0], "model", None)
    if hasattr(transformer, "vision_model") and hasattr(transformer, "text_model"):
        del transformer.text_model  # texts have a runtime of their own
    runtime = VisionRuntime(model, dimension)
    try:
        runtime.check()
    except (UnsupportedModel, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the model and its processor may raise anything
        raise UnsupportedModel(f"the model does not turn an image into a vector: {error}") from error
    return runtime


def _tokens(model: SentenceTransformer) -> int:
    """The patches of an image, and the token for all of it."""
    config = getattr(getattr(model[0], "config", None), "vision_config", None)
    size, patch = getattr(config, "image_size", None), getattr(config, "patch_size", None)
    if not (isinstance(size, int) and isinstance(patch, int) and patch > 0):
        return _USUAL_TOKENS
    return (size // patch) ** 2 + 1
