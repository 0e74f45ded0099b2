"""`/settings` without a database: readable, and changed only through the environment."""

from __future__ import annotations

import pytest
import requests

from tests.web.conftest import Worker


def test_the_settings_of_the_environment_are_shown_as_such(worker: Worker) -> None:
    answer = requests.get(f"{worker.url}/settings", timeout=30).json()
    assert (answer["source"], answer["version"], answer["notes"]) == ("environment", 0, {})
    assert answer["settings"] == {
        "model_name": "all-MiniLM-L6-v2", "device": "auto", "model_cache_dir": None,
        "normalize_embeddings": False, "max_batch_size": 0, "host": "127.0.0.1", "port": worker.port,
        "cors_origins": [],
    }  # fmt: skip
    assert sorted(answer["supported_keys"]) == sorted(answer["settings"])


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/settings", {"key": "port", "value": 8001}),
        ("POST", "/settings/bulk", {"settings": {"port": 8001}}),
        ("POST", "/update-model-config", {"model_name": "another", "device": "cpu"}),
        ("DELETE", "/settings/port", None),
        ("GET", "/settings/audit", None),
    ],
)
def test_a_change_is_refused_with_how_to_allow_it(
    worker: Worker, method: str, path: str, body: object
) -> None:
    answer = requests.request(method, f"{worker.url}{path}", json=body, timeout=30)
    assert (answer.status_code, answer.json()["type"]) == (400, "SettingsFixed")
    assert "EMBEDDING_USE_DB_SETTINGS=true" in answer.json()["error"]


@pytest.mark.parametrize("path", ["/settings/audit", "/settings/bulk"])
def test_a_route_of_its_own_is_no_setting_to_delete(worker: Worker, path: str) -> None:
    assert requests.delete(f"{worker.url}{path}", timeout=30).status_code == 405


def test_a_page_of_another_site_cannot_have_a_browser_change_a_setting(worker: Worker) -> None:
    body = '{"key": "port", "value": 8001}'
    for kind in ({"Content-Type": "text/plain"}, {}):
        answer = requests.post(f"{worker.url}/settings", data=body, headers=kind, timeout=30)
        assert answer.status_code == 415
