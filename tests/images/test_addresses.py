"""Images that a request names are read within the limits of one image and of a message."""

from __future__ import annotations

import time
from typing import Any

import pytest

from embedshare.errors import TooLarge
from embedshare.images.addresses import ImageAddresses
from embedshare.settings import Settings
from tests.images.site import Site, serving


def test_no_more_bytes_are_fetched_than_a_message_may_have() -> None:
    settings = Settings().with_values({"EMBEDDING_IMAGE_HOSTS": "127.0.0.1"})
    small = settings.with_values({"EMBEDDING_MAX_MESSAGE_BYTES": 1 << 17})
    with serving() as site:
        addresses = {3 * number: f"{site}/large.png" for number in range(4)}

        def fetched(by: Any) -> list[bytes]:
            found: list[bytes] = ImageAddresses(by).contents(addresses, time.monotonic() + 20)
            return found

        with pytest.raises(TooLarge, match="up to number 3 have more than 131,072 bytes"):
            fetched(small)
        assert len(Site.asked) == 2
        assert [len(one) for one in fetched(settings)] == [70_000] * 4
