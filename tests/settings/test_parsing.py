"""The parsers: a text is a value or a ValueError, and a value's own text parses to that value."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedshare.settings import parsing
from embedshare.settings.declaration import written
from embedshare.settings.parsing import Parser

#: Each parser, and a text near its values, which hypothesis mixes with any text.
PARSERS: dict[str, tuple[Parser, str]] = {
    "boolean": (parsing.boolean, "true"),
    "required_text": (parsing.required_text, "a model"),
    "choice": (parsing.choice("auto", "torch"), "Torch"),
    "integer": (parsing.integer(-5, 1 << 40), "+07"),
    "seconds": (parsing.seconds(0, 1e6), "1e2"),
    "device": (parsing.device, "CUDA:1"),
    "host": (parsing.host, "box.example"),
    "hosts_with_ports": (parsing.hosts_with_ports, "a.example, [::1]:80"),
    "host_patterns": (parsing.host_patterns, "*.Internal., box"),
    "origins": (parsing.origins, "https://a.example/, *"),
    "rates": (parsing.rates, "5/Second ; 9/minute"),
    "names": (parsing.names, "a, b/c:latest"),
    "trusted_models": (parsing.trusted_models, "True, org/a"),
}
#: Parsers for which the empty text is the value None.
OPTIONAL: dict[str, tuple[Parser, str]] = {
    "optional_text": (parsing.optional_text, "a"),
    "key": (parsing.key, "k" * 32),
    "web_address": (parsing.web_address, "HTTP://a.example/"),
    "redis_url": (parsing.redis_url, "redis://a"),
    "database_url": (parsing.database_url, "mysql+aiomysql://a"),
}


def near(text: str) -> st.SearchStrategy[str]:
    """Generate any text, and `text` with a part removed or inserted."""
    cuts = st.integers(0, len(text))
    changed = st.builds(lambda at, to, new: text[:at] + new + text[to:], cuts, cuts, st.text(max_size=4))
    return st.one_of(st.just(text), changed, st.text(max_size=12))


@pytest.mark.parametrize("name", [*PARSERS, *OPTIONAL])
@given(data=st.data())
def test_any_text_is_refused_or_is_a_value_whose_text_is_that_value(name: str, data: st.DataObject) -> None:
    parse, example = (PARSERS | OPTIONAL)[name]
    try:
        value = parse(data.draw(near(example)).strip())
    except ValueError:
        return  # any other exception fails the test
    assert parse("" if value is None else written(value) or shown_empty(name)) == value


def shown_empty(name: str) -> str:
    """Return the text of an empty value: only for trusted models it is not empty."""
    return "false" if name == "trusted_models" else ""


@pytest.mark.parametrize("name", PARSERS)
def test_a_parser_s_own_example_is_a_value(name: str) -> None:
    parse, example = PARSERS[name]
    assert parse(example) not in (None, (), "")


@pytest.mark.parametrize("name", OPTIONAL)
def test_an_empty_text_is_no_value_and_another_is_one(name: str) -> None:
    parse, example = OPTIONAL[name]
    assert parse("") is None
    assert parse(example) is not None


@given(st.integers(-20, 20), st.integers(0, 20), st.integers(-50, 50))
def test_an_integer_is_a_value_within_its_ends_and_nowhere_else(low: int, more: int, number: int) -> None:
    parse = parsing.integer(low, low + more)
    if low <= number <= low + more:
        assert parse(str(number)) == number
    else:
        with pytest.raises(ValueError, match=f"^a whole number from {low} to {low + more}$"):
            parse(str(number))


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_seconds_are_finite_numbers_within_their_ends(number: float) -> None:
    parse = parsing.seconds(0.5, 300)
    if 0.5 <= number <= 300:
        assert math.isclose(parse(repr(number)), number)
    else:
        with pytest.raises(ValueError, match=r"^seconds, a number from 0\.5 to 300$"):
            parse(repr(number))


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (parsing.host_patterns, "Embed.example., *.internal,", ("embed.example", "*.internal")),
        (parsing.origins, "https://a.example/,*", ("https://a.example", "*")),
        (parsing.rates, "5/Second ; 9/minute", "5/second;9/minute"),
        (parsing.trusted_models, "True, org/a", (parsing.CONFIGURED, "org/a")),
        (parsing.web_address, "http://a.example/", "http://a.example"),
        (parsing.web_address, "HTTPS://a.example:8888//", "HTTPS://a.example:8888"),
        (parsing.web_address, "", None),
        (parsing.device, "CUDA:1", "cuda:1"),
    ],
)
def test_a_value_has_one_form(parse: Parser, text: str, value: Any) -> None:
    assert parse(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "HTTP://",
        "http:///",
        "https:a.example",
        "http://@/",
        "http://[::1",
        "http://a b",
        "http://a\tb",
        "ftp://a",
    ],
)
def test_an_address_without_a_host_or_of_another_kind_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="an address that begins with http:// or https:// and a host"):
        parsing.web_address(text)


def test_a_key_that_is_no_utf_8_is_refused_without_being_quoted() -> None:
    with pytest.raises(ValueError, match=r"^text in UTF-8$") as caught:
        parsing.key("hunter2\ud800")
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
