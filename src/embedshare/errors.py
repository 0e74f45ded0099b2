"""Every error of embedshare: what happened, what to do, and the HTTP status it becomes.

An error crosses the wire as its class name, message and fields, and arrives as the same class.
"""

from __future__ import annotations

from typing import Any, ClassVar


class EmbedshareError(Exception):
    """The base of all errors here. `fields` are the facts in the message, for programs to read."""

    http_status: ClassVar[int] = 500

    def __init_subclass__(cls, http_status: int | None = None) -> None:
        """`http_status`: set it if it differs from that of the class's base."""
        super().__init_subclass__()
        if http_status is not None:
            cls.http_status = http_status

    def __init__(self, message: str, /, **fields: Any) -> None:
        super().__init__(message)
        self.message = message
        self.fields = fields

    def __reduce__(self) -> tuple[Any, ...]:
        return from_wire, (type(self).__name__, self.message, self.fields)


class InvalidInput(EmbedshareError, ValueError, http_status=400):
    """The caller's arguments cannot be embedded; the message names the limit or the allowed form."""


class EmptyInput(InvalidInput):
    """A list of texts is empty, under an API whose own servers refuse an empty list."""


class NotServed(InvalidInput, AttributeError):
    """A local SentenceTransformer can do this, a shared one cannot.

    An AttributeError too, so that `hasattr` says False and `getattr` gives its default.
    """


class ZeroVector(InvalidInput):
    """A vector is zero, and so has no direction to compare by. Field `chunk`: its chunk's number."""


class NotFinite(InvalidInput):
    """A vector has a value that is NaN or infinite. Field `chunk`: its chunk's number."""


class TooLarge(InvalidInput, http_status=413):
    """A text, a list or a message exceeds its limit."""


class InvalidImage(InvalidInput, http_status=422):
    """An image cannot be read: its format, its size, or damage. Field `image`: its number in the call."""


class Unauthenticated(EmbedshareError, PermissionError, http_status=401):
    """The worker requires an API key, and the request has none or an invalid one."""


class Forbidden(EmbedshareError, PermissionError, http_status=403):
    """The caller's API key is valid but lacks the scope, or may not use the model.

    Field `scopes`: the key needs one of them; or `models`: the key may use these.
    """


class HostRefused(EmbedshareError, PermissionError, http_status=421):
    """The worker asks for no API key, and the request's host is none of this machine's names.

    Field `host`.
    """


class OriginRefused(EmbedshareError, PermissionError, http_status=403):
    """The worker asks for no API key, and a page of another site made a browser send the request.

    Field `origin`.
    """


class RateLimited(EmbedshareError, http_status=429):
    """The caller sent more requests than EMBEDDING_RATE_LIMIT or EMBEDDING_MODEL_RATE_LIMITS allows.

    Fields: retry_after_s, in seconds, and limit, such as `100/second`.
    """


class InvalidSetting(EmbedshareError, ValueError, http_status=422):
    """A setting's value is not allowed. Fields: name, value, allowed."""


class ServerUnavailable(EmbedshareError, ConnectionError, http_status=503):
    """No model server answered, and no local model may or can answer instead."""


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


class AuthenticationFailed(EmbedshareError, PermissionError, http_status=503):
    """The model server and this client do not hold the same key."""


class InsecureKey(EmbedshareError, PermissionError, http_status=503):
    """The key cannot be trusted: others can read its file, or a server beyond loopback has a published or
    short one."""


class DeadlineExceeded(EmbedshareError, TimeoutError, http_status=504):
    """The call's deadline passed before its answer arrived."""


class Overloaded(EmbedshareError, http_status=503):
    """The queue is full. Field `retry_after_s`: expected seconds until there is room."""


class ProviderFailed(EmbedshareError, http_status=502):
    """A remote provider of the model did not answer, or not with one valid vector for each text.

    Field `retry_after_s`: expected seconds until it is asked again, if it is not asked now.
    """


class ProviderRefused(ProviderFailed):
    """A remote provider refuses this server: its key, its credit, or a model that it does not have."""


class ProviderUnavailable(ProviderFailed, http_status=503):
    """No provider of the model is asked now, since each failed lately.

    Field `retry_after_s`: seconds until the first of them is asked again.
    """


class ModelMismatch(EmbedshareError, http_status=503):
    """Vectors of two models without a common vector space would have been mixed.

    Fields: expected, found (identities).
    """


class UnknownModel(EmbedshareError, LookupError, http_status=404):
    """A request names a model that is not served; the message has the names that are."""


class InvalidModels(EmbedshareError, ValueError):
    """The file of models is wrong. Fields: path, line, column (both from 1), allowed."""


class UnknownIndex(EmbedshareError, LookupError, http_status=404):
    """The model server does not hold that vector index, or no longer: its handle sends the vectors again."""


class IndexIncomplete(UnknownIndex):
    """Another process is still sending that vector index to the model server, or others in transfer leave no
    room for it. Its handle waits."""


class IndexNotKept(EmbedshareError, http_status=500):
    """A web worker cannot write or read its folder of indexes."""


class IndexCorrupted(EmbedshareError, http_status=400):
    """A file is not a saved vector index, or is damaged."""


class ModelNotFound(EmbedshareError, FileNotFoundError, http_status=503):
    """No searched place has the model's weights."""


class WeightsCorrupted(EmbedshareError, http_status=503):
    """The weights on disk are not the published ones, or cannot be read."""


