"""Data URLs of images become the content of their files."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedshare.errors import InvalidImage
from embedshare.images.data_url import image_in


@given(st.binary(max_size=300), st.sampled_from(["image/png", "image/jpeg", "IMAGE/WEBP", "image/x;a=b"]))
def test_the_content_comes_back(content: bytes, kind: str) -> None:
    url = f"data:{kind};base64,{base64.b64encode(content).decode()}"
    assert image_in(url, max_bytes=300) == content
    assert image_in(base64.b64encode(content).decode(), max_bytes=300) == content


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("data:text/plain;base64,aGk=", "no data URL"),
        ("data:image/png,abc", "no data URL"),
        ("data:image/png;base64", "no data URL"),
        ("data:image/png;base64,a*b=", "not in base64"),
        ("data:image/png;base64,abc", "not in base64"),
        ("nowhere.png", "not in base64"),
        ("data:image/png;base64," + "A" * 800, "about 600 bytes; EMBEDDING_MAX_IMAGE_BYTES allows 300"),
    ],
)
def test_another_form_is_refused(url: str, said: str) -> None:
    with pytest.raises(InvalidImage, match=said) as caught:
        image_in(url, max_bytes=300, number=7)
    assert caught.value.fields == {"image": 7}
