"""A remote service's API: what it is asked, what it answers, and what its failures mean."""

from __future__ import annotations

import abc
import email.utils
import enum
import math
import os
import time
from collections.abc import Mapping, Sequence
from datetime import timezone
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np

from embedshare import hosts
from embedshare.calls import Inputs
from embedshare.errors import (
    EmbedshareError,
    InvalidInput,
    Overloaded,
    ProviderFailed,
    ProviderRefused,
    TooLarge,
)
from embedshare.models.spec import ModelSpec, RemoteSpec

#: The longest part of a service's own message that an error repeats, in characters.
_SHOWN = 300
#: Statuses of a service that is busy or broken for the moment.
_TEMPORARY = frozenset({408, 409, 425, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529})
#: Statuses that say that no further request of this kind is answered.
_REFUSALS = frozenset({401, 402, 403, 404})


class Kind(str, enum.Enum):
    """Kinds of failure of a request, by what is done about them."""

    INPUT = "input"  # the texts are refused: the caller's error
    LIMITED = "limited"  # too many requests: wait as long as it says
    REFUSED = "refused"  # key, credit or model: every request fails
    TIMED_OUT = "timed_out"
    TEMPORARY = "temporary"  # try again
    INVALID = "invalid"  # an answer that cannot be right


class RequestFailed(Exception):
    """A request got no vectors. `retry_after_s`: the pause that the service asks for; 0 without one."""

    def __init__(self, kind: Kind, error: EmbedshareError, retry_after_s: float = 0.0) -> None:
        super().__init__(error.message)
        self.kind = kind
        self.error = error
        self.retry_after_s = retry_after_s


class Answer(NamedTuple):
    """Vectors of one request, in the order of its texts."""

    rows: np.ndarray
    """Float32 (n, dimension)"""

    tokens: int | None
    """Tokens that the service counted in all texts, if it says so."""


class Endpoint(abc.ABC):
    """One model of a remote service. Its coroutines run in one event loop; they try once."""

    #: Texts, and tokens, of one request.
    max_texts = 64
    max_request_tokens: float = math.inf
    #: Tokens of the longest text, if neither the specification nor the service says so.
    max_tokens = 8192
    takes_tokens = False

    def __init__(self, spec: ModelSpec) -> None:
        self.model = spec.name
        self.provider = spec.provider
        self.remote = spec.remote or RemoteSpec()
        self.max_tokens = self.remote.max_tokens or self.max_tokens
        self.key_variable = self.remote.api_key_env

    async def open(self) -> None:  # noqa: B027 - most services tell nothing
        """Learn the service's limits. Raises RequestFailed."""

    @abc.abstractmethod
    async def embed(self, inputs: Inputs, truncate: bool) -> Answer:
        """The vectors of one request. Raises RequestFailed."""

    async def tokenize(self, texts: list[str], special_tokens: bool) -> list[list[Any]] | None:
        """The tokens of each text, as `calls.Token`; None if the service has no tokenizer for callers."""
        return None

    async def close(self) -> None:  # noqa: B027 - not every client holds something
        """Close the connections."""

    def failed(
        self, status: int, message: str, headers: Mapping[str, str], code: str | None = None
    ) -> RequestFailed:
        """The meaning of an error's status, with the service's own message and code."""
        told = f"{self.provider} answers {status} for {self.model}: {' '.join(message.split())[:_SHOWN]}"
        retry_after_s = retry_after(headers)
        if status in _REFUSALS or code == "insufficient_quota":
            return RequestFailed(Kind.REFUSED, ProviderRefused(told, status=status), retry_after_s)
        if status == 429 or (status == 503 and retry_after_s):
            error = Overloaded(told, retry_after_s=retry_after_s or 1.0)
            return RequestFailed(Kind.LIMITED, error, retry_after_s)
        if status in _TEMPORARY or status >= 500:
            return RequestFailed(Kind.TEMPORARY, ProviderFailed(told, status=status), retry_after_s)
        return RequestFailed(Kind.INPUT, TooLarge(told) if status == 413 else InvalidInput(told))

    def unreachable(self, error: BaseException) -> RequestFailed:
        """The service cannot be reached, or the connection ended within its answer."""
        shown = str(error) or type(error).__name__
        told = f"{self.provider} does not answer for {self.model}: {shown[:_SHOWN]}"
        return RequestFailed(Kind.TEMPORARY, ProviderFailed(told))

    def invalid(self, what: str) -> RequestFailed:
        """An answer that cannot be right."""
        told = f"{self.provider} sent no valid answer for {self.model}: {what[:_SHOWN]}"
        return RequestFailed(Kind.INVALID, ProviderFailed(told))

    def checked(self, rows: Sequence[Any] | np.ndarray, count: int) -> np.ndarray:
        """The rows as float32 (count, dimension), all finite. Raises RequestFailed."""
        if len(rows) != count:
            raise self.invalid(f"{len(rows)} vectors for {count} texts")
        try:
            found = np.asarray(rows, np.float32)
        except (TypeError, ValueError, OverflowError):
            raise self.invalid("vectors of different lengths, or values that are no numbers") from None
        if found.ndim != 2 or not found.shape[1]:
            raise self.invalid("vectors without values")
        if not np.isfinite(found).all():
            raise self.invalid("values that are not finite")
        return found

    def authorize(self, request: Any) -> Any:
        """An httpx request with the key, if there is one. Raises RequestFailed."""
        key = self.key()
        if key is not None:
            request.headers["Authorization"] = f"Bearer {key}"
        return request

    def key(self) -> str | None:
        """The key; None for a service that needs none. Raises RequestFailed if it is missing."""
        if self.remote.api_key_file is not None:
            return self._key_of_file(self.remote.api_key_file)
        if self.key_variable is None:
            return None
        key = os.environ.get(self.key_variable, "").strip()
        if not key:
            raise self._lacks_key(f"set {self.key_variable} in the model server's environment")
        return key

    def _key_of_file(self, path: str) -> str:
        try:
            with open(path, encoding="utf-8") as file:
                key = file.read(4096).strip()
        except (OSError, UnicodeDecodeError) as error:
            raise self._lacks_key(f"{path} cannot be read: {error}") from None
        if not key.isprintable() or not key.isascii() or not key:
            raise self._lacks_key(f"{path} holds no key of printable ASCII characters")
        return key

    def _lacks_key(self, what: str) -> RequestFailed:
        return RequestFailed(
            Kind.REFUSED, ProviderRefused(f"{self.model} has no API key; {what}", status=401)
        )

    def trusts_environment(self, address: str) -> bool:
        """Whether a proxy of the environment applies: it is for the internet, not for this machine."""
        return not hosts.is_loopback(urlsplit(address).hostname or "")


def retry_after(headers: Mapping[str, str]) -> float:
    """The pause that headers ask for, in seconds: `retry-after-ms`, or `Retry-After` as a number or a date
    (RFC 9110, 10.2.3); 0 without a valid one."""
    milliseconds, given = headers.get("retry-after-ms"), headers.get("retry-after")
    for text, unit in ((milliseconds, 1000.0), (given, 1.0)):
        try:
            seconds = float(text or "") / unit
        except ValueError:
            continue
        if math.isfinite(seconds):
            return max(0.0, seconds)
    try:
        moment = email.utils.parsedate_to_datetime(given or "")
    except (TypeError, ValueError):
        return 0.0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    return max(0.0, moment.timestamp() - time.time())
