"""Shared fixtures of these tests: a browser, and a client that reaches the server through a proxy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from embeddingClient import EmbeddingClient
from tests.processes import ModelServer
from tests.proxy import Proxy

if TYPE_CHECKING:
    from playwright.sync_api import Browser

TEXTS = [f"text number {number} on its way" for number in range(40)]


@pytest.fixture(scope="package")
def expected(reference: Any) -> np.ndarray:
    """The vectors of TEXTS."""
    return np.asarray(reference.encode(TEXTS))


@pytest.fixture
def proxy(server: ModelServer) -> Iterator[Proxy]:
    """A proxy in front of the default server."""
    ours = Proxy(server.port)
    yield ours
    ours.close()


@pytest.fixture
def caller(server: ModelServer, proxy: Proxy) -> Iterator[EmbeddingClient]:
    """A client that is connected through the proxy and has no fallback."""
    with server.client(EMBEDDING_FALLBACK="none", EMBEDDING_SERVER_PORT=str(proxy.port)) as client:
        client.encode("connect")
        yield client


def check(client: EmbeddingClient, expected: np.ndarray, number: int, timeout: float | None = None) -> None:
    """Fail unless the client's vector of TEXTS[number] is correct."""
    assert float(client.encode(TEXTS[number], timeout=timeout) @ expected[number]) > 0.9995


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """The machine's own Chromium."""
    from playwright.sync_api import sync_playwright  # most tests here need no browser

    from tests.watching import CHROMIUM

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()
