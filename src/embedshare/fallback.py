"""When the server is away: which model answers a call, and the way back.

A call is tried on the server until it has failed `max_retries` times; then, where the settings allow it, a
local model of the same vector space answers, and a background probe looks for the server with backoff and
jitter. Each change of state is logged once. One deadline covers everything that a call tries.
"""

from __future__ import annotations

import enum
import random
import threading
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from loguru import logger

from embedshare import platforms, threads
from embedshare.errors import (
    AuthenticationFailed,
    ClientClosed,
    DeadlineExceeded,
    EmbedshareError,
    IncompatibleVersion,
    InsecureKey,
    ModelMismatch,
    Overloaded,
    ServerHung,
    ServerUnavailable,
)
from embedshare.identity import ModelDescription, check_identity
from embedshare.ipc.codec import Call, Query
from embedshare.ipc.connection import Connections
from embedshare.standin import StandIn

if TYPE_CHECKING:
    from embedshare.engine.model import Engine

T = TypeVar("T")

#: The probe's pauses, in seconds, grow from the first to the second of these; up to half is added at random.
PROBE_PAUSES_S = (0.5, 10.0)
#: One probe waits this long for the server's answer.
PROBE_TIMEOUT_S = 5.0
_NOBODY_IN_TIME = DeadlineExceeded("the call's time was over before anybody answered")
_FALLBACK_OFF = EmbedshareError("EMBEDDING_FALLBACK is none")


class State(str, enum.Enum):
    """Who answers calls now."""

    CONNECTING = "connecting"  # nobody has answered yet
    CONNECTED = "connected"  # the server
    FALLING_BACK = "falling back"  # a local model, until the server is back
    REFUSED = "refused"  # the server is there, with another key or vector space
    LOCAL = "local"  # a local model, as USE_IPC_EMBEDDING=false asks
    CLOSED = "closed"  # nobody


class Both(Generic[T]):
    """One call in the two forms it can be answered in."""

    def __init__(
        self,
        on_server: Callable[[int, float], Call],
        read: Callable[[Any], T],
        on_local: Callable[[Engine, float], T],
        raw: memoryview | None = None,
    ) -> None:
        self.on_server = on_server
        self.raw = raw
        """The bytes that follow the call to the server."""
        self.read = read
        self.on_local = on_local


