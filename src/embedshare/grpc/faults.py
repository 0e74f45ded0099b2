"""Errors of embedshare as gRPC's status and back: the class name, message and fields go along as JSON."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import grpc
import msgspec

from embedshare import errors
from embedshare.errors import (
    DeadlineExceeded,
    EmbedshareError,
    IncompatibleVersion,
    InvalidInput,
    ModelMismatch,
    SessionExists,
    SessionServerUnavailable,
    TooLarge,
)

#: The trailing metadata with the error, and the most bytes of it: gRPC allows 8 KB of metadata.
KEY, MOST_BYTES = "embedshare-error-bin", 4096
_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    502: grpc.StatusCode.UNAVAILABLE,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
    507: grpc.StatusCode.RESOURCE_EXHAUSTED,
}
#: Errors of gRPC itself, which no server of ours has sent.
_OWN: dict[grpc.StatusCode, type[EmbedshareError]] = {
    grpc.StatusCode.UNAVAILABLE: SessionServerUnavailable,
    grpc.StatusCode.CANCELLED: SessionServerUnavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.RESOURCE_EXHAUSTED: TooLarge,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidInput,
    grpc.StatusCode.UNIMPLEMENTED: IncompatibleVersion,
}


class _Sent(msgspec.Struct):
    name: str
    message: str
    fields: dict[str, Any] = {}


def status_of(error: EmbedshareError) -> grpc.StatusCode:
    """The status that an error becomes."""
    if isinstance(error, SessionExists):
        return grpc.StatusCode.ALREADY_EXISTS
    if isinstance(error, ModelMismatch):  # no retry helps
        return grpc.StatusCode.FAILED_PRECONDITION
    return _CODES.get(error.http_status, grpc.StatusCode.INTERNAL)


def trailing(error: EmbedshareError) -> tuple[tuple[str, bytes], ...]:
    """The trailing metadata of an error; its fields are left out if they are too long."""
    sent = msgspec.json.encode(_Sent(type(error).__name__, error.message[:1024], _plain(error.fields)))
    if len(sent) > MOST_BYTES:
        sent = msgspec.json.encode(_Sent(type(error).__name__, error.message[:1024]))
    return ((KEY, sent),)


def error_of(failure: grpc.RpcError, deadline: float = float("inf")) -> EmbedshareError:
    """The error that a call failed with, as the class that was raised.

    `deadline`: the call's, a moment of `time.monotonic()`. When it passes in mid-upload, some calls report
    INTERNAL.
    """
    assert isinstance(failure, grpc.Call)
    sent = _sent(failure.trailing_metadata() or ())
    if sent is not None:
        return errors.from_wire(sent.name, sent.message, sent.fields)
    code, details = failure.code(), failure.details() or "no details"
    if code is grpc.StatusCode.INTERNAL and time.monotonic() >= deadline:
        code = grpc.StatusCode.DEADLINE_EXCEEDED
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded("the session server did not answer in time")
    if code is grpc.StatusCode.UNAVAILABLE:
        return SessionServerUnavailable(f"no session server answers ({details}): start one, or retry later")
    return _OWN.get(code, EmbedshareError)(f"the session server answers {code.name}: {details}")


def _sent(metadata: Iterable[Any]) -> _Sent | None:
    for key, value in metadata:
        if key == KEY:
            try:
                return msgspec.json.decode(value, type=_Sent)
            except msgspec.MsgspecError:
                return None
    return None


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields that JSON has a form for."""
    return {
        name: value
        for name, value in fields.items()
        if value is None or isinstance(value, str | int | float | bool | list | tuple)
    }