class UnsupportedModel(EmbedshareError):
    """The model cannot be shared: it does not turn each text into one vector.

    Field `setting`: `device`, if another device could run it.
    """


class MissingDependency(EmbedshareError, ImportError):
    """A package is not installed; the message names the command that installs it."""


class OutOfMemory(EmbedshareError, MemoryError, http_status=503):
    """The device has too little memory for a single text, or the machine for a local model."""


class EngineFailed(EmbedshareError, RuntimeError):
    """The model's runtime raised while it computed this call."""


class ProtocolError(EmbedshareError):
    """The other side sent something that is not a message of ours; the connection is closed."""


class ClientClosed(EmbedshareError, RuntimeError):
    """The client was used after it was closed."""


class PortUnavailable(EmbedshareError, OSError):
    """The process cannot listen on a port, usually because another process does. Fields: host, port."""


class SwapRefused(EmbedshareError, http_status=409):
    """The model server does not change its model now; the message says why. Nothing has changed."""


class UnknownSetting(EmbedshareError, LookupError, http_status=404):
    """No setting of that name can be changed at run time."""


class SettingsFixed(EmbedshareError, http_status=400):
    """The settings come from the environment alone: EMBEDDING_USE_DB_SETTINGS is false."""


class DatabaseUnavailable(EmbedshareError, ConnectionError, http_status=503):
    """The database of settings and API keys does not answer, or refuses this user."""


class SearchDisabled(EmbedshareError, PermissionError, http_status=403):
    """The worker does not search the web for its callers."""


class SearchFailed(EmbedshareError, http_status=502):
    """The search engine did not answer, or not with results."""


class FetchFailed(EmbedshareError, http_status=502):
    """A page was not fetched: its site did not answer in time, forbids it, or sent no text."""


class AddressRefused(FetchFailed):
    """An address that pages are not fetched from: not http or https, or not public. Field: url."""


class JobsDisabled(EmbedshareError, PermissionError, http_status=403):
    """The worker takes no jobs: EMBEDDING_JOBS or USE_IPC_EMBEDDING is false."""


class UnknownJob(EmbedshareError, LookupError, http_status=404):
    """The caller has no job of this id: it never had one, or it was deleted."""


class UnknownFile(EmbedshareError, LookupError, http_status=404):
    """The caller has no uploaded file or result of this id: it never had one, or it was deleted."""


class JobNotDone(EmbedshareError, http_status=409):
    """The job has no result yet, or ended without one. Field `status`."""


class JobEnded(EmbedshareError, http_status=409):
    """The job has ended, so it cannot be cancelled. Field `status`."""


class TooManyJobs(EmbedshareError, http_status=429):
    """The caller's jobs and files exceed its share. Nothing was stored; delete some first."""


class JobsNotKept(EmbedshareError, http_status=500):
    """A process cannot write or read the folder of jobs."""


class NoRoomForJobs(JobsNotKept, http_status=507):
    """The disk has no room for one more job or file. Nothing was stored."""


class UnknownSession(EmbedshareError, LookupError, http_status=404):
    """The caller has no session of this id, or no document of this id in it: it never had one, or it was
    deleted."""


class SessionExists(EmbedshareError, http_status=409):
    """A session of this id exists already, or holds documents and so keeps its chunking."""


class QuotaExceeded(EmbedshareError, http_status=429):
    """The caller's sessions have reached a quota: documents, chunks, bytes, or tokens of a day."""


class SessionsDisabled(EmbedshareError, PermissionError, http_status=404):
    """The worker has no sessions: EMBEDDING_SESSIONS is false."""


class SessionServerUnavailable(EmbedshareError, ConnectionError, http_status=503):
    """The session server does not answer. What the call would have changed is unchanged."""


class DocumentUnreadable(InvalidInput, http_status=422):
    """A document has no text that can be read, and nothing of it was stored.

    Field `reason`: encrypted, scanned, damaged, too_large, unsupported, timeout or empty.
    """


class UploadIncomplete(EmbedshareError, http_status=400):
    """An upload ended before all of its bytes came, or with others. Nothing of it was stored."""


class StoreFailed(EmbedshareError, http_status=500):
    """The store of sessions' vectors failed, or its files are damaged."""


class StoreUnavailable(EmbedshareError, ConnectionError, http_status=503):
    """The Qdrant server of sessions' vectors does not answer in time, is overloaded or refuses the key."""


class StoreInUse(EmbedshareError, http_status=503):
    """Another process or store has these sessions' vectors open, which one at a time may have."""


class SupervisorError(EmbedshareError):
    """The services cannot be started or kept running: one line that says which and why."""


class SupervisorUnavailable(EmbedshareError, ConnectionError, http_status=503):
    """No supervisor of this user runs, or it does not answer."""


def missing_database(error: ImportError) -> MissingDependency:
    """The error for settings, API keys or cached vectors in a database whose packages are not installed."""
    return MissingDependency(
        "settings, API keys and cached vectors in a database need a package that is not installed "
        f"({error}): pip install 'embedshare[database]'"
    )


_BY_NAME: dict[str, type[EmbedshareError]] = {
    cls.__name__: cls
    for cls in list(globals().values())
    if isinstance(cls, type) and issubclass(cls, EmbedshareError)
}


def from_wire(name: str, message: str, fields: dict[str, Any]) -> EmbedshareError:
    """The error that `name` stands for; a newer version's unknown name becomes an EmbedshareError."""
    return _BY_NAME.get(name, EmbedshareError)(message, **fields)
