#!/usr/bin/env bash
# qdrant-edge-py 0.9.0: a sparse vector that has one index twice is taken, stored as it is, and only one of its
# weights counts in a search.
#
# Expected: an error when it is stored, as for a vector of a wrong length; or a score of both weights.
# Seen: the point [7: 1, 7: 1] is stored, comes back as it was given, and scores 1 for the query [7: 1], where the
# dot product of what is stored is 2. It ranks after a point with the one weight 1.5.
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

config = edge.EdgeConfig(sparse_vectors={"words": edge.EdgeSparseVectorParams()})
shard = edge.EdgeShard.create(sys.argv[1], config)
points = {1: edge.SparseVector([7, 7], [1.0, 1.0]), 2: edge.SparseVector([7], [1.5])}
stored = [edge.Point(number, {"words": vector}, {}) for number, vector in points.items()]
shard.update(edge.UpdateOperation.upsert_points(stored))
kept = shard.retrieve([1], False, True)[0].vector["words"]
query = edge.Query.Nearest(edge.SparseVector([7], [1.0]), using="words")
hits = shard.query(edge.QueryRequest(limit=2, query=query, params=edge.SearchParams(exact=True)))
found = [(hit.id, hit.score) for hit in hits]
shard.close()
print("stored", list(kept.indices), list(kept.values), "found", found)
sys.exit((list(kept.indices), found) != ([7, 7], [(2, 1.5), (1, 1.0)]))
PYTHON
