"""An embedding service with the model in the web process."""

import os

from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer

app = FastAPI()
model = SentenceTransformer(os.environ["BENCHMARK_MODEL"])


class Texts(BaseModel):
    texts: list[str]


@app.post("/embed")
def embed(body: Texts) -> dict:
    return {"embeddings": model.encode(body.texts).tolist()}
