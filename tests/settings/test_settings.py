"""Settings: accepted values, refused values, and the effects of the values in force."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedshare.errors import InvalidSetting
from embedshare.settings import ServerSettings, Settings, WebSettings
from embedshare.settings.settings import PLACES

NOWHERE = Path("/nonexistent/.env")
SECRET = {name for name, place in PLACES.items() if place.declaration.secret}
TRUE, FALSE = ("true", "1", "yes", "on", "TRUE", "On"), ("false", "0", "no", "off", "False", "OFF")
DEVICES = ("auto", "cpu", "cuda", "cuda:0", "cuda:13", "mps", "CUDA:1")
BAD_DEVICES = ("gpu", "", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "cpu:", "mps:1", "auto:1", ":0", "cuda:1.5")

# name: (low, high), first for whole numbers, then for seconds
WHOLE = {
    "EMBEDDING_ASYNC_THREADS": (1, 1024),
    "EMBEDDING_SERVER_PORT": (1, 65535),
    "MAX_CONCURRENT_OPERATIONS": (1, 64),
    "EMBEDDING_MAX_BATCH_TOKENS": (0, 1_000_000),
    "EMBEDDING_MAX_BATCH_SIZE": (0, 1_000_000),
    "EMBEDDING_MAX_WAITING_TOKENS": (1_000, 1_000_000_000),
    "EMBEDDING_MAX_MESSAGE_BYTES": (64 * 1024, 1 << 30),
    "EMBEDDING_MAX_MODEL_BYTES": (0, 1 << 50),
    "EMBEDDING_VECTOR_CACHE_BYTES": (0, 1 << 40),
    "EMBEDDING_VECTOR_CACHE_MOST_ASKED": (0, 100_000),
    "EMBEDDING_VECTOR_CACHE_DATABASE_BYTES": (1 << 20, 1 << 44),
    "EMBEDDING_MAX_HELD_BYTES": (1 << 20, 1 << 40),
    "EMBEDDING_MAX_IMAGE_BYTES": (1 << 10, 1 << 30),
    "EMBEDDING_MAX_IMAGE_PIXELS": (1, 1 << 28),
    "EMBEDDING_MAX_TEXTS": (1, 1_000_000),
    "EMBEDDING_MAX_TEXT_CHARS": (0, 1 << 30),
    "EMBEDDING_MAX_REQUEST_CHARS": (0, 1 << 30),
    "EMBEDDING_TRUSTED_PROXIES": (0, 10),
    "EMBEDDING_MAX_CONNECTIONS": (1, 100_000),
    "EMBEDDING_MAX_INDEXES": (1, 100_000),
    "EMBEDDING_MAX_INDEX_BYTES": (1 << 20, 1 << 40),
    "EMBEDDING_MAX_JOB_TEXTS": (1, 100_000_000),
    "EMBEDDING_MAX_JOB_BYTES": (64 * 1024, 1 << 40),
    "EMBEDDING_SESSIONS_PORT": (1, 65535),
    "EMBEDDING_MAX_SESSIONS": (1, 100_000),
    "EMBEDDING_SESSION_MAX_DOCUMENTS": (1, 10_000_000),
    "EMBEDDING_SESSION_MAX_CHUNKS": (1, 100_000_000),
    "EMBEDDING_SESSION_MAX_BYTES": (1 << 20, 1 << 44),
    "EMBEDDING_SESSION_MAX_FILE_BYTES": (1 << 10, 1 << 40),
    "EMBEDDING_SESSION_TOKENS_A_DAY": (0, 1 << 50),
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
    "EMBEDDING_VECTOR_CACHE_TTL_S": (0.0, 31_536_000.0),
    "EMBEDDING_SCALE_UP_S": (0.0, 86_400.0),
    "EMBEDDING_IDLE_EXIT_S": (1.0, 31_536_000.0),
    "EMBEDDING_SCALE_DOWN_S": (0.0, 86_400.0),
    "EMBEDDING_JOBS_KEPT_S": (60.0, 31_536_000.0),
    "EMBEDDING_SESSION_TTL_S": (0.0, 31_536_000.0),
}
CHOICES = {
    "EMBEDDING_DTYPE": ("auto", "float32", "bfloat16", "float16"),
    "EMBEDDING_RUNTIME": ("auto", "torch", "openvino"),
    "EMBEDDING_FAMILY": ("auto", "embedding", "cross-encoder", "sparse", "multi-vector"),
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
    "EMBEDDING_USE_DB_SETTINGS", "EMBEDDING_NORMALIZE", "EMBEDDING_VECTOR_CACHE_DATABASE", "EMBEDDING_JOBS",
    "EMBEDDING_SESSIONS",
)  # fmt: skip
DEVICE_NAMES = ("EMBEDDING_DEVICE", "EMBEDDING_FALLBACK_DEVICE")
TEXTS = ("EMBEDDING_MODEL_NAME", "EMBEDDING_LOG_DIR")
HOSTS = ("EMBEDDING_SERVER_HOST", "EMBEDDING_HOST", "EMBEDDING_METRICS_HOST", "EMBEDDING_SESSIONS_HOST")
OPTIONAL = (
    "EMBEDDING_AUTHKEY", "EMBEDDING_AUTHKEY_FILE", "EMBEDDING_CACHE_DIR", "EMBEDDING_MODEL_CACHE_DIR",
    "EMBEDDING_MODELS_FILE",
    "EMBEDDING_ADMIN_KEY_FILE", "EMBEDDING_INDEX_DIR", "EMBEDDING_REDIS_PREFIX", "EMBEDDING_AUDIT_LOG",
    "EMBEDDING_JOBS_DIR", "EMBEDDING_SESSIONS_DIR",
)  # fmt: skip
RATES = ("", "100/second", "100/second;5000/hour", "1/day")


def loaded(name: str, text: str) -> Any:
    return Settings.load({name: text}, NOWHERE).value(name)


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
    *(
        (name, hosts, hosts)
        for name in ("EMBEDDING_FETCH_ALLOWED_HOSTS", "EMBEDDING_IMAGE_HOSTS")
        for hosts in ("", "a.example, 10.0.0.5:8080,[::1]:80")
    ),
    *(("EMBEDDING_RATE_LIMIT", rates, rates) for rates in RATES),
    ("EMBEDDING_RATE_LIMIT", "5/Second ; 9/minute", "5/second;9/minute"),
    *(
        ("EMBEDDING_MODEL_RATE_LIMITS", text, limits)
        for text, limits in {
            "": (),
            "bge=5/second": ("bge=5/second",),
            " a=b/c:latest = 1/Day ; 9/minute, minilm=1/hour": (
                "a=b/c:latest=1/day;9/minute",
                "minilm=1/hour",
            ),
        }.items()
    ),
    *(
        ("EMBEDDING_REDIS_URL", url, url)
        for url in ("redis://localhost:6379/0", "rediss://:pass@cache.example")
    ),
    ("EMBEDDING_REDIS_URL", "", None),
    ("EMBEDDING_VECTOR_CACHE_REDIS_URL", "redis://localhost:6379/0", "redis://localhost:6379/0"),
    *(("EMBEDDING_DB_URL", url, url) for url in ("sqlite:///a.db", "mysql+aiomysql://a:b@c/d")),
    ("EMBEDDING_DB_URL", "", None),
    ("EMBEDDING_SESSIONS_QDRANT_URLS", "", ()),
    (
        "EMBEDDING_SESSIONS_QDRANT_URLS",
        "http://a:6333/, https://b.example",
        ("http://a:6333", "https://b.example"),
    ),
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
    *(("EMBEDDING_SESSIONS_QDRANT_URLS", text) for text in ("qdrant:6333", "http://a,,http://b", ",")),
    *(("EMBEDDING_MODEL_ALIASES", text) for text in (",", "a,,b", "a\nb")),
    *(("EMBEDDING_TRUST_REMOTE_CODE", text) for text in ("", ",", "a,,b", "a\nb")),
    *(
        (name, text)
        for name in ("EMBEDDING_FETCH_ALLOWED_HOSTS", "EMBEDDING_IMAGE_HOSTS")
        for text in ("*.example", "http://a.example", "a@b", "hôte.example")
    ),
    *(("EMBEDDING_RATE_LIMIT", text) for text in ("100", "0/second", "5/week", "5 per second", "5/second,")),
    *(
        ("EMBEDDING_MODEL_RATE_LIMITS", text)
        for text in (
            "5/second",
            "a=",
            "=5/second",
            "a=5",
            "a=5/second,",
            "a=5/second;",
            "a=1/day,a=2/day",
            "a\nb=1/day",
        )
    ),
    ("EMBEDDING_REDIS_URL", "localhost:6379"),
    ("EMBEDDING_VECTOR_CACHE_REDIS_URL", "localhost:6379"),
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
    assert {name for name, _, _ in GOOD} == set(PLACES)
    assert {name for name, _ in BAD} == set(PLACES) - {*OPTIONAL, "EMBEDDING_DB_URL"}


@pytest.mark.parametrize("text", ["--5", "+-5", "++80", "9" * 5000])
def test_a_number_that_python_itself_cannot_read_is_refused_with_the_range(text: str) -> None:
    assert refusal("PORT", text).fields["allowed"] == "a whole number from 1 to 65535"


def test_a_refused_choice_lists_the_choices_and_a_refused_number_its_range() -> None:
    assert refusal("EMBEDDING_DTYPE", "int8").fields["allowed"] == "auto, float32, bfloat16, float16"
    assert refusal("EMBEDDING_DRAIN_S", "-1").fields["allowed"] == "seconds, a number from 0 to 600"
    assert refusal("PORT", "0").message == "PORT is '0'; allowed: a whole number from 1 to 65535"


@given(name=st.sampled_from(sorted(set(PLACES) - set(OPTIONAL))), text=st.text(max_size=12))
def test_any_text_is_either_read_or_refused(name: str, text: str) -> None:
    try:
        value = loaded(name, text)
    except InvalidSetting:
        return  # any other exception fails the test
    assert isinstance(value, type(Settings().value(name)))


@pytest.mark.parametrize("text", ["embedshare.db", "oracle://a:hunter2@c/d", "hunter2 sqlite://"])
def test_a_refused_database_is_not_quoted_since_it_holds_a_password(text: str) -> None:
    with pytest.raises(
        InvalidSetting, match=r"EMBEDDING_DB_URL is \(hidden\); allowed: .*postgresql://"
    ) as caught:
        loaded("EMBEDDING_DB_URL", text)
    assert text not in str((caught.value.message, caught.value.fields))
    assert "hunter2" not in repr(Settings.load({"EMBEDDING_DB_URL": "mysql://a:hunter2@c/d"}, NOWHERE))


def test_a_workers_port_has_two_names_of_which_port_wins() -> None:
    assert Settings.load({"EMBEDDING_PORT": "8001"}, NOWHERE).web.port == 8001
    assert Settings.load({"EMBEDDING_PORT": "8001", "PORT": "8002"}, NOWHERE).web.port == 8002
    with pytest.raises(InvalidSetting, match="EMBEDDING_PORT is 'x'"):
        Settings.load({"EMBEDDING_PORT": "x"}, NOWHERE)


def test_clients_follow_a_model_that_a_database_names_unless_they_are_told_to_refuse() -> None:
    of_database = {"EMBEDDING_USE_DB_SETTINGS": "true"}
    assert Settings.load({}, NOWHERE).client.on_model_change == "refuse"
    assert Settings.load(of_database, NOWHERE).client.on_model_change == "follow"
    told = {**of_database, "EMBEDDING_ON_MODEL_CHANGE": "refuse"}
    assert Settings.load(told, NOWHERE).client.on_model_change == "refuse"


def test_another_process_reads_the_same_values_from_the_environment_that_it_is_given() -> None:
    settings = Settings(
        web=WebSettings(cors_origins=("https://a.example", "http://b.example"), normalize=True, port=8001)
    )
    assert Settings.load(settings.environment(), NOWHERE) == settings


def test_code_is_trusted_by_the_name_of_a_model_which_another_one_does_not_inherit() -> None:
    given = {"EMBEDDING_MODEL_NAME": "org/a", "EMBEDDING_TRUST_REMOTE_CODE": "true"}
    settings = Settings.load(given, NOWHERE)
    assert settings.model.trust_remote_code == ("org/a",)
    swapped = dataclasses.replace(settings, model=dataclasses.replace(settings.model, name="org/b"))
    assert Settings.load(swapped.environment(), NOWHERE) == swapped  # for the process that converts org/b
    assert Settings.load({**swapped.environment(), "EMBEDDING_TRUST_REMOTE_CODE": "false"}, NOWHERE) == (
        dataclasses.replace(swapped, model=dataclasses.replace(swapped.model, trust_remote_code=()))
    )


def test_without_any_value_the_defaults_hold() -> None:
    assert Settings.load({}, NOWHERE) == Settings()


def test_the_key_is_in_no_message_and_no_repr() -> None:
    key = "hunter2-hunter2-hunter2"
    settings = Settings.load({"EMBEDDING_AUTHKEY": key}, NOWHERE)
    assert settings.server.authkey == key
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
    assert Settings(server=ServerSettings(host=host)).server.on_loopback is loopback


@pytest.mark.parametrize(
    ("host", "keys", "asks"),
    [
        ("127.0.0.1", "auto", False), ("::1", "auto", False), ("localhost", "auto", False),
        ("0.0.0.0", "auto", True), ("10.0.0.5", "auto", True), ("worker.example", "auto", True),
        ("127.0.0.1", "required", True), ("0.0.0.0", "off", False),
    ],
)  # fmt: skip
def test_keys_are_asked_for_beyond_this_machine_or_as_it_is_said(host: str, keys: str, asks: bool) -> None:
    assert Settings(web=WebSettings(host=host, api_keys=keys)).web.asks_for_keys is asks


def test_rates_by_model_are_told_by_the_names_that_were_given() -> None:
    settings = Settings.load({"EMBEDDING_MODEL_RATE_LIMITS": "a=b=5/second;9/hour,c=1/day"}, NOWHERE)
    assert settings.web.rates_by_model == {"a=b": "5/second;9/hour", "c": "1/day"}
    assert Settings.load(settings.environment(), NOWHERE) == settings


def test_values_are_read_and_changed_by_the_environment_s_names() -> None:
    changed = Settings().with_values({"PORT": 8000, "EMBEDDING_DEVICE": "mps", "EMBEDDING_DTYPE": "float32"})
    assert (changed.web.port, changed.model.device, changed.model.dtype) == (8000, "mps", "float32")
    assert (changed.value("PORT"), changed.value("EMBEDDING_RUNTIME")) == (8000, "auto")
    assert (
        changed.with_values({"PORT": 5000, "EMBEDDING_DEVICE": "auto", "EMBEDDING_DTYPE": "auto"})
        == Settings()
    )


def test_a_section_alone_is_not_pickled_since_it_may_hold_a_secret() -> None:
    settings = Settings(server=ServerSettings(authkey="hunter2-hunter2-hunter2"))
    assert b"hunter2" not in pickle.dumps(settings)
    with pytest.raises(TypeError, match="pickle the Settings"):
        pickle.dumps(settings.server)


def test_the_two_ports_are_read_as_programs_of_earlier_releases_read_them() -> None:
    settings = Settings.load({"EMBEDDING_SERVER_PORT": "6001", "PORT": "6002"})
    assert (settings.server_port, settings.web_port) == (6001, 6002)
