"""An embedding service on LitServe: `python litserve_app.py PORT`."""

import os
import sys

import litserve


class Embedder(litserve.LitAPI):
    """Lives in each worker process; LitServe collects the decoded requests into a batch."""

    def setup(self, device):
        from sentence_transformers import SentenceTransformer

        self.model = SentenceTransformer(os.environ["BENCHMARK_MODEL"], device=device)

    def decode_request(self, request):
        return request["texts"]

    def predict(self, batch):
        rows = iter(self.model.encode([text for texts in batch for text in texts]).tolist())
        return [[next(rows) for _ in texts] for texts in batch]

    def encode_response(self, output):
        return {"embeddings": output}


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"  # the workers inherit it: as many threads of torch as cores, in all
    server = litserve.LitServer(
        Embedder(max_batch_size=32, batch_timeout=0.001, api_path="/embed"),
        accelerator="cpu",
        workers_per_device=os.cpu_count(),
    )
    server.run(host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", generate_client_file=False)
