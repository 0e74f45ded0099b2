"""Every error of embedshare: what happened, what to do, and the HTTP status it becomes.

An error crosses the wire as its class name, message and fields, and arrives as the same class.
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
    """The caller's arguments cannot be embedded; the message names the limit or the allowed form."""

    http_status = 400


class EmptyInput(InvalidInput):
    """A list of texts is empty, under an API whose own servers refuse an empty list."""


class NotServed(InvalidInput, AttributeError):
    """A local SentenceTransformer can do this, a shared one cannot.

    An AttributeError too, so that `hasattr` says False and `getattr` gives its default.
    """


class TooLarge(InvalidInput):
    """A text, a list or a message exceeds its limit."""

    http_status = 413


class Unauthenticated(EmbedshareError, PermissionError):
    """The worker requires an API key, and the request has none or an invalid one."""

    http_status = 401


class Forbidden(EmbedshareError, PermissionError):
    """The caller's API key is valid but lacks the scope.

    Field `scopes`: the key needs one of them.
    """

    http_status = 403


class HostRefused(EmbedshareError, PermissionError):
    """The worker asks for no API key, and the request's host is none of this machine's names.

    Field `host`.
    """

    http_status = 421


class OriginRefused(EmbedshareError, PermissionError):
    """The worker asks for no API key, and a page of another site made a browser send the request.

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
    """No model server answered, and no local model may or can answer instead."""

    http_status = 503


class ServerHung(ServerUnavailable):
    """The model server answers neither on this connection nor on a new one: it is stopped, stuck or out of
    reach."""


class IncompatibleVersion(ServerUnavailable):
    """The client and the model server are of releases too far apart.

    The message says which of them to upgrade. Fields: client, server (protocol versions).
    """


class ModelSwapped(ServerUnavailable):
    """The server replaced its model since this connection was opened. The call was not executed; the client
    sends it again on a new connection."""


class AuthenticationFailed(EmbedshareError, PermissionError):
    """The model server and this client do not hold the same key."""

    http_status = 503


class InsecureKey(EmbedshareError, PermissionError):
    """The key cannot be trusted: others can read its file, or a server beyond loopback has a published or
    short one."""

    http_status = 503


class DeadlineExceeded(EmbedshareError, TimeoutError):
    """The call's deadline passed before its answer arrived."""

    http_status = 504


class Overloaded(EmbedshareError):
    """The queue is full.

    Field `retry_after_s`: expected seconds until there is room.
    """

    http_status = 503


class ModelMismatch(EmbedshareError):
    """Vectors of two models without a common vector space would have been mixed.

    Fields: expected, found (identities).
    """

    http_status = 503


class UnknownModel(EmbedshareError, LookupError):
    """A request names another model than the served one."""

    http_status = 404


class UnknownIndex(EmbedshareError, LookupError):
    """The model server does not hold that vector index, or no longer: its handle sends the vectors again."""

    http_status = 404


class IndexIncomplete(UnknownIndex):
    """Another process is still sending that vector index to the model server, or others in transfer leave no
    room for it. Its handle waits."""


class IndexNotKept(EmbedshareError):
    """A web worker cannot write or read its folder of indexes."""

    http_status = 500


class IndexCorrupted(EmbedshareError):
    """A file is not a saved vector index, or is damaged."""

    http_status = 400


class ModelNotFound(EmbedshareError, FileNotFoundError):
    """No searched place has the model's weights."""

    http_status = 503


class WeightsCorrupted(EmbedshareError):
    """The weights on disk are not the published ones, or cannot be read."""

    http_status = 503


class UnsupportedModel(EmbedshareError):
    """The model cannot be shared: it does not turn each text into one vector.

    Field `setting`: `device`, if another device could run it.
    """


class MissingDependency(EmbedshareError, ImportError):
    """A package is not installed; the message names the command that installs it."""


class OutOfMemory(EmbedshareError, MemoryError):
    """The device has too little memory for a single text, or the machine for a local model."""

    http_status = 503


class EngineFailed(EmbedshareError, RuntimeError):
    """The model's runtime raised while it computed this call."""


class ProtocolError(EmbedshareError):
    """The other side sent something that is not a message of ours; the connection is closed."""


class ClientClosed(EmbedshareError, RuntimeError):
    """The client was used after it was closed."""


class PortUnavailable(EmbedshareError, OSError):
    """The process cannot listen on a port, usually because another process does.

    Fields: host, port.
    """


class SwapRefused(EmbedshareError):
    """The model server does not change its model now; the message says why. Nothing has changed."""

    http_status = 409


class UnknownSetting(EmbedshareError, LookupError):
    """No setting of that name can be changed at run time."""

    http_status = 404


class SettingsFixed(EmbedshareError):
    """The settings come from the environment alone: EMBEDDING_USE_DB_SETTINGS is false."""

    http_status = 400


class DatabaseUnavailable(EmbedshareError, ConnectionError):
    """The database of settings and API keys does not answer, or refuses this user."""

    http_status = 503


class SearchDisabled(EmbedshareError, PermissionError):
    """The worker does not search the web for its callers."""

    http_status = 403


class SearchFailed(EmbedshareError):
    """The search engine did not answer, or not with results."""

    http_status = 502


class FetchFailed(EmbedshareError):
    """A page was not fetched: its site did not answer in time, forbids it, or sent no text."""

    http_status = 502


class AddressRefused(FetchFailed):
    """An address that pages are not fetched from: not http or https, or not public.

    Field: url.
    """


class SupervisorError(EmbedshareError):
    """The services cannot be started or kept running: one line that says which and why."""


class SupervisorUnavailable(EmbedshareError, ConnectionError):
    """No supervisor of this user runs, or it does not answer."""

    http_status = 503


def missing_database(error: ImportError) -> MissingDependency:
    """The error for settings or API keys in a database whose packages are not installed."""
    return MissingDependency(
        f"settings and API keys in a database need a package that is not installed ({error}): "
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
    """The error that `name` stands for; a newer version's unknown name becomes an EmbedshareError."""
    return _BY_NAME.get(name, EmbedshareError)(message, **fields)
