"""Eight processes with the same large index: one of them sends it to the server, even after a crash."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from embedshare.vectors.client import file_format
from tests.processes import ModelServer

COUNT = 20_000
#: The index takes 31 MB: the server has room for one copy, not two.
LIMIT = str(48 << 20)
WORKER = """
import os, signal, sys
from embeddingClient import EmbeddingClient
from embedshare.settings import Settings

class Counting(EmbeddingClient):
    puts = 0
    def ask_of_index(self, method, both, deadline):
        self.puts += method == "put"
        if self.puts == 40:
            try:
                os.close(os.open(sys.argv[2], os.O_CREAT | os.O_EXCL))
                os.kill(os.getpid(), signal.SIGKILL)
            except FileExistsError:
                pass
        return super().ask_of_index(method, both, deadline)

model = Counting(settings=Settings.load(), max_retries=3, retry_delay=0.2)
index, embeddings, metadata = model.load_vector_index(sys.argv[1])
model.encode("connected")
sys.stdout.write("ready\\n")
sys.stdout.flush()
sys.stdin.readline()
found = [[entry["id"] for entry in model.search_index("a", index, metadata, 3)] for _ in range(3)]
sys.stdout.write(f"{found[0] == found[1] == found[2]} {found[0]} {model.puts}\\n")
"""


def test_one_of_eight_sends_and_another_takes_over_when_it_is_killed(tmp_path: Path) -> None:
    server = ModelServer(tmp_path, EMBEDDING_MAX_INDEX_BYTES=LIMIT).start()
    with server.client(EMBEDDING_FALLBACK="none") as client:
        description = client.describe()
        rows = np.random.default_rng(3).normal(size=(COUNT, 384)).astype(np.float32)
        rows[7] = client.encode("a")
        about = file_format.About(
            file_format.FORM, "5c" * 16, description.identity, "m", "l2", "flat", None, COUNT,
            [{"id": number} for number in range(COUNT)],
        )  # fmt: skip
        file_format.write(tmp_path / "large", about, np.arange(COUNT), rows)
        del rows
        # Small messages: the index takes about 480 of them, and the first sender ends after 39.
        env = server.environment(EMBEDDING_FALLBACK="none", EMBEDDING_MAX_MESSAGE_BYTES="65536")
        command = [sys.executable, "-c", WORKER, str(tmp_path / "large"), str(tmp_path / "killed")]
        workers = [
            subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(8)
        ]
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("\n")
            worker.stdin.flush()
        said = [worker.communicate(timeout=100)[0] for worker in workers]
        codes = [worker.returncode for worker in workers]
        assert sorted(codes) == [-9] + [0] * 7, said
        answers = [line.split() for line in said if line]
        assert all(answer[:2] == ["True", "[7,"] for answer in answers), said
        puts = sorted(int(answer[-1]) for answer in answers)
        assert puts[-1] > 400, puts
        assert puts[-2] < 60, f"one sends, the others only ask whether they should: {puts}"
        indexes = client.stats()["indexes"]
        assert (indexes["count"], indexes["evicted"]) == (1, 0)
    assert server.stop() == 0
