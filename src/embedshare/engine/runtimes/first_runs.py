"""Runs a graph for the first time in a precision, at every class of shapes, and chooses the precision by
it."""

from __future__ import annotations

from collections.abc import Callable

from loguru import logger

from embedshare.engine.graph_cache import AnyProof
from embedshare.engine.runtimes.openvino import SINGLE_WIDTHS, OpenVinoRuntime, resolve_dtype
from embedshare.engine.trials import Trial, Trials
from embedshare.errors import UnsupportedModel

#: Tokens up to which texts run in batches, longer ones each alone.
_SHORT = 128


def precisions(dtype: str) -> list[str]:
    """The precisions to try for `dtype`, in this order."""
    return list(dict.fromkeys((dtype, "float32")))


def untried(wanted: str, trials: Trials) -> str:
    """The precision that `fitting` would try; empty if its results are known."""
    try:
        meant = _meant(wanted, trials)
    except UnsupportedModel:
        return ""
    for dtype in precisions(meant):
        trial = trials.find(dtype)
        if trial is None:
            return dtype
        if trial.passed or (dtype == wanted and trial.cosine is not None):
            return ""
    return ""


def _meant(wanted: str, trials: Trials) -> str:
    """Every process of a machine, and every start, gives a model the same precision."""
    return (trials.chosen() if wanted == "auto" else None) or resolve_dtype(wanted)


def fitting(
    make: Callable[[str], OpenVinoRuntime], wanted: str, trials: Trials, proof: Callable[[], AnyProof]
) -> OpenVinoRuntime:
    """The model in the precision that EMBEDDING_DTYPE (`wanted`) means, or in float32 if it needs that.

    A precision that the operator names is used however near its vectors are. Raises UnsupportedModel if
    OpenVINO cannot run the model in any.
    """
    why = ""
    meant = _meant(wanted, trials)
    if wanted == "auto":
        trials.choose(meant)
    for dtype in precisions(meant):
        trial, runtime = trials.find(dtype), None
        if trial is None:
            runtime = make(dtype)
            trial = Trial(first_runs(runtime, proof()))
            trials.keep(dtype, trial)
        if trial.passed:
            return runtime or make(dtype)
        why = _shortcoming(dtype, trial)
        if dtype == wanted and trial.cosine is not None and dtype != "float32":
            logger.warning("Computing in {} as EMBEDDING_DTYPE asks ({})", dtype, why)
            return runtime or make(dtype)
        if dtype != "float32":
            logger.info("Computing in float32 ({})", why)
    raise UnsupportedModel(f"OpenVINO does not run the model on this CPU: {why}")


def first_runs(runtime: OpenVinoRuntime, proof: AnyProof) -> float:
    """Run each of the runtime's graphs at every class of shapes.

    Returns the smallest cosine to the proof's vectors.
    """
    inputs = proof.inputs()
    short = [at for at, ids in enumerate(inputs) if len(ids) <= _SHORT]
    batches = [short] if short else []
    batches += [[at] for at, ids in enumerate(inputs) if len(ids) > _SHORT]
    if short:
        tokens = sum(len(inputs[at]) for at in short)
        batches.append(short * -(-runtime.bulk_budget // tokens))

    def least(batch: list[int]) -> float:
        sequences = [inputs[at] for at in batch]
        return min(proof.agreement(rows, batch) for rows in runtime.run_on_each_graph(sequences))

    cosines = [least(batch) for batch in batches]
    runtime.settle()  # from here on single short texts have graphs of their own
    longest = max(inputs, key=len)
    for width in SINGLE_WIDTHS:
        runtime.run([longest[:width]])
    cosines += [least([at]) for at in short]
    return min(cosines)


def _shortcoming(dtype: str, trial: Trial) -> str:
    if trial.cosine is None:
        return f"{dtype} ended the process that tried it"
    return f"in {dtype} vectors have a cosine of {trial.cosine:.5f} to sentence-transformers' own"
