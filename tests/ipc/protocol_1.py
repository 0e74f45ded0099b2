"""Version 1 of the wire: its messages byte for byte, which no later release may change.

A current server still answers a client of that version, and a current client uses a server of that version.
"""

from __future__ import annotations

from embedshare.ipc import codec

_INDEX = bytes(range(16))

#: By name: the message, and its bytes in hexadecimal.
CALLS = {
    "encode": (
        codec.Encode(
            id=7,
            time_left_s=1.5,
            texts=["one", "zwei é"],
            prompt="query: ",
            normalize=True,
            truncate_dim=128,
            request_id="req-1",
            truncate=False,
        ),
        "990107cb3ff800000000000092a36f6e65a77a77656920c3a9a771756572793a20c3cc80a57265712d31c2",
    ),
    "encode, defaults": (
        codec.Encode(
            id=7,
            time_left_s=1.5,
            texts=["one"],
            prompt="",
            normalize=False,
            truncate_dim=None,
            request_id=None,
            truncate=True,
        ),
        "990107cb3ff800000000000091a36f6e65a0c2c0c0c3",
    ),
    "tokenize": (
        codec.Tokenize(
            id=8,
            time_left_s=2.0,
            texts=["one"],
            prompt="",
            request_id="req-1",
            detailed=True,
            special_tokens=False,
        ),
        "980208cb400000000000000091a36f6e65a0a57265712d31c3c2",
    ),
    "tokenize, defaults": (
        codec.Tokenize(
            id=8,
            time_left_s=2.0,
            texts=["one"],
            prompt="",
            request_id=None,
            detailed=False,
            special_tokens=True,
        ),
        "980208cb400000000000000091a36f6e65a0c0c2c3",
    ),
    "describe": (
        codec.Query(
            id=1, time_left_s=5.0, what="describe", caller=codec.Caller(pid=4242, program="worker.py")
        ),
        "950301cb4014000000000000a8646573637269626592cd1092a9776f726b65722e7079",
    ),
    "query": (
        codec.Query(id=2, time_left_s=5.0, what="active_operations", caller=None),
        "950302cb4014000000000000b16163746976655f6f7065726174696f6e73c0",
    ),
    "swap": (
        codec.Swap(
            id=3,
            time_left_s=600.0,
            model_name="some/model",
            settings=codec.ModelSettings(
                device="cpu", max_batch_size=32, model_cache_dir="/models", version=9
            ),
        ),
        "950403cb4082c00000000000aa736f6d652f6d6f64656c94a363707520a72f6d6f64656c7309",
    ),
    "swap, defaults": (
        codec.Swap(id=3, time_left_s=600.0, model_name="some/model", settings=None),
        "950403cb4082c00000000000aa736f6d652f6d6f64656cc0",
    ),
    "put": (
        codec.Put(
            id=4,
            time_left_s=30.0,
            index=_INDEX,
            identity="abababababababababababababababababababababababababababababababab",
            version=5,
            metric="cosine",
            kind="hnsw",
            dimension=384,
            start=0,
            total=1000,
            count=500,
        ),
        "9c0504cb403e000000000000c410000102030405060708090a0b0c0d0e0fd9406162616261626162616261626162616261626162616261626162616261626162616261626162616261626162616261626162616261626162616261626162616205a6636f73696e65a4686e7377cd018000cd03e8cd01f4",
    ),
    "search": (
        codec.Search(
            id=5,
            time_left_s=30.0,
            index=_INDEX,
            version=5,
            text="what",
            prompt="query: ",
            k=3,
            truncate_dim=64,
            request_id="req-2",
        ),
        "9a0605cb403e000000000000c410000102030405060708090a0b0c0d0e0f05a477686174a771756572793a200340a57265712d32",
    ),
    "search, defaults": (
        codec.Search(
            id=5,
            time_left_s=30.0,
            index=_INDEX,
            version=5,
            text="what",
            prompt="",
            k=3,
            truncate_dim=None,
            request_id=None,
        ),
        "9a0605cb403e000000000000c410000102030405060708090a0b0c0d0e0f05a477686174a003c0c0",
    ),
    "remove": (
        codec.Remove(id=6, time_left_s=30.0, index=_INDEX, before=5, version=6, ids=[1, 2, 1099511627776]),
        "970706cb403e000000000000c410000102030405060708090a0b0c0d0e0f0506930102cf0000010000000000",
    ),
    "inspect": (
        codec.Inspect(id=9, time_left_s=30.0, index=_INDEX),
        "940809cb403e000000000000c410000102030405060708090a0b0c0d0e0f",
    ),
    "forget": (
        codec.Forget(id=10, time_left_s=30.0, indexes=[_INDEX]),
        "94090acb403e00000000000091c410000102030405060708090a0b0c0d0e0f",
    ),
    "encode tokens": (
        codec.EncodeTokens(
            id=11,
            time_left_s=30.0,
            sequences=[[101, 2028, 102], [101, 102]],
            normalize=True,
            truncate_dim=64,
            request_id="req-3",
        ),
        "970a0bcb403e000000000000929365cd07ec66926566c340a57265712d33",
    ),
    "encode tokens, defaults": (
        codec.EncodeTokens(
            id=11,
            time_left_s=30.0,
            sequences=[[101, 102]],
            normalize=False,
            truncate_dim=None,
            request_id=None,
        ),
        "970a0bcb403e00000000000091926566c2c0c0",
    ),
}

