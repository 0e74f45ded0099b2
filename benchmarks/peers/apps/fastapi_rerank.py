"""A reranking service with the model in the web process."""

import os

from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import CrossEncoder

app = FastAPI()
model = CrossEncoder(os.environ["BENCHMARK_MODEL"], device="cpu")


class Ranking(BaseModel):
    query: str
    texts: list[str]


@app.post("/rerank")
def rerank(body: Ranking) -> list[dict]:
    found = model.rank(body.query, body.texts)
    return [{"index": one["corpus_id"], "score": float(one["score"])} for one in found]
