"""A model's metadata, stored with its converted graph, so that a start need not load the model."""

from __future__ import annotations

import msgspec

from embedshare.engine.runtimes.heads import DenseHead, ScoresHead, SeveralHead, SparseHead, TokensHead
from embedshare.engine.runtimes.packing import Layout
from embedshare.engine.task_tokens import Expansion
from embedshare.engine.tokens import Template
from embedshare.identity import Family, ModelDescription


class ModelMetadata(msgspec.Struct, frozen=True):
    """A model's description of itself, and the layout that its transformer takes."""

    dimension: int
    """0 of a model without dense vectors."""

    full_dimension: int | None
    """The computed values of each row: callers get the first `dimension` by default. A cross-encoder's are
    its scores. None: rows have different sizes (see text_outputs)."""

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
    """Longest sequences of texts for a task, if they differ."""

    template: Template | None = None
    """The text that the model's chat template puts around a text."""

    leaves_prompts_out: bool = False
    """Whether pooling leaves the tokens of a prompt out."""

    head: DenseHead | ScoresHead | SparseHead | TokensHead | SeveralHead | None = None
    """What the graph takes and gives; None: a vector of each text."""

    expansion: Expansion | None = None
    """The tokens that fill short queries up."""

    family: Family = "embedding"
    outputs: tuple[str, ...] = ("dense",)
    modalities: tuple[str, ...] = ("text",)
    labels: tuple[str, ...] = ()
    activation: str | None = None
    vocabulary: int | None = None
    token_dimension: int | None = None
    max_active_dims: int | None = None
    """These as of ModelDescription."""

    def description(
        self, identity: str, model_name: str, device: str, dtype: str, runtime: str
    ) -> ModelDescription:
        """The model's description for clients, run by `runtime` on `device`."""
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
            family=self.family,
            outputs=self.outputs,
            modalities=self.modalities,
            labels=self.labels,
            activation=self.activation,
            vocabulary=self.vocabulary,
            token_dimension=self.token_dimension,
            max_active_dims=self.max_active_dims,
        )
