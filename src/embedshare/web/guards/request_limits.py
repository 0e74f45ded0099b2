"""Limits the size of one request."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass

from embedshare.errors import TooLarge
from embedshare.settings import Settings


@dataclass(frozen=True)
class RequestLimits:
    """The limits of a request: texts, characters of one text, and of all; 0 characters are no limit.

    Characters, not tokens: the model server counts those, and truncates each text at the model's longest
    sequence. So texts bound the computation, and characters the tokenizing.
    """

    texts: int
    text_chars: int = 0
    request_chars: int = 0

    @classmethod
    def of(cls, settings: Settings) -> RequestLimits:
        return cls(settings.server.max_texts, settings.web.max_text_chars, settings.web.max_request_chars)

    def check(self, texts: Sequence[Sized], what: str = "texts") -> None:
        """Raise TooLarge, with the limit's name, for too many or too long `texts`.

        Each id of a sequence of token ids counts as a character.
        """
        if len(texts) > self.texts:
            raise _over(f"{len(texts):,} {what} in one request", "EMBEDDING_MAX_TEXTS", self.texts)
        if not (self.text_chars or self.request_chars):
            return
        lengths = [len(text) for text in texts]
        if self.text_chars and max(lengths, default=0) > self.text_chars:
            longest = max(lengths)
            said = f"{what}[{lengths.index(longest)}] has {longest:,} characters"
            raise _over(said, "EMBEDDING_MAX_TEXT_CHARS", self.text_chars)
        if self.request_chars and sum(lengths) > self.request_chars:
            said = f"{sum(lengths):,} characters in one request"
            raise _over(said, "EMBEDDING_MAX_REQUEST_CHARS", self.request_chars)


def _over(what: str, setting: str, limit: int) -> TooLarge:
    return TooLarge(f"{what}; {setting} allows {limit:,}")
