"""A web worker over one small model of each kind, whose folders the library loads too."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import requests

from tests.kinds_server import KindsServer
from tests.web.conftest import Worker


class Kinds(NamedTuple):
    """The server, and its worker."""

    server: KindsServer
    worker: Worker

    @property
    def folders(self) -> dict[str, Path]:
        """The folders of the server's models."""
        return self.server.folders

    def post(self, path: str, body: Any, status: int = 200) -> Any:
        """The JSON of an answer, which must have this status."""
        answer = requests.post(f"{self.worker.url}{path}", json=body, timeout=60)
        assert answer.status_code == status, answer.text
        return answer.json()

    def get(self, path: str) -> Any:
        """The JSON of an answer."""
        answer = requests.get(f"{self.worker.url}{path}", timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()
