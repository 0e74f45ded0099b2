#!/usr/bin/env bash
# sentence-transformers 6.2.0: SparseEncoder.get_embedding_dimension() of a SPLADE model gives the transformer's
# hidden size until the first text is encoded, and the vocabulary's size from then on.
#
# Expected: 200, the length of every vector, before as after; or None while it is not known.
# Seen: 32 before the first text, 200 after it. A model that is saved before it has encoded a text says 32 again
# when it is loaded; one that is saved afterwards says 200.
#
# Ends with 0 where that is so, with 1 where it has changed. Needs Python 3.10 to 3.13.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip=("$folder/venv/bin/pip" install --quiet --disable-pip-version-check)
"${pip[@]}" torch==2.13.0 2>/dev/null
"${pip[@]}" sentence-transformers==6.2.0 transformers==5.24.0 2>/dev/null
mkdir "$folder/model"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - "$folder/model" 2>"$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import sys
from pathlib import Path

from sentence_transformers import SparseEncoder
from transformers import BertConfig, BertForMaskedLM, BertTokenizer

folder = Path(sys.argv[1])
words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(195))]
(folder / "vocab.txt").write_text("\n".join(words))
BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
config = BertConfig(
    vocab_size=200, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
)
BertForMaskedLM(config).save_pretrained(folder)

SparseEncoder(str(folder), device="cpu").save_pretrained(str(folder / "saved before"))
model = SparseEncoder(str(folder), device="cpu")
before, length = model.get_embedding_dimension(), model.encode("w1 w2").shape[-1]
after = model.get_embedding_dimension()
model.save_pretrained(str(folder / "saved after"))
loaded = [
    SparseEncoder(str(folder / name), device="cpu").get_embedding_dimension()
    for name in ("saved before", "saved after")
]
print(f"vectors have {length} values; told: {before} before the first text, {after} after it, {loaded} loaded")
sys.exit((length, before, after, loaded) != (200, 32, 200, [32, 200]))
PYTHON
