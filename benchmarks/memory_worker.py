"""A worker whose memory is measured: `python memory_worker.py client|local MODEL < texts as JSON`.

It imports what such a worker imports and nothing else, embeds the texts once, prints `ready`, and stays until
its standard input closes.
"""

from __future__ import annotations

import faulthandler
import json
import sys

START_LIMIT_S = 300


def main() -> None:
    kind, model_folder = sys.argv[1:]
    faulthandler.dump_traceback_later(START_LIMIT_S, exit=True)
    texts = json.loads(sys.stdin.readline())
    if kind == "client":
        from embeddingClient import get_embedding_model

        model = get_embedding_model()
        model.encode(texts)
        health = model.health()
        assert health["state"] == "connected", health
        assert not health["fallbacks"], health
    else:
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(model_folder)
        model.encode(texts)
    faulthandler.cancel_dump_traceback_later()
    print("ready", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
