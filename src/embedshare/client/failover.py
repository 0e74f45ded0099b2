"""Sends calls to the server or to a local model, as failover_policy decides: the threads, timers and logs.

A call that has failed `max_retries` times on the server falls back, if the settings allow it: a local model
of the same vector space answers. A background probe then looks for the server, with backoff and jitter. Each
change of state is logged once. One deadline covers all tries of a call.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from loguru import logger

from embedshare import platforms, threads
from embedshare.backoff import Backoff
from embedshare.calls import CallContext
from embedshare.client.failover_policy import REFUSALS, Do, FailoverPolicy, Say, State, Step, Try
from embedshare.client.local_model import LocalModel
from embedshare.errors import (
    ClientClosed,
    DeadlineExceeded,
    EmbedshareError,
    ModelMismatch,
    Overloaded,
    ServerUnavailable,
)
from embedshare.identity import ModelDescription
from embedshare.providers.base import Provider
from embedshare.providers.served import Served

if TYPE_CHECKING:
    from embedshare.providers.local import Local

T = TypeVar("T")

#: Pauses between probes, each with up to half of it added at random.
PROBES = Backoff(0.5, 10.0, jitter=0.5)
#: Seconds that one probe waits for the server's answer.
PROBE_TIMEOUT_S = 5.0


class Failover:
    """Sends each call to the server or to the local model; thread-safe and fork-safe.

    `connect(on_met)` makes the server's provider, `load(expected)` loads a local model of the space of
    `expected`. `start_server` is called if no server answers, and tells whether one is on its way.
    """

    def __init__(
        self,
        connect: Callable[[Callable[[ModelDescription], object]], Served],
        load: Callable[[ModelDescription | None], Local],
        policy: FailoverPolicy,
        *,
        retry_delay_s: float,
        local_release_s: float,
        start_server: Callable[[], bool] = lambda: False,
    ) -> None:
        self._load = load
        self._policy = policy
        self._retry_delay_s = retry_delay_s
        self._local_release_s = local_release_s
        self._start_server = start_server
        self.served = connect(partial(self._on, policy.met))
        """The server."""
        self.now = policy.begin()
        """The present situation."""
        self._begin()
        platforms.after_fork_in_child(self._reset_after_fork)

    def _begin(self) -> None:
        """Make the parts that hold threads and locks; a forked child has neither and makes its own."""
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._local_model = LocalModel(self._load)
        self._release: threading.Timer | None = None

    def provider(self, deadline: float) -> Provider:
        """The provider of a call's next try: the server, or the local model.

        Raises DeadlineExceeded, ClientClosed, ModelMismatch, and the local model's load error if there is no
        server to try.
        """
        while True:
            self._check_open()
            if not self.now.is_local:
                return self.served
            local = self._local(deadline)
            if local is not None:
                return local
            if time.monotonic() >= deadline:  # else the server is tried again
                raise DeadlineExceeded("the call's deadline passed before a provider answered")

    def answered(self, provider: Provider) -> None:
        """A provider has answered a call."""
        if provider is self.served and self.now.state is not State.CONNECTED:
            self._on(self._policy.answered)

    def ask_server(self, ask: Callable[[Served], T]) -> T:
        """The server's own answer, tried once; no local model is asked."""
        self._check_open()
        answer = ask(self.served)
        self.answered(self.served)
        return answer

    def tell_server(self, tell: Callable[[Served], object]) -> None:
        """Send the server a message once, if it answers calls now. An error is logged and not raised."""
        if self.now.state is not State.CONNECTED:
            return
        try:
            tell(self.served)
        except EmbedshareError as error:
            logger.debug("Could not tell the model server: {}", error.message)

    def ask_whoever_answers(self, ask: Callable[[Provider], T], deadline: float) -> T:
        """`ask_server`, but the local model is asked if it answers calls now."""
        local = self._local(deadline) if self.now.is_local else None
        return self.ask_server(ask) if local is None else ask(local)

    def close(self) -> None:
        """Answer no more calls; close connections and unload the local model."""
        was_open = self.now.state is not State.CLOSED
        self._on(self._policy.closed)
        self._closing.set()
        if was_open:  # other clients of this process may share them
            self.served.connections.close()
        self._local_model.let_go()

    def _reset_after_fork(self) -> None:
        """In a forked child: use nothing inherited, and close nothing of the parent's."""
        self.served.connections.abandon()
        self._begin()
        self._on(self._policy.forked)

    def _on(self, event: Callable[..., Step], *told: object) -> list[Do | Say]:
        """Enter the situation after `event`, and take its actions.

        Returns the actions, but for DROP_LOCAL if there was no local model.
        """
        with self._lock:
            now, actions = self._policy.on(event, self.now, *told)
            # Before the state changes: an interrupt here must not leave it without a way back.
            if Do.START_PROBE in actions and not _starts(self._find_the_way_back, "embedshare-probe"):
                now = replace(now, probes=False)  # and the next call starts it
            if Do.START_LOOK in actions and not _starts(self._look, "embedshare-look"):
                now = replace(now, looks=False)
            done = [Do.DROP_LOCAL] if Do.DROP_LOCAL in actions and not self._local_model.let_go() else []
            if Do.RELEASE_NEVER in actions and self._release is not None:
                self._release.cancel()
            if Do.RELEASE_LATER in actions:
                self._release = threads.later(self._local_release_s, self._release_local)
            self.now = now
        for said in actions:
            if isinstance(said, Say):
                logger.log(said.level, said.message, *said.values)
        return [todo for todo in actions if todo not in done]

    def _check_open(self) -> None:
        if self.now.state is State.CLOSED:
            raise ClientClosed("the client is closed; get_embedding_model() gives a new one")

    def _local(self, deadline: float) -> Local | None:
        """The local model; each caller waits for it no longer than its deadline.

        None if the call goes to the server again: it is back, or no local model can be loaded. Raises
        ModelMismatch, and the load's error if there is no server to try.
        """
        if self.now.state is State.FALLING_BACK and not self.now.probes:
            self._on(self._policy.called)
        try:
            local = self._local_model.get(self.now.model, deadline, lambda: self.now.is_local)
        except DeadlineExceeded:
            raise
        except EmbedshareError as failure:
            self._on(self._policy.not_loaded)
            if self.now.state is State.LOCAL or isinstance(failure, ModelMismatch):
                raise
            return None
        if local is None:
            return None
        if self.now.model is None:
            self._on(self._policy.loaded, local.description)
        model = self.now.model
        same_space = model is not None and model.identity == local.description.identity
        return local if same_space else None  # or the server is back and was followed

    def _find_the_way_back(self) -> None:
        """Probe until the server answers, return to it, and unload the local model after a while."""
        pauses_s = PROBES.pauses_s()
        while not self._closing.wait(next(pauses_s)):
            if Do.STOP_PROBE in self._on(self._policy.woke):
                return
            if Do.STOP_PROBE in self._on(self._policy.probed, self._probe()):
                return

    def _probe(self) -> EmbedshareError | None:
        """The reason why the server does not answer; None if it does."""
        try:
            self.served.describe(CallContext(time.monotonic() + PROBE_TIMEOUT_S))
        except EmbedshareError as error:
            return error
        except Exception as error:  # an unexpected error must not end the probing
            return EmbedshareError(f"{type(error).__name__}: {error}")
        return None

    def _look(self) -> None:
        """A call got no answer in time: fall back for the next one if a new connection gets none either."""
        self._on(self._policy.looked, self._probe(), self._local_model.failure)

    def _release_local(self) -> None:
        if Do.DROP_LOCAL in self._on(self._policy.rested):
            from embedshare.providers.local import release_memory

            release_memory()
            logger.info("Unloaded the local model (the server answers)")


