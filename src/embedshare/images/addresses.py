"""Images that callers name by a text: a data URL, base64, or a URL of a host that a setting names."""

from __future__ import annotations

from collections.abc import Mapping

from embedshare.errors import FetchFailed, InvalidImage, MissingDependency, TooLarge
from embedshare.images import data_url
from embedshare.settings import Settings

_URLS = ("http://", "https://")


def is_url(text: str) -> bool:
    """Whether a text is the URL of a web server."""
    return text.startswith(_URLS) and " " not in text


class ImageAddresses:
    """Gives the content of the images' files, by the settings."""

    def __init__(self, settings: Settings) -> None:
        self._max_bytes = settings.server.max_image_bytes
        self._max_bytes_of_all = settings.server.max_message_bytes
        self._hosts = settings.client.image_hosts

    def contents(self, addresses: Mapping[int, str], deadline: float) -> list[bytes]:
        """The files of a request's images, by their numbers in it; the rest: as of `content`.

        Raises TooLarge for more bytes than EMBEDDING_MAX_MESSAGE_BYTES, of which no more are held.
        """
        files, left = [], self._max_bytes_of_all
        for number, address in addresses.items():
            files.append(self.content(address, number, deadline))
            left -= len(files[-1])
            if left < 0:
                raise TooLarge(
                    f"the images up to number {number} have more than {self._max_bytes_of_all:,} bytes, "
                    "which EMBEDDING_MAX_MESSAGE_BYTES allows for a request"
                )
        return files

    def content(self, address: str, number: int, deadline: float) -> bytes:
        """The image's file. A URL is fetched by the moment `deadline` of `time.monotonic()`.

        `number`: the image's number in its call, for errors. Raises InvalidImage, also for a host that
        EMBEDDING_IMAGE_HOSTS does not name and for a file that cannot be fetched; and MissingDependency.
        """
        if not is_url(address):
            return data_url.image_in(address, self._max_bytes, number)
        try:
            from embedshare.websearch.address_policy import AddressPolicy
            from embedshare.websearch.fetcher import Fetcher
        except ImportError as error:
            raise MissingDependency(
                f"fetching an image needs a package that is not installed ({error}): "
                "pip install 'embedshare[search]'"
            ) from None
        addresses = AddressPolicy(self._hosts, only_named_in="EMBEDDING_IMAGE_HOSTS")
        try:
            return Fetcher(addresses).fetch_file(address, deadline, self._max_bytes)
        except FetchFailed as error:
            raise InvalidImage(f"image {number} was not fetched: {error.message}", image=number) from None
