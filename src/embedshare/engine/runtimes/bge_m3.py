"""BGE-M3 as a module from packed token ids to its three outputs: a vector of the text, a weight and a vector
of each token.

Its folder is a SentenceTransformer's, with two more layers that sentence-transformers leaves out. What they
mean follows FlagEmbedding's BGEM3FlagModel.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import batch_to_device

from embedshare import model_files
from embedshare.engine.runtimes.embedder import Embedder
from embedshare.engine.runtimes.heads import SeveralHead
from embedshare.engine.runtimes.masks import Mask, whole_text
from embedshare.engine.runtimes.outputs_proof import OutputsProof
from embedshare.engine.runtimes.packing import Layout, pack
from embedshare.engine.runtimes.proof import Sample
from embedshare.engine.sequences import OutputIds
from embedshare.engine.text_outputs import TextOutputs
from embedshare.errors import WeightsCorrupted

OUTPUTS = ("dense", "sparse", "multi-vector")
#: Tokens that never have a weight.
_UNWEIGHTED = ("cls_token_id", "eos_token_id", "pad_token_id", "unk_token_id")


class Layers(NamedTuple):
    """The layers over the transformer's hidden states."""

    weight: torch.nn.Linear
    """To a token's weight."""

    vector: torch.nn.Linear
    """To a token's vector."""

    def of_tokens(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights (..., 1), 0 or more, and vectors (..., dimension) of length 1."""
        vectors = torch.nn.functional.normalize(self.vector(hidden), dim=-1)
        return self.weight(hidden).relu(), vectors


class SeveralOutputs(Embedder):
    """Packed batches to float32 vectors (texts, dimension), weights (rows, width, 1) and vectors (rows,
    width, dimension of tokens)."""

    def __init__(self, model: SentenceTransformer, mask: Mask = whole_text, *, layers: Layers) -> None:
        super().__init__(model, mask)
        self.token_weight, self.token_vector = layers

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        segments: torch.Tensor,
        places: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        hidden = self.mask(self.transformer, input_ids, position_ids, segments)
        layers = Layers(self.token_weight, self.token_vector)
        return self.pooled(hidden, input_ids, places), *layers.of_tokens(hidden.float())


def layers_in(folder: Path, device: torch.device) -> Layers:
    """The layers in the model's folder, which has them. Raises WeightsCorrupted."""
    files = model_files.token_layers(folder)
    assert files is not None
    sparse, colbert = (_layer(file).to(device) for file in files)
    if sparse.out_features != 1 or sparse.in_features != colbert.in_features:
        raise WeightsCorrupted(f"{files[0]} and {files[1]} are not layers of one model")
    return Layers(sparse, colbert)


def head_of(model: SentenceTransformer) -> SeveralHead:
    """The head for a model with these layers."""
    tokenizer: Any = model.tokenizer
    ids = [getattr(tokenizer, name, None) for name in _UNWEIGHTED]
    return SeveralHead(sorted({one for one in ids if one is not None}))


def prove(model: SentenceTransformer, layers: Layers, samples: list[Sample]) -> OutputsProof:
    """The outputs of the model's padded forward for each sample alone: of the text as sentence-transformers
    has it, of tokens as FlagEmbedding does."""
    head = head_of(model)

    def outputs(text: str, prompt: str, task: str | None) -> TextOutputs:
        features = model.preprocess([text], prompt=prompt, **({"task": task} if task else {}))
        with torch.inference_mode():
            found = model(batch_to_device(features, model.device))
            weights, vectors = layers.of_tokens(found["token_embeddings"][0])
        ids = OutputIds(found["input_ids"][0].tolist(), OUTPUTS)
        packed = pack([ids], Layout())
        arrays = [found["sentence_embedding"], weights, vectors]
        row: TextOutputs = head.rows([ids], packed, [one.float().cpu().numpy() for one in arrays])[0]
        return row

    return OutputsProof(samples, [outputs(*sample) for sample in samples], OUTPUTS)


def _layer(file: Path) -> torch.nn.Linear:
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        outputs, inputs = state["weight"].shape
        layer = torch.nn.Linear(inputs, outputs, bias="bias" in state)
        layer.load_state_dict(state)
    except Exception as error:  # whatever a file that is no such layer makes torch raise
        raise WeightsCorrupted(f"{file} is not a layer of torch: {error}") from None
    return layer.float().eval()
