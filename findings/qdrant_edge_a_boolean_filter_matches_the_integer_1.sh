#!/usr/bin/env bash
# qdrant-edge-py 0.9.0: `MatchValue(True)` matches a payload's integer 1 and never its boolean true.
#
# Expected: the point whose payload has `ok: true`.
# Seen: the point whose payload has `ok: 1`. The Python bool is taken for the integer that it also is.
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

vectors = edge.EdgeVectorParams(size=2, distance=edge.Distance.Cosine)
shard = edge.EdgeShard.create(sys.argv[1], edge.EdgeConfig(vectors=vectors))
points = [edge.Point(1, [1.0, 0.0], {"ok": True}), edge.Point(2, [1.0, 0.0], {"ok": 1})]
shard.update(edge.UpdateOperation.upsert_points(points))
wanted = edge.Filter(must=[edge.FieldCondition(key="ok", match=edge.MatchValue(True))])
request = edge.QueryRequest(limit=9, query=edge.Query.Nearest([1.0, 0.0]), filter=wanted)
found = [each.id for each in shard.query(request)]
shard.close()
print("found", found)
sys.exit(found != [2])
PYTHON
