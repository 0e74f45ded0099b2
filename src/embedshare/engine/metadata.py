"""What is known of a model without loading it: kept beside a converted graph, so that no start loads more."""

from __future__ import annotations

import msgspec

from embedshare.engine.runtimes.packing import Layout
from embedshare.engine.tokens import Template
from embedshare.identity import ModelDescription


class ModelMetadata(msgspec.Struct, frozen=True):
    """A SentenceTransformer's own word on itself, and the layout that its transformer takes."""

    dimension: int
    full_dimension: int
    """What the model computes, of which callers get the first `dimension` unless they ask for others."""

    max_seq_length: int
    prompts: dict[str, str]
    default_prompt_name: str | None
    similarity_fn_name: str
    tokenizer_inputs: list[str]
    padding_token_id: int
    layout: Layout | None
    normalized_rows: bool | None = None
    """Whether a StaticEmbedding's means are normalised; None for any other model."""

    task_cuts: dict[str, int] = {}
    """Tokens that texts for a task are cut at, where that is elsewhere."""

    template: Template | None = None
    """What the model's chat template puts around a text."""

    leaves_prompts_out: bool = False
    """Whether pooling leaves the tokens of a prompt out."""

    def description(
        self, identity: str, model_name: str, device: str, dtype: str, runtime: str
    ) -> ModelDescription:
        """What clients are told of the model, run by `runtime` on `device`."""
        return ModelDescription(
            identity=identity,
            model_name=model_name,
            dimension=self.dimension,
            max_seq_length=self.max_seq_length,
            prompts=self.prompts,
            default_prompt_name=self.default_prompt_name,
            similarity_fn_name=self.similarity_fn_name,
            tokenizer_inputs=self.tokenizer_inputs,
            padding_token_id=self.padding_token_id,
            device=device,
            dtype=dtype,
            runtime=runtime,
        )
