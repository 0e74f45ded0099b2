"""The library's own `encode`, as the last runtime, reads every text as a text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.images.small_clip import clip, file_of, picture


def test_a_text_that_names_an_image_is_a_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sentence_transformers import SentenceTransformer

    from embedshare.engine.runtimes import whole

    monkeypatch.setattr("httpx.get", lambda *_, **__: pytest.fail("a URL was fetched"))
    model = SentenceTransformer(str(clip(tmp_path)), device="cpu")
    path = tmp_path / "plain.png"
    path.write_bytes(file_of(picture()))
    texts = [str(path), "https://a.example/plain.png", "data:image/png;base64,", "a cat"]
    expected = model.encode([{"text": text} for text in texts])
    tokenizer = whole.WholeTokenizer(model, 77)
    ids = tokenizer.ids(texts)
    runtime = whole.WholeRuntime(model, 32, whole.encode(model, 32))
    np.testing.assert_allclose(runtime.run(tokenizer(texts)), expected, atol=1e-6)
    assert ids == [model.tokenizer(text)["input_ids"] for text in texts]
