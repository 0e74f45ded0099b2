"""Every error a user can meet: what happened, what to do about it, and the HTTP status it becomes.

An error crosses the wire as its class name, its message and its fields, and arrives as the same class.
"""

from __future__ import annotations

from typing import Any, ClassVar


class EmbedshareError(Exception):
    """The base of all errors here.

    `fields` are the facts in the message, for programs to read.
    """

    http_status: ClassVar[int] = 500

    def __init__(self, message: str, /, **fields: Any) -> None:
        super().__init__(message)
        self.message = message
        self.fields = fields

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self).__name__, self.message, self.fields)


class InvalidInput(EmbedshareError, ValueError):
    """The caller's arguments cannot be embedded; the message names the limit or the form that is allowed."""

    http_status = 400


class EmptyInput(InvalidInput):
    """A list of texts is empty, under an API whose own servers refuse an empty list."""


class NotServed(InvalidInput, AttributeError):
    """A local SentenceTransformer can do this, a shared one cannot.

    An AttributeError too, so that `hasattr` says False and `getattr` gives its default.
    """


class TooLarge(InvalidInput):
    """A text, a list or a message is over its limit."""

    http_status = 413


class Unauthenticated(EmbedshareError, PermissionError):
    """The worker answers callers with an API key alone, and none came, or one that is not valid."""

    http_status = 401


class Forbidden(EmbedshareError, PermissionError):
    """The caller's API key is valid, and not for this.

    Field `scopes`: those of which the key needs one.
    """

    http_status = 403


class HostRefused(EmbedshareError, PermissionError):
    """The worker asks for no API key, and the request came under a host that is none of its machine's names.

    Field `host`.
    """

    http_status = 421


class OriginRefused(EmbedshareError, PermissionError):
    """The worker asks for no API key, and a page of another site sent the request by a browser.

    Field `origin`.
    """

    http_status = 403


class RateLimited(EmbedshareError):
    """The caller sent more requests than EMBEDDING_RATE_LIMIT allows.

    Fields: retry_after_s, in seconds, and limit, such as `100/second`.
    """

    http_status = 429


class InvalidSetting(EmbedshareError, ValueError):
    """A setting's value is not allowed.

    Fields: name, value, allowed.
    """

    http_status = 422


class ServerUnavailable(EmbedshareError, ConnectionError):
    """No model server answered, and no local model may or can stand in for it."""

    http_status = 503


class ServerHung(ServerUnavailable):
    """The model server does not answer, neither on this connection nor on a new one: it is stopped, stuck or
    out of reach."""


class IncompatibleVersion(ServerUnavailable):
    """The client and the model server are of releases that do not understand each other.

    The message says which of them to upgrade. Fields: client, server (versions of the protocol).
    """


class ModelSwapped(ServerUnavailable):
    """The model that a connection was met with is served no more, and nothing was done: the client sends the
    call again on a new connection, by itself."""


class AuthenticationFailed(EmbedshareError, PermissionError):
    """The model server and this client do not hold the same key."""

    http_status = 503


class InsecureKey(EmbedshareError, PermissionError):
    """The key cannot be trusted: others can read its file, or it is published or short and the server is not
    on loopback."""

    http_status = 503


class DeadlineExceeded(EmbedshareError, TimeoutError):
    """The call's time was over before its answer was there."""

    http_status = 504


class Overloaded(EmbedshareError):
    """Too much is waiting already.

    Field `retry_after_s`: when there should be room, in seconds.
    """

    http_status = 503


class ModelMismatch(EmbedshareError):
    """Two models that do not share one vector space were about to be mixed.

    Fields: expected, found (identities).
    """

    http_status = 503


class UnknownModel(EmbedshareError, LookupError):
    """A request names another model than the one that is served."""

    http_status = 404


class UnknownIndex(EmbedshareError, LookupError):
    """The model server does not hold that vector index (any more): its handle sends the vectors again, by
    itself."""

    http_status = 404


