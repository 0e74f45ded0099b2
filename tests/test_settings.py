"""Settings: what each accepts, what each refuses, and where the values come from."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loguru import logger

from embedshare.errors import InvalidSetting
from embedshare.settings import Settings, markdown_table, tell_notes

NOWHERE = Path("/nonexistent/.env")
FIELD_OF = {field.metadata["name"]: field.name for field in dataclasses.fields(Settings)}
SECRET = {field.metadata["name"] for field in dataclasses.fields(Settings) if field.metadata["secret"]}
TRUE, FALSE = ("true", "1", "yes", "on", "TRUE", "On"), ("false", "0", "no", "off", "False", "OFF")
DEVICES = ("auto", "cpu", "cuda", "cuda:0", "cuda:13", "mps", "CUDA:1")
BAD_DEVICES = ("gpu", "", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "cpu:", "mps:1", "auto:1", ":0", "cuda:1.5")

# name: (low, high) of the whole numbers and of the seconds
WHOLE = {
    "EMBEDDING_ASYNC_THREADS": (1, 1024),
    "EMBEDDING_SERVER_PORT": (1, 65535),
    "MAX_CONCURRENT_OPERATIONS": (1, 64),
    "EMBEDDING_MAX_BATCH_TOKENS": (0, 1_000_000),
    "EMBEDDING_MAX_BATCH_SIZE": (0, 1_000_000),
    "EMBEDDING_MAX_WAITING_TOKENS": (1_000, 1_000_000_000),
    "EMBEDDING_MAX_MESSAGE_BYTES": (64 * 1024, 1 << 30),
    "EMBEDDING_MAX_HELD_BYTES": (1 << 20, 1 << 40),
    "EMBEDDING_MAX_TEXTS": (1, 1_000_000),
    "EMBEDDING_MAX_TEXT_CHARS": (0, 1 << 30),
    "EMBEDDING_MAX_REQUEST_CHARS": (0, 1 << 30),
    "EMBEDDING_TRUSTED_PROXIES": (0, 10),
    "EMBEDDING_MAX_CONNECTIONS": (1, 100_000),
    "EMBEDDING_MAX_INDEXES": (1, 100_000),
    "EMBEDDING_MAX_INDEX_BYTES": (1 << 20, 1 << 40),
    "EMBEDDING_METRICS_PORT": (0, 65535),
    "PORT": (1, 65535),
    "EMBEDDING_WEB_THREADS": (1, 256),
    "EMBEDDING_LOG_MAX_BYTES": (0, 1 << 40),
    "EMBEDDING_LOG_KEEP": (0, 1000),
}
SECONDS = {
    "EMBEDDING_HANDSHAKE_S": (0.1, 300.0),
    "EMBEDDING_DRAIN_S": (0.0, 600.0),
    "EMBEDDING_TIMEOUT_S": (0.01, 86_400.0),
    "EMBEDDING_LOCAL_RELEASE_S": (0.0, 86_400.0),
    "EMBEDDING_STUCK_S": (1.0, 86_400.0),
    "EMBEDDING_SCALE_UP_S": (0.0, 86_400.0),
    "EMBEDDING_IDLE_EXIT_S": (1.0, 31_536_000.0),
    "EMBEDDING_SCALE_DOWN_S": (0.0, 86_400.0),
}
CHOICES = {
    "EMBEDDING_DTYPE": ("auto", "float32", "bfloat16", "float16"),
    "EMBEDDING_RUNTIME": ("auto", "torch", "openvino"),
    "EMBEDDING_FALLBACK": ("local", "none"),
    "EMBEDDING_ON_MODEL_CHANGE": ("refuse", "follow"),
    "EMBEDDING_SEARCH_ENGINE": ("ddgs", "searxng"),
    "EMBEDDING_LOG_FORMAT": ("text", "json"),
    "EMBEDDING_LOG_LEVEL": ("debug", "info", "warning", "error"),
    "EMBEDDING_API_KEYS": ("auto", "required", "off"),
    "EMBEDDING_WEB_LOOP": ("own", "waitress"),
    "EMBEDDING_WEB_SEARCH": ("auto", "true", "false"),
}
BOOLEANS = (
    "EMBEDDING_AUTOSTART", "USE_IPC_EMBEDDING", "EMBEDDING_ALLOW_SWAP",
    "EMBEDDING_USE_DB_SETTINGS", "EMBEDDING_NORMALIZE",
)  # fmt: skip
DEVICE_NAMES = ("EMBEDDING_DEVICE", "EMBEDDING_FALLBACK_DEVICE")
TEXTS = ("EMBEDDING_MODEL_NAME", "EMBEDDING_LOG_DIR")
HOSTS = ("EMBEDDING_SERVER_HOST", "EMBEDDING_HOST", "EMBEDDING_METRICS_HOST")
OPTIONAL = (
    "EMBEDDING_AUTHKEY", "EMBEDDING_AUTHKEY_FILE", "EMBEDDING_CACHE_DIR", "EMBEDDING_MODEL_CACHE_DIR",
    "EMBEDDING_ADMIN_KEY_FILE", "EMBEDDING_INDEX_DIR", "EMBEDDING_REDIS_PREFIX",
)  # fmt: skip
RATES = ("", "100/second", "100/second;5000/hour", "1/day")


posix = pytest.mark.skipif(sys.platform == "win32", reason="owners and modes are POSIX's")


@pytest.fixture
def logged() -> Iterator[list[str]]:
    lines: list[str] = []
    sink = logger.add(lines.append, format="{message}")
    yield lines
    logger.remove(sink)


def loaded(name: str, text: str) -> Any:
    return getattr(Settings.load({name: text}, NOWHERE), FIELD_OF[name])


def refusal(name: str, text: str) -> InvalidSetting:
    with pytest.raises(InvalidSetting) as caught:
        loaded(name, text)
    error = caught.value
    assert error.fields["name"] == name
    assert error.fields["value"] == ("(hidden)" if name in SECRET else repr(text.strip()))
    assert error.fields["allowed"]
    for part in error.fields.values():
        assert part in error.message
    return error


GOOD = [
    *((name, text, True) for name in BOOLEANS for text in TRUE),
    *((name, text, False) for name in BOOLEANS for text in FALSE),
    *((name, text, text.lower()) for name in DEVICE_NAMES for text in DEVICES),
    *((name, text, text) for name, allowed in CHOICES.items() for text in allowed),
    *((name, allowed[-1].upper(), allowed[-1]) for name, allowed in CHOICES.items()),
    *((name, str(edge), edge) for name, edges in WHOLE.items() for edge in edges),
    *((name, str(edge), edge) for name, edges in SECONDS.items() for edge in edges),
    *((name, "what ever", "what ever") for name in (*TEXTS, *OPTIONAL)),
    *((name, "", None) for name in OPTIONAL),
    *((name, host, host) for name in HOSTS for host in ("box-1.example", "0.0.0.0", "::1")),
    *(("EMBEDDING_SEARXNG_URL", url, url) for url in ("http://localhost:8080", "HTTPS://search.example/a")),
    ("EMBEDDING_SEARXNG_URL", "http://localhost:8080/", "http://localhost:8080"),
    ("EMBEDDING_SEARXNG_URL", "", None),
    *(("EMBEDDING_FETCH_ALLOWED_HOSTS", hosts, hosts) for hosts in ("", "a.example, 10.0.0.5:8080,[::1]:80")),
    *(("EMBEDDING_RATE_LIMIT", rates, rates) for rates in RATES),
    ("EMBEDDING_RATE_LIMIT", "5/Second ; 9/minute", "5/second;9/minute"),
    *(
        ("EMBEDDING_REDIS_URL", url, url)
        for url in ("redis://localhost:6379/0", "rediss://:pass@cache.example")
    ),
    ("EMBEDDING_REDIS_URL", "", None),
    *(("EMBEDDING_DB_URL", url, url) for url in ("sqlite:///a.db", "mysql+aiomysql://a:b@c/d")),
    ("EMBEDDING_DB_URL", "", None),
    ("EMBEDDING_ALLOWED_HOSTS", "", ()),
    (
        "EMBEDDING_ALLOWED_HOSTS",
        "Embed.example., *.internal,worker",
        ("embed.example", "*.internal", "worker"),
    ),
    ("EMBEDDING_ALLOWED_HOSTS", "*", ("*",)),
    ("CORS_ORIGINS", "app://obsidian.md,chrome-extension://a", ("app://obsidian.md", "chrome-extension://a")),
    ("CORS_ORIGINS", "", ()),
    ("CORS_ORIGINS", "*", ("*",)),
    ("CORS_ORIGINS", "https://a.example, http://[::1]:3000/,", ("https://a.example", "http://[::1]:3000")),
    *(
        ("EMBEDDING_MODEL_ALIASES", text, names)
        for text, names in {"": (), "*": ("*",), "a, b/c:latest": ("a", "b/c:latest")}.items()
    ),
    *(
        ("EMBEDDING_TRUST_REMOTE_CODE", text, names)
        for text, names in {
            "false": (),
            "no": (),
            "0": (),
            "true": ("all-MiniLM-L6-v2",),
            "ON": ("all-MiniLM-L6-v2",),
            "org/a, /models/b": ("org/a", "/models/b"),
            "True,org/a": ("all-MiniLM-L6-v2", "org/a"),
        }.items()
    ),
    ("PORT", " 8080 ", 8080),
    ("PORT", "+80", 80),
    ("EMBEDDING_TIMEOUT_S", "1e1", 10.0),
]
BAD = [
    *((name, text) for name in BOOLEANS for text in ("", "maybe", "2", "truee")),
    *((name, text) for name in DEVICE_NAMES for text in BAD_DEVICES),
    *((name, text) for name, allowed in CHOICES.items() for text in ("", "other", allowed[0] + "x")),
    *((name, text) for name, (low, high) in WHOLE.items() for text in (str(low - 1), str(high + 1))),
    *((name, text) for name in WHOLE for text in ("", "five", "1.5", "1e3", "0x10", "-", "+", "2²")),
    *((name, text) for name, (low, high) in SECONDS.items() for text in (str(low - 1), str(high + 1))),
    *((name, text) for name in SECONDS for text in ("", "soon", "nan", "inf", "-inf", "5s")),
    *((name, text) for name in TEXTS for text in ("", "  ")),
    *((name, text) for name in HOSTS for text in ("", "two words", "hôte.example")),
    *(
        ("EMBEDDING_ALLOWED_HOSTS", text)
        for text in ("a.example:80", "https://a.example", "*example", "a.*", "[::1]", "two words", "..")
    ),
    *(
        ("CORS_ORIGINS", text)
        for text in ("a.example", "https://a.example/path", "https://*.example", "null")
    ),
    *(
        ("EMBEDDING_SEARXNG_URL", text)
        for text in ("localhost:8080", "ftp://a.example", "http://a b", "http://ä")
    ),
    *(("EMBEDDING_MODEL_ALIASES", text) for text in (",", "a,,b", "a\nb")),
    *(("EMBEDDING_TRUST_REMOTE_CODE", text) for text in ("", ",", "a,,b", "a\nb")),
    *(
        ("EMBEDDING_FETCH_ALLOWED_HOSTS", text)
        for text in ("*.example", "http://a.example", "a@b", "hôte.example")
    ),
    *(("EMBEDDING_RATE_LIMIT", text) for text in ("100", "0/second", "5/week", "5 per second", "5/second,")),
    ("EMBEDDING_REDIS_URL", "localhost:6379"),
    ("EMBEDDING_REDIS_URL", "http://localhost"),
]


@pytest.mark.parametrize(("name", "text", "value"), GOOD)
def test_an_allowed_value_is_read(name: str, text: str, value: Any) -> None:
    assert loaded(name, text) == value
    assert type(loaded(name, text)) is type(value)


@pytest.mark.parametrize(("name", "text"), BAD)
def test_a_value_that_is_not_allowed_is_refused_with_name_value_and_what_is_allowed(
    name: str, text: str
) -> None:
    refusal(name, text)


def test_every_setting_has_its_values_tested_here() -> None:
    assert {name for name, _, _ in GOOD} == set(FIELD_OF)
    assert {name for name, _ in BAD} == set(FIELD_OF) - {*OPTIONAL, "EMBEDDING_DB_URL"}


@pytest.mark.parametrize("text", ["--5", "+-5", "++80", "9" * 5000])
def test_a_number_that_python_itself_cannot_read_is_refused_with_the_range(text: str) -> None:
    assert refusal("PORT", text).fields["allowed"] == "a whole number from 1 to 65535"


def test_a_refused_choice_lists_the_choices_and_a_refused_number_its_range() -> None:
    assert refusal("EMBEDDING_DTYPE", "int8").fields["allowed"] == "auto, float32, bfloat16, float16"
    assert refusal("EMBEDDING_DRAIN_S", "-1").fields["allowed"] == "seconds, a number from 0 to 600"
    assert refusal("PORT", "0").message == "PORT is '0'; allowed: a whole number from 1 to 65535"


@given(name=st.sampled_from(sorted(set(FIELD_OF) - set(OPTIONAL))), text=st.text(max_size=12))
def test_any_text_is_either_read_or_refused(name: str, text: str) -> None:
    try:
        value = loaded(name, text)
    except InvalidSetting:
        return  # any other exception fails
    assert isinstance(value, type(getattr(Settings(), FIELD_OF[name])))


@pytest.mark.parametrize("text", ["embedshare.db", "oracle://a:hunter2@c/d", "hunter2 sqlite://"])
def test_a_refused_database_is_not_quoted_since_it_holds_a_password(text: str) -> None:
    with pytest.raises(
        InvalidSetting, match=r"EMBEDDING_DB_URL is \(hidden\); allowed: .*postgresql://"
    ) as caught:
        loaded("EMBEDDING_DB_URL", text)
    assert text not in str((caught.value.message, caught.value.fields))
    assert "hunter2" not in repr(Settings.load({"EMBEDDING_DB_URL": "mysql://a:hunter2@c/d"}, NOWHERE))


def test_a_workers_port_has_two_names_of_which_port_wins() -> None:
    assert Settings.load({"EMBEDDING_PORT": "8001"}, NOWHERE).web_port == 8001
    assert Settings.load({"EMBEDDING_PORT": "8001", "PORT": "8002"}, NOWHERE).web_port == 8002
    with pytest.raises(InvalidSetting, match="EMBEDDING_PORT is 'x'"):
        Settings.load({"EMBEDDING_PORT": "x"}, NOWHERE)


def test_clients_follow_a_model_that_a_database_names_unless_they_are_told_to_refuse() -> None:
    of_database = {"EMBEDDING_USE_DB_SETTINGS": "true"}
    assert Settings.load({}, NOWHERE).on_model_change == "refuse"
    assert Settings.load(of_database, NOWHERE).on_model_change == "follow"
    told = {**of_database, "EMBEDDING_ON_MODEL_CHANGE": "refuse"}
    assert Settings.load(told, NOWHERE).on_model_change == "refuse"


def test_another_process_reads_the_same_values_from_the_environment_that_it_is_given() -> None:
    settings = Settings(cors_origins=("https://a.example", "http://b.example"), normalize=True, web_port=8001)
    assert Settings.load(settings.environment(), NOWHERE) == settings


def test_code_is_trusted_by_the_name_of_a_model_which_another_one_does_not_inherit() -> None:
    given = {"EMBEDDING_MODEL_NAME": "org/a", "EMBEDDING_TRUST_REMOTE_CODE": "true"}
    settings = Settings.load(given, NOWHERE)
    assert settings.trust_remote_code == ("org/a",)
    swapped = dataclasses.replace(settings, model_name="org/b")
    assert Settings.load(swapped.environment(), NOWHERE) == swapped  # the process that converts org/b
    assert Settings.load({**swapped.environment(), "EMBEDDING_TRUST_REMOTE_CODE": "false"}, NOWHERE) == (
        dataclasses.replace(swapped, trust_remote_code=())
    )


def test_without_any_value_the_defaults_hold() -> None:
    assert Settings.load({}, NOWHERE) == Settings()


def test_the_dotenv_file_is_read_and_the_environment_wins_over_it(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text(
        "# a comment\nPORT=8000\nEMBEDDING_DEVICE='cuda:1'\nexport EMBEDDING_DRAIN_S=3\nPLAIN\n"
    )
    settings = Settings.load({"PORT": "9000", "UNRELATED": "x"}, dotenv)
    assert (settings.web_port, settings.device, settings.drain_s) == (9000, "cuda:1", 3.0)


def test_a_wrong_value_in_the_dotenv_file_is_refused_as_well(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text("MAX_CONCURRENT_OPERATIONS=many\n")
    with pytest.raises(InvalidSetting, match="MAX_CONCURRENT_OPERATIONS is 'many'"):
        Settings.load({}, dotenv)


def test_the_process_and_its_working_directory_are_the_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("PORT=8000\nEMBEDDING_DRAIN_S=3\n")
    monkeypatch.setenv("PORT", "9000")
    assert (Settings.load().web_port, Settings.load().drain_s) == (9000, 3.0)


def test_the_key_is_in_no_message_and_no_repr() -> None:
    key = "hunter2-hunter2-hunter2"
    settings = Settings.load({"EMBEDDING_AUTHKEY": key}, NOWHERE)
    assert settings.authkey == key
    assert key not in repr(settings)
    assert key not in str(settings)
    with pytest.raises(InvalidSetting) as caught:
        Settings.load({"EMBEDDING_AUTHKEY": key, "PORT": "x"}, NOWHERE)
    assert key not in repr((caught.value, caught.value.fields))


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        *((host, True) for host in ("localhost", "127.0.0.1", "127.1.2.3", "::1")),
        *((host, False) for host in ("0.0.0.0", "::", "10.0.0.1", "box.example", "127.example.com")),
    ],
)
def test_loopback_is_what_only_this_machine_can_reach(host: str, loopback: bool) -> None:
    assert Settings(server_host=host).on_loopback is loopback


@pytest.mark.parametrize(
    ("host", "keys", "asks"),
    [
        ("127.0.0.1", "auto", False), ("::1", "auto", False), ("localhost", "auto", False),
        ("0.0.0.0", "auto", True), ("10.0.0.5", "auto", True), ("worker.example", "auto", True),
        ("127.0.0.1", "required", True), ("0.0.0.0", "off", False),
    ],
)  # fmt: skip
def test_keys_are_asked_for_beyond_this_machine_or_as_it_is_said(host: str, keys: str, asks: bool) -> None:
    assert Settings(web_host=host, api_keys=keys).asks_for_keys is asks


def test_the_readme_table_has_a_line_for_each_setting_and_shows_no_key() -> None:
    lines = markdown_table().splitlines()[2:]
    assert [line.split("`")[1] for line in lines] == list(FIELD_OF)
    assert "| `PORT` | `5000` |" in markdown_table()
    assert "| `USE_IPC_EMBEDDING` | `true` |" in markdown_table()
    assert "| `EMBEDDING_AUTHKEY` |  |" in markdown_table()
    assert "| `EMBEDDING_TRUST_REMOTE_CODE` | `false` |" in markdown_table()


@pytest.mark.parametrize("link", ["tcp://10.0.0.1:5002", "udp://10.0.0.1:53", "sctp://[fd00::1]:5002"])
def test_a_value_that_kubernetes_sets_for_a_service_of_a_setting_s_name_is_ignored_and_logged_once(
    link: str, tmp_path: Path, logged: list[str]
) -> None:
    names = ("EMBEDDING_SERVER_PORT", "EMBEDDING_PORT", "EMBEDDING_METRICS_PORT")
    environ = dict.fromkeys(names, link)
    environ |= {"EMBEDDING_SERVER_SERVICE_HOST": "10.0.0.1", "EMBEDDING_SERVER_PORT_5002_TCP": link}
    assert Settings.load(environ, NOWHERE) == Settings()
    assert Settings.load(environ, NOWHERE) == Settings()
    dotenv = tmp_path / ".env"
    dotenv.write_text("EMBEDDING_SERVER_PORT=6000\n")
    assert Settings.load(environ, dotenv).server_port == 6000
    assert Settings.load({**environ, "PORT": "8000"}, NOWHERE).web_port == 8000
    tell_notes()
    tell_notes()
    assert sorted(line.split("=")[0] for line in logged) == [f"ignoring {name}" for name in sorted(names)]
    assert all("Kubernetes" in line and link in line for line in logged)


def test_such_a_value_that_somebody_wrote_is_refused(tmp_path: Path) -> None:
    for name in ("PORT", "EMBEDDING_TIMEOUT_S"):  # which no Service's name leads to
        with pytest.raises(InvalidSetting, match=f"{name} is 'tcp://10.0.0.1:5002'"):
            Settings.load({name: "tcp://10.0.0.1:5002"}, NOWHERE)
    dotenv = tmp_path / ".env"
    dotenv.write_text("EMBEDDING_SERVER_PORT=tcp://10.0.0.1:5002\n")
    with pytest.raises(InvalidSetting, match="EMBEDDING_SERVER_PORT is 'tcp"):
        Settings.load({}, dotenv)


@posix
@pytest.mark.parametrize("mode", [0o602, 0o606, 0o666])
def test_settings_that_others_can_write_are_not_believed(tmp_path: Path, mode: int) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text("EMBEDDING_TRUST_REMOTE_CODE=true\nOTHER=1\nEMBEDDING_HOST=0.0.0.0\n")
    dotenv.chmod(mode)
    with pytest.raises(InvalidSetting, match="chmod 600") as caught:
        Settings.load({}, dotenv)
    assert "sets EMBEDDING_TRUST_REMOTE_CODE, EMBEDDING_HOST, and others" in caught.value.message
    assert f"its mode {mode:04o}" in caught.value.message
    dotenv.chmod(0o644)
    assert Settings.load({}, dotenv).web_host == "0.0.0.0"


@posix
def test_settings_of_another_user_s_file_are_not_believed(tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can give a file away")
    dotenv = tmp_path / ".env"
    dotenv.write_text("PORT=8000\n")
    os.chown(dotenv, 65534, 65534)
    with pytest.raises(InvalidSetting, match="its owner is user 65534"):
        Settings.load({}, dotenv)


@posix
def test_another_program_s_dotenv_file_is_none_of_ours_whoever_can_write_it(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text("DJANGO_SECRET_KEY=x\n")
    dotenv.chmod(0o666)
    assert Settings.load({}, dotenv) == Settings()


@posix
def test_a_secret_in_a_dotenv_file_that_everybody_can_read_is_warned_of(
    tmp_path: Path, logged: list[str]
) -> None:
    dotenv = tmp_path / ".env"
    lines = ("EMBEDDING_AUTHKEY=hunter2-hunter2-hunter2", "EMBEDDING_DB_URL=sqlite:///a.db", "PORT=8000")
    dotenv.write_text("\n".join(lines))
    dotenv.chmod(0o600)
    Settings.load({}, dotenv)
    tell_notes()
    assert logged == []
    dotenv.chmod(0o644)
    Settings.load({}, dotenv)
    tell_notes()
    (line,) = logged
    assert f"can read {dotenv}, which holds EMBEDDING_AUTHKEY: chmod 600" in line
    assert "hunter2" not in line
