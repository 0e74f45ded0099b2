"""An integration test of a running service, which needs requests and numpy alone.

`EMBEDDING_SERVICE_URL=http://localhost:8000 python deploy/try_embedding.py` checks the service there, in a
container or elsewhere, with EMBEDDING_API_KEY if it asks for a key. It prints a line for each check that
passes, and exits with 0, or with 1 after a line on the one that fails.
"""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import requests

URL = os.environ.get("EMBEDDING_SERVICE_URL", "http://localhost:8000").rstrip("/")
KEY = os.environ.get("EMBEDDING_API_KEY")
TIMEOUT_S = 60
SESSION = requests.Session()
#: The environment's proxy is for the internet: it cannot reach this machine's loopback.
SESSION.trust_env = urlsplit(URL).hostname not in ("localhost", "127.0.0.1", "::1")
#: The least cosine of two vectors of one text, possibly from different batches.
SAME = 0.999
TEXTS = [
    "A cat sits on the mat.",
    "A kitten rests on the rug.",
    "The central bank raised interest rates by half a point.",
    "漢字 and 😀",
]


def main() -> int:
    """Run all checks, and stop at the first failure."""
    for name, check in CHECKS.items():
        try:
            check()
        except AssertionError as error:
            return _say(f"does not hold: {name}: {error}", 1)
        except (requests.RequestException, ValueError, KeyError) as error:
            return _say(f"does not hold: {name}: {type(error).__name__}: {error}", 1)
        _say(f"holds: {name}")
    return _say(f"{URL} embeds as it should")


def is_well() -> None:
    answer = SESSION.get(f"{URL}/health", timeout=TIMEOUT_S)
    _hold(answer.status_code == 200, f"the status is {answer.status_code}")
    _hold(answer.json()["status"] == "ok", f"it says {answer.text}")


def a_vector_for_each_text() -> None:
    rows = _embed(TEXTS)
    _hold(rows.ndim == 2 and len(rows) == len(TEXTS), f"{len(TEXTS)} texts gave the shape {rows.shape}")
    _hold(bool(np.isfinite(rows).all()), "a value is not a finite number")
    _hold(bool((np.linalg.norm(rows, axis=1) > 0).all()), "a vector is zero")


def in_the_texts_order() -> None:
    forwards, backwards = _embed(TEXTS), _embed(TEXTS[::-1])
    _hold_same(forwards, backwards[::-1])


def alone_as_in_company() -> None:
    together = _embed([*TEXTS, "word " * 300])  # a long text beside short ones
    alone = np.concatenate([_embed([text]) for text in TEXTS])
    _hold_same(together[: len(TEXTS)], alone)


def nearer_where_the_meaning_is() -> None:
    cat, kitten, bank, _ = _unit(_embed(TEXTS))
    near, far = float(cat @ kitten), float(cat @ bank)
    _hold(near > far + 0.2, f"cat and kitten have a cosine of {near:.2f}, cat and bank of {far:.2f}")


def own_vectors_for_callers_at_the_same_time() -> None:
    texts = [f"caller number {number} asks this" for number in range(32)]
    with ThreadPoolExecutor(16) as threads:
        rows = np.concatenate(list(threads.map(lambda text: _embed([text]), texts)))
    _hold_same(rows, _embed(texts))
    nearest = (_unit(rows) @ _unit(_embed(texts)).T).argmax(axis=1)
    _hold(nearest.tolist() == list(range(len(texts))), "a caller got another's vector")


def an_error_for_what_is_no_request() -> None:
    for body in (b"not json", b'{"texts": 7}', b'{"texts": [null]}'):
        answer = _post(body)
        _hold(400 <= answer.status_code < 500, f"{body!r} gave the status {answer.status_code}")
        _hold(bool(answer.json()), f"{body!r} gave no reason")


CHECKS = {
    "GET /health says that it is well": is_well,
    "each text has a vector": a_vector_for_each_text,
    "vectors come in the texts' order": in_the_texts_order,
    "a text has one vector, alone and with others": alone_as_in_company,
    "texts of like meaning are nearer": nearer_where_the_meaning_is,
    "callers at the same time get their own vectors": own_vectors_for_callers_at_the_same_time,
    "invalid requests are refused": an_error_for_what_is_no_request,
}


def _post(body: bytes) -> requests.Response:
    headers = {"Content-Type": "application/json"}
    if KEY:
        headers["Authorization"] = f"Bearer {KEY}"
    return SESSION.post(f"{URL}/embed", data=body, headers=headers, timeout=TIMEOUT_S)


def _embed(texts: list[str]) -> np.ndarray:
    answer = _post(json.dumps({"texts": texts}).encode())
    _hold(answer.status_code == 200, f"the status is {answer.status_code}: {answer.text[:300]}")
    return np.array(answer.json()["embeddings"], np.float32)


def _unit(rows: np.ndarray) -> Any:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _hold_same(one: np.ndarray, other: np.ndarray) -> None:
    """Rows are the same vectors, up to rounding."""
    _hold(one.shape == other.shape, f"the shapes are {one.shape} and {other.shape}")
    cosine = float((_unit(one) * _unit(other)).sum(axis=1).min())
    _hold(cosine > SAME, f"two vectors of one text have a cosine of {cosine:.4f}")


def _hold(condition: bool, otherwise: str) -> None:
    if not condition:
        raise AssertionError(otherwise)


def _say(line: str, code: int = 0) -> int:
    sys.stdout.write(line + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
