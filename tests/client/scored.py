"""Descriptions of models that score, for clients without a server."""

from __future__ import annotations

from typing import Any

from embedshare.identity import ModelDescription


def description(identity: str, **changes: Any) -> ModelDescription:
    """A cross-encoder's, with other fields as given."""
    given: dict[str, Any] = {
        "identity": identity, "model_name": identity, "dimension": 0, "max_seq_length": 128, "prompts": {},
        "default_prompt_name": None, "similarity_fn_name": "", "tokenizer_inputs": ["input_ids"],
        "padding_token_id": 0, "device": "cpu", "dtype": "float32", "runtime": "openvino",
        "family": "cross-encoder", "outputs": ("scores",), "labels": ("LABEL_0",), "activation": "Sigmoid",
    }  # fmt: skip
    return ModelDescription(**{**given, **changes})
