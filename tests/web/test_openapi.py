"""The description holds for what a worker does, whatever a client sends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import requests

from embedshare.web.embed import BASE64
from embedshare.web.errors import JSON
from tests.web.conftest import Worker

#: A body whose parts contradict each other, as no schema can say: URLs of another number than the documents.
CONFIGURATION = """
[[operations]]
include-path-regex = "^/index(/[{]index[}]/documents)?$"
checks.positive_data_acceptance.expected-statuses = ["2xx", "404", "422"]
"""


@pytest.mark.skipif(sys.version_info < (3, 11), reason="schemathesis needs Python 3.11")
def test_every_answer_is_as_described(worker: Worker, tmp_path: Path) -> None:
    (tmp_path / "schemathesis.toml").write_text(CONFIGURATION)
    done = subprocess.run(
        [str(Path(sys.executable).with_name("schemathesis")), "run", f"{worker.url}/openapi.json",
         "--checks=all", "--mode=all", "--max-examples=100", "--seed=1", "--generation-database=none"],
        cwd=tmp_path, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "15 selected / 15 total" in done.stdout  # all but the description itself


def test_the_description_is_openapi_and_holds_what_the_views_declare(worker: Worker) -> None:
    description = requests.get(f"{worker.url}/openapi.json", timeout=30).json()
    assert description["openapi"] == "3.1.0"
    found = {
        (path, method): set(operation["responses"])
        for path, operations in description["paths"].items()
        for method, operation in operations.items()
    }
    assert found == {
        ("/dashboard", "get"): {"200", "304", "500"},
        ("/dashboard/data", "get"): {"200", "500"},
        ("/dashboard/static/{name}", "get"): {"200", "304", "404", "500"},
        ("/embed", "post"): {"200", "400", "413", "415", "500", "503", "504"},
        ("/embedding/health", "get"): {"200", "500", "503"},
        ("/embedding/stats", "get"): {"200", "500", "503", "504"},
        ("/metrics", "get"): {"200", "500"},
        ("/health", "get"): {"200", "500"},
        ("/index", "post"): {"201", "400", "413", "415", "422", "500", "503", "504"},
        ("/index/{index}", "delete"): {"204", "404", "500", "503"},
        ("/index/{index}/documents", "post"): {"200", "400", "404", "413", "415", "422", "500", "503", "504"},
        ("/index/{index}/search", "post"): {"200", "400", "404", "413", "415", "500", "503", "504"},
        ("/load", "get"): {"200", "500"},
        ("/openapi.json", "get"): {"200", "500"},
        ("/search", "get"): {"200", "304", "500"},
        ("/search", "post"): {"200", "400", "403", "413", "415", "500", "502", "503", "504"},
    }
    embed = description["paths"]["/embed"]["post"]
    assert set(embed["responses"]["200"]["content"]) == {JSON, BASE64}
    assert "Retry-After" in embed["responses"]["503"]["headers"]
    texts = description["components"]["schemas"]["EmbedRequest"]["properties"]["texts"]
    assert texts == {"type": "array", "items": {"type": "string"}}
