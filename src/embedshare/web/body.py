"""A request's JSON body, as the type that its route declares."""

from __future__ import annotations

import re
from typing import Annotated, TypeVar

import msgspec
from flask import request
from werkzeug.exceptions import UnsupportedMediaType

from embedshare.errors import InvalidInput
from embedshare.web.errors import JSON

T = TypeVar("T")
#: A whole number as JSON knows it, in which 3.0 is one.
Whole = Annotated[float, msgspec.Meta(multiple_of=1)]
_HIGH, _LOW = rb"\\u[dD][89abAB][\da-fA-F]{2}", rb"\\u[dD][c-fC-F][\da-fA-F]{2}"
_LONE_SURROGATE = re.compile(rb"(?<!\\)(?:\\\\)*(?:%b(?!%b)|(?<!%b)%b)" % (_HIGH, _LOW, _HIGH, _LOW))


def read(decoder: msgspec.json.Decoder[T], example: str, *, untyped: bool = False) -> T:
    """The body, decoded; `untyped` takes one without a Content-Type as well.

    A page of another origin can have its visitor's browser send a body without a type, but JSON only where
    the worker allows it, which it never does: what changes or fetches anything therefore asks for the type.
    Raises UnsupportedMediaType, and InvalidInput with what is wrong and an `example` of what is right.
    """
    if not request.is_json and (request.mimetype or not untyped):
        came = f"as {request.mimetype}" if request.mimetype else "without a type"
        raise UnsupportedMediaType(f"the body came {came}; send JSON, with the header Content-Type: {JSON}")
    body = request.get_data()
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"the body must be JSON such as {example}: {_reason(error, body)}") from None


def _reason(error: Exception, body: bytes) -> str:
    if isinstance(error, RecursionError):
        return "this one is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "this one is not UTF-8"
    if not isinstance(error, msgspec.ValidationError) and _LONE_SURROGATE.search(body):
        return r"this one has half of a surrogate pair (\ud800 to \udfff), which is not a character"
    return str(error)
