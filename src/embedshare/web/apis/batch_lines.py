"""The lines of OpenAI's batches: read into a job's, and written from its results."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Literal

import msgspec
import numpy as np

from embedshare.calls import are_tokens
from embedshare.errors import EmbedshareError, InvalidInput, TooLarge
from embedshare.jobs.parts import Line
from embedshare.jobs.spec import Failure, JobLine
from embedshare.web import body, errors
from embedshare.web.apis import openai
from embedshare.web.apis.embed import dumped
from embedshare.web.guards.request_limits import RequestLimits
from embedshare.web.model_client import ModelClient
from embedshare.web.models import Models

ENDPOINT = "/v1/embeddings"
#: The most faults that are told of one file.
MOST_FAULTS = 100
_EXAMPLE = '{"custom_id": "1", "method": "POST", "url": "/v1/embeddings", "body": {"input": "a text"}}'


class _BatchLine(msgspec.Struct):
    custom_id: str
    method: Literal["POST"]
    url: Literal["/v1/embeddings"]
    body: msgspec.Raw


class _Body(msgspec.Struct):
    model: str | None = None


class Fault(msgspec.Struct):
    """A fault of a batch's file, and its line, from 1."""

    code: str
    line: int | None
    message: str
    param: str | None = None


class BatchReader:
    """Reads a file's lines; `faults` are those for which the whole file is refused."""

    def __init__(self, models: Models, limits: RequestLimits) -> None:
        self._models = models
        self._limits = limits
        self._line = msgspec.json.Decoder(_BatchLine)
        self._request = msgspec.json.Decoder(openai.OpenAIRequest)
        self._model_of = msgspec.json.Decoder(_Body)
        self._special: tuple[list[int], list[int]] | None = None
        self._ids = array("Q")
        self.faults: list[Fault] = []
        self.model: ModelClient | None = None
        """The model of all lines; None before the first."""
        self.model_name: str | None = None

    def read(self, lines: Iterable[bytes]) -> Iterator[JobLine]:
        """The job's lines, until there are too many faults."""
        for number, line in enumerate(lines, 1):
            found = self._read(line, number)
            if found is not None:
                yield found
            if len(self.faults) >= MOST_FAULTS:
                return
        self._check_ids()

    def _read(self, line: bytes, number: int) -> JobLine | None:
        try:
            given = self._line.decode(line)
            named = self._model_of.decode(given.body).model
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            message = f"the line must be JSON such as {_EXAMPLE}: {body.reason(error, line)}"
            self.faults.append(Fault("invalid_json_line", number, message))
            return None
        self._ids.append(int.from_bytes(blake2b(given.custom_id.encode(), digest_size=8).digest(), "little"))
        if not self._has_model(named, number):
            return None
        return self._job_line(given)

    def _has_model(self, named: str | None, number: int) -> bool:
        """Whether the line's model is the file's, of which there is one."""
        if self.model is None:
            try:
                self.model, self.model_name = self._models.prompted(named), named
            except EmbedshareError as error:
                if error.http_status >= 500:
                    raise
                self.faults.append(Fault("model_not_found", number, error.message, "model"))
        elif named != self.model_name:
            first = f"{self.model_name!r:.100}"
            message = f"the model is {named!r:.100}; all lines of a file must name the first's, {first}"
            self.faults.append(Fault("mismatched_model", number, message, "model"))
        return self.model is not None and named == self.model_name

    def _job_line(self, given: _BatchLine) -> JobLine:
        """The line's inputs, or the error that `/v1/embeddings` would answer."""
        about = {"custom_id": given.custom_id}
        try:
            asked = self._decoded(given.body)
            inputs = openai.inputs(asked.input)
            if not openai.gives_dense_alone(asked):
                raise InvalidInput("a batch gives dense vectors alone: leave `embedding_types` out")
            self._limits.check(inputs, "input")
            if are_tokens(inputs):
                self._check_tokens(inputs, asked.model)
        except InvalidInput as error:
            failure = Failure(type(error).__name__, error.message, error.http_status)
            return JobLine([], failure=failure, about=about)
        if openai.form_of(asked) == "base64":
            about["form"] = "base64"
        dimensions = None if asked.dimensions is None else int(asked.dimensions)
        return JobLine(list(inputs), dimensions, about=about)

    def _decoded(self, given: msgspec.Raw) -> openai.OpenAIRequest:
        try:
            return self._request.decode(given)
        except msgspec.DecodeError as error:
            raise InvalidInput(f"the body is wrong: {body.reason(error, bytes(given))}") from None

    def _check_tokens(self, sequences: list[list[int]], named: str | None) -> None:
        assert self.model is not None
        openai.check_tokens(sequences, named, self.model, self._special_tokens)

    def _special_tokens(self) -> tuple[list[int], list[int]]:
        """The model's, asked for once, since a job has one model."""
        if self._special is None:
            assert self.model is not None
            self._special = self.model.special_tokens()
        return self._special

    def _check_ids(self) -> None:
        if len(self._ids) < 2:
            return
        digests = np.frombuffer(self._ids, np.uint64)
        _, first = np.unique(digests, return_index=True)
        if len(first) < len(digests):
            again = np.setdiff1d(np.arange(len(digests)), first)[0]
            message = "the custom_id is that of an earlier line; each line needs its own"
            self.faults.append(Fault("duplicate_custom_id", int(again) + 1, message, "custom_id"))


def check_count(number: int, most: int) -> None:
    """Raise TooLarge for more lines than a job may have."""
    if number > most:
        raise TooLarge(f"the file has more lines than EMBEDDING_MAX_JOB_TEXTS allows, {most:,}")


def written(job: str, number: int, asked: JobLine, line: Line, model_name: str) -> bytes:
    """The line of a batch's output or error file for the input's line `number`, from 0."""
    if line.failure is None:
        status, content = (
            200,
            openai.answer(line.rows, asked.about.get("form"), model_name, int(line.tokens.sum())),
        )
    else:
        status = line.failure.status
        content = msgspec.to_builtins(errors.of_openai(line.failure.message, line.failure.type, status))
    request_id = f"batch_req_{job}{number:08x}"
    return dumped(
        {
            "id": request_id,
            "custom_id": asked.about["custom_id"],
            "response": {"status_code": status, "request_id": request_id, "body": content},
            "error": None,
        }
    )
