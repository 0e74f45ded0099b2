"""deploy/docker: checks of images and services without an engine that builds and runs them."""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from embedshare.settings import Settings
from embedshare.settings.settings import PLACES
from embedshare.supervise.supervisor import STOP_GRACE_S
from tests.deploy import nginx
from tests.processes import ROOT, environment

FILES = ROOT / "deploy" / "docker"
DOCKERFILE = (FILES / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((FILES / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = ("server", "worker")


def program(name: str) -> str:
    """Return the path of a linter from requirements-dev.txt; skip the test if this platform has none."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def copied() -> list[str]:
    """The paths of the repository that the image copies."""
    lines = re.findall(r"^COPY (?!--link)(?:--\S+ )?(.*) \S+$", DOCKERFILE, re.MULTILINE)
    return sorted({path for line in lines for path in line.split()})


def seconds(text: str) -> float:
    assert text.endswith("s")
    return float(text[:-1])


def test_hadolint_finds_no_fault_in_the_dockerfile() -> None:
    done = subprocess.run(
        [program("hadolint"), "--no-color", "--failure-threshold", "info", str(FILES / "Dockerfile")],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_the_compose_files_fit_the_compose_specification(name: str) -> None:
    done = subprocess.run(
        [program("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(FILES / name)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_both_targets_run_as_a_user_of_their_own_with_a_health_check() -> None:
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)
    named = {match[2]: match[1] for match in re.finditer(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.MULTILINE)}
    assert named["cpu"] == named["cuda"] == "runtime"
    runtime = next(stage for stage in stages if " AS runtime\n" in stage)
    assert "\nUSER ${EMBEDSHARE_UID}\n" in runtime
    assert re.search(r"^ARG EMBEDSHARE_UID=[1-9]\d*$", runtime, re.MULTILINE)
    assert "\nHEALTHCHECK " in runtime
    assert all("USER" not in stage for stage in stages if stage is not runtime)
    tags = re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert len(tags) == 1
    assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+", tags[0])


def test_packages_are_installed_before_the_source_is_there() -> None:
    before = DOCKERFILE[: DOCKERFILE.index("AS source")]
    assert before.count("pip install") == 3
    assert re.findall(r"^COPY (.*)$", before, re.MULTILINE) == ["requirements.txt ."]
    assert re.findall(r"^torch==\S+$", (ROOT / "requirements.txt").read_text(), re.MULTILINE)  # the pattern


def test_the_build_context_has_what_is_copied_and_no_keys() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert rules[0] == "*"
    allowed = [rule[1:] for rule in rules if rule.startswith("!")]
    assert copied()
    for path in copied():
        assert (ROOT / path).exists()
        assert path in allowed
    for secret in (
        ".env",
        "deploy/docker/authkey.secret",
        "deploy/docker/adminkey.secret",
        "deploy/docker/.env",
        ".venv",
        ".git",
    ):
        assert not any(fnmatch.fnmatch(secret, rule) for rule in allowed)


def test_what_is_copied_is_all_that_the_programs_need(tmp_path: Path) -> None:
    for path in copied():
        source, target = ROOT / path, tmp_path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    given = environment(PYTHONDONTWRITEBYTECODE="1", EMBEDDING_SERVER_PORT="none")
    del given["PYTHONPATH"]
    commands = [service["command"] for service in (SERVICES["server"], SERVICES["worker"])]
    commands += [SERVICES[name]["healthcheck"]["test"][1:] for name in OURS]
    jobs = SERVICES["jobs"]
    for command in (
        *commands, ["python", "service_manager.py"], jobs["command"], SERVICES["sessions"]["command"],
    ):  # fmt: skip
        its_own = {"PYTHONPATH": jobs["environment"]["PYTHONPATH"]} if command is jobs["command"] else {}
        done = subprocess.run(
            [sys.executable, *command[1:]],
            env={**given, **its_own},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        # every module is imported, and the program reaches its settings
        assert "EMBEDDING_SERVER_PORT is 'none'" in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        assert done.returncode == 1


def test_the_services_stop_later_than_they_drain() -> None:
    for name in OURS:
        assert seconds(SERVICES[name]["stop_grace_period"]) > Settings().server.drain_s + 2 * STOP_GRACE_S


def test_the_keys_are_secrets_and_in_no_environment() -> None:
    assert SERVICES["server"]["secrets"] == ["authkey"]
    assert SERVICES["worker"]["secrets"] == ["authkey", "adminkey"]
    assert SERVICES["worker"]["environment"]["EMBEDDING_ADMIN_KEY_FILE"] == "/run/secrets/adminkey"
    for name in OURS:
        service = SERVICES[name]
        assert service["environment"]["EMBEDDING_AUTHKEY_FILE"] == "/run/secrets/authkey"
        assert "EMBEDDING_AUTHKEY" not in service["environment"]
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    for secret in COMPOSE["secrets"].values():
        assert f"deploy/docker/{secret['file']}" in ignored


def test_workers_keep_their_api_keys_in_one_volume() -> None:
    worker = SERVICES["worker"]
    path = worker["environment"]["EMBEDDING_DB_URL"].removeprefix("sqlite:///")
    assert f"state:{Path(path).parent}" in worker["volumes"]
    assert (
        f"        {Path(path).parent} " in DOCKERFILE
    )  # the image creates it as the user's, and volumes inherit the owner


def test_settings_that_the_files_name_are_settings() -> None:
    known = set(PLACES)
    environments = [name for each in OURS for name in SERVICES[each]["environment"]]
    in_image = re.findall(r"(EMBEDDING_\w+)=", DOCKERFILE)
    units = "".join(path.read_text() for path in (ROOT / "deploy" / "systemd").iterdir())
    assert in_image
    assert {*environments, *in_image, *re.findall(r"(EMBEDDING_\w+)=", units)} <= known


def test_nginx_has_the_same_limit_as_the_workers_and_waits_longer_than_they_do() -> None:
    text = (nginx.FILES / "embedshare.conf").read_text()
    settings = Settings()
    assert f"client_max_body_size {settings.server.max_message_bytes};" in text
    assert f"client_max_body_size {settings.jobs.max_bytes};" in text  # of jobs and uploaded files
    assert f"client_max_body_size {settings.sessions.max_file_bytes};" in text
    pieces_in_turn = settings.server.max_texts / 512 / 2
    assert (
        int(re.findall(r"proxy_read_timeout (\d+)s;", text)[0]) > pieces_in_turn * settings.client.timeout_s
    )
    upstreams = [set(re.findall(r"^upstream (\w+) {", path.read_text(), re.MULTILINE)) for path in (
        nginx.FILES / "embedshare-upstream.conf", FILES / "upstream.conf",
    )]  # fmt: skip
    assert upstreams[0] == upstreams[1] == set(re.findall(r"proxy_pass http://(\w+);", text))


def test_nginx_takes_the_containers_upstream(tmp_path: Path) -> None:
    if nginx.PROGRAM is None:
        pytest.skip("nginx is not installed")
    said = subprocess.run([nginx.PROGRAM, "-v"], capture_output=True, text=True, timeout=30).stderr
    version = tuple(int(part) for part in re.findall(r"nginx/(\d+)\.(\d+)\.(\d+)", said)[0])
    if version < (1, 27, 3):
        pytest.skip(f"nginx {'.'.join(map(str, version))} cannot follow a name's addresses")
    ours = nginx.Nginx(tmp_path / "nginx", [1, 2, 3])
    shutil.copy(FILES / "upstream.conf", ours.folder / "conf.d" / "embedshare-upstream.conf")
    assert "test is successful" in ours.check()


def test_the_profile_of_the_embeddings_service_publishes_its_port_and_changes_nothing_else() -> None:
    name_of_it = "embeddings-service"
    service, nginx_as_it_is = SERVICES[name_of_it], SERVICES["nginx"]
    assert service["profiles"] == [name_of_it]
    assert service["ports"] == ["${EMBEDSHARE_SERVICE_LISTEN:-127.0.0.1:3010}:80"]
    own = {"profiles", "ports"}
    assert {name: value for name, value in service.items() if name not in own} == {
        name: value for name, value in nginx_as_it_is.items() if name not in own
    }
    assert {name for name, each in SERVICES.items() if "profiles" in each} == {"sessions", name_of_it}


def test_the_mounted_files_are_there() -> None:
    mounted = [volume.split(":")[0] for volume in SERVICES["nginx"]["volumes"]]
    assert len(mounted) == 2
    assert all(os.path.isfile(FILES / path) for path in mounted)