#: By name: the message, and its bytes in hexadecimal.
ANSWERS = {
    "rows": (
        codec.Rows(
            id=7,
            count=2,
            dimension=384,
            timings=codec.Timings(tokenize_ms=0.25, queue_ms=1.5, compute_ms=3.0),
            token_counts=[3, 5],
        ),
        "96010702cd018093cb3fd0000000000000cb3ff8000000000000cb4008000000000000920305",
    ),
    "reply": (codec.Reply(id=2, value=3), "93020203"),
    "description": (
        codec.Reply(
            id=1,
            value={
                "identity": "abababababababababababababababababababababababababababababababab",
                "model_name": "all-MiniLM-L6-v2",
                "dimension": 384,
                "max_seq_length": 256,
                "prompts": {"query": "query: "},
                "default_prompt_name": None,
                "similarity_fn_name": "cosine",
                "tokenizer_inputs": ["input_ids", "attention_mask"],
                "padding_token_id": 0,
                "device": "cpu",
                "dtype": "float32",
                "runtime": "openvino",
            },
        ),
        "9302018ca86964656e74697479d94061626162616261626162616261626162616261626162616261626162616261626162616261626162616261626162616261626162616261626162616261626162aa6d6f64656c5f6e616d65b0616c6c2d4d696e694c4d2d4c362d7632a964696d656e73696f6ecd0180ae6d61785f7365715f6c656e677468cd0100a770726f6d70747381a57175657279a771756572793a20b364656661756c745f70726f6d70745f6e616d65c0b273696d696c61726974795f666e5f6e616d65a6636f73696e65b0746f6b656e697a65725f696e7075747392a9696e7075745f696473ae617474656e74696f6e5f6d61736bb070616464696e675f746f6b656e5f696400a6646576696365a3637075a56474797065a7666c6f61743332a772756e74696d65a86f70656e76696e6f",
    ),
    "failure": (
        codec.Failure(id=7, error="Overloaded", message="too much is waiting", fields={"retry_after_s": 0.5}),
        "950307aa4f7665726c6f61646564b3746f6f206d7563682069732077616974696e6781ad72657472795f61667465725f73cb3fe0000000000000",
    ),
    "hits": (
        codec.Hits(id=5, count=3, timings=codec.Timings(tokenize_ms=0.25, queue_ms=1.5, compute_ms=3.0)),
        "9404050393cb3fd0000000000000cb3ff8000000000000cb4008000000000000",
    ),
}