class Failover:
    """Sends calls to the server or to a local model.

    Safe to use from any number of threads, and across fork. `connect(on_connect)` makes the connections,
    `load(expected)` loads a local model of the space of `expected`. `follow`: a server with another model
    than before is used, and not refused. `start_server` is asked where no server answers, and tells whether
    one is on its way.
    """

    def __init__(
        self,
        connect: Callable[[Callable[[ModelDescription], None]], Connections],
        load: Callable[[ModelDescription | None], Engine],
        *,
        use_server: bool,
        fall_back: bool,
        follow: bool,
        max_retries: int,
        retry_delay_s: float,
        local_release_s: float,
        start_server: Callable[[], bool] = lambda: False,
    ) -> None:
        self._load = load
        self._use_server = use_server
        self._fall_back = fall_back
        self._follow = follow
        self._max_retries = max_retries
        self._retry_delay_s = retry_delay_s
        self._local_release_s = local_release_s
        self._start_server = start_server
        self._connections = connect(self._met)
        self.description: ModelDescription | None = None
        """The model that answered first, whose identity holds for the life of this object; with `follow` the
        one that the server was last met with."""
        self.last_error: str | None = None
        self.fallbacks = 0
        self.returns = 0
        self._begin()
        _living.add(self)

    def _begin(self) -> None:
        """The parts that hold threads and locks: made anew in a forked child, which has neither."""
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._stand_in = StandIn(self._load)
        self._release: threading.Timer | None = None
        self._suspects = False
        self._way_back: threading.Thread | None = None
        self.state = State.CONNECTING if self._use_server else State.LOCAL

    @property
    def reconnects(self) -> int:
        """Connections to the server that took the place of one that had ended."""
        return self._connections.reconnects

    def call(self, both: Both[T], deadline: float) -> T:
        """The answer to a call, from whoever may give it.

        Raises what the model raises; Overloaded, DeadlineExceeded; ServerUnavailable where nobody is there to
        answer; ModelMismatch, AuthenticationFailed, InsecureKey; ClientClosed.
        """
        tries = 0
        while True:
            self._check_open()
            if self.state in (State.FALLING_BACK, State.LOCAL):
                self._see_to_the_way_back()
                engine = self._local(deadline)
                if engine is not None:
                    return both.on_local(engine, deadline)
                self._pause(
                    0.0, deadline, DeadlineExceeded("the call's time was over before anybody answered")
                )
                continue  # the server is to be tried again
            try:
                answer = both.read(self._connections.call(both.on_server, deadline, both.raw))
            except Overloaded as error:
                self._pause(
                    float(error.fields.get("retry_after_s", 1.0)) * random.uniform(0.75, 1.5), deadline, error
                )
            except (ModelMismatch, AuthenticationFailed, InsecureKey) as error:
                self._change(State.REFUSED, error)
                raise
            except DeadlineExceeded:
                self._see_whether_it_hangs()
                raise
            except ServerUnavailable as error:
                if self._start_server():  # it is on its way: that is no failed try
                    self._pause(random.uniform(0.1, 0.3), deadline, error)
                    continue
                tries += 1
                self._server_failed(error, tries, deadline)
            else:
                self._answered()
                return answer

    def ask_server(self, what: str, deadline: float) -> Any:
        """The server's own answer to a question of `codec.QUERIES`, tried once; no local model is asked."""
        self._check_open()
        answer = self._connections.call(lambda call_id, left: Query(call_id, left, what), deadline)
        self._answered()
        return answer

    def ask_server_for(self, both: Both[T], deadline: float) -> T:
        """The server's own answer to a call, tried once; no local model is asked."""
        self._check_open()
        answer = both.read(self._connections.call(both.on_server, deadline, both.raw))
        self._answered()
        return answer

    def tell_server(self, build: Callable[[int, float], Call], deadline: float) -> None:
        """Send a call to the server, once, where that answers calls now; what comes of it is nobody's
        matter."""
        if self.state is not State.CONNECTED:
            return
        try:
            self._connections.call(build, deadline)
        except EmbedshareError as error:
            logger.debug("the model server was not told: {}", error.message)

    def ask_whoever_answers(self, what: str, on_local: Callable[[Engine], T], deadline: float) -> T:
        """As `ask_server`, but of the local model where that answers calls now."""
        if self.state in (State.FALLING_BACK, State.LOCAL):
            engine = self._local(deadline)
            if engine is not None:
                return on_local(engine)
        answer: T = self.ask_server(what, deadline)
        return answer

    def close(self) -> None:
        """Answer no more calls, and let connections and the local model go."""
        self._change(State.CLOSED)
        self._closing.set()
        self._connections.close()
        self._stand_in.let_go()

    def reset_after_fork(self) -> None:
        """In a forked child: nothing that was inherited is used, and nothing of the parent's is ended."""
        closed = self.state is State.CLOSED
        self._connections.abandon()
        self._begin()
        if closed:
            self.state = State.CLOSED

    def _met(self, description: ModelDescription) -> None:
        """The server has told what its model is: the first sets the vector space, every other has to match it
        or is followed."""
        with self._lock:
            before, changed = self.description, False
            if before is not None:
                changed = before.identity != description.identity
                if changed and not self._follow:
                    check_identity(before.identity, description.identity, "the model server's model")
            self.description = description
        if changed and before is not None:
            self._stand_in.let_go()  # it is of the space that was left
            names = [f"{one.model_name} ({one.identity[:12]})" for one in (before, description)]
            logger.warning("the model server's model was {} and is {} now; it is followed", *names)

    def _check_open(self) -> None:
        if self.state is State.CLOSED:
            raise ClientClosed("this client was closed; get_embedding_model() gives a new one")

    def _answered(self) -> None:
        """The server has answered. While falling back, the probe is who decides on the return."""
        if self.state in (State.CONNECTING, State.REFUSED):
            self._change(State.CONNECTED)

    def _server_failed(self, error: ServerUnavailable, tries: int, deadline: float) -> None:
        """Wait before the next try, or fall back.

        Where nothing else can answer, a server that was there before is waited for until the deadline.
        """
        self.last_error = error.message
        first_retry = tries == 1 and self.state is State.CONNECTED  # as a rule it was restarted: go at once
        pause_s = 0.0 if first_retry else self._retry_delay_s * random.uniform(0.5, 1.0)
        no_retry_helps = isinstance(error, ServerHung | IncompatibleVersion)
        if no_retry_helps or tries >= self._max_retries or time.monotonic() + pause_s >= deadline:
            no_local = self._stand_in.failure if self._fall_back else _FALLBACK_OFF
            if no_local is None:
                self._start_fallback(error)
                return
            if isinstance(no_local, ModelMismatch):
                raise no_local
            if self.description is None:
                raise _nobody_answers(error, no_local)
        self._pause(pause_s, deadline, error)

    def _pause(self, seconds: float, deadline: float, error: EmbedshareError) -> None:
        """Wait before another try; raise `error` where the deadline would be over first."""
        if time.monotonic() + seconds >= deadline:
            raise error
        self._closing.wait(seconds)

    def _start_fallback(self, error: EmbedshareError) -> None:
        with self._lock:
            if self.state in (State.FALLING_BACK, State.CLOSED) or self._stand_in.failure is not None:
                return
            # Before the state changes: an interrupt here must not leave it without a way back.
            self._way_back = threads.start(self._find_the_way_back, "embedshare-probe", daemon=True)
            self.state = State.FALLING_BACK
            self.fallbacks += 1
            if self._release is not None:
                self._release.cancel()
        logger.warning(
            "the model server is away ({}); a local model stands in until it is back", error.message
        )

    def _see_to_the_way_back(self) -> None:
        """Start the probe where none could be started before, as in a process that had too many threads."""
        if self.state is not State.FALLING_BACK or self._way_back is not None:
            return
        with self._lock:
            if self.state is State.FALLING_BACK and self._way_back is None:
                self._way_back = threads.start(self._find_the_way_back, "embedshare-probe", daemon=True)

    def _local(self, deadline: float) -> Engine | None:
        """The local model; each caller waits for it no longer than its deadline.

        None where the server is to be tried again: it came back, or there is no local model to be had.
        Raises what keeps the model from loading where there is no server to try, and ModelMismatch.
        """
        try:
            engine = self._stand_in.get(
                self.description,
                deadline,
                lambda: self.state in (State.FALLING_BACK, State.LOCAL),
            )
        except DeadlineExceeded:
            raise
        except EmbedshareError as failure:
            with self._lock:
                if self.state is State.FALLING_BACK:
                    self.state = State.CONNECTING
            if not self._use_server or isinstance(failure, ModelMismatch):
                raise
            return None
        if engine is None:
            return None
        with self._lock:
            if self.description is None:
                self.description = engine.description
            same_space = self.description.identity == engine.description.identity
        return engine if same_space else None  # or the server came back meanwhile, and was followed

    def _find_the_way_back(self) -> None:
        """Probe until the server answers, return to it, and let the local model go after a while."""
        pause_s, longest_s = PROBE_PAUSES_S
        while not self._closing.wait(pause_s * random.uniform(1.0, 1.5)):
            if self.state is not State.FALLING_BACK:
                return
            pause_s = min(pause_s * 2, longest_s)
            error = self._probe()
            if error is None:
                self._return_to_server()
                return
            refused = isinstance(error, ModelMismatch | AuthenticationFailed | InsecureKey)
            if refused and self.last_error != error.message:
                logger.warning("the model server is back and may not be used: {}", error.message)
            self.last_error = error.message

    def _probe(self) -> EmbedshareError | None:
        """Why the server does not answer now; None where it does."""
        try:
            self._connections.probe(time.monotonic() + PROBE_TIMEOUT_S)
        except EmbedshareError as error:
            return error
        except Exception as error:  # the way back must not end with a surprise
            return EmbedshareError(f"{type(error).__name__}: {error}")
        return None

    def _return_to_server(self) -> None:
        self._change(State.CONNECTED)
        with self._lock:
            self._release = threads.later(self._local_release_s, self._release_local)

    @property
    def _asks_server(self) -> bool:
        """Whether calls go to the server now, met before or not."""
        return self.state in (State.CONNECTING, State.CONNECTED, State.REFUSED)

    def _see_whether_it_hangs(self) -> None:
        """A call got no answer in time: fall back for the next where a new connection gets none either."""

        def look() -> None:
            with self._lock:
                if not self._asks_server or self._suspects:
                    return
                self._suspects = True
            error = self._probe()
            self._suspects = False
            if isinstance(error, ServerUnavailable | DeadlineExceeded):
                self._start_fallback(error)

        if self._fall_back and self._asks_server and not self._suspects:
            threads.start(look, "embedshare-look", daemon=True)

    def _release_local(self) -> None:
        with self._lock:
            if self.state is not State.CONNECTED or not self._stand_in.let_go():
                return
        from embedshare.engine.model import release_memory

        release_memory()
        logger.info("the local model was let go")

    def _change(self, state: State, error: EmbedshareError | None = None) -> None:
        """Enter a state, and say so once."""
        with self._lock:
            before = self.state
            if before in (state, State.CLOSED):
                return
            self.state = state
            self.last_error = error.message if error is not None else None
            self.returns += before is State.FALLING_BACK and state is State.CONNECTED
            described = self.description
        if state is State.REFUSED and error is not None:
            logger.error("the model server may not be used: {}", error.message)
        elif state is State.CONNECTED and described is not None:
            back = "back at" if before is not State.CONNECTING else "connected to"
            logger.info("{} the model server: {} on {}", back, described.model_name, described.device)


def _nobody_answers(server: ServerUnavailable, local: EmbedshareError) -> ServerUnavailable:
    message = f"{server.message}; and no local model can stand in: {local.message}"
    if isinstance(server, ServerHung | IncompatibleVersion):  # there is a server: to start one is no remedy
        return type(server)(message, **server.fields)
    return ServerUnavailable(f"{message}. Start the server with: python start_embedding_server.py")


_living: weakref.WeakSet[Failover] = weakref.WeakSet()


def _reset_after_fork() -> None:
    for failover in list(_living):
        failover.reset_after_fork()


platforms.after_fork_in_child(_reset_after_fork)
