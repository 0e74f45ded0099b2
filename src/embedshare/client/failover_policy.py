"""Decides whether the server or a local model answers. Pure: no clock, no threads, no sockets.

Each event is a method of FailoverPolicy. It returns the next situation and the actions that Failover takes.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from embedshare.errors import (
    AuthenticationFailed,
    DeadlineExceeded,
    EmbedshareError,
    IncompatibleVersion,
    InsecureKey,
    ModelMismatch,
    ServerHung,
    ServerUnavailable,
)
from embedshare.identity import ModelDescription, check_identity

#: The server answers, but with another key or vector space.
REFUSALS = (ModelMismatch, AuthenticationFailed, InsecureKey)
_FALLBACK_OFF = EmbedshareError("EMBEDDING_FALLBACK is none")


class State(str, enum.Enum):
    """The provider that answers calls now."""

    CONNECTING = "connecting"  # none has answered yet
    CONNECTED = "connected"  # the server
    FALLING_BACK = "falling back"  # a local model, until the server is back
    REFUSED = "refused"  # the server has another key or vector space
    LOCAL = "local"  # a local model, as USE_IPC_EMBEDDING=false asks
    CLOSED = "closed"  # none


@dataclass(frozen=True)
class Situation:
    """The state and everything that decides on the next one."""

    state: State
    model: ModelDescription | None = None
    """The model that answered first, whose identity holds; if servers are followed, the latest one's."""

    last_error: str | None = None
    fallbacks: int = 0
    returns: int = 0
    probes: bool = False
    """A thread probes the server, so that calls return to it."""

    looks: bool = False
    """A thread checks whether the server hangs."""

    @property
    def is_local(self) -> bool:
        """A local model answers."""
        return self.state is State.FALLING_BACK or self.state is State.LOCAL


class Do(enum.Enum):
    """An action that the policy asks for."""

    START_PROBE = enum.auto()  # in a thread that wakes after each pause
    STOP_PROBE = enum.auto()  # the probe's thread ends
    START_LOOK = enum.auto()  # in a thread
    DROP_LOCAL = enum.auto()  # unload the local model
    RELEASE_LATER = enum.auto()  # send the event `rested` after a while
    RELEASE_NEVER = enum.auto()  # do not send it
    TRY_AGAIN = enum.auto()  # the call goes to the server once more, after its pause
    TRY_AT_ONCE = enum.auto()  # the call goes to the server once more, at once


class Say(NamedTuple):
    """A line for the log."""

    level: str
    message: str
    values: tuple[object, ...]


Step = tuple[Situation, Sequence[Do | Say]]


class Try(NamedTuple):
    """A call's failed try on the server."""

    error: ServerUnavailable
    number: int
    retry_at: float
    """The time of the next try, after its pause."""

    deadline: float
    local_failure: EmbedshareError | None
    """The error that keeps a local model from loading."""


