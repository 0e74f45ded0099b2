"""An embedding service on gunicorn's dirty workers: the HTTP side and the model's side."""

import os

from fastapi import FastAPI
from gunicorn.dirty import DirtyApp, get_dirty_client_async
from pydantic import BaseModel

app = FastAPI()


class Texts(BaseModel):
    texts: list[str]


@app.post("/embed")
async def embed(body: Texts) -> dict:
    dirty = await get_dirty_client_async()
    vectors = await dirty.execute_async("gunicorn_dirty_app:Embedder", "embed", body.texts)
    return {"embeddings": vectors}


class Embedder(DirtyApp):
    """Lives in the dirty worker."""

    def init(self):
        from sentence_transformers import SentenceTransformer

        self.model = SentenceTransformer(os.environ["BENCHMARK_MODEL"])

    def embed(self, texts):
        return self.model.encode(texts).tolist()

    def close(self):
        del self.model