class IndexIncomplete(UnknownIndex):
    """The model server is just being sent that vector index by another process, or has no room for it until
    others have come: its handle waits, by itself."""


class IndexNotKept(EmbedshareError):
    """A web worker cannot write or read the folder in which it keeps indexes."""

    http_status = 500


class IndexCorrupted(EmbedshareError):
    """A file is not a saved vector index, or not whole."""

    http_status = 400


class ModelNotFound(EmbedshareError, FileNotFoundError):
    """No place that was looked in has the model's weights."""

    http_status = 503


class WeightsCorrupted(EmbedshareError):
    """The weights on disk are not the published ones, or cannot be read."""

    http_status = 503


class UnsupportedModel(EmbedshareError):
    """The model is not one that can be shared: it does not turn texts into one vector each.

    Field `setting`: `device`, where another device could run it.
    """


class MissingDependency(EmbedshareError, ImportError):
    """A package is needed that this installation does not have; the message names the command that installs
    it."""


class OutOfMemory(EmbedshareError, MemoryError):
    """A single text needs more memory on the device than there is, or a local model more than is left."""

    http_status = 503


class EngineFailed(EmbedshareError, RuntimeError):
    """The model's runtime raised while it computed this call."""


class ProtocolError(EmbedshareError):
    """The other side sent what is not a message of ours; the connection is closed."""


class ClientClosed(EmbedshareError, RuntimeError):
    """The client was closed and is used again."""


class PortUnavailable(EmbedshareError, OSError):
    """A port cannot be listened at; as a rule another process does.

    Fields: host, port.
    """


class SwapRefused(EmbedshareError):
    """The model server does not change its model now; the message says why, and nothing has changed."""

    http_status = 409


class UnknownSetting(EmbedshareError, LookupError):
    """There is no setting of that name that can be changed while everything runs."""

    http_status = 404


class SettingsFixed(EmbedshareError):
    """The settings come from the environment alone: EMBEDDING_USE_DB_SETTINGS is false."""

    http_status = 400


class DatabaseUnavailable(EmbedshareError, ConnectionError):
    """The database that settings and API keys are kept in does not answer, or refuses this user."""

    http_status = 503


class SearchDisabled(EmbedshareError, PermissionError):
    """The worker does not search the web for those who ask it."""

    http_status = 403


class SearchFailed(EmbedshareError):
    """The search engine did not answer, or not with results."""

    http_status = 502


class FetchFailed(EmbedshareError):
    """A page was not fetched: its site did not answer in time, forbids it, or sent what is no text."""

    http_status = 502


class AddressRefused(FetchFailed):
    """An address that no page is fetched from: not http or https, or not public.

    Field: url.
    """


class SupervisorError(EmbedshareError):
    """The services cannot be started or kept running: one line that says which and why."""


class SupervisorUnavailable(EmbedshareError, ConnectionError):
    """No supervisor of this user runs, or it does not answer."""

    http_status = 503


def missing_database(error: ImportError) -> MissingDependency:
    """What to say where settings or API keys are kept in a database, and its packages are not installed."""
    return MissingDependency(
        f"settings and API keys in a database need more than this installation has ({error}): "
        "pip install 'embedshare[database]'"
    )


_BY_NAME: dict[str, type[EmbedshareError]] = {
    cls.__name__: cls
    for cls in list(globals().values())
    if isinstance(cls, type) and issubclass(cls, EmbedshareError)
}


def _rebuild(name: str, message: str, fields: dict[str, Any]) -> EmbedshareError:
    return from_wire(name, message, fields)


def from_wire(name: str, message: str, fields: dict[str, Any]) -> EmbedshareError:
    """The error that `name` stands for.

    A name from a newer version arrives as an EmbedshareError.
    """
    return _BY_NAME.get(name, EmbedshareError)(message, **fields)
