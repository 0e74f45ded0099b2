#!/usr/bin/env bash
# sentence-transformers 6.2.0 (transformers 5.24.0, Pillow 13.0.0): an image with transparent parts has one vector
# as a Pillow image and another one as the path of the file that holds it.
#
# Expected: encode(Image.open(path)) and encode(path) are the same vector; the documentation takes both for an
# image.
# Seen: they differ. A Pillow image is laid on white before it is read; of a file the transparency is dropped, so
# that the colours under it show. With random weights the largest difference is that of two different images.
#
# Ends with 0 where that is so, with 1 where it has changed. Needs Python 3.10 to 3.13.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip=("$folder/venv/bin/pip" install --quiet --disable-pip-version-check)
"${pip[@]}" torch==2.13.0 2>/dev/null
"${pip[@]}" sentence-transformers==6.2.0 transformers==5.24.0 pillow==13.0.0 2>/dev/null
mkdir "$folder/model"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - "$folder" 2>"$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer
from transformers import BertTokenizer, CLIPConfig, CLIPModel, CLIPProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

folder = Path(sys.argv[1])
words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(195))]
(folder / "vocab.txt").write_text("\n".join(words))
tokenizer = BertTokenizer(str(folder / "vocab.txt"), model_max_length=77)
torch.manual_seed(7)
sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
text = {"vocab_size": 200, "eos_token_id": 3, "bos_token_id": 2, "pad_token_id": 0, **sizes}
vision = {"image_size": 32, "patch_size": 8, "initializer_range": 0.3, **sizes}
model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=32)).eval()
model.save_pretrained(folder / "model")
reader = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
CLIPProcessor(image_processor=reader, tokenizer=tokenizer).save_pretrained(folder / "model")

clip = SentenceTransformer(str(folder / "model"), device="cpu")
pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 4), np.uint8)
differences = {}
for mode in ("RGB", "RGBA"):
    path = folder / f"{mode}.png"
    Image.fromarray(pixels, "RGBA").convert(mode).save(path)
    of_image, of_file = (clip.encode(one, normalize_embeddings=True) for one in (Image.open(path), str(path)))
    differences[mode] = float(np.abs(of_image - of_file).max())
print("largest difference of unit vectors:", {mode: round(one, 6) for mode, one in differences.items()})
sys.exit(not (differences["RGB"] < 1e-6 and differences["RGBA"] > 0.01))
PYTHON
