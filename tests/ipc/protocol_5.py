"""Version 5 of the wire: its additions byte for byte, which no later release may change."""

from __future__ import annotations

from embedshare.ipc import codec

_HEADS = [codec.ArrayHead("dense", "<f4", [1, 8]), codec.ArrayHead("sparse offsets", "<i8", [2])]

#: By name: the message, and its bytes in hexadecimal.
CALLS = {
    "score": (
        codec.Score(7, 1.5, ["q"], ["one", "two"], "query: ", False, "req-1"),
        "981007cb3ff800000000000091a17192a36f6e65a374776fa771756572793a20c2a57265712d31",
    ),
    "score, defaults": (codec.Score(8, 1.5, [], ["one"], ""), "981008cb3ff80000000000009091a36f6e65a0c3c0"),
    "score, the model's own prompts": (
        codec.Score(8, 1.5, [], ["one"], None),
        "981008cb3ff80000000000009091a36f6e65c0c3c0",
    ),
    "encode outputs": (
        codec.EncodeOutputs(
            9,
            30.0,
            ["one"],
            "query: ",
            ["dense", "sparse", "multi-vector"],
            True,
            8,
            16,
            False,
            "query",
            "req-2",
        ),
        "9c1109cb403e00000000000091a36f6e65a771756572793a2093a564656e7365a6737061727365ac6d756c74692d766563746f72c30810c2a57175657279a57265712d32",
    ),
    "encode outputs, defaults": (
        codec.EncodeOutputs(10, 30.0, ["one"], "", ["sparse"], False),
        "9c110acb403e00000000000091a36f6e65a091a6737061727365c2c0c0c3c0c0",
    ),
    "encode images": (
        codec.EncodeImages(11, 30.0, [3, 70000], True, 8, "req-3"),
        "97120bcb403e0000000000009203ce00011170c308a57265712d33",
    ),
    "encode images, defaults": (
        codec.EncodeImages(12, 30.0, [3], False),
        "97120ccb403e0000000000009103c2c0c0",
    ),
}

#: By name: the message, and its bytes in hexadecimal.
ANSWERS = {
    "arrays": (
        codec.Arrays(9, codec.Timings(0.25, 1.5, 3.0), [3], _HEADS),
        "95050993cb3fd0000000000000cb3ff8000000000000cb400800000000000091039293a564656e7365a33c663492010893ae737061727365206f666673657473a33c69389102",
    )
}
