"""A small CLIP with random weights that are the same each time, and images for it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.engine.small_models import SIZES, tokenizer

#: CLIP's longest text, in tokens.
LONGEST = 77


def clip(folder: Path, named: int = LONGEST) -> Path:
    """A CLIP, as SentenceTransformer saves it; `named`: the longest text in tokens by its tokenizer."""
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers import CLIPConfig, CLIPModel, CLIPProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    torch.manual_seed(7)
    words = tokenizer()
    words.model_max_length = words.init_kwargs["max_length"] = named
    text = {
        "vocab_size": 30522, "max_position_embeddings": LONGEST, "eos_token_id": words.sep_token_id,
        "bos_token_id": words.cls_token_id, "pad_token_id": 0, **SIZES,
    }  # fmt: skip
    vision = {"image_size": 32, "patch_size": 8, **SIZES}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=32)
    CLIPModel(config).eval().save_pretrained(folder / "trunk")
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(image_processor=images, tokenizer=words).save_pretrained(folder / "trunk")
    model = SentenceTransformer(str(folder / "trunk"), device="cpu")
    model.save_pretrained(str(folder / "clip"))
    return folder / "clip"


def picture(mode: str = "RGB", size: tuple[int, int] = (60, 45), seed: int = 0) -> Image.Image:
    """A random image, with transparency where the mode has it."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 4), np.uint8)
    if mode == "I;16":
        return Image.fromarray(pixels[..., 0].astype(np.uint16) * 97)
    return Image.fromarray(pixels, "RGBA").convert("RGB" if "A" not in mode else "RGBA").convert(mode)


def file_of(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The image as a file's content."""
    written = io.BytesIO()
    image.save(written, kind, **options)
    return written.getvalue()


def turned(kind: str = "JPEG", orientation: int = 6) -> bytes:
    """A file whose EXIF says that it is to be turned."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return file_of(picture(size=(64, 32)), kind, exif=exif)
