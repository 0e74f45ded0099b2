"""Version 3 of the wire: its additions byte for byte, which no later release may change."""

from __future__ import annotations

from embedshare.ipc import codec

_TEXT = codec.Encode(7, 1.5, ["one"], "", False, None, None, True, None)

#: By name: the message, and its bytes in hexadecimal.
CALLS = {
    "routed": (
        codec.Routed("bge", "ab" * 32, False, _TEXT),
        "950ca3626765d94061626162616261626162616261626162616261626162616261626162616261626162616261626162616261626162616261626162616261626162616261626162c29a0107cb3ff800000000000091a36f6e65a0c2c0c0c3c0",
    ),
    "routed, defaults": (
        codec.Routed("", None, False, codec.Query(2, 5.0, "models")),
        "950ca0c0c2950302cb4014000000000000a66d6f64656c73c0",
    ),
    "routed, a check": (
        codec.Routed("bge", None, True, codec.Query(2, 5.0, "health")),
        "950ca3626765c0c3950302cb4014000000000000a66865616c7468c0",
    ),
    "manage": (
        codec.Manage(3, 600.0, "load", "bge", 60.0),
        "960b03cb4082c00000000000a46c6f6164a3626765cb404e000000000000",
    ),
    "manage, defaults": (codec.Manage(3, 600.0, "reload"), "960b03cb4082c00000000000a672656c6f6164a0c0"),
    "set models": (
        codec.SetModels(4, 600.0, [{"id": "bge", "preload": True}], 7),
        "950d04cb4082c000000000009182a26964a3626765a77072656c6f6164c307",
    ),
    "clear texts": (
        codec.ClearTexts(5, 600.0, ["one", "two"], "bge", "query: "),
        "960e05cb4082c0000000000092a36f6e65a374776fa3626765a771756572793a20",
    ),
    "clear texts, defaults": (codec.ClearTexts(5, 600.0, ["one"]), "960e05cb4082c0000000000091a36f6e65a0c0"),
}
