"""What models can do, in the words of lists of models. Pure."""

from __future__ import annotations

from embedshare import scores
from embedshare.identity import ModelDescription


def capabilities(model: ModelDescription | None) -> list[str]:
    """What a model can do, in lists of models: one that was never loaded is taken for an embedding model."""
    if model is None:
        return ["embeddings"]
    scored = "rerank" if scores.is_reranker(model) else "classification"
    named = {
        "dense": ("embeddings",),
        "sparse": ("sparse embeddings",),
        "multi-vector": ("multi-vector embeddings", "rerank"),
        "scores": (scored,),
    }
    images = ["images"] if "image" in model.modalities else []
    return [one for output in model.outputs for one in named[output]] + images
