"""Errors cross the wire and process boundaries as the class that was raised."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedshare import errors
from embedshare.errors import EmbedshareError, from_wire

CLASSES = [
    value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, EmbedshareError)
]
FIELDS = {"retry_after_s": 0.5, "name": "PORT", "looked": ["a", "b"], "port": 5002}
BUILTIN = {
    "InvalidInput": ValueError,
    "NotServed": ValueError,
    "TooLarge": ValueError,
    "InvalidSetting": ValueError,
    "Unauthenticated": PermissionError,
    "Forbidden": PermissionError,
    "HostRefused": PermissionError,
    "OriginRefused": PermissionError,
    "SearchDisabled": PermissionError,
    "ServerUnavailable": ConnectionError,
    "ModelSwapped": ConnectionError,
    "AuthenticationFailed": PermissionError,
    "InsecureKey": PermissionError,
    "DeadlineExceeded": TimeoutError,
    "UnknownModel": LookupError,
    "UnknownIndex": LookupError,
    "UnknownSetting": LookupError,
    "UnknownJob": LookupError,
    "UnknownFile": LookupError,
    "JobsDisabled": PermissionError,
    "DocumentUnreadable": ValueError,
    "InvalidImage": ValueError,
    "IndexIncomplete": LookupError,
    "ModelNotFound": FileNotFoundError,
    "MissingDependency": ImportError,
    "OutOfMemory": MemoryError,
    "EngineFailed": RuntimeError,
    "ClientClosed": RuntimeError,
    "PortUnavailable": OSError,
    "DatabaseUnavailable": ConnectionError,
    "StoreUnavailable": ConnectionError,
    "UnknownSession": LookupError,
    "SessionsDisabled": PermissionError,
    "SessionServerUnavailable": ConnectionError,
    "SupervisorUnavailable": ConnectionError,
}

each_class = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)


def facts(error: EmbedshareError) -> tuple[Any, ...]:
    return type(error), error.message, str(error), error.fields, error.http_status


@each_class
@pytest.mark.parametrize("fields", [{}, FIELDS], ids=["bare", "fields"])
def test_an_error_crosses_the_wire_as_its_class_with_message_and_fields(
    cls: type[EmbedshareError], fields: dict[str, Any]
) -> None:
    error = cls("what happened", **fields)
    assert str(error) == "what happened"
    assert facts(from_wire(type(error).__name__, error.message, error.fields)) == facts(error)


@each_class
def test_an_error_is_the_same_after_pickle_and_copy(cls: type[EmbedshareError]) -> None:
    error = cls("what happened", **FIELDS)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert facts(pickle.loads(pickle.dumps(error, protocol))) == facts(error)  # noqa: S301
    assert facts(copy.copy(error)) == facts(error)


@each_class
def test_an_error_is_caught_as_the_builtin_that_a_local_model_would_raise(cls: type[EmbedshareError]) -> None:
    builtin = BUILTIN.get(cls.__name__, Exception)
    with pytest.raises(builtin, match="what happened"):
        raise cls("what happened", **FIELDS)


@each_class
def test_an_error_has_a_status_of_its_own_kind(cls: type[EmbedshareError]) -> None:
    assert cls.http_status in (400, 401, 403, 404, 409, 413, 421, 422, 429, 500, 502, 503, 504, 507)
    if issubclass(cls, errors.InvalidInput):
        assert cls.http_status < 500


@pytest.mark.parametrize("name", ["FromTheFuture", "", "ValueError", "SystemExit", "Any", "from_wire"])
def test_a_name_that_is_none_of_ours_arrives_as_the_base(name: str) -> None:
    error = from_wire(name, "what happened", {"a": 1})
    assert facts(error) == (EmbedshareError, "what happened", "what happened", {"a": 1}, 500)


@given(
    name=st.sampled_from([cls.__name__ for cls in CLASSES]),
    message=st.text(),
    fields=st.dictionaries(st.sampled_from(["message", "self", "cls", "fields", "name", ""]), st.integers()),
)
def test_any_fields_that_the_wire_can_carry_arrive(name: str, message: str, fields: dict[str, Any]) -> None:
    error = from_wire(name, message, fields)
    assert (error.message, error.fields) == (message, fields)
