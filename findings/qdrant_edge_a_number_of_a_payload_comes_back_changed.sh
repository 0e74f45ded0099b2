#!/usr/bin/env bash
# qdrant-edge-py 0.9.0: a float in a payload may come back with another last digit, without reopening.
#
# Expected: 1.9129227050103194e+25, as it was stored; both are doubles.
# Seen: 1.9129227050103192e+25. A probable cause is JSON that is parsed without serde_json's float_roundtrip.
#
# Ends with 0 where that is so, with 1 where it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "qdrant-edge-py==0.9.0" 2>/dev/null
mkdir "$folder/shard"
"$folder/venv/bin/python" - "$folder/shard" <<'PYTHON'
import sys

import qdrant_edge as edge

NUMBER = 1.9129227050103194e25
vectors = edge.EdgeVectorParams(size=2, distance=edge.Distance.Cosine)
shard = edge.EdgeShard.create(sys.argv[1], edge.EdgeConfig(vectors=vectors))
shard.update(edge.UpdateOperation.upsert_points([edge.Point(1, [1.0, 0.0], {"n": NUMBER})]))
found = shard.retrieve([1], True, False)[0].payload["n"]
shard.close()
print("stored", NUMBER, "found", found)
sys.exit(found == NUMBER)
PYTHON
