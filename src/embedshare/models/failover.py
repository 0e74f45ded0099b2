"""Calls of a model, which other models of its vector space answer while it cannot."""

from __future__ import annotations

import time

import msgspec

from embedshare.calls import CallContext, EmbedRequest, EmbedResult, are_tokens
from embedshare.errors import (
    DeadlineExceeded,
    EmbedshareError,
    EngineFailed,
    ModelMismatch,
    ModelNotFound,
    ModelSwapped,
    OutOfMemory,
    Overloaded,
    ProviderFailed,
    ProviderUnavailable,
    WeightsCorrupted,
)
from embedshare.identity import ModelDescription, declared_identity
from embedshare.models.loaded_model import LoadedModel
from embedshare.models.pool import ModelPool
from embedshare.models.spec import ModelSpec

#: Seconds in which a remote model must be loaded for calls that another model may answer.
REACH_S = 2.0
#: Errors of a model that another one may not have.
_FAILURES = (ProviderFailed, EngineFailed, ModelMismatch, ModelNotFound, OutOfMemory, WeightsCorrupted)


def embed(
    pool: ModelPool, name: str, identity: str | None, request: EmbedRequest, context: CallContext
) -> EmbedResult:
    """The vectors of the model of this name, else of the first model in its list that answers.

    Raises what the model raises; ProviderUnavailable with the earliest time to come back if none answers.
    """
    spec = pool.spec(name)
    others = () if are_tokens(request.inputs) or context.is_check else spec.failover
    errors: dict[str, EmbedshareError] = {}
    try:
        with _leased(pool, spec, name, identity, context, others) as leased:
            return leased.provider.embed(request, _hurried(context, others))
    except EmbedshareError as error:
        if not others or not _passes(spec, error):
            raise
        errors[spec.id] = error
    for number, other in enumerate(others):
        patience = _hurried(context, others[number + 1 :])
        try:
            with _leased(pool, pool.spec(other), other, None, patience, others[number + 1 :]) as leased:
                described = described_by(pool, spec, identity, leased.description)
                if described is None:
                    raise errors[spec.id]
                found = leased.provider.embed(request, patience)
        except EmbedshareError as error:
            if error is errors[spec.id] or not _passes(pool.spec(other), error):
                raise
            errors[other] = error
        else:
            pool.count_failover(name)
            return found._replace(description=described)
    raise _none(spec, errors)


def describe(pool: ModelPool, name: str, context: CallContext) -> ModelDescription:
    """The description of a model; one that does not load is described by the models that answer for it.

    Raises what loading raises.
    """
    known = pool.describe(name)
    if known is not None:
        return known
    spec = pool.spec(name)
    try:
        with pool.lease(name, None, context) as leased:
            return leased.description
    except EmbedshareError as error:
        for other in spec.failover if _passes(spec, error) else ():
            try:
                with pool.lease(other, None, context) as leased:
                    described = described_by(pool, spec, None, leased.description)
            except EmbedshareError:
                continue
            if described is not None:
                return described
        raise


def described_by(
    pool: ModelPool, spec: ModelSpec, identity: str | None, other: ModelDescription
) -> ModelDescription | None:
    """The model of `spec` as `other` answers for it; None if its vector space is not known.

    Raises ModelSwapped if the caller holds another `identity`.
    """
    known = pool.describe(spec.id)
    if known is not None:
        found = known.identity
    elif spec.is_local:
        return None
    else:
        found = declared_identity(spec.space, spec.provider, spec.name, other.dimension)
    if identity is not None and identity != found:
        raise ModelSwapped(f"{spec.id} is of another vector space ({found[:12]}) than the caller's")
    return msgspec.structs.replace(other, identity=found, model_name=spec.name)


def _leased(
    pool: ModelPool,
    spec: ModelSpec,
    name: str,
    identity: str | None,
    context: CallContext,
    others: tuple[str, ...],
) -> LoadedModel:
    """The model for a call that `others` may answer: a service that is not reached soon fails."""
    if not others or spec.is_local:
        return pool.lease(name, identity, context)
    try:
        return pool.lease(name, identity, context, REACH_S)
    except DeadlineExceeded as error:
        if time.monotonic() >= context.deadline:
            raise
        raise ProviderFailed(error.message) from None


def _hurried(context: CallContext, others: tuple[str, ...]) -> CallContext:
    """The context of a try that `others` may follow."""
    return msgspec.structs.replace(context, may_wait=False) if others else context


def _passes(spec: ModelSpec, error: EmbedshareError) -> bool:
    """Whether another model may answer. It does for a remote one's limit, and not for a full queue here."""
    return isinstance(error, _FAILURES) or (isinstance(error, Overloaded) and not spec.is_local)


def _none(spec: ModelSpec, errors: dict[str, EmbedshareError]) -> ProviderUnavailable:
    times_s = [one.fields["retry_after_s"] for one in errors.values() if "retry_after_s" in one.fields]
    retry_after_s = min(times_s, default=1.0)
    told = "; ".join(error.message for error in errors.values())
    message = f"no model answers for {spec.id}; retry in {retry_after_s:g} s ({told})"
    return ProviderUnavailable(message, retry_after_s=retry_after_s)
