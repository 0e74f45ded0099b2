"""How much one request may ask for."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass

from embedshare.errors import TooLarge
from embedshare.settings import Settings


@dataclass(frozen=True)
class RequestLimits:
    """The most that a request may hold: texts, characters of one text, and of all; 0 characters are no limit.

    Characters and not tokens: these are the model server's to count, which cuts each text at the model's
    longest sequence. So texts bound what is computed, and characters what is cut into tokens for it.
    """

    texts: int
    text_chars: int = 0
    request_chars: int = 0

    @classmethod
    def of(cls, settings: Settings) -> RequestLimits:
        return cls(settings.server.max_texts, settings.web.max_text_chars, settings.web.max_request_chars)

    def check(self, texts: Sequence[Sized], what: str = "texts") -> None:
        """Raises TooLarge, with the limit's name, where `texts` are more than is allowed.

        Of a sequence of token ids each id counts as a character.
        """
        if len(texts) > self.texts:
            raise _over(f"{len(texts):,} {what} came in one request", "EMBEDDING_MAX_TEXTS", self.texts)
        if not (self.text_chars or self.request_chars):
            return
        lengths = [len(text) for text in texts]
        if self.text_chars and max(lengths, default=0) > self.text_chars:
            longest = max(lengths)
            said = f"{what}[{lengths.index(longest)}] has {longest:,} characters"
            raise _over(said, "EMBEDDING_MAX_TEXT_CHARS", self.text_chars)
        if self.request_chars and sum(lengths) > self.request_chars:
            said = f"{sum(lengths):,} characters came in one request"
            raise _over(said, "EMBEDDING_MAX_REQUEST_CHARS", self.request_chars)


def _over(what: str, setting: str, limit: int) -> TooLarge:
    return TooLarge(f"{what}; {setting} allows {limit:,}")
