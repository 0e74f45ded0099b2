"""An embedding service on mosec: `python mosec_app.py --port PORT`."""

import os

from mosec import Server, Worker


class Embedder(Worker):
    """Lives in each worker process; mosec hands it a batch of requests."""

    def __init__(self):
        from sentence_transformers import SentenceTransformer

        self.model = SentenceTransformer(os.environ["BENCHMARK_MODEL"])

    def forward(self, data):
        rows = iter(self.model.encode([text for body in data for text in body["texts"]]).tolist())
        return [{"embeddings": [next(rows) for _ in body["texts"]]} for body in data]


if __name__ == "__main__":
    cores = os.cpu_count()
    server = Server()
    server.append_worker(
        Embedder,
        num=cores,
        max_batch_size=32,
        max_wait_time=1,  # ms
        env=[{"OMP_NUM_THREADS": "1"}] * cores,  # as many threads of torch as cores, in all
        route="/embed",
    )
    server.run()
