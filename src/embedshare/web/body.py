"""JSON bodies: decodes a request's into the type of its route, and encodes an answer's."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Annotated, Any, TypeVar

import msgspec
from flask import Response, request
from werkzeug.exceptions import UnsupportedMediaType

from embedshare.errors import InvalidInput
from embedshare.web.errors import JSON

T = TypeVar("T")
#: A whole number in JSON, where 3.0 is one.
Whole = Annotated[float, msgspec.Meta(multiple_of=1)]
#: An escape of half of a surrogate pair: a first half without its second, or the reverse.
_HALF_PAIR = re.compile(
    rb"\\u[dD][89abAB][\da-fA-F]{2}(?!\\u[dD][c-fC-F])"
    rb"|(?<!\\u[dD][89abAB][\da-fA-F]{2})\\u[dD][c-fC-F][\da-fA-F]{2}"
)
#: An escaped backslash, and its placeholder while escapes are searched; no JSON holds that byte.
_BACKSLASH, _PLACEHOLDER = rb"\\", b"\0"
_SURROGATE = re.compile("[\ud800-\udfff]")


def answer(value: Any) -> Response:
    """The response whose body is `value`, of the types that msgspec encodes."""
    return Response(msgspec.json.encode(value), content_type=JSON)


def read(
    decoder: msgspec.json.Decoder[T],
    example: str,
    *,
    untyped: bool = False,
    any_type: bool = False,
    replaces_half_pairs: bool = False,
) -> T:
    """The decoded body; `untyped` accepts one without a Content-Type as well, `any_type` one of any.

    A page of another origin can make its visitor's browser send a body of most types without a preflight. It
    can send JSON only if the worker allows it. Routes that change or fetch something therefore take JSON
    alone: a worker with API keys has no other guard, see web/guards/cross_site.py.

    `replaces_half_pairs`: read half of a surrogate pair (an emoji cut in two) as U+FFFD; otherwise it is an
    error that names the text.

    Raises UnsupportedMediaType, and InvalidInput with the fault and a valid `example`.
    """
    if not request.is_json and not any_type and (request.mimetype or not untyped):
        came = f"as {request.mimetype}" if request.mimetype else "without a type"
        raise UnsupportedMediaType(f"the body came {came}; send JSON, with the header Content-Type: {JSON}")
    body = request.get_data()
    try:
        try:
            return decoder.decode(body)
        except msgspec.DecodeError as error:
            if not replaces_half_pairs or isinstance(error, msgspec.ValidationError):
                raise
        body = _without_half_pairs(body)
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"the body must be JSON such as {example}: {reason(error, body)}") from None


def _without_half_pairs(body: bytes) -> bytes:
    """The body with U+FFFD for each half; a body that is not JSON may stay as it is."""
    if _PLACEHOLDER in body:
        return body
    return _HALF_PAIR.sub(rb"\\ufffd", _searchable(body)).replace(_PLACEHOLDER, _BACKSLASH)


def _searchable(body: bytes) -> bytes:
    """The body in which each backslash begins an escape other than its own.

    No Python code runs per escape, so a body of millions of them cannot block the worker.
    """
    return body.replace(_BACKSLASH, _PLACEHOLDER)


def reason(error: Exception, body: bytes) -> str:
    """Why JSON could not be decoded, for the one who sent it."""
    if isinstance(error, RecursionError):
        return "this one is nested too deeply"
    # The error of msgspec until 0.22, and that of 0.23.
    if isinstance(error, UnicodeDecodeError) or str(error).startswith("Invalid UTF-8"):
        return "this one is not UTF-8"
    if not isinstance(error, msgspec.ValidationError) and _HALF_PAIR.search(_searchable(body)):
        where = _half_pair_in(body)
        return rf"{where} has half of a surrogate pair (\ud800 to \udfff), which is not a character"
    return str(error)


def _half_pair_in(body: bytes) -> str:
    """The place of the first string with half a pair, as `texts[1]`."""
    try:
        # The standard library's decoder, since no other reads such strings.
        return next(_with_surrogates(json.loads(body), ""), "this one")[:100]
    except (ValueError, RecursionError):
        return "this one"


def _with_surrogates(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, str) and _SURROGATE.search(value):
        yield path or "this one"
    elif isinstance(value, list):
        for number, one in enumerate(value):
            yield from _with_surrogates(one, f"{path}[{number}]")
    elif isinstance(value, dict):
        for name, one in value.items():
            if _SURROGATE.search(name):
                yield "a field's name"
            yield from _with_surrogates(one, f"{path}.{name}" if path else name)
