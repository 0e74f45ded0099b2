"""The alert rules and the dashboard against a real Prometheus that scrapes a running system."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.processes import ROOT, SRC, STARTED, ModelServer, free_port, wait_for

DEPLOY = ROOT / "deploy"
RULES = (DEPLOY / "prometheus/alerts.yml").read_text(encoding="utf8")
DASHBOARD = json.loads((DEPLOY / "grafana/embedshare.json").read_text(encoding="utf8"))
#: Metrics that a machine without a GPU lacks.
NOT_HERE = {"embedshare_server_gpu_memory_bytes"}

pytestmark = [
    pytest.mark.skipif(
        not (shutil.which("prometheus") and shutil.which("promtool")),
        reason="prometheus and promtool are not on the path (Debian's package prometheus has them)",
    ),
    pytest.mark.skipif(sys.platform == "win32", reason="the configuration's paths are a Unix machine's"),
]


def dashboard_queries() -> list[str]:
    panels = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def test_promtool_finds_nothing_wrong_with_configuration_and_rules() -> None:
    config = DEPLOY / "prometheus/prometheus.yml"
    done = subprocess.run(
        ["promtool", "check", "config", str(config)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{RULES.count('- alert: ')} rules found" in done.stdout


def test_the_dashboard_s_panels_neither_overlap_nor_share_an_id() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        places = {
            (x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])
        }
        assert not places & taken
        assert at["x"] + at["w"] <= 24
        taken |= places


class System:
    """A model server, a worker that falls back, one that does not, and the Prometheus that scrapes them."""

    def __init__(self, folder: Path) -> None:
        metrics, self.ports, watcher = free_port(), [free_port(), free_port()], free_port()
        self.server = ModelServer(folder, EMBEDDING_METRICS_PORT=str(metrics)).start()
        fallbacks = ("local", "none")
        self.processes = [
            self._worker(folder, port, fallback) for port, fallback in zip(self.ports, fallbacks, strict=True)
        ]
        config = (DEPLOY / "prometheus/prometheus.yml").read_text(encoding="utf8").replace("15s", "1s")
        config = config.replace("127.0.0.1:9101", f"127.0.0.1:{metrics}")
        workers = ", ".join(f'"127.0.0.1:{port}"' for port in self.ports)
        config, replaced = re.subn(r'\["127\.0\.0\.1:5000".*\]', f"[{workers}]", config)
        assert replaced == 1
        (folder / "prometheus.yml").write_text(config)
        (folder / "alerts.yml").write_text(re.sub(r"for: \w+", "for: 0s", RULES))
        with (folder / "prometheus.log").open("wb") as said:
            self.processes.append(
                subprocess.Popen(
                    ["prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=tsdb",
                     f"--web.listen-address=127.0.0.1:{watcher}"],
                    cwd=folder, stdout=said, stderr=said,
                )
            )  # fmt: skip
        self.api = f"http://127.0.0.1:{watcher}/api/v1"

    def _worker(self, folder: Path, port: int, fallback: str) -> subprocess.Popen[bytes]:
        environment = self.server.environment(
            EMBEDDING_FALLBACK=fallback,
            PORT=str(port),
            EMBEDDING_TIMEOUT_S="2" if fallback == "none" else "60",
        )
        with (folder / f"worker-{port}.log").open("wb") as said:
            return subprocess.Popen(
                [sys.executable, str(SRC / "app.py")], env=environment, cwd=folder, stdout=said, stderr=said
            )

    def embed(self, worker: int, texts: list[str]) -> int:
        url = f"http://127.0.0.1:{self.ports[worker]}/embed"
        return requests.post(url, json={"texts": texts}, timeout=90).status_code

    def fail(self) -> int:
        url = f"http://127.0.0.1:{self.ports[1]}/embed"
        body = {"inputs": "a text", "prompt_name": "no such prompt"}
        return requests.post(url, json=body, timeout=90).status_code

    def asked(self, what: str, **parameters: str) -> Any:
        answer = requests.get(f"{self.api}/{what}", params=parameters, timeout=30).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expression: str) -> list[Any]:
        for variable, value in (("$__rate_interval", "1m"), ("$server", ".*"), ("$worker", ".*")):
            expression = expression.replace(variable, value)
        return list(self.asked("query", query=expression)["result"])

    def all_up(self) -> bool:
        try:
            return len(self.query("up == 1")) == 3
        except requests.RequestException:  # Prometheus is not ready yet
            return False

    def firing(self) -> set[str]:
        alerts = self.asked("alerts")["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    running = System(tmp_path_factory.mktemp("watched"))
    try:
        wait_for(running.all_up, 60, "a scrape of all three")
        assert {running.embed(worker, ["a text"]) for worker in (0, 1)} == {200}
        assert running.fail() in range(400, 500)  # gives the failure metrics a first value
        yield running
    finally:
        for process in running.processes:
            process.terminate()
        for process in running.processes:
            process.wait(30)
        if not running.server.ended:
            running.server.stop()


@pytest.mark.long
def test_an_alert_fires_when_the_server_is_killed_and_ends_when_it_is_back(system: System) -> None:
    with ThreadPoolExecutor(8) as threads:
        codes = list(threads.map(lambda number: system.embed(number % 2, ["a text"] * 5), range(40)))
    assert set(codes) == {200}
    states = 'embedshare_client_state{state="connected"}'
    wait_for(lambda: [one["value"][1] for one in system.query(states)] == ["1", "1"], 30, "both states")
    assert system.firing() == set()
    system.server.kill()
    assert system.embed(0, ["by the local model"]) == 200
    expected = {"EmbedshareServerDown", "EmbedshareFallingBack", "EmbedshareErrors"}

    def fire() -> bool:  # a rate needs growth between scrapes: a single failure has none
        assert system.embed(1, ["by nobody"]) in (503, 504)
        return expected <= system.firing()

    wait_for(fire, 60, f"{sorted(expected)}")
    system.server.start()
    STARTED.pop()  # the module's other tests still use this server
    gone = {"EmbedshareServerDown", "EmbedshareFallingBack"}
    wait_for(lambda: not gone & system.firing(), 60, f"the end of {sorted(gone)}")
    assert system.embed(1, ["by the server again"]) == 200


def test_every_metric_that_rules_and_dashboard_name_exists(system: System) -> None:
    named = set(re.findall(r"embedshare_[a-z_]+", RULES + " ".join(dashboard_queries())))
    assert len(named) > 25
    wait_for(lambda: not named - NOT_HERE - set(system.asked("label/__name__/values")), 20, f"all of {named}")
    assert not NOT_HERE & set(system.asked("label/__name__/values"))  # otherwise they need no exception


def test_every_query_of_the_dashboard_has_an_answer(system: System) -> None:
    expected = {
        query for query in dashboard_queries() if not NOT_HERE & set(re.findall(r"embedshare_\w+", query))
    }
    answered: set[str] = set()

    def all_answered() -> bool:
        answered.update(query for query in expected - answered if system.query(query))
        return answered == expected

    try:
        wait_for(all_answered, 20)
    except AssertionError:
        assert answered == expected
    for query in set(dashboard_queries()) - expected:
        assert system.query(query) == []


def test_every_rule_evaluates(system: System) -> None:
    rules = [rule for group in system.asked("rules")["groups"] for rule in group["rules"]]
    assert len(rules) == RULES.count("- alert: ")
    assert [rule["lastError"] for rule in rules if rule.get("lastError")] == []
    assert {rule["health"] for rule in rules} == {"ok"}
    for rule in rules:
        assert set(rule["annotations"]) == {"summary", "action"}
        assert rule["labels"]["severity"] in ("critical", "warning")