@dataclass(frozen=True)
class FailoverPolicy:
    """`follow`: use a server with another model than before, instead of refusing it."""

    use_server: bool
    fall_back: bool
    follow: bool
    max_retries: int

    def begin(self) -> Situation:
        """Before the first call."""
        return Situation(State.CONNECTING if self.use_server else State.LOCAL)

    def on(self, event: Callable[..., Step], now: Situation, *told: object) -> Step:
        """The step for `event`, a method of this class; a closed client stays as it is."""
        return (now, [Do.STOP_PROBE]) if now.state is State.CLOSED else event(now, *told)

    def met(self, now: Situation, model: ModelDescription) -> Step:
        """A new connection has told the server's model. Raises ModelMismatch if it is refused."""
        before, met = now.model, replace(now, model=model)
        if before is None or before.identity == model.identity:
            return met, []
        if not self.follow:
            check_identity(before.identity, model.identity, "the model server's model")
        names = tuple(f"{one.model_name} ({one.identity[:12]})" for one in (before, model))
        said = Say("WARNING", "Following the model server from {} to {}", names)
        return met, [Do.DROP_LOCAL, said]  # the local one is of the old space

    def answered(self, now: Situation) -> Step:
        """The server has answered a call. During a fallback only the probe decides on the return."""
        return _connected(now) if now.state in (State.CONNECTING, State.REFUSED) else (now, [])

    def refused(self, now: Situation, error: EmbedshareError) -> Step:
        """A call found a server that may not be used: `error` is one of REFUSALS."""
        if now.state is State.REFUSED:
            return now, []
        said = Say("ERROR", "Not using the model server: {}", (error.message,))
        return replace(now, state=State.REFUSED, last_error=error.message), [said]

    def failed(self, now: Situation, tried: Try, time_s: float) -> Step:
        """A try on the server failed: retry, fall back, or raise the error.

        If no local model can answer, calls wait until their deadline for a server that has answered before.
        """
        error, at_once = tried.error, tried.number == 1 and now.state is State.CONNECTED  # it was restarted
        late = (time_s if at_once else tried.retry_at) >= tried.deadline
        no_retry_helps = isinstance(error, ServerHung | IncompatibleVersion)
        if no_retry_helps or late or tried.number >= self.max_retries:
            no_local = tried.local_failure if self.fall_back else _FALLBACK_OFF
            if no_local is None:
                return _away(now, error)
            if isinstance(no_local, ModelMismatch):
                raise no_local
            if now.model is None:
                raise _nobody_answers(error, no_local)
        if late:
            raise error
        return replace(now, last_error=error.message), [Do.TRY_AT_ONCE if at_once else Do.TRY_AGAIN]

    def timed_out(self, now: Situation) -> Step:
        """A call got no answer from the server in time."""
        if not self.fall_back or now.is_local or now.looks:
            return now, []
        return replace(now, looks=True), [Do.START_LOOK]

    def looked(
        self, now: Situation, error: EmbedshareError | None, local_failure: EmbedshareError | None
    ) -> Step:
        """A new connection was tried to see whether the server hangs; without an error it answered."""
        silent = isinstance(error, ServerUnavailable | DeadlineExceeded) and local_failure is None
        now = replace(now, looks=False)
        return _away(now, error) if error is not None and silent else (now, [])

    def called(self, now: Situation) -> Step:
        """A call goes to the local model. It starts a probe that could not be started before, as in a process
        with too many threads."""
        away = now.state is State.FALLING_BACK and not now.probes
        return (replace(now, probes=True), [Do.START_PROBE]) if away else (now, [])

    def loaded(self, now: Situation, model: ModelDescription) -> Step:
        """A local model is there."""
        return (now if now.model is not None else replace(now, model=model)), []

    def not_loaded(self, now: Situation) -> Step:
        """A local model could not be loaded."""
        return (replace(now, state=State.CONNECTING) if now.state is State.FALLING_BACK else now), []

    def woke(self, now: Situation) -> Step:
        """The probe's thread is about to probe."""
        if now.state is State.FALLING_BACK:
            return now, []
        return replace(now, probes=False), [Do.STOP_PROBE]

    def probed(self, now: Situation, error: EmbedshareError | None) -> Step:
        """The result of a probe; no error: the server answered."""
        if error is None:
            back, said = _connected(now)
            return replace(back, probes=False), [Do.RELEASE_LATER, Do.STOP_PROBE, *said]
        news = isinstance(error, REFUSALS) and now.last_error != error.message
        said = [Say("WARNING", "Not using the model server, which is back: {}", (error.message,))]
        return replace(now, last_error=error.message), said if news else []

    def rested(self, now: Situation) -> Step:
        """The server has answered for a while since a fallback."""
        return now, [Do.DROP_LOCAL] if now.state is State.CONNECTED else []

    def closed(self, now: Situation) -> Step:
        """The client was closed."""
        return replace(now, state=State.CLOSED, last_error=None), []

    def forked(self, now: Situation) -> Step:
        """This is a forked child, without the parent's threads."""
        return replace(now, state=self.begin().state, probes=False, looks=False), []


def _connected(now: Situation) -> tuple[Situation, list[Do | Say]]:
    if now.state is State.CONNECTED:
        return now, []
    returns = now.returns + (now.state is State.FALLING_BACK)
    connected = replace(now, state=State.CONNECTED, last_error=None, returns=returns)
    if now.model is None:
        return connected, []
    values = (
        "Connected to" if now.state is State.CONNECTING else "Returned to",
        now.model.model_name,
        now.model.device,
    )
    return connected, [Say("INFO", "{} the model server: {} on {}", values)]


def _away(now: Situation, error: EmbedshareError) -> Step:
    if now.is_local:
        return now, []
    said = "Falling back to a local model until the model server is back ({})"
    away = replace(
        now, state=State.FALLING_BACK, last_error=error.message, fallbacks=now.fallbacks + 1, probes=True
    )
    probe = [] if now.probes else [Do.START_PROBE]
    return away, [*probe, Do.RELEASE_NEVER, Say("WARNING", said, (error.message,))]


def _nobody_answers(server: ServerUnavailable, local: EmbedshareError) -> ServerUnavailable:
    message = f"{server.message}; no local model can answer instead: {local.message}"
    if isinstance(server, ServerHung | IncompatibleVersion):  # there is a server: starting one does not help
        return type(server)(message, **server.fields)
    return ServerUnavailable(f"{message}. Start the server with: python start_embedding_server.py")
