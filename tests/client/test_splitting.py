"""The client cuts a long list into pieces; an error names a text by its place in the whole list."""

from __future__ import annotations

import pytest

from embedshare.client import splitting
from embedshare.errors import InvalidInput, TooLarge


def test_a_text_that_cannot_be_sent_is_named_by_its_place_in_the_whole_list() -> None:
    texts = ["fine"] * 5000
    texts[3333] = "cut \ud83d"
    with pytest.raises(InvalidInput, match=r"text 3333 .* '\\ud83d', at position 4") as caught:
        list(splitting.cut(texts, 8192, 1 << 20))
    caught.value.message.encode()  # the message itself is encodable
    texts[3333] = "\U0001f600" * (1 << 19)
    with pytest.raises(TooLarge, match="text 3333 has 2,097,152 bytes"):
        list(splitting.cut(texts, 8192, 1 << 20))
