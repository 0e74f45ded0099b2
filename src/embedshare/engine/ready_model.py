"""A model that is ready to run, and its parts that a start from the cache and a conversion both make."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from embedshare import folders
from embedshare.engine.graph_cache import AnyProof, GraphCache
from embedshare.engine.metadata import ModelMetadata
from embedshare.engine.pairs import PairTokenizer
from embedshare.engine.runtimes.base import Runtime
from embedshare.engine.runtimes.heads import ScoresHead, TokensHead
from embedshare.engine.sequences import Tokenizing
from embedshare.engine.task_tokens import TaskTokenizer
from embedshare.engine.tokens import TextTokenizer
from embedshare.errors import MissingDependency
from embedshare.settings import Settings

if TYPE_CHECKING:
    import openvino as ov


class ReadyModel(NamedTuple):
    """A model that is ready to run."""

    runtime: Runtime
    tokenizer: Tokenizing
    facts: ModelMetadata


def text_tokenizer(serialized: str, facts: ModelMetadata) -> TextTokenizer:
    """The tokenizer of texts for a model with these facts; `serialized`: its text."""
    if isinstance(facts.head, ScoresHead):
        return pair_tokenizer(serialized, facts)
    make: Callable[..., TextTokenizer] = TextTokenizer
    if isinstance(facts.head, TokensHead):
        make = partial(TaskTokenizer, expansion=facts.expansion)
    return make(
        serialized,
        task_cuts=facts.task_cuts,
        template=facts.template,
        counts_prompts=facts.leaves_prompts_out,
    )


def pair_tokenizer(serialized: str, facts: ModelMetadata) -> PairTokenizer:
    """The tokenizer of a cross-encoder's pairs and texts; `serialized`: its text."""
    typed = isinstance(facts.head, ScoresHead) and facts.head.reads_types
    return PairTokenizer(serialized, typed, facts.pair_template, facts.template)


def in_openvino(
    settings: Settings,
    identity: str,
    graph: ov.Model | Path,
    facts: ModelMetadata,
    proof: Callable[[], AnyProof],
) -> Runtime:
    """The graph in the precision that fits it. Raises UnsupportedModel, and the errors of reading the
    graph."""
    from embedshare.engine.runtimes.first_runs import fitting
    from embedshare.engine.runtimes.openvino import OpenVinoRuntime, cpu_kind

    assert facts.layout is not None  # every model with a graph has one
    make = partial(OpenVinoRuntime, graph, facts.layout, head=facts.head)
    return fitting(make, settings.model.dtype, graph_cache(settings).trials(identity, cpu_kind()), proof)


def wants_openvino(settings: Settings, device: str) -> bool:
    """Whether OpenVINO is to run models on this device. Raises MissingDependency."""
    if settings.model.runtime == "torch" or device != "cpu":
        return False
    if settings.model.runtime == "openvino":
        require("openvino")
    return importlib.util.find_spec("openvino") is not None


def graph_cache(settings: Settings) -> GraphCache:
    """The cache of converted graphs."""
    from embedshare.engine.runtimes.openvino import VERSION

    return GraphCache(folders.cache(settings) / "graphs", VERSION)


def require(*packages: str) -> None:
    """Raise MissingDependency unless these packages are installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependency(
            f"a local model needs {' and '.join(missing)}, which this installation lacks: pip install "
            "'embedshare[server]'"
        )
