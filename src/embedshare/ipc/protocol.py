"""Versions of the wire's messages, and how a client and a server agree on one.

A client opens each connection with the query `describe/N`, where N is the newest version that it speaks. The
server answers with its own newest version, and the client speaks the newest version that both know. Each
release speaks its own version and the one before it at least, so that a rolling upgrade loses no call.
Further apart is IncompatibleVersion, which names the side to upgrade.

- Version 1 has no such exchange: its clients ask `describe`, and its servers know no other form.
- Version 2 adds the exchange, whose answer describes the only model, and the task of an Encode.
- Version 3 wraps a call of a model in Routed, with the model's name and identity. Its exchange describes no
  model: a client asks for the description of each model that it uses.
- Version 4 adds Traced around a call that belongs to a trace, and changes no other message.
- Version 5 adds Score, EncodeOutputs and EncodeImages, the answer Arrays, and the query "vocabulary". A
  client of version 5 raises NotServed for these calls where the server speaks version 4; all others work.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from embedshare.errors import IncompatibleVersion, NotServed, ProtocolError, ServerUnavailable
from embedshare.identity import ModelDescription

#: The newest version that this release speaks, and the oldest.
VERSION = 5
OLDEST = 1
#: The first version whose calls name their model.
ROUTED = 3
#: The first version whose calls may name their trace.
TRACED = 4
#: The first version with scores, several outputs of one pass, and images.
OUTPUTS = 5
#: The query of version 1, without a number.
DESCRIBE = "describe"
_NUMBERED = re.compile(rf"{DESCRIBE}/([1-9][0-9]{{0,3}})\Z")


class Welcome(msgspec.Struct, frozen=True):
    """The value of a server's answer to `describe/N`; later versions may add fields."""

    protocol: int
    """The newest version that the server speaks; it speaks the one before it too."""

    model: ModelDescription | None = None
    """The only model of a server before version 3."""


def question(version: int) -> str:
    """The query that a client of `version` opens a connection with."""
    return DESCRIBE if version == 1 else f"{DESCRIBE}/{version}"


def offered(what: str) -> int | None:
    """The version that a client opens a connection with; None for any other query."""
    if what == DESCRIBE:
        return 1
    numbered = _NUMBERED.match(what) if what.startswith(DESCRIBE) else None
    return int(numbered[1]) if numbered else None


def check_client(version: int) -> None:
    """Raise ServerUnavailable, which every version knows, for a client that is too old for this release.

    A newer client decides by itself, from the server's Welcome.
    """
    if version < OLDEST:
        raise ServerUnavailable(_too_far_apart(version, VERSION, "client"))


def agreed(server: int) -> int:
    """The version for a client of this release and a server whose newest version is `server`.

    Raises IncompatibleVersion if they are two or more apart.
    """
    if server < OLDEST:
        raise IncompatibleVersion(_too_far_apart(VERSION, server, "server"), client=VERSION, server=server)
    if server - 1 > VERSION:
        raise IncompatibleVersion(_too_far_apart(VERSION, server, "client"), client=VERSION, server=server)
    return min(VERSION, server)


def check_outputs(version: int) -> None:
    """Raise NotServed if a server that speaks `version` does not know scores, several outputs and images."""
    if version < OUTPUTS:
        raise NotServed(
            f"the model server speaks version {version} of the protocol; scores, sparse and multi-vector "
            f"outputs and images need version {OUTPUTS}: upgrade the server"
        )


def welcome_in(value: Any) -> Welcome:
    """The Welcome in a reply's value. Raises ProtocolError for any other value."""
    try:
        welcome = msgspec.convert(value, Welcome)
    except msgspec.ValidationError as error:
        raise ProtocolError(f"not a server's welcome: {error}") from None
    if welcome.model is None and welcome.protocol < ROUTED:
        raise ProtocolError(f"a server of version {welcome.protocol} describes its model in its welcome")
    return welcome


def _too_far_apart(client: int, server: int, older: str) -> str:
    return (
        f"the client speaks version {client} of the protocol and the model server version {server}, "
        f"too far apart: upgrade the {older}"
    )