class Tries:
    """The tries of one call that has failed."""

    def __init__(self, failover: Failover, deadline: float) -> None:
        self._failover = failover
        self._deadline = deadline
        self._failed = 0

    def go_on(self, provider: Provider, error: EmbedshareError) -> bool:
        """Wait for another try after this error. False if there is none: then the caller raises it.

        Raises ServerUnavailable if neither a server nor a local model answers, and ModelMismatch.
        """
        failover = self._failover
        if provider is not failover.served:
            return False
        if isinstance(error, Overloaded):
            return self._waits(float(error.fields.get("retry_after_s", 1.0)) * random.uniform(0.75, 1.5))
        if isinstance(error, REFUSALS):
            failover._on(failover._policy.refused, error)
        elif isinstance(error, DeadlineExceeded):
            failover._on(failover._policy.timed_out)
        elif isinstance(error, ServerUnavailable):
            if failover._start_server():  # it is on its way: not a failed try
                return self._waits(random.uniform(0.1, 0.3))
            self._failed += 1
            pause_s, now_s = failover._retry_delay_s * random.uniform(0.5, 1.0), time.monotonic()
            tried = Try(error, self._failed, now_s + pause_s, self._deadline, failover._local_model.failure)
            if Do.TRY_AGAIN in failover._on(failover._policy.failed, tried, now_s):
                failover._closing.wait(pause_s)
            return True
        return False

    def _waits(self, seconds: float) -> bool:
        """Wait before another try, unless the deadline would pass first."""
        if time.monotonic() + seconds >= self._deadline:
            return False
        self._failover._closing.wait(seconds)
        return True


def _starts(work: Callable[[], object], name: str) -> bool:
    return threads.start(work, name, daemon=True) is not None
